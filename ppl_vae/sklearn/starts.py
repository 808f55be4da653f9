"""scikit-learn's four ways to start a mixture, drawing from the same random numbers in the same order."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESPONSIBILITIES", "SEEDS", "filled"]

Array = NDArray[np.floating]
Start = Callable[[Array, int, np.random.RandomState, Any], Array]


def filled(X: Array, weights: Array | None) -> Array:
    """X with each missing entry at its feature's mean: for seeds and first labels only, never for estimates."""
    missing = np.isnan(X)
    if not missing.any():
        return X
    w = np.where(missing, 0.0, 1.0 if weights is None else weights[:, None])
    mean = (w * np.nan_to_num(X)).sum(0) / np.maximum(w.sum(0), np.finfo(np.float64).tiny)
    return np.where(missing, mean, X).astype(X.dtype)


def _kmeans(X: Array, K: int, random: np.random.RandomState, weights: Array | None) -> Array:
    """One-hot in the labels of k-means."""
    from sklearn.cluster import KMeans

    labels = KMeans(K, n_init=1, random_state=random).fit(X, sample_weight=weights).labels_
    return np.eye(K)[labels]


def _random(X: Array, K: int, random: np.random.RandomState, weights: Array | None) -> Array:
    """Uniform, then normalised."""
    r = random.uniform(size=(len(X), K))
    return r / r.sum(1, keepdims=True)


def _kmeans_plusplus(X: Array, K: int, random: np.random.RandomState, weights: Array | None) -> Array:
    """Data chosen far from each other."""
    from sklearn.cluster import kmeans_plusplus

    return X[kmeans_plusplus(X, K, sample_weight=weights, random_state=random)[1]]


def _random_from_data(X: Array, K: int, random: np.random.RandomState, weights: Array | None) -> Array:
    """Data chosen at random, in proportion to their weights."""
    p = None if weights is None else weights / weights.sum()
    return X[random.choice(len(X), size=K, replace=False, p=p)]


RESPONSIBILITIES: dict[str, Start] = {"kmeans": _kmeans, "random": _random}
"""init_params that give responsibilities [n, K], from data [n, d], K, random numbers and weights."""

SEEDS: dict[str, Start] = {"k-means++": _kmeans_plusplus, "random_from_data": _random_from_data}
"""init_params that give the means [K, d]; every component then starts with equal weight and no spread of its own."""
