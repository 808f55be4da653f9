"""Floors of scales are in units of the data of the node whose law a likelihood is, whatever the two are called."""

import math

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.likelihoods import GaussianLearned, GaussianNetwork, GaussianOptimal

WIDE, LONG = 7.0, 300.0
"""Standard deviations of two sets of data."""


def numbers(n, d, scale, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=draw)


def spread(x):
    return x.double().var(0, correction=0).mean().sqrt().item()


def declared(noise):
    """A model of a user's own: neither its node nor its likelihood has the name that shipped models give theirs."""

    class Own(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.lift, self.noise = torch.nn.Linear(2, 6 * noise.width), noise
            self.reach = torch.nn.Linear(6, 4)

        @pv.latent
        def code(self):
            return dist.Normal(torch.zeros(2), 1.0).to_event(1)

        @code.posterior
        def q_code(self, height):
            loc, raw = self.reach(height / WIDE).chunk(2, -1)
            return dist.Normal(loc, raw.exp()).to_event(1)

        @pv.observed
        def height(self, code):
            return self.noise(self.lift(code))

    return Own()


@pytest.mark.parametrize("noise", [GaussianLearned, GaussianNetwork, GaussianOptimal])
def test_a_declaration_of_ones_own_has_the_unit_of_its_data(noise):
    x = numbers(50, 6, WIDE)
    for compile_ in ("trace", "off"):
        fit = pv.SVI(2, progress=False, compile=compile_).fit(declared(noise()), x)
        assert fit.model.noise.unit.item() == pytest.approx(spread(x))
    fit = pv.SVI(2, progress=False).fit(declared(noise(unit=2.0)), x)
    assert fit.model.noise.unit.item() == 2.0


def test_a_saved_fit_keeps_its_unit(tmp_path):
    x = numbers(50, 6, WIDE)
    fit = pv.SVI(2, progress=False).fit(declared(GaussianLearned()), x)
    fit.save(tmp_path / "fit")
    again = pv.Fit.load(tmp_path / "fit", declared(GaussianLearned()))
    assert again.model.noise.unit.item() == pytest.approx(spread(x))
    assert again.model.noise.scale.item() == fit.model.noise.scale.item()


@pytest.mark.parametrize("source", [lambda x: x, lambda x: pv.data.stream(x, rows=100)], ids=["memory", "stream"])
def test_rows_of_weight_zero_do_not_widen_the_floor(source):
    x = numbers(40, 6, WIDE)
    data, weights = torch.cat([x, torch.full((20, 6), 1e4)]), torch.cat([torch.ones(40), torch.zeros(20)])
    vae = pv.models.VAE(pv.nets.linear_encoder(6, 2), pv.nets.linear_decoder(2, 6), "gaussian-learned")
    for model, name in ((vae, "likelihood"), (declared(GaussianLearned()), "noise")):
        fit = pv.SVI(2, progress=False).fit(model, source(data), weights)
        assert getattr(fit.model, name).unit.item() == pytest.approx(spread(x))


class Two(pv.LatentVariableModel):
    """Two nodes with a likelihood each, and two that share one; laws within others."""

    def __init__(self):
        super().__init__()
        self.near, self.far, self.both = GaussianLearned(), GaussianLearned(pixels=3), GaussianLearned()

    @pv.latent
    def k(self):
        return dist.Categorical(torch.ones(2))

    @pv.observed
    def a(self, k):
        return self.near(k[..., None] * torch.ones(3)).mask(True)

    @pv.observed
    def b(self, k):
        return self.far(k[..., None, None] * torch.ones(2, 3)).to_event(1)

    @pv.observed
    def c(self, k):
        return self.both(k[..., None] * torch.ones(1))

    @pv.observed
    def d(self, k):
        return self.both(k[..., None] * torch.ones(3))


@pytest.mark.parametrize("engine", [pv.SVI(1, progress=False), pv.EM(max_iter=2, progress=False)], ids=["SVI", "EM"])
def test_every_likelihood_has_the_unit_of_its_own_nodes(engine):
    a, b, c, d = (numbers(30, n, s, seed) for seed, (n, s) in enumerate([(3, WIDE), (6, LONG), (1, WIDE), (3, LONG)]))
    weights = torch.linspace(0, 1, 30)
    data = {"a": a, "b": b.reshape(30, 2, 3), "c": c, "d": d}
    model = engine.fit(Two(), data, weights).model
    for likelihood, x in ((model.near, a), (model.far, b), (model.both, torch.cat([c, d], 1))):
        share = (weights / weights.sum()).double()
        variance = share @ x.double().square() - (share @ x.double()).square()
        assert likelihood.unit.item() == pytest.approx(math.sqrt(variance.mean()), rel=1e-5)


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_a_loop_of_ones_own_takes_the_unit_of_its_first_batch(mode):
    x = numbers(64, 6, WIDE)
    vae = pv.models.VAE(pv.nets.linear_encoder(6, 2), pv.nets.linear_decoder(2, 6), "gaussian-learned")
    for model, likelihood in ((vae, vae.likelihood), (own := declared(GaussianLearned()), own.noise)):
        step = pv.svi_step(model, pv.adam(1e-3), compile=mode)
        step(x)
        assert likelihood.unit.item() == pytest.approx(spread(x))
        step(2 * x)
        assert likelihood.unit.item() == pytest.approx(spread(x))


def test_a_loop_that_goes_on_keeps_the_unit_that_it_had():
    x = numbers(64, 6, WIDE)
    fitted = pv.SVI(2, progress=False).fit(declared(GaussianLearned()), x).model
    model = declared(GaussianLearned())
    model.load_state_dict(fitted.state_dict())
    pv.svi_step(model, pv.adam(1e-3))(x[:5])
    assert model.noise.unit.item() == pytest.approx(spread(x))
