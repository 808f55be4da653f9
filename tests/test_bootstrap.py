"""The bootstrap: the spread of the estimator, labels kept, failures counted, seeds that repeat."""

import dataclasses

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.bootstrap import _draws, from_model, from_rows

B = 120
NOISE = 4 / (2 * B) ** 0.5
"""Four Monte-Carlo standard errors of the ratio of two standard deviations, one of them from B draws."""


@pytest.fixture(scope="module")
def geyser():
    return pv.data.faithful()


@pytest.fixture(scope="module")
def fit(geyser):
    return pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2), geyser)


@pytest.fixture(scope="module")
def refits(fit):
    return pv.bootstrap(fit, num_samples=B, progress=False)


def test_the_spread_is_the_standard_error(fit, refits):
    """Within Monte-Carlo error, on data of 272 rows and two groups far apart, where the quadratic form is good."""
    errors = pv.standard_errors(fit).standard_error
    assert refits.status.code == "finished"
    for name, error in errors.items():
        spread = refits.draws[name][0].std(0)
        assert refits.draws[name].shape == (1, B, *error.shape)
        assert (spread / error - 1).abs().max() < NOISE + 0.05, name  # 0.05: the quadratic form's own error


def test_resampled_rows_spread_like_the_sandwich(fit):
    refits = pv.bootstrap(fit, kind="nonparametric", num_samples=B, progress=False)
    errors = pv.standard_errors(fit, kind="sandwich").standard_error
    for name, error in errors.items():
        assert (refits.draws[name][0].std(0) / error - 1).abs().max() < NOISE + 0.05, name


@pytest.mark.parametrize("kind", ["parametric", "nonparametric"])
def test_the_seed_repeats_it(fit, kind):
    state = torch.random.get_rng_state()
    one, two, other = (pv.bootstrap(fit, kind=kind, num_samples=4, seed=s, progress=False) for s in (5, 5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one.draws["components.loc"], two.draws["components.loc"])
    assert not torch.equal(one.draws["components.loc"], other.draws["components.loc"])


def test_labels_are_those_of_the_original(fit, geyser):
    """A refit whose labels are the other way round is turned back."""
    swapped = {name: value.flip(0) for name, value in fit.parameters.items()}
    mirrored = pv.EM(start=swapped, progress=False).fit(pv.models.GaussianMixture(2, 2), geyser)
    assert not torch.allclose(mirrored.parameters["components.loc"], fit.parameters["components.loc"], rtol=0.1)
    for name, draws in _draws(fit, [mirrored, fit]).items():
        assert draws.shape[:2] == (1, 2)
        torch.testing.assert_close(draws[0, 0], fit.parameters[name], rtol=1e-3, atol=1e-3)
        assert torch.equal(draws[0, 1], fit.parameters[name])


def test_it_is_a_fit(fit, refits, geyser, tmp_path):
    tree = refits.to_datatree()
    assert tree["posterior"]["components.loc"].shape == (1, B, 2, 2)
    frame = pv.compare({"EM": fit, "bootstrap": refits}).to_frame()
    assert "elpd_loo" not in frame  # its draws are not those of a posterior
    assert frame.loc["bootstrap", "log_predictive"] == pytest.approx(frame.loc["EM", "log_predictive"], abs=0.05)
    torch.testing.assert_close(refits.parameters["components.loc"], refits.draws["components.loc"].mean((0, 1)))
    assert plots.intervals({"errors": pv.standard_errors(fit), "bootstrap": refits}).containers[1].get_label()
    again = pv.Fit.load(refits.save(tmp_path / "b.safetensors"), pv.models.GaussianMixture(2, 2))
    assert torch.equal(again.draws["mixing.probs"], refits.draws["mixing.probs"])
    assert again.engine == "bootstrap"


def test_shared_latents_keep_their_priors(geyser):
    fit = pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), geyser)
    refits = pv.bootstrap(fit, num_samples=5, progress=False)
    assert refits.settings["estimate"] == "map"
    assert set(refits.draws) == set(fit.draws)


def test_weights_are_counts(geyser):
    w = torch.full((272,), 0.5)
    fit = pv.EM(n_init=2, progress=False).fit(pv.models.GaussianMixture(2, 2), geyser, weights=w)
    generator = torch.Generator().manual_seed(0)
    data, none = from_model(fit, w.double(), generator)
    assert none is None
    assert 100 < len(data["x"]) < 172
    rows, counts = from_rows(fit, w.double(), generator)
    assert rows is fit.data
    assert counts.sum() == 136


def test_missing_entries_stay_missing(fit):
    gaps = torch.zeros(272, 2, dtype=torch.bool)
    gaps[::3, 1] = True
    holed = dataclasses.replace(fit, data=dataclasses.replace(fit.data, missing={"x": gaps}))
    drawn, _ = from_model(holed, torch.ones(272).double(), torch.Generator().manual_seed(0))
    assert torch.equal(drawn["x"].isnan(), gaps)


class Labelled(pv.LatentVariableModel):
    """Two normals whose labels are known for some data."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.normal = pv.families.Normal(1, batch=2, covariance="diagonal")

    @pv.latent
    def label(self):
        return self.mixing()

    @pv.observed
    def x(self, label):
        return self.normal(label)


def test_known_labels_are_known_in_the_refits():
    """Without them the spread is that of a mixture hardly told apart, several times as wide."""
    torch.manual_seed(1)
    label = (torch.rand(400) < 0.5).double()
    x = torch.randn(400).double() + 1.5 * label
    label[::10] = torch.nan
    fit = pv.EM(tol=1e-11, progress=False).fit(Labelled(), {"x": x, "label": label})
    again = pv.bootstrap(fit, num_samples=B, progress=False)
    for name, error in pv.standard_errors(fit).standard_error.items():
        ratio = again.draws[name][0].std(0) / error
        assert (ratio - 1).abs().max() < NOISE, name


def test_categories_with_gaps_are_drawn():
    torch.manual_seed(0)
    x = torch.randint(3, (60, 2)).double()
    x[::7, 1] = torch.nan

    class Answers(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.answers = pv.families.CategoricalVector(3, 2, batch=1)

        @pv.observed
        def x(self):
            return self.answers()

    fit = pv.EM(progress=False).fit(Answers(), x)
    drawn, _ = from_model(fit, torch.ones(60).double(), torch.Generator().manual_seed(0))
    assert torch.equal(drawn["x"].isnan(), x.isnan())
    assert "10 of 10" in pv.bootstrap(fit, num_samples=10, progress=False).status.message


def test_refits_that_fail_are_counted(fit, monkeypatch):
    original, calls = pv.EM.fit, []

    def sometimes(self, *arguments):
        calls.append(0)
        if len(calls) % 3 == 0:
            raise pv.EngineError("no luck")
        found = original(self, *arguments)
        code = "degenerate" if len(calls) % 3 == 1 else found.status.code
        return dataclasses.replace(found, status=dataclasses.replace(found.status, code=code))

    monkeypatch.setattr(pv.EM, "fit", sometimes)
    refits = pv.bootstrap(fit, num_samples=9, progress=False)
    assert refits.num_draws == 3
    assert refits.status.message == "3 of 9 refits used"
    assert set(refits.status.notes) == {
        "3 of 9 refits left out: degenerate",
        "3 of 9 refits left out: no luck",
    }
    with pytest.raises(pv.EngineError, match="fewer than two refits"):
        pv.bootstrap(fit, num_samples=4, progress=False)


def test_what_cannot_be_repeated_is_refused(fit, geyser, tmp_path):
    for arguments, words in (
        ({"kind": "bayesian"}, "parametric, nonparametric"),
        ({"num_samples": 1}, "at least 2"),
    ):
        with pytest.raises(pv.EngineError, match=words):
            pv.bootstrap(fit, **arguments)
    with pytest.raises(pv.EngineError, match="holds no data"):
        pv.bootstrap(pv.Fit.load(fit.save(tmp_path / "a.safetensors"), pv.models.GaussianMixture(2, 2)))
    with pytest.raises(pv.EngineError, match="got one by bootstrap"):
        pv.standard_errors(pv.bootstrap(fit, num_samples=3, progress=False))
    assert np.isfinite(fit.log_prob(geyser).numpy()).all()
