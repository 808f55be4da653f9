"""The comparison: columns that mean one thing, matched components, honest warnings; fits on disk; ArviZ."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.compare import COLUMNS


@pytest.fixture(scope="module")
def fits():
    x = pv.data.faithful()
    gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    return {
        "ML": pv.EM(n_init=3, estimate="ml", progress=False).fit(gmm, x),
        "SVI": pv.SVI(300, optimizer=pv.adam(2e-2), num_draws=200, progress=False).fit(gmm, x),
        "NUTS": pv.NUTS(100, warmup=100, num_chains=2, progress=False).fit(gmm, x),
    }


@pytest.fixture(scope="module")
def table(fits):
    return pv.compare(fits)


def test_each_bound_has_its_own_column(table):
    frame = table.to_frame()
    assert set(frame.columns) <= set(COLUMNS)
    assert frame["log_likelihood"].notna().tolist() == [True, False, False]
    assert frame["elbo_total"].notna().tolist() == [False, True, False]
    assert frame["rhat"].notna().tolist() == [False, False, True]
    assert frame["elpd_loo"].notna().tolist() == [False, True, True]
    assert frame["log_predictive"].notna().all()
    assert frame.loc["ML", "gap"] == 0.0
    assert frame.loc["SVI", "gap"] >= 0.0


def test_bic_by_hand(table):
    # 1 weight, 2 x 2 means, 2 x 3 covariance entries.
    expected = 2 * 1130.2640 + 11 * np.log(272)
    assert table.to_frame().loc["ML", "bic"] == pytest.approx(expected, abs=1e-3)


def test_components_are_matched(fits):
    """A fit whose labels are the other way round lines up with the first."""
    swapped = {name: value.flip(0) for name, value in fits["ML"].parameters.items()}
    x = pv.data.faithful()
    other = pv.EM(start=swapped, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    numbers = pv.compare({"first": fits["ML"], "swapped": other}).parameters()
    np.testing.assert_allclose(numbers["first"], numbers["swapped"], rtol=1e-4, atol=1e-4)


def test_warnings_are_worded(table):
    text = " ".join(table.warnings)
    assert "training data" in text
    assert "effective sample size" in text
    assert all(warning in repr(table) or warning[:60] in repr(table) for warning in table.warnings)


def test_log_predictive_is_the_mean_over_draws(fits):
    """log (1/S) sum_s p(x | theta_s), one draw at a time."""
    x = pv.data.faithful().values[:7]
    fit = fits["NUTS"]
    each = []
    for s in range(fit.num_draws):
        with fit.model.bind(fit.draw(s)):
            each.append(fit.model.log_prob(x))
    expected = torch.stack(each).exp().mean(0).log()
    torch.testing.assert_close(fit.log_predictive(x), expected)


def test_datatree_holds_the_marginal_likelihood(fits):
    tree = fits["NUTS"].to_datatree()
    assert {"posterior", "log_likelihood", "posterior_predictive", "observed_data", "sample_stats"} <= set(
        tree.children
    )
    x = pv.data.faithful().values
    with fits["NUTS"].model.bind(fits["NUTS"].draw(3)):
        expected = fits["NUTS"].model.log_prob(x)
    stored = torch.as_tensor(tree["log_likelihood"]["x"].values[0, 3])
    torch.testing.assert_close(stored, expected)
    assert tree["observed_data"]["x"].coords["feature"].values.tolist() == ["eruptions", "waiting"]


def test_point_fit_has_one_chain_of_one_draw(fits):
    tree = fits["ML"].to_datatree()
    assert tree["posterior"]["components.loc"].shape == (1, 1, 2, 2)


def test_posterior_round_trips_through_netcdf(fits, tmp_path):
    import xarray

    tree = fits["NUTS"].to_datatree()
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    again = xarray.open_datatree(tmp_path / "fit.nc", engine="h5netcdf")
    np.testing.assert_array_equal(again["posterior"]["components.loc"], tree["posterior"]["components.loc"])


def test_labels_can_be_the_truth():
    x, z = pv.data.gaussian_mixture(200, [0.5, 0.5], [[-5.0, 0.0], [5.0, 0.0]], [np.eye(2).tolist()] * 2)
    fit = pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    assert pv.compare({"EM": fit}, x, labels=z).to_frame().loc["EM", "ari"] == 1.0


def test_a_loaded_fit_compares_when_given_data(fits, tmp_path):
    gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    again = pv.Fit.load(fits["SVI"].save(tmp_path / "a.safetensors"), gmm)
    with pytest.raises(pv.DataError, match="pass compare"):
        pv.compare({"loaded": again})
    x = pv.data.faithful()
    row = pv.compare({"loaded": again}, x).to_frame().loc["loaded"]
    assert row["log_predictive"] == pytest.approx(fits["SVI"].log_predictive(x).mean().item(), rel=1e-9)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing", "another model", "another size"])
def test_a_bad_file_is_refused(fits, damage, tmp_path):
    path = fits["ML"].save(tmp_path / "fit.safetensors")
    model = pv.models.GaussianMixture(2, 2, prior="weak")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "foreign":
        path.write_text("not a fit")
    elif damage == "missing":
        path.unlink()
    elif damage == "another model":
        model = pv.models.VAE(pv.nets.mlp_encoder(4, 4, 1), pv.nets.mlp_decoder(1, 4, 4))
    else:
        model = pv.models.GaussianMixture(3, 2)
    with pytest.raises(pv.DataError, match=r"fit"):
        pv.Fit.load(path, model)


def test_evaluation_of_a_vae():
    digits = pv.data.images("digits", binarize="threshold")
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 32, 4), pv.nets.mlp_decoder(4, 32, 64))
    fit = pv.SVI(15, batch_size=128, optimizer=pv.adam(3e-3), progress=False).fit(vae, digits.train)
    found = fit.evaluate(digits.test, 50)
    loc, scale = fit.model.encoder(digits.test)
    by_hand = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).mean(0)
    torch.testing.assert_close(found.kl_per_unit.float(), by_hand, rtol=1e-4, atol=1e-5)
    assert found.elbo < found.log_prob
    assert found.active_units == int((loc.var(0) >= 0.01).sum())


def test_in_a_notebook_the_text_is_returned_not_shown(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    x = pv.data.faithful().values
    em = pv.EM(max_iter=2, progress=False)
    assert "log" in repr(pv.compare({"EM": em.fit(pv.models.GaussianMixture(1, 2), x)}))
    found = pv.select(pv.models.GaussianMixture, x, n_components=[1], n_features=[2], engine=em, progress=False)
    assert "bic" in repr(found).lower()


def test_one_datum_is_compared_and_reported(tmp_path):
    x, gmm = pv.data.faithful().values, pv.models.GaussianMixture(2, 2, prior="weak")
    fits = {"EM": pv.EM(progress=False).fit(gmm, x[:200]), "VB": pv.VB(progress=False).fit(gmm, x[:200])}
    page = pv.compare(fits, x[200:201]).report(tmp_path / "one.html").read_text()
    assert "of a single datum there is no standard error" in page


class Given(pv.LatentVariableModel):
    t = pv.given()

    @pv.latent(shared=True)
    def b(self):
        return dist.Normal(0.0, 5.0)

    @pv.observed
    def y(self, t, b):
        return dist.Normal(b * t, 1.0)


class Modelled(pv.LatentVariableModel):
    @pv.latent(shared=True)
    def b(self):
        return dist.Normal(0.0, 5.0)

    @pv.observed
    def t(self):
        return dist.Normal(0.0, 1.0)

    @pv.observed
    def y(self, t, b):
        return dist.Normal(b * t, 1.0)


def test_densities_of_different_things_are_told():
    t = torch.linspace(-1, 1, 20)
    data = {"t": t, "y": 2 * t}
    fits = {make.__name__: pv.SVI(5, progress=False).fit(make(), data) for make in (Given, Modelled)}
    said = " ".join(pv.compare(fits, data).warnings)
    assert "log_predictive of Modelled is the density of t, y, that of Given of y" in said
    assert "Modelled was fitted as a law of t, y and Given as one of y" in said
    gmm, x = pv.models.GaussianMixture(2, 1), torch.cat([t, t + 9])
    labelled = pv.EM(progress=False).fit(gmm, {"x": x, "z": (x > 5).float()})
    said = " ".join(pv.compare({"plain": pv.EM(progress=False).fit(gmm, x), "labelled": labelled}, x).warnings)
    assert "labelled was fitted as a law of x, z and plain as one of x" in said
