"""The estimators against scikit-learn's from the same start, and what they add: weights, missing values, a device."""

import pickle

import numpy as np
import pytest
import sklearn.cluster
import sklearn.mixture
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ppl_vae as pv
from ppl_vae.sklearn import BayesianGaussianMixture, GaussianMixture, KMeans

KINDS = ["full", "tied", "diag", "spherical"]
FITTED = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "lower_bound_"]


@pytest.fixture(name="X", scope="module")
def blobs():
    random = np.random.RandomState(3)
    return np.vstack([random.randn(60, 3) @ random.randn(3, 3) + 4 * random.randn(3) for _ in range(3)])


def start(kind, X):
    """Parameters to start from, the same for every data set that is compared."""
    spread = {"full": np.array([np.eye(3)] * 3), "tied": np.eye(3), "diag": np.ones((3, 3)), "spherical": np.ones(3)}
    return {"weights_init": [0.2, 0.3, 0.5], "means_init": X[[0, 60, 120]], "precisions_init": spread[kind]}


STARTS = ["kmeans", "random", "k-means++", "random_from_data"]
# scikit-learn starts a tied covariance from seeds with responsibilities that do not sum to one: see the next test.
SAME = [(kind, init) for kind in KINDS for init in STARTS if kind != "tied" or init in ("kmeans", "random")]


@pytest.mark.parametrize(("kind", "init"), SAME)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_same_random_state_gives_the_same_fit(X, kind, init):
    settings = {"n_components": 3, "covariance_type": kind, "init_params": init, "n_init": 2, "random_state": 1}
    theirs, ours = (cls(**settings).fit(X) for cls in (sklearn.mixture.GaussianMixture, GaussianMixture))
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.converged_ == theirs.converged_
    for name in FITTED:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-8, atol=1e-10, err_msg=name)
    # The first bound of a start from seeds is not that of a density in scikit-learn: its weights sum to K / n.
    np.testing.assert_allclose(ours.lower_bounds_[1:], theirs.lower_bounds_[1:], rtol=1e-10)
    for method in ("predict", "predict_proba", "score_samples", "score", "bic", "aic"):
        np.testing.assert_allclose(getattr(ours, method)(X), getattr(theirs, method)(X), rtol=1e-7, atol=1e-8)
    for mine, other in zip(ours.sample(50), theirs.sample(50), strict=True):
        np.testing.assert_allclose(mine, other)


def test_a_shared_covariance_starts_from_seeds_wherever_the_origin_is(X):
    fits = [
        GaussianMixture(3, covariance_type="tied", init_params="k-means++", random_state=0, tol=1e-6).fit(X + shift)
        for shift in (0, 100)
    ]
    np.testing.assert_allclose(fits[0].means_, fits[1].means_ - 100, atol=1e-6)
    theirs = sklearn.mixture.GaussianMixture(
        3, covariance_type="tied", init_params="k-means++", random_state=0, max_iter=500
    ).fit(X)
    assert fits[0].score(X) >= theirs.score(X) - 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_a_repetition(X, kind):
    weights = np.random.RandomState(0).randint(0, 4, len(X))
    settings = {**start(kind, X), "n_components": 3, "covariance_type": kind, "tol": 1e-8, "max_iter": 1000}
    weighted = GaussianMixture(**settings).fit(X, sample_weight=weights)
    repeated = GaussianMixture(**settings).fit(np.repeat(X, weights, axis=0))
    assert weighted.n_iter_ == repeated.n_iter_
    np.testing.assert_allclose(weighted.covariances_, repeated.covariances_, atol=1e-8)
    np.testing.assert_allclose(weighted.lower_bounds_, repeated.lower_bounds_, atol=1e-10)
    assert weighted.score(X, sample_weight=weights) == pytest.approx(repeated.score(np.repeat(X, weights, axis=0)))


def with_gaps(X, share=0.2):
    gappy = X.copy()
    gappy[np.random.RandomState(5).rand(*X.shape) < share] = np.nan
    return gappy


def test_missing_entries_are_integrated_out_of_every_answer(X):
    gm = GaussianMixture(3, random_state=0).fit(X)
    gappy = with_gaps(X)
    gappy[0] = np.nan
    joint = np.zeros((len(X), 3))
    for i, row in enumerate(gappy):
        seen = ~np.isnan(row)
        for k in range(3):
            joint[i, k] = np.log(gm.weights_[k])
            if seen.any():
                law = multivariate_normal(gm.means_[k][seen], gm.covariances_[k][np.ix_(seen, seen)])
                joint[i, k] += law.logpdf(row[seen])
    evidence = np.logaddexp.reduce(joint, axis=1)
    np.testing.assert_allclose(gm.score_samples(gappy), evidence, atol=1e-10)
    np.testing.assert_allclose(gm.predict_proba(gappy), np.exp(joint - evidence[:, None]), atol=1e-10)
    assert (gm.predict(gappy) == joint.argmax(1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_with_gaps_climbs_and_beats_filling_them(X, kind):
    gappy = with_gaps(X)
    fit = GaussianMixture(3, covariance_type=kind, reg_covar=0, random_state=0, tol=1e-7, max_iter=1000).fit(gappy)
    assert np.diff(fit.lower_bounds_).min() > -1e-12
    filled = np.where(np.isnan(gappy), np.nanmean(gappy, axis=0), gappy)
    by_filling = GaussianMixture(3, covariance_type=kind, random_state=0).fit(filled)
    assert fit.score(gappy) > by_filling.score(gappy)


def test_float32_in_float32_out_but_computed_in_float64(X):
    far = (X + 1e4).astype(np.float32)
    fit = GaussianMixture(3, random_state=0, **start("full", X + 1e4)).fit(far)
    exact = GaussianMixture(3, random_state=0, **start("full", X + 1e4)).fit(far.astype(np.float64))
    assert {getattr(fit, name).dtype for name in FITTED[:5]} == {np.dtype(np.float32)}
    np.testing.assert_allclose(fit.covariances_, exact.covariances_, rtol=1e-5)
    assert fit.predict_proba(far).dtype == np.float32


def test_answers_follow_arrays_set_or_changed_by_hand(X):
    gm = GaussianMixture(3, random_state=0).fit(X)
    before = gm.score(X)
    gm.means_ += 10
    assert gm.score(X) < before - 1
    gm.means_ -= 10
    assert gm.score(X) == pytest.approx(before)


def test_warm_start_goes_on(X):
    settings = {"n_components": 3, "tol": 1e-9, "random_state": 0, "init_params": "random"}
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        short = GaussianMixture(max_iter=5, warm_start=True, **settings).fit(X)
    first = short.lower_bounds_
    with pytest.warns(ConvergenceWarning):
        short.fit(X)
    with pytest.warns(ConvergenceWarning):
        whole = GaussianMixture(max_iter=10, **settings).fit(X)
    np.testing.assert_allclose([*first, *short.lower_bounds_], whole.lower_bounds_, rtol=1e-12)
    np.testing.assert_allclose(short.means_, whole.means_, rtol=1e-10)


def test_verbose_prints_scikit_learns_lines(X, capsys):
    ours = GaussianMixture(3, verbose=2, verbose_interval=1, random_state=0, n_init=2).fit(X)
    mine = capsys.readouterr().out.splitlines()
    sklearn.mixture.GaussianMixture(3, verbose=2, verbose_interval=1, random_state=0, n_init=2).fit(X)
    other = capsys.readouterr().out.splitlines()
    assert len(mine) == len(other)
    assert ours.converged_

    def untimed(lines):
        return ["".join(part for part in line.split("\t") if "lapse" not in part).split(".")[0] for line in lines]

    assert untimed(mine) == untimed(other)


def test_a_component_without_spread_is_an_error_or_a_warning(X):
    twice = np.vstack([X, np.repeat(X[:1] + 50, 5, axis=0)])
    settings = {"n_components": 2, "means_init": [X.mean(0), X[0] + 50], "reg_covar": 0.0}
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        GaussianMixture(**settings).fit(twice)
    assert GaussianMixture(**{**settings, "reg_covar": 1e-6}).fit(twice).converged_


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_components": 0}, "n_components == 0, must be >= 1"),
        ({"tol": "x"}, "tol must be an instance of"),
        ({"covariance_type": "diagonal"}, "must be one of full, tied, diag, spherical; got 'diagonal'"),
        ({"init_params": "k-means"}, "must be one of kmeans, random"),
        ({"max_iter": -1}, "max_iter == -1"),
        ({"device": "gpu"}, "'device' parameter is 'gpu', which this machine does not have; it has 'cpu'"),
    ],
)
def test_a_wrong_parameter_is_named(X, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        GaussianMixture(**wrong).fit(X)


@pytest.mark.parametrize("estimator", [GaussianMixture(2), KMeans(2)])
def test_wrong_weights_are_named(X, estimator):
    for weights, message in [
        (np.ones(3), "weights have shape"),
        (-np.ones(len(X)), "finite and non-negative"),
        (np.zeros(len(X)), "all weights are zero"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimator.fit(X, sample_weight=weights)


@pytest.mark.parametrize("estimator", [GaussianMixture(), BayesianGaussianMixture()])
def test_iterations_are_counted_and_data_must_be_enough(X, estimator):
    with pytest.warns(ConvergenceWarning):
        assert clone(estimator).set_params(max_iter=1, n_components=3).fit(X).n_iter_ == 1
    with pytest.raises(
        ValueError, match="Expected n_samples >= n_components but got n_components = 12, n_samples = 10"
    ):
        clone(estimator).set_params(n_components=12).fit(X[:10])


def test_in_a_pipeline_and_a_grid_search(X):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), GaussianMixture(random_state=0)),
        {"gaussianmixture__n_components": [1, 3], "gaussianmixture__covariance_type": ["full", "diag"]},
        cv=3,
    ).fit(X[np.random.RandomState(0).permutation(len(X))])
    assert search.best_params_["gaussianmixture__n_components"] == 3
    assert set(search.predict(X)) == {0, 1, 2}


def test_clone_pickle_and_column_names(X):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    gm = GaussianMixture(3, random_state=0).fit(frame)
    assert gm.feature_names_in_.tolist() == ["a", "b", "c"]
    again = pickle.loads(pickle.dumps(gm))
    assert (again.predict_proba(frame) == gm.predict_proba(frame)).all()
    with pytest.raises(NotFittedError):
        clone(gm).predict(frame)
    with pytest.raises(ValueError, match="feature names"):
        gm.predict(frame[["c", "b", "a"]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cls", [GaussianMixture, KMeans])
def test_on_a_gpu(X, cls):
    gappy = with_gaps(X)
    there, here = (cls(3, random_state=0, device=device).fit(gappy) for device in ("cuda", None))
    assert (there.predict(gappy) == here.predict(gappy)).all()


# k-means: EM in its hard limit.


def test_kmeans_takes_scikit_learns_steps(X):
    for settings in [
        {"init": X[[0, 1, 2]], "n_init": 1, "tol": 0.0},
        {"init": "k-means++", "n_init": 3, "random_state": 0},
        {"init": "random", "n_init": 1, "random_state": 4},
        {"init": lambda X, K, random_state: X[random_state.permutation(len(X))[:K]], "random_state": 2, "n_init": 1},
        {"init": X[[0, 1, 2]], "max_iter": 2, "n_init": 1},
    ]:
        theirs, ours = sklearn.cluster.KMeans(3, **settings).fit(X), KMeans(3, **settings).fit(X)
        assert ours.n_iter_ == theirs.n_iter_
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-10)
        assert (ours.labels_ == theirs.labels_).all()
        assert ours.inertia_ == pytest.approx(theirs.inertia_)
        np.testing.assert_allclose(ours.transform(X), theirs.transform(X))
        assert ours.score(X[:50]) == pytest.approx(theirs.score(X[:50]))
        assert (ours.predict(X + 0.1) == theirs.predict(X + 0.1)).all()


def test_em_comes_to_kmeans_as_its_covariance_shrinks(X):
    """T11: with equal weights and one fixed spherical covariance, soft assignments become hard as it goes to zero."""
    means = X[[0, 60, 120]]
    km = KMeans(3, init=means, tol=0).fit(X)
    gaps = []
    for variance in (10.0, 1.0, 1e-2):
        start = {
            "mixing.probs": np.full(3, 1 / 3),
            "components.loc": means,
            "components.covariance": np.full(3, variance),
        }
        em = pv.EM(start=start, frozen=("mixing.probs", "components.covariance"), estimate="ml", progress=False)
        fit = em.fit(pv.models.GaussianMixture(3, 3, covariance="spherical"), X)
        gaps.append(np.abs(fit.parameters["components.loc"].numpy() - km.cluster_centers_).max())
    assert gaps[0] > gaps[1] >= gaps[2]
    assert gaps[2] < 1e-8


def test_kmeans_far_from_the_origin(X):
    near, far = (KMeans(3, random_state=0).fit(X + shift) for shift in (0, 1e8))
    assert (far.labels_ == near.labels_).all()
    assert far.inertia_ == pytest.approx(near.inertia_, rel=1e-6)


def test_kmeans_weights_are_repetitions(X):
    weights = np.random.RandomState(0).randint(0, 4, len(X))
    weighted = KMeans(3, init=X[[0, 60, 120]], tol=0).fit(X, sample_weight=weights)
    repeated = KMeans(3, init=X[[0, 60, 120]], tol=0).fit(np.repeat(X, weights, axis=0))
    np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_)


def test_kmeans_measures_gaps_by_what_is_seen(X):
    gappy = with_gaps(X)
    km = KMeans(3, init=X[[0, 60, 120]], tol=0).fit(gappy)
    distance = np.nansum((gappy[:, None] - km.cluster_centers_) ** 2, axis=2)
    assert (km.labels_ == distance.argmin(1)).all()
    assert km.inertia_ == pytest.approx(distance.min(1).sum())
    for k in range(3):
        np.testing.assert_allclose(km.cluster_centers_[k], np.nanmean(gappy[km.labels_ == k], axis=0))


def test_kmeans_names_what_is_wrong(X):
    with pytest.raises(ValueError, match="does not match the number of clusters 3"):
        KMeans(3, init=X[:2]).fit(X)
    with pytest.raises(ValueError, match="must be one of"):
        KMeans(3, init="kmeans++").fit(X)
    with pytest.raises(ValueError, match="should be >= n_clusters"):
        KMeans(30).fit(X[:5])
    with pytest.warns(RuntimeWarning, match="only one init"):
        KMeans(3, init=X[:3], n_init=4).fit(X)
    with pytest.warns(ConvergenceWarning, match="distinct clusters"):
        KMeans(3, random_state=0).fit(np.repeat(X[:2], 5, axis=0))


def test_kmeans_fit_transform_takes_weights_in_their_place():
    X, w = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60.0)
    ours, theirs = (cls(3, init=X[:3], n_init=1) for cls in (KMeans, sklearn.cluster.KMeans))
    np.testing.assert_allclose(ours.fit_transform(X, None, w), theirs.fit_transform(X, None, w))


@pytest.mark.parametrize("weights", [np.zeros(60), -np.ones(60), np.full(60, np.nan), np.ones(30)])
def test_weights_of_a_score_are_checked(weights):
    X = np.random.default_rng(0).normal(size=(60, 2))
    fitted = GaussianMixture(2, random_state=0).fit(X)
    with pytest.raises(ValueError, match="weight"):
        fitted.score(X, sample_weight=weights)


@pytest.mark.parametrize("kind", [GaussianMixture, BayesianGaussianMixture])
@pytest.mark.parametrize("changed", [{"covariance_type": "diag"}, {"n_components": 3}, {}], ids=str)
def test_a_warm_start_from_other_shapes_is_refused(X, kind, changed):
    fitted = kind(n_components=2, warm_start=True, random_state=0).fit(X)
    with pytest.raises(ValueError, match="warm_start=True goes on from the last fit, with means of shape"):
        fitted.set_params(**changed).fit(X if changed else X[:, :1])


def test_so_is_one_from_another_law_of_the_weights(X):
    fitted = BayesianGaussianMixture(n_components=2, warm_start=True, random_state=0).fit(X)
    with pytest.raises(ValueError, match="weights have another law"):
        fitted.set_params(weight_concentration_prior_type="dirichlet_distribution").fit(X)
