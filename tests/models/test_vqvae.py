"""The VQ-VAE: the paper's loss and gradients, the moving codebook, its dead codes, the law of its codes."""

import itertools
import math
from dataclasses import replace

import pyro
import pyro.infer
import pytest
import torch
from torch.testing import assert_close

import ppl_vae as pv
from ppl_vae.codebooks import perplexity
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import Batch
from ppl_vae.infer.callbacks import Run
from ppl_vae.infer.processes import Share

P, K, D = 3, 5, 2


def vqvae(book=pv.codebooks.Learned, positions=P, seed=0, **options):
    torch.manual_seed(seed)
    size = positions * D
    return pv.models.VQVAE(
        pv.nets.mlp_decoder(6, 8, size), pv.nets.mlp_decoder(size, 8, 6), book(K, D), positions,
        pv.likelihoods.Gaussian(0.5), **options,
    )  # fmt: skip


def data(n=40, seed=1):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def by_hand(model, x, weights):
    """The paper's loss, with the likelihood in nats and the code of a uniform prior."""
    e = model.encoder(x).reshape(len(x), P, D)
    index = (e[:, :, None] - model.codebook.codes).square().sum(-1).argmin(-1)
    c = model.codebook.codes[index]
    z = e + (c - e).detach()
    mean = model.decoder(z.reshape(len(x), -1))
    log_p = -0.5 * ((x - mean) / 0.5).square().sum(1) - 6 * (math.log(0.5) + 0.5 * math.log(2 * math.pi))
    quantisation = (e.detach() - c).square().sum((1, 2))
    commitment = 0.25 * (e - c.detach()).square().sum((1, 2))
    loss = -(weights * (log_p - P * math.log(K) - quantisation - commitment)).sum()
    return loss, (weights * (log_p - P * math.log(K))).sum()


def test_objective_and_gradients_are_those_of_the_paper():
    model, x = vqvae().train(), data(12)
    weights = torch.linspace(0.0, 2.0, 12)
    loss, bound = by_hand(model, x, weights)
    named = dict(model.named_parameters())
    expected = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    climbed = ModelObjective(model, pv.elbo(), 1.0)
    leaves = [p.detach().requires_grad_() for p in climbed.dense]
    part = climbed.pieces(Batch(model.check(x), weights, None, 12), 1.0, 1)[0]
    value, found, *_ = climbed.sums(leaves, part.rest, part.names)
    assert_close(value, -loss)
    assert_close(found, bound)
    for name, gradient in zip(climbed.names, torch.autograd.grad(-value, leaves), strict=True):
        assert gradient.abs().max() > 0, name
        assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_bound_is_the_term_of_the_chosen_codes():
    model, x = vqvae(positions=1).eval(), data(8)
    with torch.no_grad():
        each = torch.stack([model.likelihood(model.decoder(c.expand(8, D))).log_prob(x) for c in model.codebook.codes])
        exact = torch.logsumexp(each, 0) - math.log(K)
        index = model.codes(x)[:, 0]
    assert_close(model.elbo(x), each[index, torch.arange(8)] - math.log(K))
    evidence = model.evidence(x)
    assert evidence.method == "bound"
    assert (evidence.value < exact).all()
    assert torch.equal(model.log_prob(x), model.elbo(x))


def test_the_pyro_programs_have_the_bound_without_penalties():
    model, x = vqvae().eval().requires_grad_(False), data(8)
    loss = pyro.infer.Trace_ELBO().loss(model.model, model.guide, x)
    assert loss == pytest.approx(-model.elbo(x).sum().item(), rel=1e-5)


class Diary(pv.Callback):
    """What the codebook counted in each step, and its codes after it."""

    def __init__(self):
        self.counts, self.codes = [], []

    def begin(self, run, step):
        self.codes.append(run.model.codebook.codes.detach().clone())

    def end(self, run, step, metrics):
        self.counts.append(run.model.codebook.count.clone())


def test_averaged_codes_are_online_k_means_by_hand():
    """Two codes to a datum, data of weights, a fixed encoder."""
    model = vqvae(lambda k, d: pv.codebooks.Averaged(k, d, decay=0.8))
    x, weights = data(60), torch.rand(60, generator=torch.Generator().manual_seed(5)) + 0.5
    diary = Diary()
    engine = pv.SVI(
        12, optimizer=pv.sgd(0.0), callbacks=[diary, pv.CodebookUpdates(revive=0.0)], compile="trace", progress=False
    )
    fit = engine.fit(model, x, weights)
    with torch.no_grad():
        e = model.encoder(x).reshape(-1, D)
    w = weights.repeat_interleave(P)
    codes, count, total = diary.codes[1], torch.zeros(K), torch.zeros(K, D)
    assert all((e == code).all(1).any() for code in codes)  # they start at encodings
    for step in range(1, 12):
        assert_close(diary.codes[step], codes)
        r = torch.nn.functional.one_hot(torch.cdist(e, codes).argmin(1), K) * w[:, None]
        count, total = 0.8 * count + 0.2 * r.sum(0), 0.8 * total + 0.2 * r.T @ e
        codes = torch.where(count[:, None] > 0, total / count[:, None], codes)
    assert_close(fit.model.codebook.codes, codes)
    distance = [torch.cdist(e, c).min(1).values.square() @ w for c in diary.codes[1:]]
    assert distance[-1] < 0.9 * distance[0]


def test_rows_that_fill_a_batch_are_not_counted_and_pieces_add_up():
    x, seen = data(10), {}
    for pieces in (1, 2):
        diary = Diary()
        engine = pv.SVI(
            1, 4, optimizer=pv.sgd(0.0), callbacks=[diary, pv.CodebookUpdates()], accumulate=pieces, progress=False
        )
        engine.fit(vqvae(), x)
        seen[pieces] = diary.counts
    assert [int(count.sum()) for count in seen[1]] == [4 * P, 4 * P, 2 * P]
    assert torch.equal(seen[1][0], seen[2][0])  # later codes are other ones: they start at encodings of a piece


@pytest.mark.parametrize("book", [pv.codebooks.Learned, pv.codebooks.Averaged])
def test_dead_codes_start_anew_at_encodings_when_an_epoch_ends(book):
    model = vqvae(book)
    codebook = model.codebook
    updates = pv.CodebookUpdates(revive=0.5)
    run = Run("SVI", model, total=6, steps_per_epoch=2)
    updates.set_up(run)
    updates.end(run, 0, {})
    before = codebook.codes.detach().clone()
    codebook.count.copy_(torch.tensor([4.0, 0.0, 3.0, 0.1, 3.0]))
    codebook.total.copy_(codebook.count[:, None] * before)
    codebook.seen.copy_(torch.arange(10.0).reshape(K, D) + 100)
    updates.end(run, 1, {})
    dead = torch.tensor([False, True, False, True, False])
    assert_close(codebook.codes[~dead], before[~dead])
    assert {tuple(row) for row in codebook.codes[dead].tolist()} < {tuple(row) for row in codebook.seen.tolist()}
    expected = perplexity(torch.tensor([4.0, 0.0, 3.0, 0.1, 3.0])).item()
    assert updates.perplexity == [pytest.approx(expected)]
    assert not codebook.used.any()
    if book is pv.codebooks.Averaged:
        assert not codebook.running_count[dead].any()
    # At the very end nothing is revived: the decoder would not know the new codes.
    last = codebook.codes.detach().clone()
    codebook.count.copy_(torch.tensor([4.0, 0.0, 3.0, 0.0, 3.0]))
    codebook.total.copy_(codebook.count[:, None] * last)
    updates.end(run, 5, {})
    assert_close(codebook.codes, last)


def test_perplexity_counts_codes_alike():
    assert perplexity(torch.ones(7)).item() == pytest.approx(7.0)
    assert perplexity(torch.tensor([3.0, 0.0])).item() == pytest.approx(1.0)
    model, x = vqvae(), data(50)
    share = torch.bincount(model.codes(x).flatten(), minlength=K).double() / (50 * P)
    share = share[share > 0]
    assert model.perplexity(x).item() == pytest.approx((-(share * share.log()).sum()).exp().item(), rel=1e-5)


@pytest.mark.parametrize("book", [pv.codebooks.Learned, pv.codebooks.Averaged])
def test_traced_steps_go_the_way_of_eager_ones(book):
    fits = {}
    for mode in ("off", "trace"):
        updates = pv.CodebookUpdates()
        fits[mode] = pv.SVI(4, 16, pv.adam(1e-2), callbacks=[updates], compile=mode, progress=False).fit(
            vqvae(book), data()
        )
    for name, value in fits["off"].model.state_dict().items():
        assert_close(fits["trace"].model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for name in ("bound", "penalty: quantisation", "penalty: commitment"):
        assert_close(fits["trace"].trace[name], fits["off"].trace[name], rtol=1e-4, atol=1e-4)
    assert fits["trace"].status.notes == ()  # the checked step agreed


def test_a_resumed_fit_ends_where_the_whole_one_does(tmp_path):
    class Stop(pv.Callback):
        def end(self, run, step, metrics):
            if step == 4:
                raise RuntimeError("enough")

    def fit(folder, more=()):
        engine = pv.SVI(
            3, 16, checkpoint=pv.checkpoints(folder, steps=1), callbacks=[pv.CodebookUpdates(), *more],
            compile="off", progress=False,
        )  # fmt: skip
        return engine.fit(vqvae(pv.codebooks.Averaged), data())

    whole = fit(tmp_path / "whole")
    with pytest.raises(pv.EngineError, match="enough"):
        fit(tmp_path / "part", [Stop()])
    rest = fit(tmp_path / "part")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name


def test_what_is_wrong_is_said():
    with pytest.warns(UserWarning, match=r"did not follow.*CodebookUpdates"):
        pv.SVI(1, progress=False).fit(vqvae(pv.codebooks.Averaged), data())
    vae = pv.models.VAE(pv.nets.mlp_encoder(6, 4, 2), pv.nets.mlp_decoder(2, 4, 6), "gaussian")
    with pytest.raises(pv.EngineError, match="VAE has no codebook"):
        pv.SVI(1, callbacks=[pv.CodebookUpdates()], progress=False).fit(vae, data())
    with pytest.raises(pv.DataError, match="encodings have 2 numbers, the codes of this codebook 3"):
        pv.codebooks.Quantized(torch.zeros(4, P, 2), pv.codebooks.Learned(K, 3))
    with pytest.raises(pv.DeclarationError, match="decay must be in"):
        pv.codebooks.Averaged(2, 2, decay=1.0)
    with pytest.raises(pv.EngineError, match=r"revive is a part .* got 2"):
        pv.CodebookUpdates(revive=2)


# The law of the codes.


def test_an_autoregressive_law_is_a_law():
    torch.manual_seed(0)
    law = pv.code_priors.Autoregressive(3, 4, hidden=8)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    with torch.no_grad():
        assert_close(law().log_prob(every).exp().sum(), torch.tensor(1.0))
        # A code says nothing about those before it.
        logits = law.logits(every)[:, :3]
        for t in range(3):
            first = {tuple(c[:t].tolist()): row for c, row in zip(every, logits[:, t], strict=True)}
            assert all(torch.allclose(first[tuple(c[:t].tolist())], logits[i, t]) for i, c in enumerate(every))
        n = 4000
        draws = law().sample((n,))
        share = torch.zeros(4, 4, 4).index_put(tuple(draws.T), torch.ones(n), accumulate=True).flatten() / n
        p = law().log_prob(every).exp()
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt() + 1 / n).all()


def pairs(n):
    """Codes of which the second repeats the first, and the third is free."""
    codes = torch.randint(4, (n, 3), generator=torch.Generator().manual_seed(0))
    codes[:, 1] = codes[:, 0]
    return codes


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_laws_are_fitted_by_likelihood(mode):
    codes, entropy = pairs(512), {"Independent": 3 * math.log(4), "Autoregressive": 2 * math.log(4)}
    for law in (pv.code_priors.Independent, pv.code_priors.Autoregressive):
        torch.manual_seed(0)
        engine = pv.SVI(25, 64, pv.adam(2e-2), compile=mode, progress=False)
        fit = engine.fit(pv.models.CodePrior(law(3, 4)), codes)
        found = fit.log_prob(pairs(512)).mean().item()
        assert found == pytest.approx(-entropy[law.__name__], abs=0.15)


def test_a_refitted_prior_gains_its_own_likelihood_and_is_sampled(tmp_path):
    x = data(64)
    before = pv.SVI(5, 32, pv.adam(1e-2), callbacks=[pv.CodebookUpdates()], progress=False).fit(vqvae(), x)
    law = pv.code_priors.Autoregressive(P, K, hidden=8)
    after = pv.refit_codes(before, x, law, pv.SVI(20, 32, pv.adam(2e-2), progress=False))
    codes = before.model.codes(x)
    with torch.no_grad():
        expected = after.model.prior().log_prob(codes) + P * math.log(K)
    assert_close(after.elbo(x) - before.elbo(x), expected, rtol=1e-4, atol=1e-4)
    assert expected.mean() > 0
    assert isinstance(before.model.prior, pv.code_priors.Uniform)
    drawn = after.model.sample_joint(200)
    known = {tuple(row) for row in after.model.codebook.codes.tolist()}
    assert {tuple(row) for row in drawn["z"].reshape(-1, D).tolist()} <= known
    assert after.sample(4).shape == (4, 6)
    again = pv.Fit.load(after.save(tmp_path / "fit"), vqvae(prior=pv.code_priors.Autoregressive(P, K, hidden=8)))
    assert_close(again.elbo(x), after.elbo(x))
    with pytest.raises(pv.EngineError, match=r"models.VQVAE; this is one of GaussianMixture"):
        pv.refit_codes(pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 6), x), x, law)


def test_a_refitted_law_counts_data_by_their_weights():
    """Codes' shares are the maximum of the likelihood of independent codes, each datum counted by its weight."""
    x = data(64)
    torch.manual_seed(0)
    before = pv.SVI(5, 32, pv.adam(1e-2), callbacks=[pv.CodebookUpdates()], progress=False).fit(vqvae(), x)
    codes = before.model.codes(x)
    weights = torch.where(codes[:, 0] == codes[:, 0].mode().values, 3.0, 0.5)
    shares = (weights[:, None, None] * torch.nn.functional.one_hot(codes, K)).sum(0) / weights.sum()
    engine = pv.SVI(200, optimizer=pv.adam(5e-2), progress=False)
    own = replace(before, weights=weights.double())
    for fit, given in ((before, weights), (own, None)):
        law = pv.refit_codes(fit, x, pv.code_priors.Independent(P, K), engine, given).model.prior
        assert_close(law().base_dist.probs, shares, rtol=0.05, atol=0.01)
    assert (shares - torch.nn.functional.one_hot(codes, K).double().mean(0)).abs().max() > 0.05


def test_statistics_of_all_processes_move_the_codes():
    """Two processes' parts, given one after the other by a share that adds the other's."""

    class Both(Share):
        def sum(self, tree):
            return {name: 2 * value for name, value in tree.items()}

    found = []
    for share, times in ((Share(), 2.0), (Both(), 1.0)):
        model = vqvae(pv.codebooks.Averaged)
        updates, run = pv.CodebookUpdates(), Run("SVI", model, 100, 10, share=share)
        updates.set_up(run)
        model.codebook.count.fill_(times)
        model.codebook.total.fill_(3.0 * times)
        updates.end(run, 1, {})
        found.append((model.codebook.codes.clone(), model.codebook.used.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert_close(found[0][0], torch.full((K, D), 3.0))


def test_the_nearest_codes_are_found_part_by_part(monkeypatch):
    torch.manual_seed(0)
    book, e = pv.codebooks.Learned(7, 3), torch.randn(20, 5, 3)
    expected = torch.cdist(e, book.codes).argmin(-1)
    assert torch.equal(book.nearest(e), expected)
    monkeypatch.setattr(pv.codebooks, "DISTANCES_AT_ONCE", 21)
    assert torch.equal(book.nearest(e), expected)


def test_a_diagnosis_does_not_judge_the_spread_of_codes():
    torch.manual_seed(0)
    fit = pv.SVI(1, callbacks=[pv.CodebookUpdates()], compile="off", progress=False).fit(vqvae(), data())
    found = fit.diagnose(data(), num_particles=5, gap_data=0)
    assert found["active units"].ok is None
    assert not any("warm-up" in sentence and "inactive" in sentence for sentence in found.advice)


def test_a_diagnosis_weighs_no_draws_of_a_point_mass():
    torch.manual_seed(0)
    fit = pv.SVI(1, callbacks=[pv.CodebookUpdates()], compile="off", progress=False).fit(vqvae(), data())
    found = fit.diagnose(data(), num_particles=50, gap_data=2, ais_data=2)
    assert found["ELBO"].value == pytest.approx(fit.evaluate(data()).elbo)
    for name in ("log p(x)", "gap", "bad Pareto k", "effective sample size", "approximation gap"):
        assert found[name].value is None, name
    assert "q is a point mass" in found["log p(x)"].text
    assert found.inference.evidence.method == "bound"


def test_updates_know_when_an_epoch_ends_or_say_that_they_do_not():
    def batches():
        yield from data(32).split(16)

    updates = pv.CodebookUpdates()
    for epochs in (3, 2):  # of a second fit alone
        pv.SVI(epochs, 16, callbacks=[updates], progress=False).fit(vqvae(), data(32))
        assert len(updates.perplexity) == epochs
    with pytest.raises(pv.EngineError, match="CodebookUpdates: these data do not say how many steps"):
        pv.SVI(3, callbacks=[updates], progress=False).fit(vqvae(), batches)
