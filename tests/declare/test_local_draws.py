"""A q for every datum at every draw of theta: the local optimisations of all draws are one."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import given, latent, observed
from ppl_vae.declare import local_draws

Y = torch.tensor([28.0, 8.0, -3.0, 7.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0])


class Schools(pv.LatentVariableModel):
    """theta_i ~ N(mu, tau), y_i ~ N(theta_i, sigma_i)."""

    sigma = given()

    @latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 5.0)

    @latent(shared=True)
    def tau(self):
        return dist.LogNormal(1.0, 0.5)

    @latent
    def theta(self, mu, tau):
        return dist.Normal(mu, tau)

    @observed
    def y(self, theta, sigma):
        return dist.Normal(theta, sigma)


class Branching(Schools):
    """The same, by a branch on a value that nothing can map over."""

    @observed
    def y(self, theta, sigma):
        return dist.Normal(theta, sigma if bool(theta.isfinite().all()) else 1.0)


def fitted(model, draws):
    return pv.SVI(3, num_draws=draws, progress=False).fit(model, {"y": Y, "sigma": SIGMA})


def exact(fit):
    mu, tau = (fit.draws[name].double()[0][:, None] for name in ("mu", "tau"))
    return dist.Normal(mu, (tau.square() + SIGMA.double().square()).sqrt()).log_prob(Y.double())


def test_all_draws_are_optimised_at_once(monkeypatch):
    """Their log p(x | theta) is that of the integral, for two searches: of the first draw, and of those far from it."""
    fit, calls = fitted(Schools(), 60), []
    sites = Schools.bound_sites
    monkeypatch.setattr(Schools, "bound_sites", lambda self, *rest: calls.append(1) or sites(self, *rest))
    found = fit.pointwise(fit.data, 400)
    assert 0 < len(calls) < 950
    assert found.shape == (1, 60, 4)
    torch.testing.assert_close(found[0].double(), exact(fit), atol=0.05, rtol=0)
    assert abs((found[0] - exact(fit)).mean()) < 0.005


@pytest.mark.parametrize("model", [Schools, Branching])
def test_the_bound_is_a_mean_over_draws(model, monkeypatch):
    """Here q(theta_i) can be the posterior, so that the mean bound is the mean of log p(y_i | mu, tau)."""
    fit, calls = fitted(model(), 40 if model is Schools else 2), []
    sites = model.bound_sites
    monkeypatch.setattr(model, "bound_sites", lambda self, *rest: calls.append(1) or sites(self, *rest))
    bound = fit.elbo(fit.data, 100)
    assert 0 < len(calls) < 500 * (1 if model is Schools else 2) + 100
    torch.testing.assert_close(bound.double(), exact(fit).mean(0), atol=0.02, rtol=0)


def test_every_draw_has_noise_of_its_own():
    fit = fitted(Schools(), 2)
    same = {name: value[:, :1].expand(1, 2).clone() for name, value in fit.draws.items()}
    first, second = pv.Fit(**{**vars(fit), "draws": same}).pointwise(fit.data, 10)[0]
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, atol=0.2, rtol=0)


def test_a_model_that_branches_on_values_goes_draw_by_draw():
    fit = fitted(Branching(), 2)
    torch.testing.assert_close(fit.pointwise(fit.data, 400)[0].double(), exact(fit), atol=0.05, rtol=0)


@pytest.mark.parametrize("gap", [False, True])
def test_new_data_of_other_length_and_with_gaps(gap):
    """A datum that was not seen has log p = 0; another number of data has a q each."""
    fit = fitted(Schools(), 3)
    y = torch.tensor([1.0, torch.nan if gap else 2.0])
    found = fit.pointwise({"y": y, "sigma": SIGMA[:2]}, 100)
    assert found.shape == (1, 3, 2)
    if gap:
        torch.testing.assert_close(found[..., 1], torch.zeros(1, 3, dtype=found.dtype), atol=0.03, rtol=0)


class Rasch(pv.LatentVariableModel):
    """z_i ~ N(0, 1), y_ij ~ Bernoulli(logit = z_i - b_j): no normal q is its posterior."""

    @latent(shared=True)
    def b(self):
        return dist.Normal(torch.zeros(5), 1.0).to_event(1)

    @latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @observed
    def y(self, z, b):
        return dist.Bernoulli(logits=3 * (z[..., None] - b)).to_event(1)


def test_better_qs_are_searched_for_where_weights_are_uneven(monkeypatch):
    """Draws of theta far apart, log p(y | b) by quadrature: only some data at some draws have a search of their own."""
    torch.manual_seed(0)
    y = (torch.rand(40, 5) < 0.5).float()
    y = y.masked_fill(torch.rand(y.shape) < 0.2, torch.nan)
    fit = pv.SVI(1, progress=False).fit(Rasch(), y)
    b = torch.randn(30, 5).double() / 3
    fit = pv.Fit(**{**vars(fit), "draws": {"b": b[None].to(fit.draws["b"])}})
    searched, best = [], local_draws._best
    monkeypatch.setattr(local_draws, "_best", lambda *given: searched.append(given[3].numel()) or best(*given))
    found = fit.pointwise(y, 400)[0].double()
    z, weights = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    bernoulli = dist.Bernoulli(logits=3 * (z[:, None] - b[:, None, None]))
    log_p = bernoulli.log_prob(y.double().nan_to_num()[:, None]).masked_fill(y.isnan()[:, None], 0.0).sum(-1)
    exact = ((weights / weights.sum()).log() + log_p).logsumexp(-1)
    torch.testing.assert_close(found, exact, atol=0.35, rtol=0)
    assert (found - exact).square().mean().sqrt() < 0.05
    assert searched[0] == 8 * len(y)
    assert 0 < sum(searched[1:]) < b.shape[0] * len(y) / 2
