"""Fitted mixtures from scikit-learn to a Fit and back."""

import numpy as np
import pytest
import sklearn.cluster
import sklearn.mixture
from sklearn.exceptions import NotFittedError

import ppl_vae as pv
from ppl_vae import EngineError
from ppl_vae.sklearn import GaussianMixture, from_sklearn, to_sklearn


@pytest.fixture(name="X", scope="module")
def eruptions():
    return pv.data.faithful().values.numpy()


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("cls", [sklearn.mixture.GaussianMixture, GaussianMixture])
def test_there_and_back(X, kind, cls):
    estimator = cls(2, covariance_type=kind, random_state=0).fit(X)
    fit = from_sklearn(estimator)
    np.testing.assert_allclose(fit.log_prob(X).numpy(), estimator.score_samples(X))
    np.testing.assert_allclose(fit.responsibilities(X).numpy(), estimator.predict_proba(X), atol=1e-12)
    back = to_sklearn(fit)
    assert isinstance(back, sklearn.mixture.GaussianMixture)
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        np.testing.assert_allclose(getattr(back, name), getattr(estimator, name), rtol=1e-10, atol=1e-12)
    assert back.bic(X) == pytest.approx(estimator.bic(X))


def test_a_fit_by_em_becomes_an_estimator(X):
    fit = pv.EM(n_init=2, progress=False).fit(pv.models.GaussianMixture(2, 2, covariance="diagonal"), X)
    estimator = to_sklearn(fit)
    assert estimator.covariance_type == "diag"
    assert estimator.lower_bound_ == pytest.approx(estimator.score(X))
    assert (estimator.predict(X) == fit.labels(X).numpy()).all()
    warm = GaussianMixture(2, covariance_type="diag", means_init=estimator.means_, random_state=0).fit(X)
    assert warm.score(X) == pytest.approx(estimator.score(X), abs=1e-3)


def test_a_converted_fit_is_compared_saved_and_started_from(X, tmp_path):
    fit = from_sklearn(sklearn.mixture.GaussianMixture(2, random_state=0).fit(X[:200]))
    em = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), X[:200])
    frame = pv.compare({"scikit-learn": fit, "EM": em}, X[200:]).to_frame()
    assert frame.loc["scikit-learn", "log_predictive"] == pytest.approx(frame.loc["EM", "log_predictive"], abs=1e-3)
    loaded = pv.Fit.load(fit.save(tmp_path / "fit.safetensors"), pv.models.GaussianMixture(2, 2))
    np.testing.assert_allclose(loaded.log_prob(X).numpy(), fit.log_prob(X).numpy())
    again = pv.EM(start=fit, progress=False).fit(pv.models.GaussianMixture(2, 2), X[:200])
    assert again.trace["bound"][0] == pytest.approx(fit.log_prob(X[:200]).sum().item())


def test_a_bayesian_mixture_gives_its_mean(X):
    theirs = sklearn.mixture.BayesianGaussianMixture(n_components=2, random_state=0).fit(X)
    fit = from_sklearn(theirs)
    np.testing.assert_allclose(fit.parameters["components.loc"].numpy(), theirs.means_)


def test_what_cannot_be_converted_is_named(X):
    with pytest.raises(NotFittedError):
        from_sklearn(sklearn.mixture.GaussianMixture(2))
    coins = pv.families.Bernoulli

    class Coins(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.mixing, self.coins = pv.families.Categorical(2), coins(3, batch=2)

        @pv.latent
        def z(self):
            return self.mixing()

        @pv.observed
        def x(self, z):
            return self.coins(z)

    fit = pv.EM(progress=False).fit(Coins(), (X[:, :1] > np.array([[2.0, 3.0, 4.0]])) * 1.0)
    with pytest.raises(EngineError, match=r"coins \(Bernoulli\)"):
        to_sklearn(fit)


def test_what_is_no_mixture_is_refused(X):
    with pytest.raises(EngineError, match="got a KMeans"):
        from_sklearn(sklearn.cluster.KMeans(2, n_init=1).fit(X))
    with pytest.raises(EngineError, match="got a NoneType"):
        to_sklearn(None)
