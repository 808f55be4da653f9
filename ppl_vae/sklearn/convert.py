"""Fitted mixtures from scikit-learn to a Fit, and back."""

from typing import Any

import numpy as np
import torch
from sklearn.mixture import BayesianGaussianMixture as TheirBayesian
from sklearn.mixture import GaussianMixture as Theirs
from sklearn.utils.validation import check_is_fitted

from ppl_vae import families, models
from ppl_vae.declare.observations import are_named
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.sklearn.bayesian import BayesianGaussianMixture
from ppl_vae.sklearn.covariance import COVARIANCES
from ppl_vae.sklearn.density import normal
from ppl_vae.sklearn.gaussian import GaussianMixture

__all__ = ["from_sklearn", "to_sklearn"]

MIXTURES = (Theirs, TheirBayesian, GaussianMixture, BayesianGaussianMixture)
KINDS = {form.form: kind for kind, form in COVARIANCES.items()}
"""scikit-learn's name of each covariance form."""


def from_sklearn(estimator: Any) -> Fit:
    """The Fit of a fitted GaussianMixture or BayesianGaussianMixture, scikit-learn's or ours.

    A BayesianGaussianMixture gives the mixture at its `weights_`, `means_` and `covariances_`, without the
    uncertainty about them.

    Parameters
    ----------
    estimator : fitted estimator
        With `covariance_type`, `weights_`, `means_`, `covariances_` and `converged_`.

    Returns
    -------
    Fit
        Of `models.GaussianMixture`; its trace is empty, because scikit-learn's bound is a mean of unknown total.

    Raises
    ------
    EngineError
        If it is no mixture.
    sklearn.exceptions.NotFittedError
        If it is not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.mixture import GaussianMixture
    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> theirs = GaussianMixture(2, random_state=0).fit(X)
    >>> from_sklearn(theirs).labels([[0.0, 0.0], [12.0, 3.0]]).tolist() == theirs.predict([[0, 0], [12, 3]]).tolist()
    True
    """
    if not isinstance(estimator, MIXTURES):
        raise EngineError(
            f"from_sklearn takes a fitted GaussianMixture or BayesianGaussianMixture, got a {type(estimator).__name__}"
        )
    check_is_fitted(estimator, ["weights_", "means_", "covariances_"])
    kind = estimator.covariance_type
    weights, means, covariances = (
        np.asarray(a, dtype=np.float64) for a in (estimator.weights_, estimator.means_, estimator.covariances_)
    )
    K, d = means.shape
    model = models.GaussianMixture(K, d, covariance=COVARIANCES[kind].form).double()
    model.components = normal(kind, weights, means, covariances)
    model.mixing.fix({"probs": torch.as_tensor(weights)})
    if hasattr(estimator, "feature_names_in_"):
        model.know({"x": tuple(map(str, estimator.feature_names_in_))})
    name = type(estimator).__name__
    reached = ("converged", f"{name} converged") if estimator.converged_ else ("max_iter", f"{name} did not converge")
    return Fit(
        model=model.requires_grad_(False),
        engine="scikit-learn",
        draws={},
        trace={},
        bound="",
        status=Status(*reached),
        seconds=0.0,
        seed=0,
        settings={name: repr(value) for name, value in estimator.get_params().items()},
    )


def to_sklearn(fit: Fit) -> Theirs:
    """The fitted scikit-learn GaussianMixture with a Fit's parameters.

    Parameters
    ----------
    fit : Fit
        A point estimate of a model with one `Categorical` and one `Normal` family, such as `models.GaussianMixture`.

    Returns
    -------
    sklearn.mixture.GaussianMixture
        Fitted: `predict`, `score_samples`, `sample` and the rest answer with these parameters.

    Raises
    ------
    EngineError
        If the fit has many draws, or its model is not a Gaussian mixture.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> x = pv.data.faithful().values
    >>> fit = pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    >>> round(float(to_sklearn(fit).score(x.numpy()) * len(x)), 3)
    -1130.264
    """
    if not isinstance(fit, Fit):
        raise EngineError(f"to_sklearn takes a Fit of a Gaussian mixture, got a {type(fit).__name__}")
    if not fit.is_point:
        raise EngineError(f"a GaussianMixture has one value of its parameters, this fit has {fit.num_draws} draws")
    mixing, components = (_only(fit, kind) for kind in (families.Categorical, families.Normal))
    names = f"{mixing}.probs", f"{components}.loc", f"{components}.covariance"
    weights, means, covariances = (fit.parameters[name].double().cpu().numpy() for name in names)
    kind = KINDS[fit.model.families()[components].form.name]
    form = COVARIANCES[kind]
    estimator = Theirs(len(means), covariance_type=kind)
    estimator.weights_, estimator.means_, estimator.covariances_ = weights, means, covariances
    estimator.precisions_cholesky_ = form.factor(covariances)
    estimator.precisions_ = form.precisions(estimator.precisions_cholesky_)
    estimator.n_features_in_ = means.shape[1]
    for columns in filter(are_named, fit.model._columns.values()):
        estimator.feature_names_in_ = np.array(columns, dtype=object)
    estimator.converged_ = fit.status.code == "converged"
    estimator.lower_bounds_ = _bounds(fit)
    estimator.n_iter_ = len(estimator.lower_bounds_)
    estimator.lower_bound_ = max(estimator.lower_bounds_, default=-np.inf)
    return estimator


def _only(fit: Fit, kind: type) -> str:
    """Path of the model's only family of this kind."""
    found = {path: type(family) for path, family in fit.model.families().items()}
    paths = [path for path, own in found.items() if issubclass(own, kind)]
    if len(found) != 2 or len(paths) != 1:
        raise EngineError(
            f"to_sklearn takes a model with one Categorical and one Normal family; {type(fit.model).__name__} has "
            + (", ".join(f"{path} ({own.__name__})" for path, own in found.items()) or "none")
        )
    return paths[0]


def _bounds(fit: Fit) -> list[float]:
    """The trace of an EM fit as means over the data; empty where the data are not known."""
    if fit.data is None or "bound" not in fit.trace:
        return []
    total = len(fit.data) if fit.weights is None else float(fit.weights.sum())
    return (fit.trace["bound"] / total).tolist()
