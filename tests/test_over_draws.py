"""The posterior of a latent under many draws of theta."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from example_models import Nested, numbers
from scipy import stats

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.declare import local_draws
from ppl_vae.over_draws import OverDraws


class Classed(Nested):
    """The same with a class beside z."""

    @latent
    def c(self):
        return dist.Categorical(torch.tensor([0.5, 0.5]))

    @observed
    def y(self, c, mu):
        return dist.Normal(mu + 2.0 * c, 1.0)


MU = torch.tensor([[-1.0, 0.5, 2.0], [0.0, 1.0, 4.0]]).double()


def fit_of(model):
    return pv.Fit(model, "NUTS", {"mu": MU}, {}, "none", pv.Status("finished", ""), 0.0, 0)


def test_it_is_the_mixture_of_the_exact_posteriors():
    fit, x = fit_of(Nested().double()), numbers(4)
    q = fit.posterior(x)
    means = (MU.flatten()[:, None] + x) / 2
    torch.testing.assert_close(q.mean, means.mean(0), atol=5e-3, rtol=0)
    torch.testing.assert_close(q.variance, 0.5 + means.var(0, unbiased=False), atol=2e-2, rtol=0)
    at = numbers(4, seed=3)
    expected = stats.norm.pdf(at, means, 0.5**0.5).mean(0)
    torch.testing.assert_close(q.log_prob(at).exp(), torch.as_tensor(expected), atol=5e-3, rtol=0)


def test_it_prints_its_shapes():
    assert repr(fit_of(Nested().double()).posterior(numbers(4))) == "OverDraws(6 draws of Normal, batch [4], event [])"


def test_its_draws_have_its_moments():
    q = fit_of(Nested().double()).posterior(numbers(4))
    torch.manual_seed(0)
    drawn = q.sample((20_000,))
    assert drawn.shape == (20_000, 4)
    torch.testing.assert_close(drawn.mean(0), q.mean, atol=4 * (q.variance.max().item() / 20_000) ** 0.5, rtol=0)
    # The standard error of a variance is at most sqrt(kurtosis / n) of it.
    torch.testing.assert_close(drawn.var(0), q.variance, atol=0, rtol=4 * (4 / 20_000) ** 0.5)


def test_finite_latents_are_beside_it():
    fit = fit_of(Classed().double())
    data = {"x": numbers(4), "y": numbers(4, seed=2)}
    found = fit.posterior(data)
    assert set(found) == {"z", "c"}
    torch.testing.assert_close(found["c"].probs, fit.responsibilities(data))
    assert isinstance(found["z"], OverDraws)


def test_global_random_state_is_as_it_was():
    fit = fit_of(Nested().double())
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    fit.posterior(numbers(4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_new_data_are_not_sorted_by_their_draw_of_theta():
    """Of data grouped by draw the first hundred would be of the lowest draws alone."""
    fits = [fit_of(model().double()) for model in (Nested, Classed)]
    drawn = [fits[0].sample(600), fits[1].sample(600)["x"]]
    for x in drawn:
        # MU has the variance 2.5 over its draws; within a draw x has 2.
        assert abs(x[:300].mean() - x[300:].mean()) < 4 * (2 * 4.5 / 300) ** 0.5


def test_reconstructions_over_draws_are_those_of_each_draw():
    fit, x = fit_of(Nested().double()), numbers(4)
    # E[z | x, mu] = (mu + x) / 2; 6,000 draws of z with a variance of 1/2.
    expected = (MU.mean() + x) / 2
    torch.testing.assert_close(fit.reconstruct(x, 6_000), expected, atol=4 * (0.5 / 6_000) ** 0.5 + 5e-3, rtol=0)


class Rasch(pv.LatentVariableModel):
    """Answers to six questions, right or wrong."""

    @latent(shared=True)
    def b(self):
        return dist.Normal(0.0, 2.0).expand([6]).to_event(1)

    @latent
    def theta(self):
        return dist.Normal(0.0, 1.0)

    @observed
    def y(self, theta, b):
        return dist.Bernoulli(logits=theta[..., None] - b).to_event(1)


@pytest.fixture
def searched(monkeypatch):
    """How many draws of theta each search was for, or pairs of a draw and a datum."""
    found, search = [], local_draws.best_q

    def counted(q, *args):
        found.append(len(next(iter(q.values()))))
        return search(q, *args)

    monkeypatch.setattr(local_draws, "best_q", counted)
    return found


def test_log_prob_is_that_of_quadrature_and_a_search_at_a_few_draws_serves_all(searched):
    torch.manual_seed(0)
    true, S, particles = torch.linspace(-2, 2, 6), 60, 100
    y = torch.bernoulli(torch.sigmoid(torch.randn(40, 1) - true))
    b = true + 0.3 * torch.randn(S, 6)
    found = pv.Fit(Rasch(), "NUTS", {"b": b[None]}, {}, "none", pv.Status("finished", ""), 0.0, 0).pointwise(y)[0]
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, log_w = torch.tensor(nodes)[:, None, None], torch.tensor(weights / weights.sum()).log()[:, None]
    each = [dist.Bernoulli(logits=z - own).log_prob(y.double()).sum(-1) for own in b.double()]
    exact = torch.stack([torch.logsumexp(log_w + log_p, 0) for log_p in each])
    # The draws are worth 90% on average: the variance of log p(x) is 1/9 of that of one draw's worth.
    error = (1 / 9 / particles) ** 0.5
    assert ((found - exact).square().mean() ** 0.5) < error
    assert abs((found - exact).mean()) < 4 * error / (S * len(y)) ** 0.5
    assert searched[0] == 8
    assert sum(searched[1:]) < 0.1 * S * len(y)  # data at a draw


def test_log_prob_of_heavy_tails_is_that_of_quadrature():
    """Counts whose rates have a heavy tail: the weights of q are not bounded."""

    class Counts(pv.LatentVariableModel):
        @latent(shared=True)
        def mu(self):
            return dist.Normal(0.0, 1.0)

        @latent
        def h(self):
            return dist.Normal(0.0, 1.0)

        @observed
        def k(self, mu, h):
            return dist.Poisson((mu + h).exp())

    torch.manual_seed(0)
    k, S, particles = torch.poisson((0.5 + torch.randn(20)).exp()).double(), 40, 100
    mu = 0.5 + 0.1 * torch.randn(S, dtype=torch.float64)
    fit = pv.Fit(Counts().double(), "NUTS", {"mu": mu[None]}, {}, "none", pv.Status("finished", ""), 0.0, 0)
    h = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    each = [dist.Normal(0.0, 1.0).log_prob(h) + dist.Poisson((m + h).exp()).log_prob(k) for m in mu]
    exact = torch.stack([torch.logsumexp(log_p, 0) for log_p in each]) + (h[1] - h[0]).log()
    error = fit.pointwise(k, particles)[0] - exact
    # Weights worth half of the draws would have a mean error of -1 / (2 * particles).
    assert abs(error.mean()) < 1 / (2 * particles)


def test_a_draw_of_theta_far_from_the_others_has_a_search_of_its_own(searched):
    x, mu = numbers(4).double(), torch.cat([torch.linspace(-0.1, 0.1, 30), torch.tensor([40.0])])[None].double()
    fit = pv.Fit(Nested().double(), "NUTS", {"mu": mu}, {}, "none", pv.Status("finished", ""), 0.0, 0)
    expected = torch.stack([dist.Normal(m, 2**0.5).log_prob(x) for m in mu[0]])
    error = fit.pointwise(x)[0] - expected
    assert error.square().mean().sqrt() < (1 / 9 / 100) ** 0.5  # weights worth 90% of 100 draws
    assert error[-1].abs().max() < 0.05
    assert 0 < sum(searched[1:]) < 0.1 * expected.numel()


def test_a_comparison_takes_the_densities_of_the_training_data_once(monkeypatch):
    asked, pointwise = [], pv.Fit.pointwise

    def counted(self, *args):
        asked.append(args)
        return pointwise(self, *args)

    fit = pv.SVI(50, num_draws=30, progress=False).fit(Rasch(), torch.ones(5, 6))
    monkeypatch.setattr(pv.Fit, "pointwise", counted)
    assert np.isfinite(pv.compare({"SVI": fit}).rows["SVI"].elpd_loo)
    assert len(asked) == 1
