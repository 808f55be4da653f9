"""The epoch loop: numbers that are not finite, patience that knows its noise, the true bound beside the objective."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.held_out import HeldOut


class Line(pv.LatentVariableModel):
    """x ~ N(w sqrt(t), 1): at t = 0 the gradient of sqrt(t + 0 w) is not a number, though its value is."""

    t = pv.given()

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    @pv.observed
    def x(self, t):
        return dist.Normal(self.w * torch.sqrt(t + 0 * self.w), 1.0)


def points(n=400):
    t = 1 + torch.arange(n).remainder(5).float()
    return {"x": 2 * t.sqrt(), "t": t}


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_value_that_is_not_finite_ends_the_fit_before_the_step(mode):
    data = points()
    data["x"][7] = 1e30  # its square is no float32
    fit = pv.SVI(4, batch_size=10, compile=mode, progress=False).fit(Line(), data)
    assert fit.status.code == "failed"
    assert not fit.status.ok
    assert "became -inf at step" in fit.status.message
    assert "epoch 0, batch" in fit.status.message
    assert "at node x" in fit.status.message
    assert "the parameters before that step are kept" in fit.status.message
    assert fit.model.w.isfinite()
    assert 0.4 < fit.model.w.item() < 0.7


@pytest.mark.parametrize("mode", ["off", "trace"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_moves_nothing(mode, accumulate):
    """The objective is finite; the parameters are those of the step before."""
    data = points(2000)
    data["t"][11] = 0.0
    steps = []

    class Notes(pv.Callback):
        def end(self, run, step, metrics):
            steps.append(run.model.w.item())

    engine = pv.SVI(3, batch_size=10, optimizer=pv.adam(1e-3), compile=mode, accumulate=accumulate, progress=False,
                    callbacks=[Notes()])  # fmt: skip
    fit = engine.fit(Line(), data)
    count = len(steps)
    assert fit.status.code == "failed"
    assert f"the gradient of w became not finite at step {count}: epoch 0, batch {count};" in fit.status.message
    assert fit.model.w.item() == (steps[-1] if steps else 0.5)


class Spare(pv.LatentVariableModel):
    """x ~ N(m, 1), with a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.m, self.spare = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))

    @pv.observed
    def x(self):
        return dist.Normal(self.m, 1.0).to_event(1)


class Spoils(pv.Callback):
    """Somebody else's hand in the parameters."""

    def end(self, run, step, metrics):
        if step == 4:
            with torch.no_grad():
                run.model.spare.fill_(torch.nan)


@pytest.mark.parametrize(
    ("epochs", "batches", "where"),
    [
        (3, 4, "one of the steps 0 to 11, by epoch 2, batch 3"),
        (60, 4, "one of the steps 0 to 99, by epoch 24, batch 3"),
        (5, 1, "one of the steps 0 to 4, by epoch 4, batch 0"),
    ],
)
def test_what_is_seen_late_names_batches_that_there_were(epochs, batches, where):
    engine = pv.SVI(epochs, batch_size=40 // batches, progress=False, callbacks=[Spoils()])
    fit = engine.fit(Spare(), torch.randn(40, 1, generator=torch.Generator().manual_seed(0)))
    assert fit.status.code == "failed"
    assert f"the parameters became not finite at {where}; the parameters after step 0 are kept" in fit.status.message
    assert fit.model.spare.item() == 1.0


def test_a_step_to_infinity_is_seen_after_the_last_step_too():
    """The gradient is finite, the step is not."""
    fit = pv.SVI(1, optimizer=pv.sgd(1e38), progress=False).fit(Spare(), torch.full((4, 1), 1e3))
    assert "the parameters became not finite at step 0, by epoch 0, batch 0" in fit.status.message
    assert fit.model.m.item() == 0.0


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_covariance_without_a_factor_ends_the_fit_in_words(mode):
    """Steps that are far too long, of data that spread by 1e-15."""
    x = 1e-15 * pv.data.faithful().values
    engine = pv.SVI(150, optimizer=pv.sgd(1e6), compile=mode, progress=False)
    fit = engine.fit(pv.models.GaussianMixture(2, 2), x)
    assert fit.status.code == "failed"
    assert "not positive definite in rounding" in fit.status.message
    assert "units far from 1" in fit.status.message
    assert "the parameters after step 0 are kept" in fit.status.message
    assert bool(fit.log_prob(x).isfinite().all())


NOWHERE = {
    "a singular covariance": (
        {"components.covariance": torch.ones(2, 2, 2, dtype=torch.float64)},
        r"start\['components.covariance'\] must be symmetric and positive definite",
    ),
    "far from the data": (
        {"components.loc": torch.full((2, 2), 1e200, dtype=torch.float64)},
        "not finite where the chains start.*pass start= with values inside it",
    ),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_chains_without_a_density_to_start_from_are_told_of(case):
    start, said = NOWHERE[case]
    engine = pv.NUTS(5, warmup=5, num_chains=2, start=start, progress=False)
    with pytest.raises((pv.EngineError, pv.DataError), match=said):
        engine.fit(pv.models.GaussianMixture(2, 2, prior="weak"), pv.data.faithful())


def test_chains_do_not_mind_units():
    """Of the same seed, in other units, up to the share of the starts that is drawn in those units."""
    x = pv.data.faithful().values
    units = torch.tensor([1e-3, 1e3], dtype=torch.float64)
    engine = pv.NUTS(100, warmup=100, num_chains=2, progress=False)
    model = pv.models.GaussianMixture(2, 2, prior="weak")
    fits = [engine.fit(model, x), engine.fit(model, x * units)]
    means = [fit.draws["components.covariance"].mean((0, 1)) for fit in fits]
    sd = fits[0].draws["components.covariance"].std((0, 1))
    rescaled = means[1] / (units[:, None] * units)
    assert bool(((rescaled - means[0]).abs() < sd).all())


def test_a_step_of_ones_own_tells_of_a_covariance_without_a_factor():
    x = 1e-15 * pv.data.faithful().values
    model = pv.models.GaussianMixture(2, 2).double()
    model.adapt(x)
    step = pv.svi_step(model, pv.sgd(1e6))
    step(x)
    with pytest.raises(pv.EngineError, match="not positive definite in rounding"):
        step(x)


def test_a_run_that_fails_says_so_to_callbacks_and_gives_a_usable_fit():
    seen = []

    class Sees(pv.Callback):
        def tear_down(self, run, status):
            seen.append(status.code)

    data = points()
    data["x"][0] = 1e30
    fit = pv.SVI(2, progress=False, callbacks=[Sees()]).fit(Line(), data)
    assert seen == ["failed"]
    assert fit.log_prob({"x": torch.ones(1), "t": torch.ones(1)}).isfinite().all()


def test_better_means_by_more_than_its_noise():
    """A gain is judged by the standard error of the differences, datum by datum."""
    held_out = HeldOut(None, None, 0)
    base = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert held_out.better(base)
    assert not held_out.better(base + 1e-4 + 0.1 * (noise - noise.mean()))  # the noise of the mean is 0.003
    assert held_out.better(base + 1e-4)  # the same gain without noise
    assert not held_out.better(base)
    assert torch.equal(held_out.state(), base + 1e-4)


def test_patience_ends_when_the_held_out_bound_no_longer_rises():
    train, held = points(40), points(20)
    engine = pv.SVI(500, optimizer=pv.adam(0.05), validation=held, patience=5, compile="trace", progress=False)
    fit = engine.fit(Line(), train)
    assert fit.status.code == "stopped early"
    assert fit.model.w.item() == pytest.approx(2.0, abs=0.02)
    best = fit.trace["validation"].argmax()
    assert len(fit.trace["validation"]) - 1 - best <= 6


def test_the_true_bound_stands_beside_every_other_objective():
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(8, 16, 3), pv.nets.mlp_decoder(3, 16, 8))
    x = (torch.rand(200, 8) < 0.5).float()
    traces = {}
    for name, options in {
        "elbo": {},
        "beta": {"beta": 0.1},
        "schedule": {"beta": pv.linear(0, 1, epochs=2)},
        "free": {"objective": pv.elbo(free_bits=0.5)},
        "iwae": {"objective": pv.iwae(4)},
    }.items():
        traces[name] = pv.SVI(1, compile="trace", progress=False, optimizer=pv.sgd(0.0), **options).fit(vae, x).trace
    bound = traces["elbo"]["bound"].item()
    assert traces["elbo"]["objective"].item() == bound
    for name in ("beta", "schedule", "free"):
        # Parameters do not move, and the noise is that of the same seed.
        assert traces[name]["bound"].item() == pytest.approx(bound, rel=1e-6)
    assert traces["schedule"]["objective"].item() > traces["beta"]["objective"].item() > bound
    assert traces["free"]["objective"].item() < bound
    assert traces["iwae"]["objective"].item() > traces["iwae"]["bound"].item()


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_fit_that_begins_with_what_is_not_finite_says_so(mode):
    model = Line()
    with torch.no_grad():
        model.w.fill_(torch.nan)
    fit = pv.SVI(2, batch_size=100, compile=mode, progress=False).fit(model, points())
    assert fit.status.code == "failed"
    assert "step 0" in fit.status.message
    assert "at node x, Normal whose loc is nan" in fit.status.message


def test_after_an_impossible_held_out_datum_any_possible_look_is_better():
    held_out = HeldOut(None, None, 0)
    looks = ([-1.0, -torch.inf, -3.0], [-0.5, -0.5, -0.5], [-0.6, -0.6, -0.6], [-0.1, -0.1, -0.1])
    assert [held_out.better(torch.tensor(look)) for look in looks] == [True, True, False, True]
