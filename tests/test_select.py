"""Choice of a declaration: criteria that agree with others', neighbours that help, degenerate fits that never win."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

import ppl_vae as pv
from ppl_vae.coordinates import coordinates
from ppl_vae.criteria import CRITERIA
from ppl_vae.sweep import split_off

FORMS = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
QUICK = pv.EM(n_init=2, accelerate="squarem")


@pytest.fixture(scope="module")
def geyser():
    return pv.data.faithful()


@pytest.fixture(scope="module")
def swept(geyser):
    return pv.select(
        pv.models.GaussianMixture,
        geyser,
        n_components=range(1, 5),
        covariance=tuple(FORMS),
        engine=QUICK,
        progress=False,
    )


def theirs(fit, form):
    """scikit-learn's estimator with the parameters of a fit."""
    p = {name.rpartition(".")[2]: value.numpy() for name, value in fit.parameters.items()}
    estimator = GaussianMixture(len(p["probs"]), covariance_type=FORMS[form])
    estimator.weights_, estimator.means_, estimator.covariances_ = p["probs"], p["loc"], p["covariance"]
    if form in ("full", "tied"):
        inverse = np.linalg.inv(np.linalg.cholesky(p["covariance"]))
        estimator.precisions_cholesky_ = np.swapaxes(inverse, -1, -2)
    else:
        estimator.precisions_cholesky_ = 1 / np.sqrt(p["covariance"])
    return estimator


@pytest.mark.parametrize("form", FORMS)
def test_criteria_equal_scikit_learns_at_the_same_parameters(swept, geyser, form):
    x = geyser.values.numpy()
    for cell in swept.cells:
        if cell.settings["covariance"] == form:
            sklearn = theirs(cell.fit, form)
            assert cell.parameters == sklearn._n_parameters()
            assert CRITERIA["bic"].value(cell) == pytest.approx(sklearn.bic(x), rel=1e-8)
            assert CRITERIA["aic"].value(cell) == pytest.approx(sklearn.aic(x), rel=1e-8)
            r = sklearn.predict_proba(x)
            entropy = -np.sum(r * np.log(np.where(r > 0, r, 1)))
            assert CRITERIA["icl"].value(cell) == pytest.approx(sklearn.bic(x) + 2 * entropy, rel=1e-8)


def test_old_faithful_as_mclust(swept):
    """mclust 5 prefers its EEE, which is "tied", with 3 components: BIC -2314, and EEE with 4 has -2320.207."""
    assert swept.best_cell.settings == {"n_components": 3, "covariance": "tied"}
    assert swept.best is swept.best_cell.fit
    bic = {tuple(c.settings.values()): CRITERIA["bic"].value(c) for c in swept.cells}
    assert bic[3, "tied"] == pytest.approx(2314, abs=0.5)
    assert bic[4, "tied"] == pytest.approx(2320.207, abs=0.1)


def test_iris_as_mclust():
    """mclust's VVV, which is "full", has BIC -574.018 with 2 components of the iris."""
    x = load_iris().data
    found = pv.select(pv.models.GaussianMixture, x, n_components=[1, 2, 3, 4, 5], engine=QUICK, progress=False)
    assert found.best_cell.settings == {"n_components": 2}
    assert CRITERIA["bic"].value(found.best_cell) == pytest.approx(574.018, abs=1e-2)


def test_a_richer_form_never_ends_below_a_simpler_one(swept):
    """One M-step from the simpler form's responsibilities over the larger set, and EM never falls."""
    cells = {tuple(c.settings.values()): c.log_likelihood for c in swept.cells if c.eligible}
    for K in range(1, 5):
        for rich, simple in (("full", "tied"), ("full", "diagonal"), ("diagonal", "spherical")):
            assert cells[K, rich] >= cells[K, simple] - 1e-5


def six_clusters(seed):
    noise = torch.Generator().manual_seed(seed)
    centers = 5 * torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0)).double()
    return centers[torch.randint(6, (300,), generator=noise)] + torch.randn(
        300, 2, generator=noise, dtype=torch.float64
    )


def test_neighbours_help_a_poor_start():
    """With one start each, a cell of the sweep ends at least as high as alone, and some end higher."""
    gains = []
    for seed in (1, 2, 3):
        x, engine = six_clusters(seed), pv.EM(seed=seed, progress=False)
        grid = {"n_components": range(1, 7), "covariance": "spherical"}
        found = pv.select(pv.models.GaussianMixture, x, engine=engine, progress=False, **grid)
        assert found.best_cell.settings == {"n_components": 6}
        for cell in found.cells:
            alone = engine.fit(pv.models.GaussianMixture(cell.settings["n_components"], 2, covariance="spherical"), x)
            gains.append(cell.log_likelihood - alone.log_prob(x).sum().item())
            assert gains[-1] < 1 or cell.start.startswith("n_components=")
    assert min(gains) > -1e-6
    assert max(gains) > 1


def test_split_off_gives_the_worst_explained_data_to_the_new_components():
    r = torch.full((12, 2), 0.5)
    log_prob = torch.tensor([0.0] * 8 + [-5.0, -9.0, -7.0, -8.0])
    grown = split_off(r, log_prob, 4)
    assert torch.equal(grown.sum(1), torch.ones(12))
    assert grown[9].tolist() == [0, 0, 1, 0]  # one datum to each new component: 12 / (2 * 4)
    assert grown[11].tolist() == [0, 0, 0, 1]
    assert torch.equal(grown[:9, :2], r[:9])


def atoms():
    """Normal data of which a third are one value: a component that shrinks onto it has no bound."""
    torch.manual_seed(0)
    return torch.cat([torch.full((40, 1), 2.0), torch.randn(80, 1)]).double()


def test_an_unbounded_likelihood_is_marked_and_never_best():
    x = atoms()
    start = torch.nn.functional.one_hot((x[:, 0] == 2.0).long())
    spike = pv.EM(start=start, progress=False).fit(pv.models.GaussianMixture(2, 1), x)
    found = pv.select(pv.models.GaussianMixture, x, n_components=[1, 2], engine=QUICK, progress=False)
    assert spike.log_prob(x).sum() > max(c.log_likelihood for c in found.cells if c.eligible) + 100
    for cell in found.cells:
        assert cell.eligible == (cell.status.code != "degenerate")
    assert found.best.log_prob(x).max() < 5
    assert (found.to_frame().status == "degenerate").any()


def test_a_constant_feature_is_not_taken_for_a_spike():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(60, 1), torch.ones(60, 1)], 1).double()
    found = pv.select(pv.models.GaussianMixture, x, n_components=[1, 2], covariance="diagonal", progress=False)
    assert all(cell.eligible for cell in found.cells)


def test_weights_are_counts(geyser):
    x = geyser.values[:120]
    w = torch.ones(120)
    w[:40] = 3
    rows = torch.arange(120).repeat_interleave(w.long())
    start = pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    grid = {"n_components": [2], "engine": pv.EM(start=start, tol=1e-12), "progress": False}
    weighted = pv.select(pv.models.GaussianMixture, x, weights=w, **grid)
    repeated = pv.select(pv.models.GaussianMixture, x[rows], **grid)
    for a, b in zip(weighted.cells, repeated.cells, strict=True):
        assert a.count == b.count == 200
        for rule in ("bic", "aic", "icl"):
            assert CRITERIA[rule].value(a) == pytest.approx(CRITERIA[rule].value(b), rel=1e-6)


def test_validation_rows_are_set_aside(geyser):
    x = geyser.values
    grid = {"n_components": [1, 2], "engine": QUICK, "criterion": "held_out", "progress": False}
    found = pv.select(pv.models.GaussianMixture, x, validation=0.25, **grid)
    best = found.best_cell
    assert best.settings == {"n_components": 2}
    assert best.count == len(found.best.data) == 204
    fitted = {tuple(row) for row in found.best.data.values["x"].tolist()}
    held_out = torch.stack([row for row in x if tuple(row.tolist()) not in fitted])
    # Rows that occur twice may be on both sides.
    assert len(held_out) >= 60
    again = pv.select(pv.models.GaussianMixture, x, validation=0.25, **grid)
    assert [c.held_out for c in again.cells] == [c.held_out for c in found.cells]
    given = pv.select(pv.models.GaussianMixture, x[:200], validation=x[200:], **grid)
    assert given.best_cell.held_out == pytest.approx(given.best.log_prob(x[200:]).mean().item())


def test_any_declaration_is_swept():
    class Counts(pv.LatentVariableModel):
        """A Poisson mixture."""

        def __init__(self, size):
            super().__init__()
            self.mixing = pv.families.Categorical(size)
            self.counts = pv.families.Poisson(batch=size)

        @pv.latent
        def z(self):
            return self.mixing()

        @pv.observed
        def x(self, z):
            return self.counts(z)

    torch.manual_seed(0)
    x = torch.cat([torch.poisson(torch.full((150,), 2.0)), torch.poisson(torch.full((150,), 12.0))])
    found = pv.select(Counts, x, size=[1, 2, 3], engine=QUICK, progress=False)
    assert found.best_cell.settings == {"size": 2}
    assert [cell.parameters for cell in found.cells] == [1, 3, 5]
    assert [cell.components for cell in found.cells] == [1, 2, 3]
    assert found.plot().get_xlabel() == "size"


def test_a_single_setting_has_a_name():
    def one():
        return pv.models.GaussianMixture(1, 1)

    found = pv.select(one, torch.tensor([[0.0], [1.0], [3.0]]), progress=False)
    assert "best: the only setting (" in repr(found)


def test_a_cell_that_cannot_be_fitted_does_not_end_the_sweep():
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    found = pv.select(pv.models.GaussianMixture, x, n_components=[1, 4], progress=False)
    assert found.best_cell.settings == {"n_components": 1}
    lost = found.cells[1]
    assert lost.status.code == "failed"
    assert "4 components" in lost.status.message
    assert math.isnan(lost.log_likelihood)
    none = pv.select(pv.models.GaussianMixture, x, n_components=[4, 5], progress=False)
    with pytest.raises(pv.EngineError, match="no fit of this sweep"):
        _ = none.best


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"n_component": [1, 2]}, pv.DeclarationError, "takes no 'n_component'"),
        ({"n_components": []}, pv.DeclarationError, "n_components has no values"),
        ({"n_components": [1], "criterion": "dic"}, pv.EngineError, "bic, aic, icl, held_out"),
        ({"n_components": [1], "criterion": "held_out"}, pv.EngineError, "needs validation"),
        ({"n_components": [1], "engine": pv.NUTS()}, pv.EngineError, "must be an EM, got NUTS"),
        ({"n_components": [1], "validation": 1.5}, pv.DataError, "between 0 and 1, or data; got 1.5"),
        ({"n_components": [1], "validation": 1}, pv.DataError, "got 1"),
        ({"n_components": [1], "validation": math.nan}, pv.DataError, "got nan"),
        ({"n_components": [1], "validation": 0.001}, pv.DataError, "between 1 and 271"),
        ({"n_components": [1], "validation": pv.data.stream(torch.ones(3, 2))}, pv.DataError, "held in memory"),
    ],
)
def test_bad_input_is_refused(geyser, arguments, error, words):
    with pytest.raises(error, match=words):
        pv.select(pv.models.GaussianMixture, geyser, progress=False, **arguments)


def test_n_features_of_a_mapping_must_be_given(geyser):
    with pytest.raises(pv.DeclarationError, match="pass n_features"):
        pv.select(pv.models.GaussianMixture, {"x": geyser.values}, n_components=[1], progress=False)
    found = pv.select(pv.models.GaussianMixture, {"x": geyser.values}, n_components=[1], n_features=2, progress=False)
    assert found.best_cell.parameters == 5


def test_frozen_parameters_are_not_counted():
    free = coordinates(pv.models.GaussianMixture(3, 2), frozen=("components.loc",))
    assert free.size == 2 + 9


class Known(pv.LatentVariableModel):
    """A place, and a scale that its owner may have frozen."""

    def __init__(self, frozen):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.0))
        self.scale = torch.nn.Parameter(torch.tensor(2.0), requires_grad=not frozen)

    @pv.observed
    def x(self):
        return dist.Normal(self.loc, self.scale)


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_that_their_owner_froze_are_known(frozen):
    torch.manual_seed(0)
    x = 2.0 * torch.randn(50, dtype=torch.float64)
    found = pv.select(Known, x, frozen=[frozen], progress=False)
    count = 1 if frozen else 2
    assert found.best_cell.parameters == count
    fit = found.best_cell.fit
    expected = -2 * fit.log_prob(x).sum().item() + count * math.log(50)
    assert pv.compare({"fit": fit}).rows["fit"].bic == pytest.approx(expected, rel=1e-9)
    errors = pv.standard_errors(fit).standard_error
    assert set(errors) == ({"loc"} if frozen else {"loc", "scale"})
    assert f"{count} free parameters" in repr(Known(frozen))


def test_rows_without_any_value_do_not_count(geyser):
    """Their log p is 0 whatever the model, which is no prediction."""
    x = geyser.values
    more = torch.cat([x, torch.full((100, 2), math.nan, dtype=x.dtype)])
    short, long = (
        pv.select(pv.models.GaussianMixture, data, n_components=[2], validation=data[200:], progress=False).best_cell
        for data in (x, more)
    )
    assert (short.count, short.held_out) == (long.count, pytest.approx(long.held_out, rel=1e-9))
    fit = short.fit
    held_out = [pv.compare({"fit": fit}, data[200:]).rows["fit"] for data in (x, more)]
    assert held_out[0].log_predictive == pytest.approx(held_out[1].log_predictive, rel=1e-12)
    assert held_out[0].log_predictive_se == pytest.approx(held_out[1].log_predictive_se, rel=1e-12)
    assert pv.compare({"fit": long.fit}).rows["fit"].bic == pytest.approx(pv.compare({"fit": fit}).rows["fit"].bic)
    assert fit.evaluate(more).elbo == pytest.approx(fit.evaluate(x).elbo, rel=1e-12)


def test_the_table_and_the_figure_show_every_cell(swept):
    frame = swept.to_frame()
    assert len(frame) == 16
    assert frame.loc[frame.best, ["n_components", "covariance"]].to_numpy().tolist() == [[3, "tied"]]
    assert "held_out" not in frame
    text = repr(swept)
    assert "smaller is better" in text
    assert "best: n_components=3, covariance=tied" in text
    html = swept._repr_html_()
    assert "n_components=3, covariance=tied (best)" in html
    assert "<svg" in html
    ax = swept.plot()
    lines = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert [line.get_label() for line in lines] == list(FORMS)
    for line, form in zip(lines, FORMS, strict=True):
        expected = [CRITERIA["bic"].value(c) for c in swept.cells if c.settings["covariance"] == form]
        np.testing.assert_allclose(line.get_ydata(), expected)
    (ring,) = [line for line in ax.lines if line.get_markersize() > 10]
    assert ring.get_xdata().tolist() == [3.0]
