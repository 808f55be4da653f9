"""SVI and NUTS of parameters declared by hand: no units, no prior however wide, keeps them from the posterior."""

import math

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import given, latent, observed
from ppl_vae.infer.settled import settled


class Mean(pv.LatentVariableModel):
    """x ~ N(mu, noise), mu ~ N(0, width): the posterior is known."""

    def __init__(self, width, noise):
        super().__init__()
        self.width, self.noise = width, noise

    @latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, self.width)

    @observed
    def x(self, mu):
        return dist.Normal(mu, self.noise)


class Location(pv.LatentVariableModel):
    """Both parameters of a normal, with priors that say next to nothing."""

    @latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 1000.0)

    @latent(shared=True)
    def sd(self):
        return dist.LogNormal(0.0, 3.0)

    @observed
    def x(self, mu, sd):
        return dist.Normal(mu, sd)


class Counts(pv.LatentVariableModel):
    """Poisson regression with a wide prior: most of its draws give rates beyond any number."""

    c = given()

    @latent(shared=True)
    def w(self):
        return dist.Normal(torch.zeros(2), 10.0).to_event(1)

    @observed
    def y(self, c, w):
        return dist.Poisson((c * w).sum(-1).exp())


class Groups(pv.LatentVariableModel):
    """z_i ~ N(mu, tau), x_i ~ N(z_i, 1): given both, x_i ~ N(mu, sqrt(tau^2 + 1))."""

    @latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 100.0)

    @latent(shared=True)
    def tau(self):
        return dist.HalfNormal(5.0)

    @latent
    def z(self, mu, tau):
        return dist.Normal(mu, tau)

    @observed
    def x(self, z):
        return dist.Normal(z, 1.0)


def spread(n):
    """Quantiles of a standard normal."""
    return dist.Normal(0.0, 1.0).icdf((torch.arange(n) + 0.5) / n)


@pytest.mark.parametrize(("guide", "rel"), [("normal", 0.15), ("multivariate", 0.15), ("lowrank", 0.35)])
@pytest.mark.parametrize(
    ("width", "noise", "center"), [(1.0, 1.0, 0.5), (1000.0, 1.0, 300.0), (5.0, 1e-3, 4.0), (1e6, 1e4, -2e5)]
)
def test_q_is_the_posterior_whatever_the_units(guide, rel, width, noise, center):
    """A low-rank q starts with its factor beside the diagonal, so wider than the others."""
    n = 40
    x = (center + noise * spread(n).double()).double()
    fit = pv.SVI(100, guide=guide, num_draws=2000, progress=False).fit(Mean(width, noise), x)
    variance = 1 / (1 / width**2 + n / noise**2)
    mean, sd = variance * n * x.mean().item() / noise**2, math.sqrt(variance)
    mu = fit.draws["mu"].flatten()
    assert abs(mu.mean().item() - mean) < 0.2 * sd
    assert mu.std().item() == pytest.approx(sd, rel=rel)


def test_priors_that_say_nothing():
    x = 500 + 0.01 * spread(200).double()
    fit = pv.SVI(100, progress=False).fit(Location(), x)
    sd = x.std(correction=0).item()
    assert fit.parameters["mu"].item() == pytest.approx(500, abs=sd / 5)
    assert fit.parameters["sd"].item() == pytest.approx(sd, rel=0.1)
    assert fit.draws["mu"].std().item() == pytest.approx(sd / math.sqrt(200), rel=0.2)


def regression():
    torch.manual_seed(5)
    c = torch.randn(200, 2) * torch.tensor([1.0, 10.0])
    return {"c": c, "y": torch.poisson((c @ torch.tensor([0.5, 0.1])).exp())}


def test_nuts_does_not_start_where_no_gradient_leads_away():
    fit = pv.NUTS(200, warmup=200, num_chains=2, progress=False).fit(Counts(), regression())
    assert fit.status.ok
    assert pv.diagnostics.convergence(fit).rhat < 1.05
    torch.testing.assert_close(fit.parameters["w"].float(), torch.tensor([0.5, 0.1]), atol=0.1, rtol=0)


def test_svi_and_nuts_of_a_wide_prior_agree():
    nuts = pv.NUTS(300, warmup=300, num_chains=2, progress=False).fit(Counts(), regression())
    svi = pv.SVI(100, guide="multivariate", progress=False).fit(Counts(), regression())
    sd = nuts.draws["w"].flatten(0, 1).std(0)
    assert ((svi.parameters["w"] - nuts.parameters["w"]).abs() < 0.5 * sd).all()


def test_latents_of_each_datum_start_where_they_are():
    """The bound of a mean-field q lacks little of log p(x | mu, tau) at its median, after few epochs."""
    x = 70 + 2 * spread(60)
    fit = pv.SVI(50, progress=False).fit(Groups(), x)
    mu, tau = (fit.parameters[name].double() for name in ("mu", "tau"))
    exact = dist.Normal(mu, (tau**2 + 1).sqrt()).log_prob(x.double()).mean()
    assert mu.item() == pytest.approx(70, abs=0.5)
    assert tau.item() == pytest.approx(math.sqrt(3), abs=0.6)
    assert fit.trace["bound"][-20:].mean() > exact - 0.5


def test_data_beyond_those_looked_at_count(monkeypatch):
    """Of 3,000 data 2,000 are looked at, each for one and a half: the scale is that of the posterior of all."""
    x = (5 + 2 * spread(3000)).double()
    model = Mean(100.0, 2.0)
    found = settled(model, model.check(x), None, None, 0, 3000)
    assert found.scale["mu"].item() == pytest.approx(2 / math.sqrt(3000), rel=0.15)
    first_block = settled(model, model.check(x[:500]), None, None, 0, 3000)
    assert first_block.scale["mu"].item() == pytest.approx(2 / math.sqrt(3000), rel=0.15)
    weighted = settled(model, model.check(x[:100]), torch.full((100,), 30.0), None, 0, 3000)
    assert weighted.scale["mu"].item() == pytest.approx(2 / math.sqrt(3000), rel=0.15)


def test_nothing_of_the_callers_is_moved():
    model, x = Location(), torch.randn(20)
    state = torch.get_rng_state()
    first, second = (settled(model, model.check(x), None, None, 3, 20) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.loc.items():
        assert torch.equal(value, second.loc[name])


@pytest.mark.parametrize("model", [pv.models.GaussianMixture(2, 2, prior="weak"), pv.models.GaussianMixture(2, 2)])
def test_families_know_their_units(model):
    assert settled(model, model.check(pv.data.faithful()), None, None, 0, 272) is None


def test_a_saved_fit_draws_in_the_same_units(tmp_path):
    x = 300 + spread(40)
    fit = pv.SVI(20, progress=False).fit(Mean(1000.0, 1.0), x)
    again = pv.Fit.load(fit.save(tmp_path / "fit.safetensors"), Mean(1000.0, 1.0))
    for one in (fit, again):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            one.drawn = one.model.draw_shared()
    assert torch.equal(fit.drawn[0]["mu"], again.drawn[0]["mu"])
    assert torch.equal(fit.drawn[1], again.drawn[1])
    assert abs(fit.drawn[0]["mu"].item() - 300) < 2
