"""Ordinary Pyro programs in every engine."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import ppl_vae as pv


@config_enumerate
def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([1.5, 4.5]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def hierarchy(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.fixture(scope="module")
def x():
    return pv.data.faithful().values[:, 0].float()


@pytest.fixture(scope="module")
def best(x):
    fit = pv.EM(n_init=5, progress=False).fit(pv.models.GaussianMixture(2, 1), x.double())
    return fit.log_prob(x.double()).sum().item()


def test_em_reaches_the_closed_form_answer_and_never_falls(x, best):
    fit = pv.EM(progress=False).fit(mixture, x)
    assert fit.log_prob(x).sum().item() == pytest.approx(best, abs=0.02)
    assert fit.trace["bound"].diff().min() > -1e-3 * abs(best) / 272
    assert fit.responsibilities(x).shape == (272, 2)
    assert fit.labels(x).unique().tolist() == [0, 1]


def test_svi_reaches_it_too(x, best):
    fit = pv.SVI(600, optimizer=pv.adam(2e-2), progress=False).fit((mixture, lambda x: None), x)
    assert fit.log_prob(x).sum().item() == pytest.approx(best, abs=0.05)


def test_automatic_guide_with_a_shared_latent(x):
    fit = pv.SVI(800, optimizer=pv.adam(3e-2), num_draws=500, progress=False).fit((hierarchy, AutoNormal(hierarchy)), x)
    # mu's posterior: precision 1/25 + n / (1 + 0.25), mean close to the data's.
    assert fit.draws["mu"].mean().item() == pytest.approx(x.mean().item(), abs=0.15)
    assert fit.elbo(x).shape == (272,)


def test_nuts_samples_a_plain_model(x):
    fit = pv.NUTS(60, warmup=60, num_chains=1, progress=False).fit(hierarchy, x[:20])
    assert fit.draws["mu"].shape == (1, 60)
    assert fit.draws["z"].shape == (1, 60, 20)
    n = 20
    precision = 1 / 25 + n / 1.25
    mean, sd = (n / 1.25 * x[:20].mean()) / precision, precision**-0.5
    assert abs(fit.draws["mu"].mean() - mean) < 5 * sd / 10**0.5


def test_what_a_pair_cannot_do_is_said(x):
    with pytest.raises(pv.EngineError, match="loc, scale, weights"):
        pv.NUTS(5, warmup=5, num_chains=1, progress=False).fit(mixture, x)
    with pytest.raises(pv.EngineError, match="declared models"):
        pv.SVI(5, beta=0.5, progress=False).fit((mixture, lambda x: None), x)
