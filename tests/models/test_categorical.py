"""Categorical latents: summed out exactly, or relaxed with a bound that holds for the discrete model too."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import ppl_vae as pv
from ppl_vae.relaxed import LogConcrete, corner


def data(n=30, seed=1):
    """Three kinds of binary data of 6 pixels."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.eye(3).repeat_interleave(2, 1) * 0.8 + 0.1
    return torch.bernoulli(kinds[torch.randint(3, (n,), generator=generator)], generator=generator)


def categorical(k=4, seed=0):
    torch.manual_seed(seed)
    return pv.models.CategoricalVAE(pv.nets.mlp_decoder(6, 8, k), pv.nets.mlp_decoder(k, 8, 6), k)


def gumbel(**options):
    torch.manual_seed(0)
    return pv.models.GumbelVAE(pv.nets.mlp_decoder(6, 8, 6), pv.nets.mlp_decoder(6, 8, 6), 2, 3, **options)


def test_t20_bound_and_evidence_are_sums_over_the_categories():
    model, x = categorical().eval(), data()
    with torch.no_grad():
        log_q = torch.log_softmax(model.encoder(x), -1)
        each = torch.stack([dist.Bernoulli(logits=model.decoder(row)).log_prob(x).sum(1) for row in torch.eye(4)], 1)
    bound = (log_q.exp() * (each - math.log(4) - log_q)).sum(1)
    exact = torch.logsumexp(each - math.log(4), 1)
    assert_close(model.elbo(x), bound)
    evidence = model.evidence(x)
    assert evidence.method == "exact"
    assert_close(evidence.value, exact)
    assert_close(model.responsibilities(x), torch.softmax(each, 1))
    assert_close(exact - bound, (log_q.exp() * (log_q - torch.log_softmax(each, 1))).sum(1), rtol=1e-3, atol=1e-5)


def test_the_categories_become_the_kinds_of_data():
    x = data(200)
    found = {}
    for mode in ("off", "trace"):
        engine = pv.SVI(30, 50, pv.adam(2e-2), compile=mode, progress=False)
        found[mode] = engine.fit(categorical(3, seed=1), x)
    assert_close(found["trace"].trace["bound"], found["off"].trace["bound"], rtol=1e-4, atol=1e-4)
    fit = found["off"]
    p = x.mean(0)
    independent = dist.Bernoulli(p).log_prob(x).sum(1).mean()
    assert fit.log_prob(x).mean() > independent + 0.3
    assert (fit.log_prob(x) - fit.elbo(x)).mean() < 0.1


def test_the_relaxed_law_is_pyros_on_the_log_scale():
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64)
    t = torch.tensor(0.7, dtype=torch.float64)
    q = LogConcrete(t, logits=logits)
    z = q.sample()
    theirs = dist.RelaxedOneHotCategorical(t, logits=logits).log_prob(z.exp())
    assert_close(q.log_prob(z), theirs + z.sum(-1))
    # At a low temperature the other scale has lost the small entries.
    cold = LogConcrete(torch.tensor(0.02), logits=torch.zeros(1000, 3, requires_grad=True))
    z = cold.rsample()
    assert (z.exp() == 0).any()
    assert cold.log_prob(z).isfinite().all()


def test_the_largest_entry_has_the_categorys_probability():
    torch.manual_seed(0)
    p, n = torch.tensor([0.2, 0.5, 0.3]), 20_000
    z = LogConcrete(torch.tensor(0.8), logits=p.log()).expand((n,)).sample()
    share = corner(z).mean(0)
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


def test_the_hard_model_bounds_the_discrete_one():
    """log p(x) by the sum over all 9 pairs of categories; importance weights of the relaxed draws reach it."""
    model, x = gumbel(hard=True).eval(), data(6)
    with torch.no_grad():
        every = torch.stack([torch.eye(3)[list(pair)].flatten() for pair in itertools.product(range(3), repeat=2)])
        each = torch.stack([dist.Bernoulli(logits=model.decoder(row)).log_prob(x).sum(1) for row in every])
        exact = torch.logsumexp(each, 0) - math.log(9)
    torch.manual_seed(1)
    evidence = model.evidence(x, num_particles=5000)
    assert ((evidence.value - exact).abs() < 4 * evidence.standard_error + 1e-3).all()
    draws = torch.stack([model.elbo(x) for _ in range(100)])
    assert (draws.mean(0) - 4 * draws.std(0) / 10 < exact).all()


@pytest.mark.parametrize("hard", [False, True])
def test_cooling_is_traced_and_learns(hard):
    x, fits = data(200), {}
    for mode in ("off", "trace"):
        cooling = pv.BufferSchedules(temperature=pv.linear(1.0, 0.4, epochs=10))
        engine = pv.SVI(12, 50, pv.adam(2e-2), callbacks=[cooling], compile=mode, progress=False)
        fits[mode] = engine.fit(gumbel(hard=hard), x)
    # Step 40 of 4 to an epoch is the first of epoch 10.
    assert fits["trace"].model.temperature.item() == pytest.approx(0.4)
    assert_close(fits["trace"].trace["bound"], fits["off"].trace["bound"], rtol=1e-3, atol=1e-3)
    bound = fits["trace"].trace["bound"]
    assert bound[-1] > bound[0] + 0.1
    assert fits["trace"].sample(3).shape == (3, 6)


def test_a_number_is_a_schedule_that_stays():
    fit = pv.SVI(1, callbacks=[pv.BufferSchedules(temperature=0.5)], progress=False).fit(gumbel(), data(20))
    assert fit.model.temperature.item() == 0.5


def test_what_is_wrong_is_said():
    with pytest.raises(pv.DeclarationError, match="temperature must be positive, got 0"):
        gumbel(temperature=0.0)
    with pytest.raises(pv.EngineError, match=r"GumbelVAE has no buffer 'heat' of one number: .*temperature"):
        pv.SVI(1, callbacks=[pv.BufferSchedules(heat=pv.constant(1.0))], progress=False).fit(gumbel(), data())
