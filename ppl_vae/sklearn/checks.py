"""What users pass to an estimator, checked with scikit-learn's own words."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_array, check_scalar

from ppl_vae.infer import weights as data_weights
from ppl_vae.sklearn.covariance import COVARIANCES

__all__ = [
    "check_centers",
    "check_choice",
    "check_device",
    "check_means",
    "check_numbers",
    "check_precisions",
    "check_sample_weight",
    "check_weights",
]

Array = NDArray[np.floating]

COUNTS = {"n_components": 1, "n_clusters": 1, "max_iter": 0, "n_init": 1, "verbose_interval": 1}
AMOUNTS = {"tol": 0.0, "reg_covar": 0.0}


def check_numbers(estimator: Any, names: Iterable[str]) -> None:
    """Check that these parameters are whole or real numbers no smaller than they may be.

    Raises
    ------
    ValueError, TypeError
        Naming the parameter, its type or its smallest value.
    """
    for name in names:
        kind, least = (Integral, COUNTS[name]) if name in COUNTS else (Real, AMOUNTS[name])
        check_scalar(getattr(estimator, name), name, kind, min_val=least)


def check_choice(estimator: Any, name: str, choices: Iterable[str]) -> None:
    """Check that a parameter is one of the named choices."""
    value = getattr(estimator, name)
    if value not in choices:
        raise ValueError(
            f"The {name!r} parameter of {type(estimator).__name__} must be one of {', '.join(choices)}; got {value!r}"
        )


def check_device(device: Any) -> None:
    """Check that a device is there.

    Raises
    ------
    ValueError
        Naming those that are.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        there = ["'cpu'", *(f"'cuda:{i}'" for i in range(torch.cuda.device_count()))]
        there += ["'mps'"] * torch.backends.mps.is_available()
        raise ValueError(
            f"The 'device' parameter is {device!r}, which this machine does not have; it has {', '.join(there)}"
        ) from error


def check_shape(value: Any, shape: tuple[int, ...], name: str) -> Array:
    """The value as an array of this shape."""
    array = check_array(value, dtype=np.float64, ensure_2d=False, allow_nd=True)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return array


def check_weights(weights: Any, K: int) -> Array:
    """[K], non-negative, summing to one."""
    w = check_shape(weights, (K,), "weights")
    if bool((w < 0).any() or (w > 1).any()):
        raise ValueError(
            "The parameter 'weights' should be in the range [0, 1], but got "
            f"max value {w.min():.5f}, min value {w.max():.5f}"
        )
    # Weights that were stored in float32 sum to one only so well.
    if not np.isclose(w.sum(), 1.0, atol=1e-6):
        raise ValueError(f"The parameter 'weights' should be normalized, but got sum(weights) = {w.sum():.5f}")
    return w


def check_means(means: Any, K: int, d: int) -> Array:
    """[K, d]."""
    return check_shape(means, (K, d), "means")


def check_centers(centers: Any, K: int, d: int) -> Array:
    """[K, d]."""
    array = check_array(centers, dtype=np.float64)
    for found, wanted, what in (
        (len(array), K, "number of clusters"),
        (array.shape[1], d, "number of features of the data"),
    ):
        if found != wanted:
            raise ValueError(f"The shape of the initial centers {array.shape} does not match the {what} {wanted}.")
    return array


def check_precisions(precisions: Any, kind: str, K: int, d: int) -> Array:
    """Positive, or symmetric and positive definite, in the shape of the covariance type."""
    form = COVARIANCES[kind]
    p = check_shape(precisions, form.shape(K, d), f"{kind} precision")
    if not form.valid(p):
        raise ValueError(f"'{kind} precision' should be {form.wanted}")
    return p


def check_covariance_prior(prior: Any, kind: str, d: int) -> Array:
    """Positive, or symmetric and positive definite, in the shape that one component has."""
    form = COVARIANCES[kind]
    p = check_shape(np.atleast_1d(prior), form.own(d) or (1,), f"{kind} covariance_prior").reshape(form.own(d))
    if not form.valid(p):
        raise ValueError(f"'{kind} covariance_prior' should be {form.wanted}")
    return p


def check_sample_weight(sample_weight: Any, n: int) -> Array | None:
    """[n] weights in float64, a number being that of every row, or None.

    Raises
    ------
    DataError
        If their number is wrong, one is negative or not finite, or all are zero.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    return data_weights.check_weights(weights if weights.ndim else np.full(n, weights), n).numpy()
