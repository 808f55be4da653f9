"""A NaN is an entry that is integrated out: densities and gradients are those of what was seen."""

import math

import pyro.distributions as dist
import pytest
import torch
from example_models import make, numbers
from scipy import stats
from torch.distributions import MultivariateNormal

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.errors import DataError
from ppl_vae.missing import Incomplete, Known, fill

MISSING = torch.tensor([[False, False, False], [True, False, False], [False, True, True], [True, True, True]])
X = numbers(4, 3)
LOC, FACTOR = numbers(3, seed=1), numbers(3, 3, seed=2).tril() + 2 * torch.eye(3).double()


def parts(x, missing):
    return [(row[~gone], ~gone) for row, gone in zip(x, missing, strict=True)]


def test_independent_features_drop_out():
    base = dist.Normal(LOC, 1.5).to_event(1)
    expected = [sum(stats.norm.logpdf(v, LOC[seen], 1.5)) for v, seen in parts(X, MISSING)]
    found = Incomplete(base, MISSING).log_prob(fill(X, MISSING))
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_a_multivariate_normal_is_marginalised():
    covariance = FACTOR @ FACTOR.T
    base = dist.MultivariateNormal(LOC, covariance)
    expected = torch.zeros(4).double()
    for i, (value, seen) in enumerate(parts(X, MISSING)):
        if seen.any():
            expected[i] = MultivariateNormal(LOC[seen], covariance[seen][:, seen]).log_prob(value)
    torch.testing.assert_close(Incomplete(base, MISSING).log_prob(fill(X, MISSING)), expected)
    batch = dist.MultivariateNormal(torch.stack([LOC, LOC + 1])[:, None], covariance)
    found = Incomplete(batch, MISSING).log_prob(fill(X, MISSING))
    torch.testing.assert_close(found[0], expected)
    assert found.shape == (2, 4)
    assert found[:, 3].tolist() == [0, 0]


def test_a_marginal_of_two_dimensions_is_the_integral():
    covariance = (FACTOR @ FACTOR.T)[:2, :2]
    base, gone = dist.MultivariateNormal(LOC[:2], covariance), torch.tensor([[True, False]])
    grid = torch.linspace(-40, 40, 20_001).double()
    joint = base.log_prob(torch.stack([grid, X[0, 1].expand(20_001)], -1))
    expected = torch.trapezoid(joint.exp(), grid).log()
    found = Incomplete(base, gone).log_prob(torch.stack([torch.zeros(1).double(), X[0, 1:2]], -1))
    torch.testing.assert_close(found, expected[None])


@pytest.mark.parametrize("value", [0.0, 1e6, -3.0])
def test_what_stands_in_for_a_missing_entry_does_not_matter(value):
    x = torch.where(MISSING, value, X)
    for base in (dist.Normal(LOC, 1.5).to_event(1), dist.MultivariateNormal(LOC, scale_tril=FACTOR)):
        p = Incomplete(base, MISSING)
        torch.testing.assert_close(p.log_prob(x), p.log_prob(fill(X, MISSING)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("law", "x"),
    [
        (lambda a: dist.Gamma(a, 1.0).to_event(1), X.abs()),
        (lambda a: dist.Beta(a, 2.0).to_event(1), X.sigmoid()),
        (lambda a: dist.LogNormal(a, 1.0).to_event(1), X.abs()),
        (lambda a: dist.Poisson(a).to_event(1), X.abs().round()),
    ],
)
def test_gradients_are_those_of_the_entries_seen(law, x):
    a = torch.tensor([0.7, 1.3, 2.0]).double().requires_grad_()
    Incomplete(law(a), MISSING).log_prob(fill(x, MISSING)).sum().backward()
    found, a.grad = a.grad, None
    pointwise = law(a).base_dist.log_prob(x)
    pointwise[~MISSING].sum().backward()
    torch.testing.assert_close(found, a.grad)


def test_other_joint_laws_can_miss_whole_data_only():
    base = dist.Dirichlet(torch.ones(3).double() * 2)
    x, gone = torch.full((2, 3), 1 / 3).double(), torch.tensor([[True] * 3, [False] * 3])
    found = Incomplete(base, gone).log_prob(fill(x, gone))
    torch.testing.assert_close(found, torch.stack([torch.zeros(()).double(), base.log_prob(x[1])]))
    with pytest.raises(DataError, match="1 rows are partly NaN under Dirichlet"):
        Incomplete(base, torch.tensor([[True, False, False]])).log_prob(x[:1])


def test_a_known_value_has_all_the_mass():
    base = dist.Categorical(torch.tensor([[0.2, 0.8], [0.2, 0.8]]))
    q = Known(base, torch.tensor([0.0, 0.0]), torch.tensor([True, False]))
    support = q.enumerate_support(expand=False)
    torch.testing.assert_close(q.log_prob(support).exp(), torch.tensor([[1.0, 0.2], [0.0, 0.8]]))
    assert q.sample((200,))[:, 0].tolist() == [0] * 200
    assert set(q.sample((200,))[:, 1].tolist()) == {0, 1}


# In models


@pytest.mark.parametrize("name", ["vae with NaN", "mixture with NaN", "diagonal mixture with NaN"])
def test_no_nan_reaches_a_bound_or_a_gradient(name):
    model, x = make(name)
    values, _ = model.draw_shared()
    obs = model.check(x)
    with model.bind(values), model.numeric():
        bound = pv.elbo()(model.sites(obs))
        assert bool(bound.isfinite().all())
        bound.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool((gradient != 0).any()) for gradient in gradients)


def test_a_mixture_integrates_missing_entries_out():
    model, x = make("mixture with NaN")
    pi, mu, sigma = model.mixing.probs, model.components.loc, model.components.covariance
    expected = []
    for row in x:
        seen = ~row.isnan()
        each = [
            MultivariateNormal(mu[k][seen], sigma[k][seen][:, seen]).log_prob(row[seen]).exp() if seen.any() else 1.0
            for k in (0, 1)
        ]
        expected.append((pi[0] * each[0] + pi[1] * each[1]).log())
    torch.testing.assert_close(model.log_prob(x), torch.stack(expected))
    r = model.responsibilities(x)
    torch.testing.assert_close(r[2], pi.detach(), msg="a datum without entries keeps the prior")


@pytest.mark.parametrize("name", ["vae with NaN", "mixture with NaN"])
def test_reconstruction_fills_what_is_missing(name):
    model, x = make(name)
    found = model.reconstruct(x)
    assert found.shape == x.shape
    assert bool(found.isfinite().all())


def test_the_data_are_not_changed():
    model, x = make("mixture with NaN")
    before = x.clone()
    model.log_prob(x)
    torch.testing.assert_close(x, before, equal_nan=True)


class Gammas(pv.LatentVariableModel):
    def __init__(self):
        super().__init__()
        self.log_shape = torch.nn.Parameter(torch.tensor([[0.1, 0.5], [1.0, -0.3]]))

    @latent
    def z(self):
        return dist.Categorical(torch.tensor([0.4, 0.6]))

    @observed
    def x(self, z):
        return dist.Gamma(self.log_shape[z].exp(), 1.0).to_event(1)


def test_a_positive_law_with_missing_entries_trains():
    model, x = Gammas(), torch.tensor([[1.0, math.nan], [math.nan, math.nan], [2.0, 0.5]])
    sites = model.sites(model.check(x))
    pv.elbo()(sites).sum().backward()
    assert bool(model.log_shape.grad.isfinite().all())
    assert model.log_prob(x)[1].item() == pytest.approx(0.0, abs=1e-6)


class Shares(pv.LatentVariableModel):
    """Two kinds of rows of shares."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.log_concentration = torch.nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.5]]))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return dist.Dirichlet(self.log_concentration[z].exp())


def test_a_row_of_shares_may_be_missing_altogether_and_not_in_part():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, generator=generator, dtype=torch.float64)
    x = x / x.sum(1, keepdim=True)
    gappy = torch.cat([x, torch.full((1, 3), torch.nan)])
    model = Shares().double()
    found = model.log_prob(gappy)
    torch.testing.assert_close(found[:20], model.log_prob(x))
    assert found[20] == 0
    # A row of which nothing is seen moves no maximum of the likelihood.
    engine = pv.EM(max_iter=300, tol=1e-10, progress=False)
    fits = [engine.fit(model, data).parameters["mixing.probs"] for data in (x, gappy)]
    torch.testing.assert_close(*fits, rtol=1e-3, atol=1e-3)
    with pytest.raises(pv.DataError, match="1 rows are partly NaN"):
        model.log_prob(gappy.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan).double()))


def test_leave_one_out_does_not_count_a_row_of_which_nothing_was_seen():
    """Its log density is that of shares which add up to one, but for rounding, at every draw."""
    x = torch.cat([pv.data.faithful().values, torch.full((1, 2), torch.nan)])
    fit = pv.VB(num_draws=200, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), x)
    each = fit.pointwise(x)
    each[..., -1] = 1e-16 * torch.arange(200)
    found = pv.diagnostics.leave_one_out(fit, pointwise=each)
    assert math.isfinite(found.elpd)
    assert len(found.pareto_k) == 272
