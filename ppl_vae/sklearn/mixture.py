"""What both mixture estimators share: fitting from several starts, and the questions that a fitted one answers."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ppl_vae.sklearn.checks import check_choice, check_device, check_numbers, check_sample_weight
from ppl_vae.sklearn.covariance import COVARIANCES, ILL_DEFINED
from ppl_vae.sklearn.density import Density, answers, kept, plain
from ppl_vae.sklearn.engine import Chronicle
from ppl_vae.sklearn.starts import RESPONSIBILITIES, SEEDS

__all__ = ["Mixture", "Outcome"]

Array = NDArray[np.floating]

NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase max_iter, tol, "
    "or check for degenerate data."
)


@dataclass(frozen=True)
class Outcome:
    """Where one start has led.

    Attributes
    ----------
    values : dict
        Parameters by name.
    bounds : list of float
        The mean bound at each iteration.
    converged : bool
        Whether the bound came to rest.
    collapsed : bool
        Whether a component has no spread, so that the likelihood has no maximum.
    """

    values: dict[str, Array]
    bounds: list[float]
    converged: bool
    collapsed: bool = False

    @property
    def bound(self) -> float:
        """The last mean bound; minus infinity before any iteration."""
        return self.bounds[-1] if self.bounds else -math.inf


class Mixture(DensityMixin, BaseEstimator):
    """A mixture whose answers follow from its fitted arrays, so that setting them by hand is enough.

    Every question takes rows with NaN: those entries are integrated out.
    """

    n_components: int
    covariance_type: str
    max_iter: int
    n_init: int
    random_state: Any
    warm_start: bool
    verbose: int
    verbose_interval: int
    device: Any
    weights_: Array
    means_: Array
    covariances_: Array

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit from `n_init` starts and keep the best end, or go on from the last fit with `warm_start`.

        Parameters
        ----------
        X : array [n, d]
            A NaN is a missing entry.
        y : ignored
        sample_weight : array [n], optional
            Non-negative: row i counts w_i times.

        Raises
        ------
        ValueError
            If X, the weights or a parameter do not fit, or a covariance became singular.

        Warns
        -----
        ConvergenceWarning
            If the best start was still changing after `max_iter` iterations.
        """
        self._check_parameters()
        X = self._rows(X, reset=True, least=2)
        if len(X) < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, n_samples = {len(X)}"
            )
        weights = check_sample_weight(sample_weight, len(X))
        self._prepare(X, weights)
        best = max(self._outcomes(X, weights), key=lambda outcome: (not outcome.collapsed, outcome.bound))
        if best.collapsed and best.converged:
            raise ValueError(ILL_DEFINED)
        self._keep(best, X.dtype)
        self.converged_, self.n_iter_ = best.converged, len(best.bounds)
        self.lower_bound_, self.lower_bounds_ = best.bound, best.bounds
        if not best.converged and self.max_iter > 0:
            warnings.warn(NOT_CONVERGED, ConvergenceWarning, stacklevel=2)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> NDArray[np.int64]:
        """`fit`, then `predict` of the same rows."""
        return self.fit(X, y, sample_weight).predict(X)

    def _outcomes(self, X: Array, weights: Array | None) -> Iterator[Outcome]:
        again = self.warm_start and hasattr(self, "converged_")
        if again:
            self._check_last(X.shape[1])
        random = check_random_state(self.random_state)
        chronicle = Chronicle(self.verbose, self.verbose_interval)
        for number in range(1 if again else self.n_init):
            chronicle.begin(number)
            outcome = self._run(X, weights, random, again, chronicle)
            chronicle.end(outcome.bound, outcome.converged)
            yield outcome

    def _check_last(self, d: int) -> None:
        """Refuse to go on from a fit of other shapes."""
        means, covariances = (self.n_components, d), COVARIANCES[self.covariance_type].unit(self.n_components, d).shape
        if self.means_.shape != means or self.covariances_.shape != covariances:
            raise ValueError(
                f"warm_start=True goes on from the last fit, with means of shape {self.means_.shape} and covariances "
                f"of shape {self.covariances_.shape}; these settings and data need {means} and {covariances}: set "
                "warm_start=False, or fit a clone"
            )

    def _check_parameters(self) -> None:
        check_numbers(self, ["n_components", "tol", "reg_covar", "max_iter", "n_init", "verbose_interval"])
        check_device(self.device)
        check_choice(self, "covariance_type", COVARIANCES)
        check_choice(self, "init_params", [*RESPONSIBILITIES, *SEEDS])

    def _prepare(self, X: Array, weights: Array | None) -> None:
        """Check what depends on the data, before any start."""
        raise NotImplementedError

    def _run(self, X: Array, weights: Array | None, random: Any, again: bool, chronicle: Chronicle) -> Outcome:
        """One start to its end; `again` starts from the last fit."""
        raise NotImplementedError

    def _keep(self, best: Outcome, dtype: Any) -> None:
        """Set the fitted arrays."""
        raise NotImplementedError

    def _density(self) -> Density:
        return kept(plain, self.covariance_type, self.device, (self.weights_, self.means_, self.covariances_))

    def _ask(self, X: Any, answer: Any) -> Any:
        check_is_fitted(self)
        X = self._rows(X, reset=False)
        found = answers(self._density(), X, len(self.means_), answer, self.device)
        return found if found.dtype.kind == "i" else found.astype(np.result_type(X, self.means_), copy=False)

    def _rows(self, X: Any, reset: bool, least: int = 1) -> Array:
        return validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            ensure_min_samples=least,
        )

    def predict(self, X: Any) -> NDArray[np.int64]:
        """The most probable component of each row of X, [n]."""
        return self._ask(X, lambda joint: joint.max(0).indices)

    def predict_proba(self, X: Any) -> Array:
        """p(component k | x_i), [n, K]."""
        return self._ask(X, lambda joint: joint.softmax(0).T)

    def score_samples(self, X: Any) -> Array:
        """Log p(x_i), [n] nats."""
        return self._ask(X, lambda joint: torch.logsumexp(joint, 0))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean of log p(x_i) over the rows of X, weighted by `sample_weight`, nats."""
        each = self.score_samples(X)
        return float(np.average(each, weights=check_sample_weight(sample_weight, len(each))))

    def sample(self, n_samples: int = 1) -> tuple[Array, NDArray[np.int64]]:
        """New data from the mixture, component after component.

        Returns
        -------
        X : array [n_samples, d]
        y : array [n_samples]
            The component of each row.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        random = check_random_state(self.random_state)
        weights = self.weights_.astype(np.float64)
        count = random.multinomial(n_samples, weights / weights.sum())
        each = COVARIANCES[self.covariance_type].each(self.covariances_, len(count))
        X = [
            COVARIANCES[self.covariance_type].draw(random, mean, covariance, int(n))
            for mean, covariance, n in zip(self.means_, each, count, strict=True)
        ]
        return np.vstack(X), np.repeat(np.arange(len(count)), count)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
