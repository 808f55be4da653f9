"""Floors of scales are in units of the data of the node whose law a likelihood is, whatever the two are called."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import ppl_vae as pv
from ppl_vae.infer.batches import make_batches
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


def in_order(n=400):
    """Numbers of two widths and places, sorted by which they are, as folders of images of one class each."""
    return torch.cat([numbers(n // 2, 6, 0.01), 10 * WIDE + numbers(n // 2, 6, WIDE, seed=1)])


SOURCES = {"Dataset": TensorDataset, "stream": lambda x: pv.data.stream(x, rows=50)}


@pytest.mark.parametrize("weights", [None, torch.arange(400) % 3 + (torch.arange(400) > 300)], ids=["", "weights"])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_unit_of_sorted_rows_is_that_of_the_tensor(source, weights):
    x = in_order()
    inside, outside = (
        pv.SVI(1, batch_size=50, progress=False).fit(declared(GaussianLearned()), data, weights).model
        for data in (x, source(x))
    )
    assert outside.noise.unit.item() == pytest.approx(inside.noise.unit.item(), rel=1e-6)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_weak_prior_takes_its_scale_from_all_of_sorted_rows(source):
    x, svi = in_order(), pv.SVI(1, batch_size=50, progress=False)
    models = (svi.fit(pv.models.GaussianMixture(2, 6, prior="weak"), data).model for data in (x, source(x)))
    inside, outside = (dict(model.components.named_buffers()) for model in models)
    for name in ("prior_mean", "prior_scale"):
        torch.testing.assert_close(outside[name], inside[name])


class Counted(Dataset):
    """Rows, and which of them were asked for."""

    def __init__(self, x):
        self.x, self.asked = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.x[i]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_of_many_rows_some_are_drawn_by_the_seed(source, monkeypatch):
    monkeypatch.setattr("ppl_vae.infer.loaders.SAMPLE", 300)
    x = in_order(4000)

    def unit(seed):
        torch.manual_seed(0)
        fit = pv.SVI(1, batch_size=50, seed=seed, progress=False).fit(declared(GaussianLearned()), source(x))
        return fit.model.noise.unit.item()

    assert unit(0) == unit(0) != unit(1)
    assert unit(0) == pytest.approx(spread(x), rel=0.1)


def test_rows_that_nothing_is_taken_from_are_not_read_before_the_first_epoch():
    x = numbers(600, 6, 1.0)
    for likelihood, read in (("gaussian", 0), ("gaussian-learned", 600)):
        items = Counted(x)
        vae = pv.models.VAE(pv.nets.linear_encoder(6, 2), pv.nets.linear_decoder(2, 6), likelihood)
        pv.SVI(1, batch_size=50, progress=False).fit(vae, items)
        assert 600 + read <= len(items.asked) <= 600 + read + 51  # the first batch, and one item for the dtype


def test_rows_of_weight_zero_are_not_drawn():
    x = in_order()
    items = Counted(x)
    rows, weights = make_batches(declared(GaussianLearned()), items, torch.arange(400) // 200, batch_size=50).sample()
    assert set(items.asked[50:]) == set(range(200, 400))
    assert weights.tolist() == [1.0] * 200
    assert torch.equal(rows.values["height"], x[200:])


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
