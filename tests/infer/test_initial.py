"""Where gradients start when nobody says: at an EM of a few iterations, where its mode is near the posterior."""

import pyro.distributions as dist
import pytest
import torch
from example_models import Chain, Hierarchy, ZeroInflated
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.initial import initial_values


class Scaled(pv.LatentVariableModel):
    """A hierarchy: the mode of p(x, loc, scale) is where the scale of the locations is zero."""

    @pv.latent(shared=True)
    def scale(self):
        return dist.HalfNormal(1.0)

    @pv.latent(shared=True)
    def loc(self, scale):
        return dist.Normal(torch.zeros(2), scale).to_event(1)

    @pv.latent
    def z(self):
        return dist.Categorical(torch.ones(2) / 2)

    @pv.observed
    def x(self, loc, z):
        return dist.Normal(loc[z], 1.0)


class Networked(Scaled):
    """A mixture whose locations a network gives."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @pv.observed
    def x(self, loc, z):
        return dist.Normal(self.net(loc)[z], 1.0)


VALUES = {
    ZeroInflated: {"probs": [0.2, 0.3, 0.5], "rate": [2.0, 9.0]},
    Chain: {
        "start": [0.2, 0.3, 0.5],
        "moves": [[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.25, 0.35, 0.4]],
        "loc": [-4, 0, 5],
    },
}


def drawn(make, n=400):
    """A model, and data of it at the values of the table."""
    model = make()
    torch.manual_seed(4)
    with model.bind({name: torch.tensor(value, dtype=torch.float32) for name, value in VALUES[make].items()}):
        return model, model.sample(n)


@pytest.mark.parametrize("make", VALUES)
def test_svi_of_components_declared_by_hand_tells_them_apart(make):
    """Its own start has all components alike, from where few epochs do not lead away; EM of the same data does."""
    model, x = drawn(make)
    em = pv.EM(n_init=5, progress=False).fit(model, x)
    auto, plain = (pv.SVI(60, start=start, progress=False).fit(model, x) for start in ("auto", None))
    best = em.log_prob(x).mean()
    assert auto.log_prob(x).mean() > best - 0.05
    assert plain.log_prob(x).mean() < best - 1.0


def test_large_data_start_on_some_of_them():
    model, x = drawn(ZeroInflated, 3000)
    obs = model.check(x)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    values = initial_values("auto", model, obs, torch.linspace(0, 2, 3000), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert values.keys() == {"probs", "rate"}
    torch.testing.assert_close(values["rate"].sort().values, torch.tensor([2.0, 9.0]), atol=0.4, rtol=0)


@pytest.mark.parametrize(("make", "shape"), [(Scaled, (30,)), (Networked, (30,)), (Hierarchy, (30, 3))])
def test_models_whose_mode_is_no_start(make, shape):
    model = make()
    x = torch.linspace(-2, 2, 90)[: torch.Size(shape).numel()].reshape(shape)
    assert initial_values("auto", model, model.check(x), None, 0) is None


@pytest.mark.parametrize("frozen", [(), ("scale",)])
def test_em_says_that_a_hierarchy_has_no_mode(frozen):
    """The density of locations grows without bound as their scale goes to zero; with the scale held it has a mode."""
    x = torch.linspace(-0.5, 0.5, 60)
    start = {"scale": torch.tensor(1.0), "loc": torch.tensor([-0.5, 0.5])}
    fit = pv.EM(frozen=frozen, start=start, progress=False).fit(Scaled(), x)
    assert (fit.status.code == "degenerate") == (not frozen)
    if not frozen:
        assert "scale went to zero" in fit.status.message
        assert "frozen=('scale',)" in fit.status.message


class States(pv.LatentVariableModel):
    """Four steps of a chain of two states, each of them a latent, so 16 values together."""

    def __init__(self, prior=None):
        super().__init__()
        self.first = pv.families.Categorical(2, prior=prior)
        self.move = pv.families.Categorical(2, batch=2, prior=prior)
        self.count = pv.families.Poisson(batch=2, prior=prior)

    @pv.latent
    def z0(self):
        return self.first()

    @pv.latent
    def z1(self, z0):
        return self.move(z0)

    @pv.latent
    def z2(self, z1):
        return self.move(z1)

    @pv.latent
    def z3(self, z2):
        return self.move(z2)

    @pv.observed
    def x0(self, z0):
        return self.count(z0)

    @pv.observed
    def x1(self, z1):
        return self.count(z1)

    @pv.observed
    def x2(self, z2):
        return self.count(z2)

    @pv.observed
    def x3(self, z3):
        return self.count(z3)


def test_fewer_data_than_values_of_the_latents_together():
    """Values of a chain's states together are no components, of which there must be data for each."""
    torch.manual_seed(0)
    rates = torch.tensor([1.0, 8.0])
    z = (torch.rand(12, 4) < torch.tensor([0.2, 0.4, 0.6, 0.8])).long()
    data = {f"x{t}": torch.poisson(rates[z[:, t]]).double() for t in range(4)}
    found = pv.EM(progress=False).fit(States(), data)
    known = pv.EM(start={"count.rate": rates}, progress=False).fit(States(), data)
    torch.testing.assert_close(found.trace["bound"][-1], known.trace["bound"][-1], rtol=1e-6, atol=0)
    assert len(pv.SVI(2, progress=False).fit(States("weak"), data).trace["bound"]) == 2
