"""Figures of a diagnosis show its numbers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from example_models import make, vae
from matplotlib.colors import to_rgba
from matplotlib.legend import Legend

sys.path.insert(0, str(Path(__file__).parent))
from linear import Diagonal, Exact, Shifted, data_of, fitted, weighted

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.diagnose import code_shares


@pytest.fixture(scope="module")
def shifted():
    model = weighted(Shifted())
    model.shift = torch.tensor([2.0, 0.0]).double()
    fit = fitted(model)
    return fit, fit.diagnose(data_of(model, 200), num_particles=25, gap_data=0)


def test_the_plane_shows_codes_prior_and_holes(shifted):
    _, found = shifted
    ax = plots.aggregate_plane(found, labels=torch.arange(200) % 2)
    prior, codes, empty = (np.asarray(c.get_offsets()) for c in ax.collections)
    np.testing.assert_allclose(codes, found.hole.codes)
    np.testing.assert_allclose(prior, found.hole.prior)
    np.testing.assert_allclose(empty, found.hole.empty)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["prior", "codes of data", "prior in holes"]
    key = next(artist for artist in ax.artists if isinstance(artist, Legend))
    assert [t.get_text() for t in key.get_texts()] == ["0", "1"]
    ax.figure.draw_without_rendering()
    assert key.get_window_extent().x1 <= ax.figure.bbox.x1, "the key is outside the figure"
    shades = [to_rgba(mark.get_color()) for mark in key.legend_handles]
    np.testing.assert_allclose(ax.collections[1].get_facecolors()[:2, :3], np.array(shades)[:, :3])
    assert len(np.unique(ax.collections[1].get_facecolors(), axis=0)) == 2


def test_many_units_are_seen_along_principal_directions():
    model, data = make("hierarchy")
    ax = plots.aggregate_plane(fitted(model).diagnose(data, num_particles=25, gap_data=0))
    assert ax.get_xlabel().startswith("first principal direction of codes and prior (")


def test_marginals_are_quantiles(shifted):
    _, found = shifted
    ax = plots.aggregate_marginals(found)
    segments = np.asarray(ax.collections[2].get_segments())  # the middle 90% of codes, one line a unit
    np.testing.assert_allclose(segments[:, :, 1], np.quantile(found.hole.codes.numpy(), [0.05, 0.95], axis=0).T)


def test_holes_are_decoded(shifted):
    fit, found = shifted
    ax = plots.hole_samples(fit, found, (1, 3), count=4, columns=2)
    shown = np.asarray(ax.images[0].get_array())
    with torch.no_grad():
        decoded = fit.model.decoder(found.hole.holes["z"][:4]).numpy()
    np.testing.assert_allclose(shown[0, :3], decoded[0])
    np.testing.assert_allclose(shown[-1, -3:], decoded[3])


def test_no_hole_is_said():
    model = weighted(Exact())
    fit = fitted(model)
    found = fit.diagnose(data_of(model, 100), num_particles=25, gap_data=0)
    found.hole.holes.clear()
    with pytest.raises(pv.EngineError, match="no draw of the prior fell into a hole"):
        plots.hole_samples(fit, found, (1, 3))


class Shares(torch.nn.Identity):
    """Gives the shares that it is given for means."""

    input_size = 6


def test_a_walk_along_a_unit_is_the_decoder_there():
    model = weighted(Diagonal())
    x = data_of(model, 20)
    ax = plots.traversals(fitted(model), x, (1, 3), units=[1], steps=3, span=2.0)
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (1, 3 * 3 + 2)
    with torch.no_grad():
        base = model.q_z(x[:1]).mean[0]
        middle = model.decoder(torch.stack([base[0], base.new_zeros(())])).numpy()
    # The prior's mean and sd are those of 2,000 draws.
    np.testing.assert_allclose(shown[0, 4:7], middle, atol=0.1)
    low, high = shown[0, :3], shown[0, -3:]
    np.testing.assert_allclose(high - low, 4.0 * model.decoder.weight[:, 1].detach().numpy(), rtol=0.08)
    assert [t.get_text() for t in ax.texts] == ["z[1]"]


def test_a_walk_along_a_relaxed_category_stays_on_the_simplex():
    torch.manual_seed(0)
    model = pv.models.GumbelVAE(pv.nets.linear_decoder(6, 6), Shares(), 2, 3, "gaussian")
    x = torch.rand(20, 6)
    ax = plots.feature_walks(fitted(model), x, units=[4], steps=5)
    y = np.asarray(ax.images[0].get_array()) * x.numpy().std(0)[:, None] + x.numpy().mean(0)[:, None]
    np.testing.assert_allclose(y.reshape(2, 3, 5).sum(1), 1, atol=1e-5)
    assert (np.diff(y[4]) > 0).all()
    np.testing.assert_allclose(y[:3], y[:3, :1].repeat(5, 1), atol=1e-6)
    np.testing.assert_allclose(y[3] / y[5], y[3, 0] / y[5, 0], rtol=1e-4)


def test_walks_of_a_conditional_model_keep_the_input():
    model, data = make("conditional vae")
    assert len(plots.traversals(fitted(model), data, (2, 2), steps=3).texts) == 2


def test_the_map_of_a_plane():
    model = vae()
    ax = plots.latent_map(fitted(model), (2, 3), steps=4, span=1.0)
    shown = np.asarray(ax.images[0].get_array())
    with torch.no_grad():
        corner = torch.sigmoid(model.decoder(torch.tensor([-1.0, 1.0]))).reshape(2, 3)
    np.testing.assert_allclose(shown[:2, :3], corner, rtol=1e-5)
    model, _ = make("hierarchy")  # two units of z, whatever is above them
    assert len(plots.latent_map(fitted(model), (1, 3), steps=2).images) == 1
    model = pv.models.VAE(pv.nets.mlp_encoder(6, 4, 3), pv.nets.mlp_decoder(3, 4, 6))
    with pytest.raises(pv.EngineError, match=r"one latent of two units .* VAE has z of shape \[3\]"):
        plots.latent_map(fitted(model), (2, 3))


def test_what_is_decoded_of_a_conditional_model_is_at_its_inputs():
    model, data = make("conditional vae")
    fit = fitted(model)
    shown = np.asarray(plots.latent_map(fit, (2, 2), steps=3, span=1.0, inputs=data).images[0].get_array())
    with torch.no_grad():
        at = model._with(torch.tensor([[-1.0, 1.0]]).to(model.like), data["label"][:1])
        corner = torch.sigmoid(model.decoder(at)).reshape(2, 2)
    np.testing.assert_allclose(shown[:2, :2], corner, rtol=1e-5)
    for draw in (plots.latent_map, plots.prior_samples):
        with pytest.raises(pv.EngineError, match=r"ConditionalVAE is conditional, .* depends on 'label'"):
            draw(fit, (2, 2))
    first = plots.prior_samples(fit, (2, 2), inputs={"label": torch.tensor([0])}).images[0].get_array()
    other = plots.prior_samples(fit, (2, 2), inputs={"label": torch.tensor([1])}).images[0].get_array()
    assert not np.allclose(first, other, equal_nan=True)


def test_the_map_of_a_mixture_vae_is_that_of_its_decoder():
    torch.manual_seed(0)
    model = pv.models.GMVAE(pv.nets.mlp_encoder(6, 4, 2), pv.nets.mlp_decoder(2, 4, 6), 3).double()
    shown = np.asarray(plots.latent_map(fitted(model), (2, 3), steps=3, span=1.0).images[0].get_array())
    with torch.no_grad():
        corner = torch.sigmoid(model.decoder(torch.tensor([-1.0, 1.0]).double())).reshape(2, 3)
    np.testing.assert_allclose(shown[:2, :3], corner, rtol=1e-5)


def test_walks_of_features_are_the_decoder_in_units_of_the_data():
    model = weighted(Diagonal())
    x = data_of(model, 50)
    ax = plots.feature_walks(fitted(model), x, units=[1, 0], steps=3, span=2.0)
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (3, 6)
    slope = 4.0 * model.decoder.weight.detach().numpy() / x.std(0, correction=0).numpy()[:, None]
    # The prior's sd is that of 2,000 draws.
    np.testing.assert_allclose(shown[:, [2, 5]] - shown[:, [0, 3]], slope[:, [1, 0]], rtol=0.08)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["z[1]", "z[0]"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["x[0]", "x[1]", "x[2]"]


def test_shares_of_a_codebook_are_its_counts():
    torch.manual_seed(0)
    net = pv.nets.mlp_decoder
    model = pv.models.VQVAE(net(6, 8, 4), net(4, 8, 6), pv.codebooks.Learned(5, 2), 2).double()
    x = torch.randn(30, 6).double()
    share = code_shares(fitted(model), x)["z"]
    torch.testing.assert_close(share, torch.bincount(model.codes(x).flatten(), minlength=5).double() / 60)
    figures = fitted(model).diagnose(x, num_particles=5, gap_data=0).figures(fitted(model), (2, 3))
    assert f"perplexity {model.perplexity(x):.1f}" in figures["usage of z"].get_title()
    assert "traversals" not in figures


def test_shares_of_a_finite_latent_are_its_mean_responsibilities():
    torch.manual_seed(0)
    model = pv.models.CategoricalVAE(pv.nets.mlp_decoder(6, 4, 3), pv.nets.mlp_decoder(3, 4, 6), 3).double()
    x = (torch.randn(10, 6) > 0).double()
    torch.testing.assert_close(code_shares(fitted(model), x)["z"], model.responsibilities(x).mean(0))
    assert code_shares(fitted(weighted(Diagonal())), torch.randn(4, 3)) == {}


def test_usage_of_codes():
    ax = plots.code_usage(torch.tensor([1, 0, 6, 1]))
    assert [round(bar.get_height(), 3) for bar in ax.patches] == [0.75, 0.125, 0.125, 0.0]
    share = np.array([0.75, 0.125, 0.125])
    assert ax.get_title() == f"3 of 4 codes used, perplexity {np.exp(-(share * np.log(share)).sum()):.1f}"


def test_all_figures_of_a_diagnosis(shifted):
    fit, found = shifted
    assert list(found.figures()) == ["aggregate posterior", "units against the prior"]
    own = ["aggregate posterior", "units against the prior", "traversals"]
    assert list(found.figures(fit)) == own
    pictures = ["reconstructions", "prior samples", "latent map", "samples from holes"]
    assert list(found.figures(fit, (1, 3))) == own + pictures


def test_walks_of_a_diagnosis_begin_with_the_unit_of_the_largest_kl():
    model = weighted(Diagonal())
    fit = fitted(model)
    found = fit.diagnose(data_of(model, 50), num_particles=5, gap_data=0)
    order = found.collapse.kl_per_unit.argsort(descending=True).tolist()
    axes = found.figures(fit, (1, 3))["traversals"]
    assert [t.get_text() for t in axes.texts] == [found.collapse.units[j] for j in order]
