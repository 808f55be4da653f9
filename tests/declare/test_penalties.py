"""Penalties: terms of the training objective only, under their own names."""

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import ppl_vae as pv
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import Batch


class Spread(pv.models.VAE):
    """A VAE whose codes cost a share of their squared length, and whose means cost another."""

    @pv.penalty
    def length(self, z):
        return 0.3 * z.square().sum(-1)

    @pv.penalty
    def mean(self, x, q_z):
        return 0.1 * x.sum(-1) * q_z.mean.abs().sum(-1)


class Cells(pv.LatentVariableModel):
    """A finite latent, summed out, and a finite one with a posterior; a penalty on both."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([[-1.0, 0.5], [1.0, 2.0], [0.0, -1.0]]))
        self.logits = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    @pv.latent
    def a(self):
        return dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))

    @pv.latent
    def b(self):
        return dist.Categorical(torch.tensor([0.6, 0.4]))

    @b.posterior
    def q_b(self, x):
        return dist.Categorical(logits=self.logits * x[:, None])

    @pv.observed
    def x(self, a, b):
        return dist.Normal(self.loc[a, b], 1.0)

    @pv.penalty
    def cost(self, a, b, x):
        return (a + 10.0 * b) * x.abs()


def vae(cls=Spread, seed=0):
    torch.manual_seed(seed)
    return cls(pv.nets.mlp_encoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4))


def climbed(model, x, weights=None, objective=None):
    """Objective, bound and penalties of one batch, and the gradient of the objective."""
    model.train()
    found = ModelObjective(model, objective or pv.elbo(), 1.0)
    batch = Batch(model.check(x), torch.ones(len(x)) if weights is None else weights, None, len(x))
    leaves = [p.detach().requires_grad_() for p in found.dense]
    torch.manual_seed(1)
    part = found.pieces(batch, 1.0, 1)[0]
    value, bound, *penalties = found.sums(leaves, part.rest, part.names)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return (
        value,
        bound,
        dict(zip(found.penalties, penalties, strict=True)),
        dict(zip(found.names, gradients, strict=True)),
    )


def test_the_objective_is_the_bound_minus_the_penalties_and_the_bound_is_as_it_was():
    x = torch.bernoulli(torch.full((6, 4), 0.4), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0, 0.5])
    model, plain = vae(), vae(pv.models.VAE)
    value, bound, penalties, _ = climbed(model, x, weights)
    _, alone, none, _ = climbed(plain, x, weights)
    assert none == {}
    assert_close(bound, alone)
    assert_close(value, bound - penalties["length"] - penalties["mean"])
    torch.manual_seed(1)
    z = model.q_z(x).rsample()
    assert_close(penalties["length"], weights @ (0.3 * z.square().sum(-1)))
    assert_close(penalties["mean"], weights @ (0.1 * x.sum(-1) * model.q_z(x).mean.abs().sum(-1)))


def test_expectations_over_finite_latents_are_exact():
    model, x = Cells(), torch.tensor([0.4, -1.3, 2.0])
    value, bound, penalties, gradients = climbed(model, x)
    a, b = torch.arange(3)[:, None, None], torch.arange(2)[:, None]
    loc, logits = model.loc.detach().requires_grad_(), model.logits.detach().requires_grad_()
    q = torch.log_softmax(logits * x[:, None], -1).T  # [2, n]
    joint = dist.Normal(loc[a, b], 1.0).log_prob(x) + torch.tensor([0.2, 0.3, 0.5]).log()[:, None, None]
    of_a = torch.softmax(joint, 0)  # p(a | b, x)
    cost = (q.exp() * (of_a * (a + 10.0 * b) * x.abs()).sum(0)).sum(0)
    log_b = torch.tensor([0.6, 0.4]).log()[:, None]
    expected = (q.exp() * (torch.logsumexp(joint, 0) + log_b - q)).sum(0)
    assert_close(penalties["cost"], cost.sum())
    assert_close(bound, expected.sum())
    assert_close(value, (expected - cost).sum())
    by_hand = torch.autograd.grad((expected - cost).sum(), [loc, logits])
    for name, gradient in zip(("loc", "logits"), by_hand, strict=True):
        assert_close(gradients[name], gradient)


def test_draws_without_a_pathwise_gradient_have_the_scores():
    """A latent that is drawn, not enumerated: the mean of many gradients is that of the expectation."""

    class Coins(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.logit = torch.nn.Parameter(torch.tensor(0.4))

        @pv.latent
        def z(self):
            return dist.Bernoulli(torch.tensor([0.5])).to_event(1)

        @z.posterior
        def q_z(self, x):
            return dist.Bernoulli(logits=self.logit.expand(len(x), 1)).to_event(1)

        @pv.observed
        def x(self, z):
            return dist.Normal(0.0 * z[..., 0], 1.0)

        @pv.penalty
        def cost(self, z):
            return 3.0 * z[..., 0]

    n = 20_000
    model = Coins()
    found = climbed(model, torch.zeros(n))[3]["logit"] / n
    p = torch.sigmoid(model.logit.detach())
    kl = p * (p / 0.5).log() + (1 - p) * ((1 - p) / 0.5).log()
    assert kl > 0
    expected = -(p * (1 - p)) * ((p / (1 - p)).log() + 3.0)  # d/dlogit of -KL - 3 p
    spread = 3.0 * (p * (1 - p)).sqrt() / n**0.5  # the score of a Bernoulli is at most 1, the credit about 3
    assert (found - expected).abs() < 4 * spread


def test_a_fit_reports_each_under_its_own_name_traced_and_not(tmp_path):
    x = torch.bernoulli(torch.full((50, 4), 0.4), generator=torch.Generator().manual_seed(0))
    fits = {}
    for mode in ("off", "trace"):
        fits[mode] = pv.SVI(3, batch_size=16, compile=mode, progress=False).fit(vae(), x)
        trace = fits[mode].trace
        gap = trace["bound"] - trace["objective"]
        assert_close(gap, trace["penalty: length"] + trace["penalty: mean"], rtol=1e-5, atol=1e-6)
        assert (trace["penalty: length"] > 0).all()
    for name, column in fits["off"].trace.items():
        if name != "seconds":
            assert_close(fits["trace"].trace[name], column, rtol=1e-5, atol=1e-6)
    again = pv.Fit.load(fits["off"].save(tmp_path / "fit"), vae())
    assert torch.equal(again.trace["penalty: mean"], fits["off"].trace["penalty: mean"])


def test_pieces_of_a_batch_add_up():
    x = torch.bernoulli(torch.full((32, 4), 0.4), generator=torch.Generator().manual_seed(0))

    class Means(pv.models.VAE):
        @pv.penalty
        def mean(self, q_z):
            return q_z.mean.abs().sum(-1)

    whole, cut = (
        pv.SVI(1, optimizer=pv.sgd(1e-3), accumulate=k, progress=False).fit(vae(Means), x).trace["penalty: mean"]
        for k in (1, 4)
    )
    assert_close(whole, cut)


def test_callbacks_hear_of_them_and_a_resumed_fit_ends_where_the_whole_one_does(tmp_path):
    x = torch.bernoulli(torch.full((40, 4), 0.4), generator=torch.Generator().manual_seed(0))

    class Stop(pv.Callback):
        def end(self, run, step, metrics):
            assert metrics["penalty: length"] > 0
            if step == 6:
                raise RuntimeError("enough")

    def fit(folder, callbacks=()):
        engine = pv.SVI(
            4, batch_size=10, compile="trace", checkpoint=pv.checkpoints(folder, steps=1), callbacks=callbacks,
            progress=False,
        )  # fmt: skip
        return engine.fit(vae(), x)

    whole = fit(tmp_path / "whole")
    with pytest.raises(pv.EngineError, match="enough"):
        fit(tmp_path / "part", [Stop()])
    rest = fit(tmp_path / "part")
    assert len(whole.trace["penalty: length"]) == 4
    for name in whole.trace.keys() - {"seconds"}:
        assert torch.equal(rest.trace[name], whole.trace[name])


def test_what_a_model_says_of_itself():
    model = vae()
    assert "length | z" in repr(model)
    assert "penalty" in repr(model)
    assert set(model.graph()) == {"z", "x"}
    assert model.penalties == ("length", "mean")

    class Dearer(Spread):
        def length(self, z):
            return z.square().sum(-1)

    assert Dearer._graph.penalties["length"] is not Spread._graph.penalties["length"]
    assert vae(Dearer).penalties == ("length", "mean")


def test_errors_name_the_penalty():
    with pytest.raises(pv.DeclarationError, match=r"Typo.cost: argument 'zz' names no node or input.*'z'"):

        class Typo(pv.models.VAE):
            @pv.penalty
            def cost(self, zz):
                return zz

    class Wide(pv.models.VAE):
        @pv.penalty
        def cost(self, z):
            return z.square()

    with pytest.raises(pv.DeclarationError, match=r"Wide.cost: .*one number for each datum, shape \(3,\).*\(3, 2\)"):
        pv.SVI(1, progress=False).fit(vae(Wide), torch.zeros(3, 4))
    with pytest.raises(pv.DeclarationError, match=r"would hide the node 'length'"):
        vae().length = 3.0


@pytest.mark.parametrize("engine", [pv.EM(progress=False), pv.VB(progress=False), pv.NUTS(2, progress=False)])
def test_engines_without_a_training_objective_refuse(engine):
    name = type(engine).__name__
    with pytest.raises(pv.EngineError, match=rf"{name}: the penalty 'cost' of Cells is a term of SVI's"):
        engine.fit(Cells(), torch.zeros(5))
