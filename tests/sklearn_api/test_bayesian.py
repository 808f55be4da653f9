"""BayesianGaussianMixture against scikit-learn's, and what it adds."""

import numpy as np
import pytest
import sklearn.mixture
import torch
from scipy.special import multigammaln
from sklearn.exceptions import ConvergenceWarning

from ppl_vae.families import Categorical, conjugate
from ppl_vae.sklearn import BayesianGaussianMixture, from_sklearn
from ppl_vae.sklearn.sticks import SticksPrior, broken

KINDS = ["full", "tied", "diag", "spherical"]
PRIORS = ["dirichlet_process", "dirichlet_distribution"]
CLOSE = {"tol": 1e-9, "max_iter": 3000}


@pytest.fixture(name="X", scope="module")
def blobs():
    random = np.random.RandomState(0)
    return np.vstack([random.randn(60, 2) + 4 * random.randn(2) for _ in range(3)])


@pytest.mark.parametrize("init", ["kmeans", "random", "k-means++"])
@pytest.mark.parametrize("prior", PRIORS)
def test_full_covariances_have_scikit_learns_posterior(X, prior, init):
    settings = {"n_components": 4, "weight_concentration_prior_type": prior, "init_params": init, "random_state": 1}
    theirs = sklearn.mixture.BayesianGaussianMixture(**settings, **CLOSE).fit(X)
    ours = BayesianGaussianMixture(**settings, **CLOSE).fit(X)
    names = ["mean_precision_", "means_", "degrees_of_freedom_", "covariances_", "precisions_cholesky_", "weights_"]
    for name in [*names, "weight_concentration_", "covariance_prior_", "mean_prior_"]:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-3, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", PRIORS)
def test_one_feature_is_scikit_learns_whatever_the_form_but_tied(X, prior, kind):
    settings = {"n_components": 2, "covariance_type": kind, "weight_concentration_prior_type": prior, "random_state": 0}
    theirs = sklearn.mixture.BayesianGaussianMixture(**settings, **CLOSE).fit(X[:, :1])
    ours = BayesianGaussianMixture(**settings, **CLOSE).fit(X[:, :1])
    tight = 1e-3 if kind != "tied" else 0.1
    np.testing.assert_allclose(ours.means_, theirs.means_, rtol=tight, atol=tight)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_, rtol=tight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", PRIORS)
def test_the_bound_never_falls_and_components_are_switched_off(X, prior, kind):
    bgm = BayesianGaussianMixture(
        n_components=8,
        covariance_type=kind,
        weight_concentration_prior_type=prior,
        reg_covar=0,
        random_state=0,
        **CLOSE,
    ).fit(X)
    assert np.diff(bgm.lower_bounds_).min() > -1e-8
    assert bgm.weights_.sum() == pytest.approx(1)
    assert (bgm.weights_ > 0.01).sum() < 6
    np.testing.assert_allclose(bgm.predict_proba(X).sum(1), 1)


def evidence(df, scale, strength, n, prior):
    """Log p(X) of one normal under its conjugate prior (Murphy 2007, "Conjugate Bayesian analysis", (266))."""
    d = len(scale)
    df0, scale0, strength0 = prior
    logs = [np.linalg.slogdet(s)[1] for s in (scale0, scale)]
    return (
        -n * d / 2 * np.log(np.pi)
        + multigammaln(df / 2, d)
        - multigammaln(df0 / 2, d)
        + df0 / 2 * logs[0]
        - df / 2 * logs[1]
        + d / 2 * np.log(strength0 / strength)
    )


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_the_bound_of_one_component_is_the_evidence(X, kind):
    bgm = BayesianGaussianMixture(
        covariance_type=kind, weight_concentration_prior_type="dirichlet_distribution", reg_covar=0, **CLOSE
    ).fit(X)
    (df,), (strength,) = bgm.degrees_of_freedom_, bgm.mean_precision_
    before = bgm.degrees_of_freedom_prior_
    if kind == "full":
        blocks = [(bgm.covariances_[0] * df, bgm.covariance_prior_)]
    else:
        blocks = [
            (np.full((1, 1), s * df), np.full((1, 1), s0))
            for s, s0 in zip(bgm.covariances_[0], bgm.covariance_prior_, strict=True)
        ]
    parts = [evidence(df, scale, strength, len(X), (before, scale0, 1.0)) for scale, scale0 in blocks]
    assert bgm.lower_bound_ == pytest.approx(sum(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_a_repetition(X, kind):
    weights = np.random.RandomState(0).randint(1, 4, len(X))
    # k-means from rows far from each other gives the same labels whatever their order.
    settings = {"n_components": 3, "covariance_type": kind, "random_state": 0, "tol": 1e-8, "max_iter": 2000}
    weighted = BayesianGaussianMixture(**settings).fit(X, sample_weight=weights)
    repeated = BayesianGaussianMixture(**settings).fit(np.repeat(X, weights, axis=0))
    order, other = weighted.means_[:, 0].argsort(), repeated.means_[:, 0].argsort()
    np.testing.assert_allclose(weighted.means_[order], repeated.means_[other], atol=1e-3)
    np.testing.assert_allclose(np.sort(weighted.weights_), np.sort(repeated.weights_), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_are_integrated_out(X, kind):
    X = X + np.repeat([[0, 0], [15, 0], [0, 15]], 60, axis=0)
    gappy = X.copy()
    gappy[np.random.RandomState(1).rand(*X.shape) < 0.15] = np.nan
    bgm = BayesianGaussianMixture(n_components=3, covariance_type=kind, random_state=0, max_iter=500).fit(gappy)
    assert bgm.converged_
    assert np.isfinite(bgm.score_samples(gappy)).all()
    whole = BayesianGaussianMixture(n_components=3, covariance_type=kind, random_state=0, max_iter=500).fit(X)
    mine, other = (e.means_[e.means_[:, 0].argsort()] for e in (bgm, whole))
    assert np.abs(mine - other).max() < 1.0
    # A row without gaps is answered the same whether or not rows with gaps stand beside it.
    alone = bgm.score_samples(X[:5])
    np.testing.assert_allclose(bgm.score_samples(np.vstack([X[:5], gappy]))[:5], alone)


@pytest.mark.parametrize("law", ["dirichlet_process", "dirichlet_distribution"])
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_so_it_does_where_entries_are_missing(X, kind, law):
    """What is hidden depends on the posterior of the means and covariances, not on responsibilities alone."""
    gappy = X.copy()
    gappy[np.random.default_rng(2).random(X.shape) < 0.2] = np.nan
    settings = {"n_components": 2, "covariance_type": kind, "weight_concentration_prior_type": law, "random_state": 0}
    bgm = BayesianGaussianMixture(tol=1e-8, max_iter=1000, warm_start=True, **settings).fit(gappy)
    end = bgm.lower_bound_
    bgm.fit(gappy)
    assert bgm.n_iter_ == 1
    assert bgm.lower_bound_ == pytest.approx(end, abs=1e-6)
    steps = BayesianGaussianMixture(tol=1e-12, max_iter=5, warm_start=True, **settings)
    with pytest.warns(ConvergenceWarning):
        bounds = [bound for _ in range(4) for bound in steps.fit(gappy).lower_bounds_]
    with pytest.warns(ConvergenceWarning):
        whole = BayesianGaussianMixture(tol=1e-12, max_iter=20, **settings).fit(gappy)
    np.testing.assert_allclose(bounds, whole.lower_bounds_, rtol=1e-9)


def test_warm_start_goes_on(X):
    settings = {"n_components": 4, "random_state": 0, "init_params": "random", "tol": 1e-10}
    with pytest.warns(ConvergenceWarning):
        short = BayesianGaussianMixture(max_iter=4, warm_start=True, **settings).fit(X)
    first = short.lower_bounds_
    with pytest.warns(ConvergenceWarning):
        short.fit(X)
    with pytest.warns(ConvergenceWarning):
        whole = BayesianGaussianMixture(max_iter=8, **settings).fit(X)
    np.testing.assert_allclose([*first, *short.lower_bounds_], whole.lower_bounds_, rtol=1e-9)
    assert from_sklearn(short).log_prob(X).isfinite().all()


def test_a_singular_prior_is_regularised_or_refused(X):
    flat = np.hstack([X, np.ones((len(X), 1))])
    assert BayesianGaussianMixture(n_components=2, random_state=0).fit(flat).converged_
    with pytest.raises(ValueError, match="ill-defined"):
        BayesianGaussianMixture(n_components=2, reg_covar=0.0).fit(flat)
    with pytest.raises(ValueError, match="should have the shape of"):
        BayesianGaussianMixture(covariance_prior=np.eye(3)).fit(X)


def test_sticks():
    v = torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.9, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(broken(v)[0], torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64))
    prior = conjugate(SticksPrior(2.0), Categorical(3).double())
    q = prior.updated({"counts": torch.tensor([[20.0, 10.0, 5.0]], dtype=torch.float64)})
    torch.manual_seed(0)
    drawn = q.sample(20000)["probs"]
    # E[log w] by its formula, and by draws whose standard error is below 0.005.
    torch.testing.assert_close(drawn.log().mean(0), q.kernel().log_probs, atol=0.02, rtol=0)
    kl = (q.log_prob({"probs": drawn}) - prior.log_prob({"probs": drawn})).mean()
    assert kl.item() == pytest.approx(q.divergence(prior).item(), abs=0.05)
