"""Log pi_k + log N(x_i; mu_k, Sigma_k) from an estimator's fitted arrays, prepared once for many calls."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_vae.declare.observations import as_tensor
from ppl_vae.families import Normal
from ppl_vae.sklearn.covariance import COVARIANCES

__all__ = ["Density", "answers", "kept", "normal", "plain", "tensor"]

Array = NDArray[np.floating]

ELEMENTS_AT_ONCE = 1 << 17
"""Bounds the temporaries of a question about many rows; small enough to stay in a processor's cache."""


def tensor(array: Array, device: Any) -> Tensor:
    """The array on a device, without a copy where torch can use it as it is."""
    return as_tensor(array).to(device)


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
    return family.requires_grad_(False)


class Density:
    """Rows x [n, d] -> log pi_k + log N(x_i; k), [K, n], missing entries integrated out.

    Parameters
    ----------
    family : Normal
        Whose features of the data the kernel takes.
    kernel : Kernel
        Log densities of the components.
    log_weights : Tensor
        [K].
    """

    def __init__(self, family: Normal, kernel: Any, log_weights: Tensor) -> None:
        self.family, self.kernel, self.log_weights = family, kernel, log_weights[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """[K, n] nats."""
        expanded = self.kernel.expand(self.family.features(x.to(self.log_weights)))
        return self.kernel.log_density(expanded) + self.log_weights


def plain(kind: str, device: Any, weights: Array, means: Array, covariances: Array) -> Density:
    """The density of a mixture."""
    family = normal(kind, weights, means, covariances).to(device)
    return Density(family, family.kernel(), torch.as_tensor(weights, device=device).log())


def kept(build: Callable[..., Density], kind: str, device: Any, arrays: Iterable[Any]) -> Density:
    """build(kind, device, *arrays), kept for the next call with the same values.

    Factors and determinants are then computed once, while nothing is stored in the estimator, and a fitted array that
    is changed in place is seen.
    """
    stored = tuple((np.ascontiguousarray(a, dtype=np.float64).tobytes(), np.shape(a)) for a in arrays)
    return _kept(build, kind, device, stored)


@lru_cache(maxsize=8)
def _kept(build: Callable[..., Density], kind: str, device: Any, stored: Any) -> Density:
    return build(kind, device, *(np.frombuffer(data).reshape(shape).copy() for data, shape in stored))


def answers(of: Callable[[Tensor], Tensor], X: Array, K: int, answer: Callable[[Tensor], Tensor], device: Any) -> Array:
    """answer([K, n]) of all rows of X, part by part, rows first."""
    rows = max(1, ELEMENTS_AT_ONCE // (K + X.shape[1]))
    x = tensor(X, device)
    with torch.no_grad():
        return torch.cat([answer(of(part)) for part in x.split(rows)]).cpu().numpy()
