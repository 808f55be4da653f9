"""Averaged iterates of q: closer to the optimum than the last one, whose distance the step length decides."""

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.declare import LatentVariableModel, latent, observed
from ppl_vae.infer.averaging import Averaging

N, NOISE = 400, 1.0


class Mean(LatentVariableModel):
    """mu ~ N(0, 10^2), x_i ~ N(mu, 1): the posterior is normal, with a closed form."""

    @latent(shared=True)
    def mu(self):
        return dist.Normal(torch.zeros(2), 10.0).to_event(1)

    @observed
    def x(self, mu):
        return dist.Normal(mu, NOISE).to_event(1)


@pytest.fixture(scope="module")
def data():
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3


def posterior(x):
    precision = 1 / 100 + len(x) / NOISE**2
    return x.sum(0) / NOISE**2 / precision, precision**-0.5


def location(fit):
    return fit.model.shared_guide.median()["mu"].double()


def error(x, average, seed, **options):
    """Distance of q's location from the posterior's mean, in posterior standard deviations."""
    engine = pv.SVI(200, optimizer=pv.adam(3e-2), average=average, seed=seed, num_draws=2, progress=False, **options)
    mean, sd = posterior(x)
    return (location(engine.fit(Mean(), x)) - mean).abs().max().item() / sd


def test_the_mean_of_iterates_is_closer_to_the_posterior_than_the_last_one(data):
    last = torch.tensor([error(data, 0, seed, batch_size=100) for seed in range(4)])
    mean = torch.tensor([error(data, 1 / 3, seed, batch_size=100) for seed in range(4)])
    assert mean.square().mean().sqrt() < 0.5 * last.square().mean().sqrt()
    assert mean.max() < 0.5


def test_what_is_kept_is_the_mean_of_the_last_part(data):
    seen = []

    class Watch(pv.Callback):
        def end(self, run, step, metrics):
            seen.append(run.model.shared_guide.median()["mu"].detach().clone())

    engine = pv.SVI(400, optimizer=pv.adam(0.1), average=0.25, callbacks=[Watch()], num_draws=2, progress=False)
    fit = engine.fit(Mean(), data)
    torch.testing.assert_close(location(fit), torch.stack(seen[-100:]).double().mean(0), atol=1e-12, rtol=0)
    assert (location(fit) != seen[-1]).all()


def test_none_keeps_the_last_step(data):
    last = []

    class Watch(pv.Callback):
        def tear_down(self, run, status):
            last.append(run.model.shared_guide.median()["mu"].detach().clone())

    fit = pv.SVI(8, average=0.0, callbacks=[Watch()], num_draws=2, progress=False).fit(Mean(), data)
    assert torch.equal(location(fit), last[0].double())


def test_an_earlier_state_that_is_restored_is_not_averaged(data):
    """Patience keeps the state of the best epoch, whose bound was seen."""
    options = {"validation": data[:50] + 2.0, "patience": 3, "num_draws": 2, "progress": False, "start": None}
    engine = pv.SVI(200, optimizer=pv.adam(0.1), **options)
    fit = engine.fit(Mean(), data[50:])
    assert fit.status.code == "stopped early"
    assert torch.equal(location(fit), location(pv.SVI(**{**vars(engine), "average": 0.0}).fit(Mean(), data[50:])))


def test_a_resumed_fit_ends_with_the_same_bits(data, tmp_path):
    def fit(folder=None, callbacks=()):
        plan = None if folder is None else pv.checkpoints(folder, steps=5)
        engine = pv.SVI(30, num_draws=2, progress=False, checkpoint=plan, callbacks=callbacks)
        return engine.fit(Mean(), data)

    whole = fit()
    with pytest.raises(pv.EngineError, match="power cut"):
        fit(tmp_path, [Breaks()])
    assert torch.equal(location(fit(tmp_path)), location(whole))
    assert torch.equal(location(fit(tmp_path)), location(whole))  # from the checkpoint of the end


class Breaks(pv.Callback):
    def end(self, run, step, metrics):
        if step == 26:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("average", [-0.1, 1.5, "half"])
def test_a_part_is_between_none_and_all(average):
    with pytest.raises(pv.EngineError, match=f"average is a part of the steps, between 0 and 1; got {average!r}"):
        pv.SVI(1, average=average)


def test_nothing_counted_changes_nothing():
    p = torch.ones(2)
    mean = Averaging([p], part=0.1)
    mean.seen(done=0.5)
    mean.apply()
    assert torch.equal(p, torch.ones(2))


def test_what_is_still_on_its_way_keeps_its_last_value(data):
    """Far from the posterior and with a small step a mean would lag by a sixth of the way."""
    start = {"mu": torch.tensor([-50.0, 50.0])}
    options = {"optimizer": pv.adam(1e-2), "start": start, "num_draws": 2, "progress": False}
    fits = [pv.SVI(120, average=average, **options).fit(Mean(), data) for average in (0.0, 0.5)]
    assert torch.equal(location(fits[0]), location(fits[1]))


def test_a_bound_that_still_rises_is_told_of(data):
    slow, done = (
        pv.SVI(120, optimizer=pv.adam(lr), num_draws=2, start=None, progress=False).fit(Mean(), data)
        for lr in (1e-2, 0.2)
    )
    assert "the bound was still rising at the end" in " ".join(slow.status.notes)
    assert "take more epochs or a larger learning rate" in " ".join(slow.status.notes)
    assert done.status.notes == ()


def test_a_schedule_of_epochs_is_not_one_of_batches_where_their_number_is_unknown(data):
    """The weight of the KL term rises over ten epochs, however many batches an iterable has."""
    betas = []

    class Watch(pv.Callback):
        def end(self, run, step, metrics):
            betas.append(metrics["beta"])

    class Blocks:
        def __iter__(self):
            return iter(data.float().split(100))

    vae = pv.models.VAE(pv.nets.mlp_encoder(2, 4, 1), pv.nets.mlp_decoder(1, 4, 2), likelihood="gaussian")
    engine = pv.SVI(3, beta=pv.linear(0, 1, epochs=10), callbacks=[Watch()], progress=False, compile="off")
    engine.fit(vae, Blocks())
    assert betas == pytest.approx([0.0] * 4 + [0.1] * 4 + [0.2] * 4)
