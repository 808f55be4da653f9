"""Simulation-based calibration: a right posterior passes, a wrong one is named, and an interruption changes nothing."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.calibration import band, uniformity

N = 8


class Mean(pv.LatentVariableModel):
    """mu ~ N(0, 1), x_i ~ N(mu, 1): p(mu | x) = N(sum x / (n + 1), 1 / (n + 1))."""

    @latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 1.0)

    @observed
    def x(self, mu):
        return dist.Normal(mu, 1.0)


class Exact:
    """The conjugate posterior, its mean moved and its scale multiplied."""

    def __init__(self, scale=1.0, shift=0.0, num_draws=40):
        self.scale, self.shift, self.num_draws = scale, shift, num_draws

    def fit(self, model, data):
        x = model.check(data).values["x"]
        sd = (len(x) + 1) ** -0.5
        mu = x.sum() / (len(x) + 1) + sd * (self.shift + self.scale * torch.randn(1, self.num_draws).double())
        return pv.Fit(model, "exact", {"mu": mu}, {}, "", pv.Status("finished", ""), 0.0, 0)


def study(engine, count=120, **options):
    return pv.calibrate(Mean(), engine, num_simulations=count, n=N, progress=False, **options)


@pytest.mark.parametrize(
    ("engine", "verdict"),
    [
        (Exact(), "calibrated"),
        (Exact(scale=0.6), "too narrow"),
        (Exact(scale=1.8), "too wide"),
        (Exact(shift=0.7), "biased high"),
        (Exact(shift=-0.7), "biased low"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_right_posterior_passes_and_a_wrong_one_is_named(engine, verdict):
    found = study(engine)
    assert found.to_frame().loc["mu", "verdict"] == verdict
    assert found.ok == (verdict == "calibrated")
    assert verdict in str(found)
    assert (found.verdicts()[0].p_value > 0.001) == (verdict == "calibrated")


def test_the_band_holds_uniform_values_as_often_as_it_says():
    rng = np.random.default_rng(1)
    count = 400
    left = sum(not uniformity("u", rng.uniform(size=60), 0.1).inside for _ in range(count))
    # The band's ends are rounded to whole counts, so it may leave a little less than it says.
    assert abs(left / count - 0.1) < 4 * math.sqrt(0.1 * 0.9 / count) + 0.02


def test_shape_of_the_band():
    at, lower, upper = band(50, 0.95)
    assert (lower <= at).all()
    assert (upper >= at).all()
    assert band(50, 0.95) is band(50, 0.95)


def test_an_interruption_changes_nothing(tmp_path):
    path = tmp_path / "sbc.safetensors"
    whole = study(Exact(), 12)

    class Breaks(Exact):
        made = 0

        def fit(self, model, data):
            Breaks.made += 1
            if Breaks.made == 6:
                raise KeyboardInterrupt
            return super().fit(model, data)

    with pytest.raises(KeyboardInterrupt):
        study(Breaks(), 12, checkpoint=path)
    again = Breaks()
    resumed = study(again, 12, checkpoint=path)
    np.testing.assert_array_equal(resumed.u, whole.u)
    assert Breaks.made == 6 + 7  # five were kept
    study(again, 12, checkpoint=path)
    assert Breaks.made == 6 + 7  # a finished one is returned as it is
    more = study(again, 14, checkpoint=path)
    np.testing.assert_array_equal(more.u[:12], whole.u)
    with pytest.raises(pv.DataError, match="another seed"):
        study(again, 12, checkpoint=path, seed=1)


def test_fits_that_fail_are_counted():
    class Fails(Exact):
        made = 0

        def fit(self, model, data):
            Fails.made += 1
            if Fails.made % 3 == 0:
                raise pv.EngineError("this one does not converge")
            return super().fit(model, data)

    found = study(Fails(), 9)
    assert found.u.shape == (6, 2)
    assert "3 fits failed" in " ".join(found.warnings())
    assert not found.ok


def test_functions_of_ones_own_and_what_a_result_shows():
    found = study(Exact(), 40, quantities={"sign": lambda v: (v["mu"] > 0).double(), "square": lambda v: v["mu"] ** 2})
    assert found.names == ("sign", "square")
    assert ((found.u > 0) & (found.u < 1)).all()
    assert "<table" in found._repr_html_()
    ax = found.plot()
    assert ax.get_xlabel()
    assert {line.get_label() for line in ax.lines} >= {"sign", "square"}
    ax.figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1  # beside the curves
    assert found.to_datatree()["prior_sbc"]["square"].shape == (1, 40)


def test_nuts_shares_one_graph(monkeypatch):
    from ppl_vae.infer import target

    made = []
    original = target.Traced

    class Counted(original):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(target, "Traced", Counted)
    engine = pv.NUTS(20, warmup=30, num_chains=2, progress=False, compile="trace")
    found = study(engine, 12)
    assert len(made) == 1
    assert len(made[0].graphs) == 1
    assert found.names == ("mu", "log p(X | theta)")
    # The posterior's mean is known: sum x / (n + 1), so truths and means agree as much as they should.
    residual = (found.record["truth"] - found.record["mean"])[:, 0] * math.sqrt(N + 1)
    assert abs(residual.mean()) < 4 / math.sqrt(12) * 1.2
    assert (found.record["draws"] <= 40).all()


def test_labels_that_can_switch_are_not_ranked():
    gmm = pv.models.GaussianMixture(2, 1, prior="weak")
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(pv.EngineError, match=r"model\.adapt"):
        pv.calibrate(gmm, pv.VB(progress=False), num_simulations=2, n=20, progress=False)
    gmm.adapt(x)
    found = pv.calibrate(gmm, pv.VB(num_draws=30, progress=False), num_simulations=5, n=20, progress=False)
    assert not [name for name in found.names if "components" in name or "mixing" in name]
    assert {"mean of x[0]", "variance of x[0]", "log p(X | theta)"} <= set(found.names)


def test_what_cannot_be_calibrated_is_told():
    with pytest.raises(pv.EngineError, match="nothing to rank"):
        pv.calibrate(pv.models.GaussianMixture(2, 1), pv.EM(progress=False), num_simulations=2)
    gmm = pv.models.GaussianMixture(2, 1, prior="weak")
    gmm.adapt(pv.data.galaxies())
    with pytest.raises(pv.EngineError, match="this fit by EM has one value: take NUTS, SVI or VB"):
        pv.calibrate(gmm, pv.EM(progress=False), num_simulations=3, n=20, progress=False)
    for count in (0, 1):
        with pytest.raises(pv.EngineError, match=f"num_simulations must be a whole number, at least 2, got {count}"):
            study(Exact(), count)


class Linear(pv.LatentVariableModel):
    """z ~ N(0, 1), x = z + N(0, 1), q(z | x) = N(x / 2 + shift, scale^2 / 2): exact at shift 0 and scale 1."""

    def __init__(self, shift=0.0, scale=1.0):
        super().__init__()
        self.shift, self.scale = shift, scale
        self.unused = nn.Parameter(torch.zeros(()))

    @latent
    def z(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(x / 2 + self.shift, self.scale * 0.5**0.5).to_event(1)

    @observed
    def x(self, z):
        return dist.Normal(z + 0 * self.unused, 1.0).to_event(1)


@pytest.mark.parametrize(
    ("model", "verdict", "symmetric"),
    [
        (Linear(), "calibrated", True),
        (Linear(scale=0.5), "too narrow", True),
        (Linear(shift=0.4), "biased high", False),
    ],
    ids=["exact", "narrow", "shifted"],
)
def test_amortised_posteriors(model, verdict, symmetric):
    fit = pv.SVI(1, optimizer=pv.adam(1e-9), progress=False).fit(model, torch.zeros(4, 1))
    found = pv.calibrate_latents(fit, n=600)
    row = found.to_frame().loc["z[0]"]
    assert row["verdict"] == verdict
    assert (row["asymmetry_p"] > 0.001) == symmetric


class Correlated(pv.LatentVariableModel):
    """Two locations seen only through their sum and, hardly, their difference: a narrow ridge."""

    @latent(shared=True)
    def theta(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @observed
    def x(self, theta):
        return dist.Normal(theta.sum(-1), 0.5)


@pytest.mark.slow
def test_nuts_is_calibrated_and_mean_field_is_too_narrow():
    nuts = pv.NUTS(100, warmup=200, num_chains=2, progress=False)
    exact = pv.calibrate(Correlated(), nuts, num_simulations=200, n=10, progress=False)
    assert exact.ok, str(exact)
    mean_field = pv.SVI(400, optimizer=pv.adam(5e-2), num_draws=200, progress=False)
    found = pv.calibrate(Correlated(), mean_field, num_simulations=200, n=10, progress=False)
    assert "too narrow" in found.to_frame().loc["theta[0]", "verdict"], str(found)
