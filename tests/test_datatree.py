"""Fits as ArviZ trees: groups, names, values; every function of ArviZ's gallery; files."""

import importlib.metadata
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from example_models import make

import ppl_vae as pv

GMM = pv.models.GaussianMixture(2, 2, prior="weak")
ENGINES = {
    "EM": pv.EM(progress=False),
    "VB": pv.VB(num_draws=60, progress=False),
    "SVI": pv.SVI(20, num_draws=60, progress=False, compile="off"),
    "NUTS": pv.NUTS(60, warmup=60, num_chains=2, progress=False, compile="trace"),
}


@pytest.fixture(scope="module")
def fits():
    x = pv.data.faithful()
    found = {name: engine.fit(GMM, x) for name, engine in ENGINES.items()}
    return {**found, "bootstrap": pv.bootstrap(found["EM"], num_samples=5, progress=False)}


@pytest.fixture(scope="module")
def trees(fits):
    return {name: fit.to_datatree() for name, fit in fits.items()}


GROUPS = {
    "posterior",
    "log_likelihood",
    "log_prior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
}


@pytest.mark.parametrize("name", [*ENGINES, "bootstrap"])
def test_groups_and_names(trees, fits, name):
    tree, draws = trees[name], fits[name].draws
    assert set(tree.children) >= GROUPS
    assert ("sample_stats" in tree.children) == (name in ("VB", "SVI", "NUTS"))
    loc = tree["posterior"]["components.loc"]
    assert loc.dims == ("chain", "draw", "z_component", "feature")
    assert loc.shape[:2] == next(iter(draws.values())).shape[:2]
    assert loc.coords["feature"].values.tolist() == ["eruptions", "waiting"]
    assert tree["posterior"]["mixing.probs"].dims == ("chain", "draw", "z_component")
    assert tree["posterior"]["components.covariance"].dims[-2:] == ("feature", "feature_bis")
    assert tree["observed_data"]["x"].dims == ("obs_id", "feature")
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "obs_id")
    assert tree["prior_predictive"]["x"].shape == (1, 500, 272, 2)
    assert tree["posterior_predictive"]["x"].shape == (*loc.shape[:2], 272, 2)
    assert tree.attrs["inference_library"] == f"ppl_vae {name}"


def test_record_of_the_sampler(trees, fits):
    stats = trees["NUTS"]["sample_stats"]
    standard = {"diverging", "energy", "tree_depth", "step_size", "acceptance_rate", "lp", "n_steps", "energy_error"}
    assert standard <= set(stats.data_vars)
    # The Hamiltonian is minus lp, a kinetic energy and, with some versions of nutpie, what its mass matrix adds.
    assert np.corrcoef(stats["energy"].values.ravel(), -stats["lp"].values.ravel())[0, 1] > 0.3
    fit = fits["NUTS"]
    likelihood = trees["NUTS"]["log_likelihood"]["x"].values.sum(-1)
    prior = sum(v.values for v in trees["NUTS"]["log_prior"].data_vars.values())
    # lp has the Jacobian of the unconstrained coordinates on top, which the model knows nothing of.
    assert np.corrcoef(stats["lp"].values.ravel(), (likelihood + prior).ravel())[0, 1] > 0.5
    assert stats["lp"].shape == next(iter(fit.draws.values())).shape[:2]


@pytest.mark.parametrize("name", ["VB", "SVI"])
def test_lp_of_a_variational_fit_is_the_log_joint(trees, fits, name):
    tree, fit = trees[name], fits[name]
    prior = sum(v.values for v in tree["log_prior"].data_vars.values())
    np.testing.assert_allclose(prior, fit.sample_stats["log_prior"], rtol=1e-6)
    joint = tree["log_likelihood"]["x"].values.sum(-1) + prior
    np.testing.assert_allclose(tree["sample_stats"]["lp"].values, joint, rtol=1e-6)


def test_predictions_are_from_the_draws(trees, fits):
    """The mean of new data is that of the mixture, within four standard errors."""
    draws, tree = fits["NUTS"].draws, trees["NUTS"]
    expected = (draws["mixing.probs"][..., None] * draws["components.loc"]).sum(-2).mean((0, 1))
    x = tree["posterior_predictive"]["x"].values.reshape(-1, 2)
    error = 4 * x.std(0) / len(x) ** 0.5
    assert (np.abs(x.mean(0) - expected.numpy()) < error).all()


def test_weights_inputs_and_gaps():
    x = pv.data.faithful().values[:40].clone()
    x[3, 1] = torch.nan
    weights = torch.linspace(0.5, 2.0, 40)
    fit = pv.VB(num_draws=20, progress=False).fit(GMM, x, weights)
    tree = fit.to_datatree()
    np.testing.assert_allclose(tree["constant_data"]["weights"], weights, rtol=1e-6)
    assert tree["constant_data"]["weights"].dims == ("obs_id",)
    assert "one copy of each datum" in tree["log_likelihood"].attrs["weights"]
    assert np.isnan(tree["observed_data"]["x"].values[3, 1])
    assert np.isnan(tree["posterior_predictive"]["x"].values[:, :, 3, 1]).all()
    weighted = (tree["log_likelihood"]["x"].values * weights.numpy()).sum(-1)
    prior = sum(v.values for v in tree["log_prior"].data_vars.values())
    np.testing.assert_allclose(tree["sample_stats"]["lp"].values, weighted + prior, rtol=1e-6)


def test_several_finite_latents_and_inputs_have_dims_of_their_own():
    model, data = make("conditional vae")
    tree = pv.SVI(1, progress=False).fit(model, data).to_datatree()
    assert tree["constant_data"]["label"].dims == ("obs_id",)
    assert "posterior" not in tree.children
    assert tree["log_likelihood"].attrs["marginal"].endswith("importance weights")
    model, data = make("two finite, partly observed")
    tree = pv.SVI(1, progress=False).fit(model, data).to_datatree()
    assert tree["log_likelihood"]["x"].shape == (1, 1, 6)


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_a_tied_covariance_has_no_component(covariance):
    dims = {"full": 3, "tied": 2, "diagonal": 2, "spherical": 1}
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2, covariance), pv.data.faithful())
    found = fit.to_datatree()["posterior"]["components.covariance"].dims[2:]
    assert len(found) == dims[covariance]
    assert ("z_component" in found) == (covariance != "tied")


def test_shared_latents_by_hand():
    model, data = make("shared by hand")
    tree = pv.SVI(2, num_draws=20, progress=False).fit(model, data).to_datatree()
    assert tree["prior"]["scale"].shape == (1, 500)
    values = torch.as_tensor(tree["posterior"]["scale"].values)
    expected = torch.distributions.LogNormal(0.0, 0.5).log_prob(values)
    np.testing.assert_allclose(tree["log_prior"]["scale"].values, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
@pytest.mark.parametrize("name", ["EM", "NUTS"])
def test_a_file_gives_the_tree_back(trees, kind, name, tmp_path):
    write = {
        "netcdf": lambda tree, path: tree.to_netcdf(path, engine="h5netcdf"),
        "zarr": lambda tree, path: tree.to_zarr(path, consolidated=False),
    }
    options = {"netcdf": {"engine": "h5netcdf"}, "zarr": {"engine": "zarr", "consolidated": False}}
    with warnings.catch_warnings():
        # Names of columns are strings of a fixed length, which the third version of Zarr has not standardised yet.
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification.*")
        write[kind](trees[name], tmp_path / "fit")
        again = xr.open_datatree(tmp_path / "fit", **options[kind])
    assert set(again.children) == set(trees[name].children)
    for group in again.children:
        xr.testing.assert_equal(again[group].to_dataset(), trees[name][group].to_dataset())
    assert again.attrs["inference_library"] == trees[name].attrs["inference_library"]
    again.close()


# ArviZ's gallery, on the tree of a sampler.


VARS = {"var_names": ["mixing.probs", "components.loc"]}
ONE = {"var_names": ["mixing.probs"]}
DATA = {"var_names": ["x"]}

STATS = {
    "bfmi": lambda s, t: s.bfmi(t),
    "ci_in_rope": lambda s, t: s.ci_in_rope(t, rope=(0.3, 0.4), **ONE),
    "compare": lambda s, t: s.compare({"a": t, "b": t}),
    "ess": lambda s, t: s.ess(t),
    "eti": lambda s, t: s.eti(t),
    "hdi": lambda s, t: s.hdi(t),
    "histogram": lambda s, t: s.histogram(t, **ONE),
    "kde": lambda s, t: s.kde(t, **ONE),
    "kl_divergence": lambda s, t: s.kl_divergence(t, t, num_samples=100),
    "loo": lambda s, t: s.loo(t),
    "loo_approximate_posterior": lambda s, t: s.loo_approximate_posterior(
        t, log_p=t["sample_stats"]["lp"], log_q=t["sample_stats"]["lp"]
    ),
    "loo_i": lambda s, t: s.loo_i(3, t),
    "loo_pit": lambda s, t: s.loo_pit(univariate(t)),
    "loo_score": lambda s, t: s.loo_score(univariate(t)),
    "loo_expectations": lambda s, t: s.loo_expectations(univariate(t)),
    "loo_metrics": lambda s, t: s.loo_metrics(univariate(t)),
    "mcse": lambda s, t: s.mcse(t),
    "mean": lambda s, t: s.mean(t),
    "median": lambda s, t: s.median(t),
    "mode": lambda s, t: s.mode(t),
    "metrics": lambda s, t: s.metrics(univariate(t)),
    "psense": lambda s, t: s.psense(t, **ONE),
    "psense_summary": lambda s, t: s.psense_summary(t, **ONE),
    "qds": lambda s, t: s.qds(t, **ONE),
    "rhat": lambda s, t: s.rhat(t),
    "summary": lambda s, t: s.summary(t),
    "thin": lambda s, t: s.thin(t, factor=2),
    "wasserstein": lambda s, t: s.wasserstein(t, t, num_samples=100),
    "ecdf": lambda s, t: s.ecdf(t["posterior"].dataset["mixing.probs"]),
    "rhat_nested": lambda s, t: s.rhat_nested(t, superchain_ids=[0, 1]),
    "bayes_factor": lambda s, t: s.bayes_factor(scalars(t), var_names="weight", ref_vals=0.35),
    "std": lambda s, t: s.std(t),
    "var": lambda s, t: s.var(t),
    "mad": lambda s, t: s.mad(t),
    "iqr": lambda s, t: s.iqr(t),
    "loo_influence": lambda s, t: s.loo_influence(t, group="posterior", **ONE),
    "diagnose": lambda s, t: s.diagnose(t),
}
NOT_FOR_A_MIXTURE = {
    "bayesian_r2": "needs the conditional mean of a regression",
    "loo_r2": "needs the conditional mean of a regression",
    "residual_r2": "needs the conditional mean of a regression",
    "generate_survival_curves": "needs times to an event",
    "kaplan_meier": "needs times to an event",
    "loo_kfold": "refits, through a SamplingWrapper of the user",
    "loo_moment_match": "needs the log density of the user's program",
    "loo_subsample": "needs a function for the likelihood of a row",
    "update_subsample": "needs a result of loo_subsample",
    "reloo": "refits, through a SamplingWrapper of the user",
    "lfo_cv": "needs a time series and refits",
    "weight_predictions": "checked below with two trees",
    "get_function": "gives a function by its name",
    "get_log_likelihood": "checked with loo",
    "sampling_diagnostics": "a module",
    "validate": "a module",
}
"""What needs something that this model does not have."""


def univariate(tree):
    """The waiting times only: some functions take one observed number for each log-likelihood."""
    found = tree.copy()
    for group in ("posterior_predictive", "observed_data", "prior_predictive"):
        found[group] = xr.DataTree(tree[group].to_dataset().sel(feature="waiting", drop=True))
    return found


def scalars(tree):
    """One weight, in the posterior and in the prior."""
    own = {g: tree[g].to_dataset()["mixing.probs"].isel(z_component=0, drop=True) for g in ("posterior", "prior")}
    return xr.DataTree.from_dict({g: value.to_dataset(name="weight") for g, value in own.items()})


PLOTS = {
    "plot_autocorr": lambda p, t: p.plot_autocorr(t, **ONE),
    "plot_bf": lambda p, t: p.plot_bf(scalars(t), var_names="weight", ref_val=0.35),
    "plot_compare": lambda p, t: p.plot_compare(compared(t)),
    "plot_convergence_dist": lambda p, t: p.plot_convergence_dist(t),
    "plot_dgof": lambda p, t: p.plot_dgof(t, **ONE),
    "plot_dgof_dist": lambda p, t: p.plot_dgof_dist(t, **ONE),
    "plot_dist": lambda p, t: p.plot_dist(t, **VARS),
    "plot_energy": lambda p, t: p.plot_energy(t),
    "plot_ess": lambda p, t: p.plot_ess(t, **ONE),
    "plot_ess_evolution": lambda p, t: p.plot_ess_evolution(t, **ONE),
    "plot_forest": lambda p, t: p.plot_forest(t, **VARS),
    "plot_khat": lambda p, t: p.plot_khat(loo_of(t)),
    "plot_loo_pit": lambda p, t: p.plot_loo_pit(univariate(t)),
    "plot_loo_interval": lambda p, t: p.plot_loo_interval(univariate(t)),
    "plot_mcse": lambda p, t: p.plot_mcse(t, **ONE),
    "plot_pair": lambda p, t: p.plot_pair(t, **ONE),
    "plot_pair_focus": lambda p, t: p.plot_pair_focus(
        t, focus_var="mixing.probs", focus_var_coords={"z_component": 0}, **ONE
    ),
    "plot_parallel": lambda p, t: p.plot_parallel(t, **VARS),
    "plot_ppc_dist": lambda p, t: p.plot_ppc_dist(univariate(t)),
    "plot_ppc_dist_pit": lambda p, t: p.plot_ppc_dist_pit(univariate(t)),
    "plot_ppc_interval": lambda p, t: p.plot_ppc_interval(univariate(t)),
    "plot_ppc_pit": lambda p, t: p.plot_ppc_pit(univariate(t)),
    "plot_ppc_tstat": lambda p, t: p.plot_ppc_tstat(univariate(t)),
    "plot_prior_posterior": lambda p, t: p.plot_prior_posterior(t, **ONE),
    "plot_psense_dist": lambda p, t: p.plot_psense_dist(t, **ONE),
    "plot_psense_quantities": lambda p, t: p.plot_psense_quantities(t, **ONE),
    "plot_rank": lambda p, t: p.plot_rank(t, **ONE),
    "plot_rank_dist": lambda p, t: p.plot_rank_dist(t, **ONE),
    "plot_ridge": lambda p, t: p.plot_ridge(t, **VARS),
    "plot_trace": lambda p, t: p.plot_trace(t, **ONE),
    "plot_trace_dist": lambda p, t: p.plot_trace_dist(t, **ONE, compact=False),
}
NO_PLOT = {
    "plot_lm": "needs a regression on an input",
    "plot_ppc_censored": "needs times to an event",
    "plot_ppc_pava": "needs binary or categorical data: checked below",
    "plot_ppc_pava_residuals": "needs binary data and an input",
    "plot_loo_pava": "needs binary or categorical data",
    "plot_ppc_rootogram": "needs counts: checked below",
    "plot_ecdf_pit": "needs simulated ranks: checked with Calibration.to_datatree below",
    "plot_collection": "a module",
    "plot_matrix": "a module",
}


def loo_of(tree):
    import arviz_stats

    return arviz_stats.loo(tree, pointwise=True)


def compared(tree):
    import arviz_stats

    return arviz_stats.compare({"a": tree, "b": tree})


@pytest.fixture
def quiet():
    """Short chains: ArviZ warns of k-hats, of few draws and of its own plans."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", STATS)
def test_functions_of_arviz_stats(trees, quiet, name):
    import arviz_stats

    if not hasattr(arviz_stats, name):
        pytest.skip(f"arviz_stats {importlib.metadata.version('arviz-stats')} has no {name}")
    assert STATS[name](arviz_stats, trees["NUTS"]) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_plots_of_arviz(trees, quiet, name):
    import arviz_plots
    import matplotlib

    if not hasattr(arviz_plots, name):
        pytest.skip(f"arviz_plots {importlib.metadata.version('arviz-plots')} has no {name}")
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    try:
        assert PLOTS[name](arviz_plots, trees["NUTS"]) is not None
        assert plt.get_fignums()
    finally:
        plt.close("all")
        matplotlib.use(before)


def test_no_function_of_the_gallery_is_forgotten():
    import arviz_plots
    import arviz_stats

    plots = {name for name in dir(arviz_plots) if name.startswith("plot_")}
    assert plots <= {*PLOTS, *NO_PLOT}
    stats = {n for n in dir(arviz_stats) if n.islower() and callable(getattr(arviz_stats, n)) and not n.startswith("_")}
    assert stats <= {*STATS, *NOT_FOR_A_MIXTURE, "kde2d", "histogram2d", "hexbin"}, stats
    assert not set(STATS) & set(NOT_FOR_A_MIXTURE)
