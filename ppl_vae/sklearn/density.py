"""Log pi_k + log N(x_i; mu_k, Sigma_k) from an estimator's fitted arrays, prepared once for many calls."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_vae.families import Normal
from ppl_vae.sklearn.covariance import COVARIANCES

__all__ = ["answers", "density", "normal", "tensor"]

Array = NDArray[np.floating]
Density = Callable[[Tensor], Tensor]

ELEMENTS_AT_ONCE = 1 << 18
"""Bounds the temporaries of a question about many rows; small enough to stay in a processor's cache."""


def tensor(array: Array, device: Any) -> Tensor:
    """The array on a device, without a copy where torch can use it as it is."""
    # torch warns of arrays that may not be written to, such as memory maps.
    return torch.as_tensor(np.require(array, requirements="W"), device=device)


def normal(kind: str, weights: Array, means: Array, covariances: Array) -> Normal:
    """The family with these means and covariances, its center and scale those of the whole mixture."""
    K, d = means.shape
    family = Normal(d, batch=K, covariance=COVARIANCES[kind].form).double()
    center = weights @ means
    within = torch.as_tensor(COVARIANCES[kind].average(covariances, weights))
    moment = family.form.moment(torch.as_tensor(means - center), torch.as_tensor(weights)) + within
    family.center = torch.as_tensor(center)
    family.reference = family.form.reference(moment, family.form.variances(moment).sqrt())
    family.fix({"loc": torch.as_tensor(means), "covariance": torch.as_tensor(covariances)})
    return family


class _Density:
    """Rows x [n, d] -> [K, n], missing entries integrated out."""

    def __init__(self, kind: str, log_weights: Array, means: Array, covariances: Array, device: Any) -> None:
        weights = np.exp(log_weights - log_weights.max())
        self.family = normal(kind, weights / weights.sum(), means, covariances).to(device)
        self.kernel = self.family.requires_grad_(False).kernel()
        self.log_weights = torch.as_tensor(log_weights, device=device)[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        expanded = self.kernel.expand(self.family.features(x.to(self.log_weights)))
        return self.kernel.log_density(expanded) + self.log_weights


@lru_cache(maxsize=8)
def _prepared(kind: str, K: int, d: int, device: Any, *arrays: bytes) -> Density:
    log_weights, means, covariances = (np.frombuffer(array).copy() for array in arrays)
    shape = COVARIANCES[kind].shape(K, d)
    return _Density(kind, log_weights, means.reshape(K, d), covariances.reshape(shape), device)


def density(kind: str, log_weights: Array, means: Array, covariances: Array, device: Any) -> Density:
    """The function x [n, d] -> log pi_k + log N(x_i; mu_k, Sigma_k), [K, n].

    What does not depend on x (factors, determinants) is kept for the next call with the same values, so that
    changing a fitted array in place is seen and nothing is stored in the estimator.
    """
    arrays = (np.ascontiguousarray(a, dtype=np.float64).tobytes() for a in (log_weights, means, covariances))
    return _prepared(kind, *means.shape, device, *arrays)


def answers(of: Density, X: Array, K: int, answer: Callable[[Tensor], Tensor], device: Any) -> Array:
    """answer([K, n]) of all rows of X, part by part, rows first."""
    rows = max(1, ELEMENTS_AT_ONCE // (K + X.shape[1]))
    x = tensor(X, device)
    with torch.no_grad():
        return torch.cat([answer(of(part)) for part in x.split(rows)]).cpu().numpy()
