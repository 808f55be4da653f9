"""scikit-learn's estimators, from here: the same answers, then weights, gaps, a grid search and conversions."""

import numpy as np
from sklearn.cluster import KMeans as TheirKMeans
from sklearn.mixture import GaussianMixture as TheirMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ppl_vae as pv
from ppl_vae.sklearn import BayesianGaussianMixture, GaussianMixture, KMeans, from_sklearn, to_sklearn


def main():
    X = pv.data.faithful().values.numpy()

    # The same parameters and random_state: the same start, the same iterations, the same answer.
    theirs = TheirMixture(2, random_state=0).fit(X)
    ours = GaussianMixture(2, random_state=0).fit(X)
    print("means", ours.means_.round(3).tolist(), "in", ours.n_iter_, "iterations")
    assert ours.n_iter_ == theirs.n_iter_
    assert np.allclose(ours.means_, theirs.means_, rtol=1e-6)
    assert np.isclose(ours.bic(X), theirs.bic(X))
    centers = TheirKMeans(2, random_state=0).fit(X)
    assert np.isclose(KMeans(2, random_state=0).fit(X).inertia_, centers.inertia_)

    # Variational Bayes leaves the components that the data do not need without weight.
    bayesian = BayesianGaussianMixture(n_components=6, max_iter=1000, random_state=0).fit(X)
    print("weights", bayesian.weights_.round(3).tolist())
    assert (bayesian.weights_ > 0.01).sum() == 2

    # A weight of two is the same as writing a row twice.
    start = {"means_init": theirs.means_, "weights_init": theirs.weights_, "precisions_init": theirs.precisions_}
    twice = GaussianMixture(2, **start).fit(np.vstack([X, X[:100]]))
    weights = np.ones(len(X))
    weights[:100] = 2
    weighted = GaussianMixture(2, **start).fit(X, sample_weight=weights)
    assert np.allclose(weighted.means_, twice.means_)

    # Missing values are integrated out: the fit with a fifth of one column gone is close to the full one.
    gappy = X.copy()
    gappy[::5, 0] = np.nan
    partial = GaussianMixture(2, random_state=0, tol=1e-6).fit(gappy)
    order, full = partial.means_[:, 0].argsort(), ours.means_[ours.means_[:, 0].argsort()]
    print("means with gaps", partial.means_[order].round(3).tolist())
    assert np.abs(partial.means_[order] - full).max() < 0.5
    assert np.isfinite(partial.score_samples(gappy)).all()

    # In a pipeline and a grid search, by the held-out log-likelihood.
    search = GridSearchCV(
        make_pipeline(StandardScaler(), GaussianMixture(random_state=0, max_iter=500)),
        {"gaussianmixture__n_components": [1, 2], "gaussianmixture__covariance_type": ["full", "diag"]},
    ).fit(X)
    print("chosen", search.best_params_)
    assert search.best_params_["gaussianmixture__n_components"] == 2

    # To a Fit, for everything that a Fit can do, and back.
    fit = from_sklearn(theirs)
    assert np.allclose(fit.log_prob(X).numpy(), theirs.score_samples(X))
    assert np.allclose(to_sklearn(fit).predict_proba(X), theirs.predict_proba(X))


if __name__ == "__main__":
    main()
