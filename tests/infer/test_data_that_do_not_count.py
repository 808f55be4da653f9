"""A datum of weight zero is as if it were not there: in every engine, from memory and from streams."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.diagnostics import elbo_total

FAR = 60
"""Data far from all others, before them or after, that do not count."""


def clusters(seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 2, generator=draw, dtype=torch.float64)
    x[300:] += 6
    return x[torch.randperm(600, generator=draw)], 400 + 50 * torch.randn(FAR, 2, generator=draw, dtype=torch.float64)


def mixture(prior="weak"):
    return pv.models.GaussianMixture(2, 2, prior=prior)


@pytest.mark.parametrize(
    ("engine", "prior"), [(pv.EM(progress=False), None), (pv.VB(num_draws=2, progress=False), "weak")]
)
def test_a_closed_form_engine_starts_among_the_data_of_a_stream_that_count(engine, prior):
    x, far = clusters()
    data, weights = torch.cat([x, far]), torch.cat([torch.ones(600), torch.zeros(FAR)])
    expected = engine.fit(mixture(prior), x).trace["bound"]
    for source in (data, pv.data.stream(data, rows=200)):
        bound = engine.fit(mixture(prior), source, weights).trace["bound"]
        torch.testing.assert_close(bound[[0, -1]], expected[[0, -1]], rtol=0.05, atol=0)
        torch.testing.assert_close(bound[-1], expected[-1], rtol=1e-6, atol=0)


def test_svi_takes_the_weak_prior_of_a_stream_from_the_data_that_count():
    x, far = clusters()
    data, weights = torch.cat([far, x]), torch.cat([torch.zeros(FAR), torch.ones(600)])
    whole = mixture().double()
    whole.adapt(x)
    engine = pv.SVI(2, batch_size=110, num_draws=5, progress=False)
    for source, given in (
        (pv.data.stream(data, rows=330), weights),
        (pv.data.stream(torch.cat([data, weights[:, None]], 1), weights="x2", rows=330), None),
    ):
        found = engine.fit(mixture(), source, given).model.components
        torch.testing.assert_close(found.prior_mean, whole.components.prior_mean)
        torch.testing.assert_close(found.prior_scale, whole.components.prior_scale)


def test_a_stream_may_begin_with_data_that_do_not_count():
    x, far = clusters()
    stream = pv.data.stream(torch.cat([far, x]), rows=FAR)
    weights = torch.cat([torch.zeros(FAR), torch.ones(600)])
    fit = pv.SVI(1, num_draws=5, progress=False).fit(mixture(), stream, weights)
    assert fit.status.ok
    assert bool(fit.parameters["components.loc"].isfinite().all())


def test_weights_of_a_column_are_the_weights_of_the_fit():
    x, _ = clusters()
    weights = torch.arange(600).remainder(4).double()
    engine = pv.SVI(20, optimizer=pv.adam(2e-2), num_draws=50, progress=False)
    given = engine.fit(mixture(), x, weights)
    column = engine.fit(mixture(), pv.data.stream(torch.cat([x, weights[:, None]], 1), weights="x2"))
    torch.testing.assert_close(column.weights, given.weights)
    assert elbo_total(column)[0] == pytest.approx(elbo_total(given)[0], rel=0.01)


class Kinds(pv.LatentVariableModel):
    """Two kinds of things, each with a category and a number."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.kind = pv.families.Categorical(4, batch=2)
        self.size = pv.families.Normal(1, batch=2)

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.kind(z)

    @pv.observed
    def y(self, z):
        return self.size(z)


def test_em_leaves_out_what_is_impossible_and_does_not_count():
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (60,), generator=draw)
    y = torch.randn(60, 1, generator=draw, dtype=torch.float64) + 2 * (x[:, None] > 1)
    x[:2] = 3  # a category that no datum has that counts
    weights = torch.cat([torch.zeros(2), torch.ones(58)])
    start = {"size.loc": torch.tensor([[0.0], [2.0]])}
    fit = pv.EM(start=start, progress=False).fit(Kinds(), {"x": x, "y": y}, weights)
    rest = pv.EM(start=start, progress=False).fit(Kinds(), {"x": x[2:], "y": y[2:]})
    assert fit.status.code == "converged"
    torch.testing.assert_close(fit.trace["bound"][-1], rest.trace["bound"][-1], rtol=1e-8, atol=0)
    torch.testing.assert_close(fit.parameters["kind.probs"][:, :3], rest.parameters["kind.probs"][:, :3])


class Bounded(pv.LatentVariableModel):
    """x ~ U(0, 1) or U(0, 2)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    @pv.latent
    def z(self):
        return dist.Bernoulli(logits=self.w)

    @pv.observed
    def x(self, z):
        return dist.Uniform(torch.zeros(()), 1 + z, validate_args=False)


@pytest.mark.parametrize(
    "engine", [pv.EM(progress=False), pv.SVI(300, optimizer=pv.adam(5e-2), start=None, progress=False)]
)
def test_gradients_leave_out_what_is_impossible_and_does_not_count(engine):
    x = torch.cat([torch.linspace(0.01, 0.99, 30), torch.linspace(1.01, 1.99, 10), torch.tensor([5.0])]).double()
    weights = torch.ones(41)
    weights[-1] = 0
    fit = engine.fit(Bounded(), x, weights)
    # d/dp of 30 log(1 - p + p / 2) + 10 log(p / 2) is zero at p = 1/2.
    assert fit.status.ok
    assert fit.model.w.sigmoid().item() == pytest.approx(0.5, abs=2e-3)
