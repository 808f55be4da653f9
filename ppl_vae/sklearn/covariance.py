"""How scikit-learn writes covariances: their names, and the precisions and factors that belong to them."""

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_vae.families.forms import FORMS

__all__ = ["COVARIANCES", "Covariances"]

Array = NDArray[np.floating]

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical covariance (for instance "
    "caused by singleton or collapsed samples). Try to decrease the number of components, increase reg_covar, or "
    "scale the input data."
)


class Covariances:
    """Variances: the diagonal [K, d] and spherical [K] forms, where a precision is 1 / variance."""

    wanted: ClassVar[str] = "positive"

    def __init__(self, form: str) -> None:
        self.form = form

    def shape(self, K: int, d: int) -> tuple[int, ...]:
        """Shape of the covariances, the precisions and their factors."""
        return FORMS[self.form].shape(K, d)

    def seeded(self, X: Array, weights: Array | None, K: int) -> Array:
        """What components begin with when each sits on one datum: no spread of their own."""
        return np.zeros(self.shape(K, X.shape[1]))

    def unit(self, K: int, d: int) -> Array:
        """Variances of one and no correlation."""
        return FORMS[self.form].identity(K, d, torch.zeros((), dtype=torch.float64)).numpy()

    def own(self, d: int) -> tuple[int, ...]:
        """Shape of a single component's covariance."""
        return self.shape(1, d)[1:]

    def singular(self, own: Array) -> bool:
        """Whether a single component's covariance is no larger than rounding in some direction."""
        return bool(np.min(own) <= np.finfo(np.float64).eps * np.max(own))

    def of_data(self, covariance: Array) -> Array:
        """What a covariance matrix [d, d] is in this form, for a single component."""
        variances = covariance.diagonal()
        return variances.copy() if self.form == "diagonal" else variances.mean()

    def free(self, K: int, d: int) -> int:
        """Number of free parameters."""
        return math.prod(self.shape(K, d))

    def valid(self, precisions: Array) -> bool:
        """Whether these are precisions."""
        return bool((precisions > 0).all())

    def factor(self, covariances: Array) -> Array:
        """U with precision = U U', upper triangular.

        Raises
        ------
        ValueError
            If a covariance is not positive definite.
        """
        if not bool((covariances > 0).all()):
            raise ValueError(ILL_DEFINED)
        return 1 / np.sqrt(covariances)

    def precisions(self, factor: Array) -> Array:
        """U U'."""
        return factor**2

    def inverse(self, precisions: Array) -> Array:
        """Covariances of precisions."""
        return 1 / precisions

    def average(self, covariances: Array, weights: Array) -> Array:
        """sum_k weight_k Sigma_k; one variance stands for those of all features."""
        return np.tensordot(weights, covariances, 1)

    def each(self, covariances: Array, K: int) -> Array:
        """One covariance for each component."""
        return covariances

    def draw(self, random: np.random.RandomState, mean: Array, covariance: Array, n: int) -> Array:
        """[n, d] rows of one component, from the same random numbers as scikit-learn's."""
        return mean + random.standard_normal(size=(n, len(mean))) * np.sqrt(covariance)


class Matrices(Covariances):
    """Matrices: the full [K, d, d] and tied [d, d] forms."""

    wanted = "symmetric, positive-definite"

    def own(self, d: int) -> tuple[int, ...]:
        return (d, d)

    def singular(self, own: Array) -> bool:
        values = np.linalg.eigvalsh(own)
        return bool(values[0] <= len(own) * np.finfo(np.float64).eps * values[-1])

    def of_data(self, covariance: Array) -> Array:
        return covariance

    def free(self, K: int, d: int) -> int:
        return math.prod(self.shape(K, d)) * (d + 1) // (2 * d)

    def valid(self, precisions: Array) -> bool:
        symmetric = np.allclose(precisions, precisions.swapaxes(-1, -2))
        return symmetric and bool((np.linalg.eigvalsh(precisions) > 0).all())

    def factor(self, covariances: Array) -> Array:
        try:
            lower = np.linalg.cholesky(covariances)
        except np.linalg.LinAlgError:
            raise ValueError(ILL_DEFINED) from None
        # Sigma = L L', so the precision is L^-T L^-1 and L^-T is upper triangular.
        return np.triu(np.linalg.inv(lower).swapaxes(-1, -2))

    def precisions(self, factor: Array) -> Array:
        return factor @ factor.swapaxes(-1, -2)

    def inverse(self, precisions: Array) -> Array:
        inverse = np.linalg.inv(precisions)
        return (inverse + inverse.swapaxes(-1, -2)) / 2

    def seeded(self, X: Array, weights: Array | None, K: int) -> Array:
        # A shared covariance of zero would never let go of the seeds: all the data share it, so it is theirs.
        d = X.shape[1]
        return (
            super().seeded(X, weights, K)
            if self.form == "full"
            else np.cov(X.T, ddof=0, aweights=weights).reshape(d, d)
        )

    def average(self, covariances: Array, weights: Array) -> Array:
        return super().average(covariances, weights) if self.form == "full" else covariances

    def each(self, covariances: Array, K: int) -> Array:
        return covariances if self.form == "full" else np.broadcast_to(covariances, (K, *covariances.shape))

    def draw(self, random: np.random.RandomState, mean: Array, covariance: Array, n: int) -> Array:
        return random.multivariate_normal(mean, covariance, n)


COVARIANCES: dict[str, Covariances] = {
    "full": Matrices("full"),
    "tied": Matrices("tied"),
    "diag": Covariances("diagonal"),
    "spherical": Covariances("spherical"),
}
"""scikit-learn's covariance types, each with the name of its form here."""
