"""NUTS: two samplers, one posterior; known posteriors; steps that leave the domain."""

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.samplers import SAMPLERS
from ppl_vae.infer.target import Target
from ppl_vae.infer.watch import Plan


class NormalMean(pv.LatentVariableModel):
    """mu ~ N(0, 2^2), x_i ~ N(mu, 1): the posterior of mu is known."""

    @pv.latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 2.0)

    @pv.observed
    def x(self, mu):
        return dist.Normal(mu, 1.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_conjugate_posterior(sampler):
    x = torch.tensor([0.3, 1.9, 2.2, 0.7, 1.1], dtype=torch.float64)
    w = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    fit = pv.NUTS(400, warmup=200, num_chains=2, sampler=sampler, progress=False).fit(NormalMean(), x, weights=w)
    precision = 1 / 4 + w.sum()
    mean, sd = (w * x).sum() / precision, precision**-0.5
    draws = fit.draws["mu"]
    assert draws.shape == (2, 400)
    # Five standard errors of a mean of 200 effective draws at least, and of a standard deviation.
    assert abs(draws.mean() - mean) < 5 * sd / 200**0.5
    assert abs(draws.std() / sd - 1) < 5 / (2 * 200) ** 0.5


def test_a_step_out_of_the_domain_is_a_divergence_not_a_crash():
    """log p = -u^2/2, and a failed Cholesky beyond 1.5, as a covariance gives far out in the tails."""

    def value_and_gradient(u):
        if u.abs().max() > 1.5:
            raise torch.linalg.LinAlgError("not positive definite")
        return -0.5 * u.square().sum(), -u

    chains = SAMPLERS["nutpie"](Target(value_and_gradient, "trace"), torch.zeros(2, 1), Plan(200, 100, seed=0))
    assert chains.u.shape == (2, 200, 1)
    assert abs(chains.u).max() <= 1.5
    assert int(chains.stats["diverging"].sum()) > 0


def test_free_parameters_are_named():
    with pytest.raises(pv.EngineError, match=r"components\.loc"):
        pv.NUTS(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())


def test_labels_are_aligned_before_they_are_averaged():
    """Draws whose labels were switched on purpose come back in one order."""
    from ppl_vae.align import align

    x = pv.data.faithful().values
    fit = pv.NUTS(30, warmup=60, num_chains=1, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), x)
    switched = {name: value.clone() for name, value in fit.draws.items()}
    for value in switched.values():
        value[:, ::3] = value[:, ::3].flip(2)
    aligned, note = align(fit.model, fit.data, switched)
    order = aligned["components.loc"][0, :, :, 0].argsort(-1)
    assert bool((order == order[0]).all())
    assert "10 of 30" in note or "20 of 30" in note
