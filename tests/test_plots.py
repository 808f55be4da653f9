"""Figures show what the fits say, on Axes that pyplot does not know."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.errors import DataError, EngineError
from ppl_vae.infer.svi import SVI
from ppl_vae.plots.graph import edges, layout
from ppl_vae.plots.pixels import mosaic, principal
from ppl_vae.plots.predictive import _density
from ppl_vae.plots.style import PALETTE


@pytest.fixture(scope="module")
def geyser():
    return pv.data.faithful()


@pytest.fixture(scope="module")
def em(geyser):
    return pv.EM(n_init=2, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), geyser)


@pytest.fixture(scope="module")
def sampled(em):
    """A fit with draws round EM's answer: what the figures need of NUTS, without its minutes."""
    noise = torch.Generator().manual_seed(0)
    draws = {
        k: v * (1 + 0.02 * torch.randn(4, 150, *v.shape[2:], generator=noise, dtype=v.dtype))
        for k, v in em.draws.items()
    }
    draws["mixing.probs"] = draws["mixing.probs"] / draws["mixing.probs"].sum(-1, keepdim=True)
    square = draws["components.covariance"]
    draws["components.covariance"] = (square + square.mT) / 2
    return dataclasses.replace(em, engine="NUTS", draws=draws, trace={})


@pytest.fixture(scope="module")
def digits():
    return pv.data.images("digits", binarize="threshold")


@pytest.fixture(scope="module")
def vae(digits):
    model = pv.models.VAE(pv.nets.mlp_encoder(64, 16, 3), pv.nets.mlp_decoder(3, 16, 64))
    return SVI(epochs=1, batch_size=256, progress=False).fit(model, digits.train)


def test_ellipses_are_the_covariances(em):
    ax = plots.fit_ellipses(em)
    ellipses = [p for p in ax.patches if isinstance(p, Ellipse)]
    assert len(ellipses) == 4  # 2 components at 1 and 2 sd
    for k in range(2):
        cov = em.parameters["components.covariance"][k].numpy()
        for sd, e in zip((1, 2), ellipses[2 * k : 2 * k + 2], strict=True):
            assert np.allclose(e.center, em.parameters["components.loc"][k])
            assert np.allclose([e.height, e.width], 2 * sd * np.sqrt(np.linalg.eigvalsh(cov)))
            point = e.get_transform().transform((1.0, 0.0))  # on the unit circle, to display
            x, y = ax.transData.inverted().transform(point) - e.center
            assert np.isclose(np.array([x, y]) @ np.linalg.inv(cov) @ np.array([x, y]), sd**2)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("eruptions", "waiting")


def test_points_are_coloured_by_responsibility(em, geyser):
    colors = plots.fit_ellipses(em).collections[0].get_facecolors()[:, :3]
    r = em.responsibilities(geyser.values).numpy()
    sure = r.max(1) > 1 - 1e-9
    expected = np.array([to_rgb(PALETTE[k]) for k in r.argmax(1)])
    assert sure.sum() > 100
    assert np.allclose(colors[sure], expected[sure])
    swapped = plots.fit_ellipses(em, order=[1, 0]).collections[0].get_facecolors()[:, :3]
    assert np.allclose(swapped[sure], np.array([to_rgb(PALETTE[1 - k]) for k in r.argmax(1)])[sure])


def test_draws_are_shown_behind_the_mean(sampled):
    assert sum(isinstance(p, Ellipse) for p in plots.fit_ellipses(sampled).patches) == 4 + 2 * 25


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_every_covariance_form_is_drawn(covariance, geyser):
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(3, 2, covariance), geyser)
    assert sum(isinstance(p, Ellipse) for p in plots.fit_ellipses(fit).patches) == 6


def test_densities_of_one_feature_sum_to_one(geyser):
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 1), geyser.values[:, 1])
    x, y = plots.fit_ellipses(fit).lines[-1].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
    assert np.allclose(y, fit.log_prob(torch.as_tensor(x)).exp())


def test_densities_on_the_line_end_where_they_vanish_and_near_the_data():
    x = pv.data.galaxies()
    fit = pv.EM(n_init=5, progress=False).fit(pv.models.GaussianMixture(3, 1, prior="weak"), x)
    components = [line.get_ydata() for line in plots.fit_ellipses(fit).lines[:3]]
    assert all(max(y[0], y[-1]) < 0.02 * y.max() for y in components)
    wide = {**fit.draws, "components.covariance": torch.full((1, 1, 3, 1, 1), 1e6).double()}
    (curve, *_) = plots.fit_ellipses(dataclasses.replace(fit, draws=wide)).lines
    width = x.values.max() - x.values.min()
    assert np.ptp(curve.get_xdata()) == pytest.approx(1.5 * width.item())


def test_ellipses_need_a_normal_family(vae, digits):
    with pytest.raises(EngineError, match="observes none"):
        plots.fit_ellipses(vae, digits.test)


def test_bound_is_per_datum_and_says_what_it_is(em, sampled, geyser):
    svi = SVI(epochs=3, progress=False).fit(em.model, geyser)
    ax = plots.bound({"EM": em, "SVI": svi, "NUTS": sampled})
    assert len(ax.lines) == 2
    assert np.allclose(ax.lines[0].get_ydata(), em.trace["bound"] / 272)
    assert np.allclose(ax.lines[1].get_ydata(), svi.trace["bound"])
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["EM: (log p(X | θ) + log p(θ)) / n", "SVI: ELBO"]


def test_predictive_check_shows_the_data(em, geyser):
    ax = plots.predictive_check(em, feature=1, draws=7)
    assert len(ax.lines) == 8
    x, y = ax.lines[-1].get_data()
    assert np.allclose(y, _density(geyser.values[:, 1].numpy(), x))
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.01)


def test_predictive_check_of_a_statistic(em, geyser):
    ax = plots.predictive_check(em, statistic=lambda x: x[:, 0].mean(), draws=30)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(geyser.values[:, 0].mean().item())
    assert "of the replicates" in ax.get_title()


def test_predictive_check_counts_binary_values(vae):
    x, y = plots.predictive_check(vae, draws=2, feature=20).lines[-1].get_data()
    assert x.tolist() == [0, 1]
    assert y.sum() == pytest.approx(1)


def test_images_are_laid_out_by_row():
    picture = mosaic(np.arange(12.0).reshape(3, 4), (2, 2), 2)
    assert picture.shape == (5, 5)
    assert picture[:2, 3:].tolist() == [[4, 5], [6, 7]]
    assert picture[3:, :2].tolist() == [[8, 9], [10, 11]]
    assert np.isnan(picture[2]).all()
    assert np.isnan(picture[3:, 3:]).all()
    assert mosaic(np.zeros((2, 12)), (3, 2, 2), 2).shape == (2, 5, 3)


def test_images_name_the_shapes_that_disagree():
    with pytest.raises(DataError, match=r"need \[n, 16\] pixels"):
        plots.images(torch.zeros(3, 12), (4, 4))


def test_vae_figures(vae, digits):
    assert len(plots.reconstructions(vae, digits.test, digits.shape).images) == 1
    shown = np.asarray(plots.reconstructions(vae, digits.test, digits.shape, columns=3).images[0].get_array())
    assert np.allclose(shown[:8, :8], digits.test[0].reshape(8, 8))
    assert len(plots.prior_samples(vae, digits.shape).images) == 1
    ax = plots.latent_space(vae, digits.test, digits.labels["test"])
    assert ax.get_xlabel().startswith("first principal direction")
    assert {t.get_text() for t in ax.texts} == set("0123456789")
    geyser = pv.data.faithful()
    with pytest.raises(EngineError, match="continuous latent"):
        plots.latent_space(pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), geyser), geyser)


def test_principal_directions_keep_distances():
    x = np.random.default_rng(0).normal(size=(50, 2)) @ np.array([[3.0, 1.0], [0.0, 0.5]])
    y, share = principal(x)
    assert np.allclose(np.linalg.norm(x - x.mean(0), axis=1), np.linalg.norm(y, axis=1))
    assert share.sum() == pytest.approx(1)


def test_kl_bars_are_sorted():
    ax = plots.kl_bars(torch.tensor([0.5, 3.0, 1.0]))
    assert [b.get_height() for b in ax.patches] == [3.0, 1.0, 0.5]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "0"]


def test_render_draws_every_node_and_edge():
    model = pv.models.GaussianMixture(2, 2, prior="weak")
    assert set(edges(model)) == {
        ("z", "x"),
        ("mixing.probs", "z"),
        ("components.loc", "x"),
        ("components.covariance", "x"),
    }
    ax = plots.render(model, Figure().add_subplot())
    assert {*model.graph(), "every datum"} == {t.get_text() for t in ax.texts}
    assert sum(isinstance(p, Circle) for p in ax.patches) == 2 * len(model.graph())
    plan = layout(model)
    left, bottom, right, top = plan.plate
    for name, node in model.graph().items():
        x, y = plan.places[name]
        assert (left < x < right and bottom < y < top) == (not node.shared)


def test_rendering_without_dot(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert plots.render(pv.models.GaussianMixture(2, 2)).texts


def test_trace_rank(sampled, em):
    trace, rank = plots.trace_rank(sampled)
    scalars = 2 + 4 + 6  # equal entries of a covariance once
    assert len(trace.axes) == 2 * scalars
    assert sum(bool(ax.get_title()) for ax in rank.axes) == scalars
    assert trace.axes[0].get_title(loc="left") == "mixing.probs[0]"
    with pytest.raises(EngineError, match="point estimate"):
        plots.trace_rank(em)


def test_axes_given_are_used_and_returned(em, vae, digits):
    ax = Figure().subplots(2, 4).ravel()
    assert plots.fit_ellipses(em, ax=ax[0]) is ax[0]
    assert plots.bound(em, ax[1]) is ax[1]
    assert plots.predictive_check(em, ax=ax[2], draws=2) is ax[2]
    assert plots.images(digits.test[:4], digits.shape, ax[3]) is ax[3]
    assert plots.reconstructions(vae, digits.test, digits.shape, ax[4]) is ax[4]
    assert plots.latent_space(vae, digits.test, ax=ax[5]) is ax[5]
    assert plots.kl_bars([1.0], ax[6]) is ax[6]
    assert plots.render(em.model, ax[7]) is ax[7]


def test_pyplot_is_left_alone(em, sampled):
    from matplotlib import pyplot

    before, settings = pyplot.get_fignums(), dict(pyplot.rcParams)
    plots.fit_ellipses(em)
    plots.trace_rank(sampled)
    assert pyplot.get_fignums() == before
    assert dict(pyplot.rcParams) == settings


def test_importing_the_library_imports_no_figures():
    code = "import sys, ppl_vae; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("paper", [(1.0, 1.0, 1.0), (0.07, 0.08, 0.1)])
def test_palette_is_seen_on_light_and_dark(paper):
    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for shade in PALETTE:
        a, b = sorted([luminance(to_rgb(shade)), luminance(paper)])
        assert (b + 0.05) / (a + 0.05) > 3.0, shade


def test_missing_entries_are_not_drawn_as_zeros():
    x = pv.data.faithful().values.clone()
    x[:20, 0], x[20:30, 1] = torch.nan, torch.nan
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    (points,) = plots.fit_ellipses(fit).collections
    shown = torch.tensor(np.ma.filled(points.get_offsets(), np.nan))
    whole = shown[~shown.isnan().any(1)]
    torch.testing.assert_close(whole, x[30:])


def test_draws_for_a_datum_are_a_whole_number_from_one_on():
    model = pv.models.VAE(pv.nets.mlp_encoder(2, 4, 1), pv.nets.mlp_decoder(1, 4, 2), likelihood="gaussian")
    for number in (0, -1, 2.5):
        with pytest.raises(pv.EngineError, match=f"at least 1; got {number}"):
            model.log_prob(torch.zeros(3, 2), number)


def test_a_notebook_shows_a_picture_whether_pyplot_is_imported_or_not():
    """By the method that IPython asks for one, in a process where nothing has registered matplotlib's figures."""
    code = """
import sys, ppl_vae as pv
fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
image = pv.plots.fit_ellipses(fit).figure._repr_png_()
assert image.startswith(bytes([137]) + b"PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
