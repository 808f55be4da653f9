"""Bayesian mixtures: every engine on one declaration from one start, against answers known otherwise."""

import json
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats

import ppl_vae as pv
from ppl_vae.diagnostics import convergence, khat

GUIDES = ("normal", "lowrank", "multivariate")


class Weight(pv.LatentVariableModel):
    """Two known components, an unknown weight: p(z = 1) ~ Beta(2, 2) as a Dirichlet."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2, prior=pv.families.DirichletPrior(2.0))
        self.register_buffer("loc", torch.tensor([-1.0, 1.5]))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return dist.Normal(self.loc[z], 1.0)


def on_a_grid(x):
    """Mean and sd of p(z = 0 | X) by quadrature over the weight."""
    w = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    density = [dist.Normal(m, 1.0).log_prob(x)[:, None] for m in (-1.0, 1.5)]
    log_p = torch.logaddexp(density[0] + w.log(), density[1] + (1 - w).log()).sum(0) + (w * (1 - w)).log()
    p = torch.softmax(log_p, 0)
    mean = (p * w).sum()
    return mean.item(), (p * (w - mean).square()).sum().sqrt().item()


def mean_error(column):
    """Standard error of the mean of draws [chain, draw]."""
    if column.shape[0] == 1:
        return float(column.std() / column.numel() ** 0.5)
    return float(array_stats.mcse(column.numpy(), chain_axis=0, draw_axis=1))


def test_a_weight_against_a_grid():
    """NUTS to 4 standard errors; SVI by how well a normal in the logit fits; nothing can switch, and that is said."""
    x = torch.cat([torch.randn(25) - 1, torch.randn(15) + 1.5]).double()
    mean, sd = on_a_grid(x)
    start = {"mixing.probs": torch.tensor([0.5, 0.5])}
    nuts = pv.NUTS(250, warmup=100, num_chains=2, start=start, compile="trace", progress=False).fit(Weight(), x)
    column = nuts.draws["mixing.probs"][..., 0]
    assert nuts.settings["labels"] == "as drawn: no components were found that can trade labels"
    assert abs(column.mean() - mean) < 4 * mean_error(column)
    # The standard error of a standard deviation of a near-normal is sd / sqrt(2 ESS).
    ess = array_stats.ess(column.numpy(), chain_axis=0, draw_axis=1, method="sd")
    assert abs(column.std() - sd) < 4 * sd / (2 * ess) ** 0.5
    svi = pv.SVI(400, optimizer=pv.adam(3e-2), start=start, compile="trace", progress=False).fit(Weight(), x)
    draws = svi.draws["mixing.probs"][..., 0]
    # Adam's noise at this step size is about 0.1 sd.
    assert abs(draws.mean() - mean) < 0.25 * sd
    assert draws.std().item() == pytest.approx(sd, rel=0.2)
    # One dimension and nearly the right family: weights have light tails, and give the mean back.
    assert khat(svi) < 0.5


def normal_inverse_wishart_mean(x, mean, strength):
    """E[mu | X] = (kappa m + n x_bar) / (kappa + n), whatever the covariance."""
    return (strength * mean + len(x) * x.mean(0)) / (strength + len(x))


@pytest.mark.slow
def test_one_component_against_its_closed_form():
    x = torch.randn(40, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64) + 3
    center = torch.zeros(2, dtype=torch.float64)
    prior = pv.families.NormalInverseWishartPrior(mean=center, strength=2.0, df=5.0, scale=torch.eye(2))
    model = pv.models.GaussianMixture(1, 2, prior=(pv.families.DirichletPrior(1.0), prior))
    exact = normal_inverse_wishart_mean(x, center, 2.0)
    vb = pv.VB(num_draws=2000, progress=False).fit(model, x)
    torch.testing.assert_close(vb.q["components"].center()["loc"][0], exact)
    svi = pv.SVI(
        300, optimizer=pv.adam(2e-2), guide="multivariate", start=vb, num_draws=1000, compile="trace", progress=False
    )
    nuts = pv.NUTS(200, warmup=150, num_chains=2, start=vb, compile="trace", progress=False)
    spread = vb.draws["components.loc"].std((0, 1))[0]
    for fit, slack in ((vb, 0.0), (nuts.fit(model, x), 0.0), (svi.fit(model, x), 0.25)):
        loc = fit.draws["components.loc"][:, :, 0]
        for j in range(2):
            assert abs(loc[..., j].mean() - exact[j]) < 4 * mean_error(loc[..., j]) + slack * spread[j]


@pytest.mark.slow
def test_all_engines_on_one_declaration_from_one_start():
    """Old Faithful: components well apart, so that mean-field is close, and all agree with NUTS."""
    x = pv.data.faithful()
    gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    em = pv.EM(n_init=3, progress=False).fit(gmm, x)
    fits = {"NUTS": pv.NUTS(400, warmup=300, start=em, progress=False).fit(gmm, x)}
    fits["VB"] = pv.VB(start=em, progress=False).fit(gmm, x)
    for guide in GUIDES:
        engine = pv.SVI(1500, optimizer=pv.adam(5e-3), guide=guide, start=em, progress=False)
        fits[guide] = engine.fit(gmm, x)
    table = pv.compare(fits)
    assert convergence(fits["NUTS"]).ok
    errors = table.quality()
    assert all(said.startswith("Stephens") for fit in fits.values() for said in [fit.settings["labels"]])
    # Adam's noise is about 0.2 sd here; a mean-field q is off by what its correlations cost the means.
    assert (errors["error"].abs() - 4 * errors["mc_error"]).max() < 0.6
    assert errors.loc["VB"]["sd_ratio"].between(0.8, 1.2).all()
    assert errors.loc["multivariate"]["coverage"].mean() > 0.8
    predictive = table.to_frame()["log_predictive"]
    assert predictive.max() - predictive.min() < 0.01


class LowDimGaussMix(pv.LatentVariableModel):
    """posteriordb's low_dim_gauss_mix, without its order: two normals, all parameters unknown."""

    @pv.latent(shared=True)
    def mu(self):
        return dist.Normal(torch.zeros(2), 2.0).to_event(1)

    @pv.latent(shared=True)
    def sigma(self):
        return dist.HalfNormal(2 * torch.ones(2)).to_event(1)

    @pv.latent(shared=True)
    def theta(self):
        return dist.Dirichlet(5 * torch.ones(2))

    @pv.latent
    def z(self, theta):
        return dist.Categorical(theta)

    @pv.observed
    def x(self, z, mu, sigma):
        return dist.Normal(mu[z], sigma[z])


def test_nuts_against_the_published_posterior():
    """The order mu_1 < mu_2 of the reference halves the prior's mass everywhere alike, so the posterior is the same."""
    stored = json.loads((Path(__file__).parent / "data" / "low_dim_gauss_mix.json").read_text(encoding="utf-8"))
    x, reference = torch.tensor(stored["y"], dtype=torch.float64), stored["reference"]
    settings = {"compile": "trace", "start": None, "seed": 2, "progress": False}
    engine = pv.NUTS(250, warmup=200, num_chains=2, labels=pv.Ordering("mu"), **settings)
    fit = engine.fit(LowDimGaussMix(), x)
    assert fit.settings["labels"].startswith("ordered by mu; ")
    columns = {
        "mu[1]": fit.draws["mu"][..., 0], "mu[2]": fit.draws["mu"][..., 1], "sigma[1]": fit.draws["sigma"][..., 0],
        "sigma[2]": fit.draws["sigma"][..., 1], "theta": fit.draws["theta"][..., 0],
    }  # fmt: skip
    assert reference["names"] == list(columns)
    for i, column in enumerate(columns.values()):
        error = np.hypot(mean_error(column), reference["mcse_mean"][i])
        assert abs(column.mean() - reference["mean_value"][i]) < 4 * error
        square = column.square()
        error = np.hypot(mean_error(square), reference["mcse_mean_squared"][i])
        assert abs(square.mean() - reference["mean_squared_value"][i]) < 4 * error
    # By responsibilities the answer is the same, up to which component comes first.
    again = pv.relabel(fit, pv.Stephens())
    for name, value in fit.draws.items():
        assert torch.equal(again.draws[name], value) or torch.equal(again.draws[name], value.flip(2))
