"""Predictive draws and checks: closed forms, and laws of the ranks."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv


class NormalMean(pv.LatentVariableModel):
    """mu ~ N(1, 3^2), x ~ N(mu, 1)."""

    @pv.latent(shared=True)
    def mu(self):
        return dist.Normal(1.0, 3.0)

    @pv.observed
    def x(self, mu):
        return dist.Normal(mu, 1.0)


def posterior(x, draws=4000):
    """A fit with draws from the exact posterior of NormalMean."""
    variance = 1 / (1 / 9 + len(x))
    mean = variance * (1 / 9 + x.sum())
    model = NormalMean().double()
    mu = mean + variance**0.5 * torch.randn(4, draws // 4, dtype=torch.float64)
    fit = pv.Fit(model, "NUTS", {"mu": mu}, {}, "none", pv.Status("finished", ""), 0.0, 0)
    fit.data = model.check(x)
    return fit


def test_spaced_draws_reach_from_the_first_to_the_last_and_come_again_where_there_are_fewer():
    fit = posterior(torch.zeros(3, dtype=torch.float64), draws=100)
    assert fit.spaced(100) == list(range(100))
    assert fit.spaced(5) == [0, 25, 50, 74, 99]  # 24.75, 49.5 to the even number, 74.25
    assert sorted(set(fit.spaced(300))) == list(range(100))
    assert fit.spaced(1) == [0]


def test_prior_predictive_has_the_prior_moments():
    """x - 1 = 3 e1 + e2; data of one set share mu."""
    drawn = pv.prior_predictive(NormalMean(), 5, draws=4000)
    assert drawn["x"].shape == (4000, 5)
    assert drawn["mu"].shape == (4000,)
    se = (10 / 4000) ** 0.5
    assert abs(drawn["x"][:, 0].mean() - 1) < 4 * se
    covariance = np.cov(drawn["x"].T)
    # Variance 10, covariance 9; the standard error of a covariance is at most 10 sqrt(2 / S).
    np.testing.assert_allclose(covariance, 9 + np.eye(5), atol=4 * 10 * (2 / 4000) ** 0.5)


def test_prior_predictive_of_a_mixture_takes_its_scale_from_data_and_changes_nothing():
    gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    before = {name: value.clone() for name, value in gmm.state_dict().items()}
    drawn = pv.prior_predictive(gmm, 50, draws=20, data=pv.data.faithful(), seed=3)
    again = pv.prior_predictive(gmm, 50, draws=20, data=pv.data.faithful(), seed=3)
    assert drawn["components.covariance"].shape == (20, 2, 2, 2)
    assert torch.equal(drawn["x"], again["x"])
    assert all(torch.equal(value, before[name]) for name, value in gmm.state_dict().items())


@pytest.mark.parametrize("model", [pv.models.GaussianMixture(2, 2)])
def test_parameters_without_a_prior_are_named(model):
    with pytest.raises(pv.EngineError, match=r"mixing\.probs"):
        pv.prior_predictive(model, 5)


def test_loo_pit_of_a_conjugate_model():
    """p(x_i* <= x_i | x_-i) = Phi((x_i - m_-i) / sqrt(1 + v_-i)) in closed form."""
    x = torch.randn(30, dtype=torch.float64) + 2
    fit = posterior(x)
    v = 1 / (1 / 9 + 29)
    m = v * (1 / 9 + x.sum() - x)
    exact = dist.Normal(m, (1 + v) ** 0.5).cdf(x).numpy()
    found = pv.loo_pit(fit, draws=4000)["x"]
    # Weights are worth about S / (1 + 1/29 ...) draws, close to S: sd of a share is at most 1/2 sqrt(1/S).
    np.testing.assert_allclose(found, exact, atol=4 * 0.5 * (1.3 / 4000) ** 0.5)


def test_loo_pit_breaks_ties_of_counts_and_leaves_gaps():
    class Counts(pv.LatentVariableModel):
        @pv.latent(shared=True)
        def rate(self):
            return dist.Gamma(2.0, 1.0)

        @pv.observed
        def x(self, rate):
            return dist.Poisson(rate)

    x = torch.poisson(torch.full((300,), 1.5, dtype=torch.float64))
    x[5] = torch.nan
    model = Counts().double()
    rate = dist.Gamma(2 + x.nansum(), torch.tensor(1.0 + 299, dtype=torch.float64)).sample((4, 250))
    fit = pv.Fit(model, "NUTS", {"rate": rate}, {}, "none", pv.Status("finished", ""), 0.0, 0, data=model.check(x))
    pit = pv.loo_pit(fit)["x"]
    assert np.isnan(pit[5])
    rest = np.sort(np.delete(pit, 5))
    # Kolmogorov's distance of 299 uniforms: above 1.95 / sqrt(n) once in a thousand.
    assert np.abs(rest - (np.arange(299) + 0.5) / 299).max() < 1.95 / 299**0.5


def test_predictive_check_sees_what_is_wrong():
    """Exponential data under a normal model: the smallest value is far too large, the mean as it should be."""
    x = torch.distributions.Exponential(torch.ones(())).sample((300,)).double()
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 1), x)
    found = pv.predictive_check(fit, draws=400)
    assert found.loc["smallest of x", "p"] == 0.0
    # The replicates' mean is N(mean, sd^2 / n), so p is one half.
    assert abs(found.loc["mean of x", "p"] - 0.5) < 4 * 0.5 / 400**0.5
    assert found.loc["sd of x", "observed"] == pytest.approx(x.std().item())


def test_predictive_check_takes_gaps_into_replicates_and_own_statistics():
    x = pv.data.faithful().values.clone()
    x[::2, 0] = torch.nan
    fit = pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    counted = pv.predictive_check(fit, statistics={"gaps": lambda d: np.isnan(d).sum()}, draws=5)
    assert counted.loc["gaps of x", ["observed", "mean"]].tolist() == [136, 136]


def test_a_point_has_no_loo_pit():
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    with pytest.raises(pv.EngineError, match="draws of a posterior"):
        pv.loo_pit(fit)
