"""scikit-learn's KMeans as EM: hard assignment, equal weights, one fixed spherical covariance."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances, nan_euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ppl_vae import models
from ppl_vae.sklearn.checks import check_centers, check_choice, check_device, check_numbers, check_sample_weight
from ppl_vae.sklearn.density import answers, tensor
from ppl_vae.sklearn.engine import Lloyd
from ppl_vae.sklearn.starts import SEEDS, filled

__all__ = ["KMeans"]

Array = NDArray[np.floating]

INITS = {"k-means++": "k-means++", "random": "random_from_data"}
"""scikit-learn's two names of a start, and the names that mixtures have for it."""


@dataclass(frozen=True)
class _Init:
    """Where runs start: first centers from (X, K, random, weights), and how many starts "auto" is."""

    centers: Callable[[Array, int, np.random.RandomState, Array], Array]
    usual: int
    fixed: bool = False  # every start is the same


def _seeded(name: str) -> _Init:
    def centers(X: Array, K: int, random: np.random.RandomState, weights: Array) -> Array:
        middle = X.mean(0)  # k-means++ multiplies out its squared distances, which far from zero loses digits
        return SEEDS[INITS[name]](X - middle, K, random, weights) + middle

    return _Init(centers, 10 if name == "random" else 1)


def _called(function: Callable[..., Any], d: int) -> _Init:
    return _Init(lambda X, K, random, weights: check_centers(function(X, K, random_state=random), K, d), 10)


@dataclass(frozen=True)
class _Clustering:
    """Where one start has led."""

    centers: Array
    labels: NDArray[np.int32]
    inertia: float
    steps: int


def _better(a: _Clustering, b: _Clustering) -> _Clustering:
    """The later one only where it is truly better: the same clusters in another order differ by rounding."""
    return b if b.inertia < a.inertia * (1 - 1e-9) else a


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Least squares to K centers, sum_i w_i min_k |x_i - c_k|^2, by Lloyd's algorithm; scikit-learn's estimator.

    It is EM on a mixture with equal weights and one fixed spherical covariance, each datum given to its most probable
    component: the limit of EM as that covariance goes to zero (T11). From the same start it takes the same steps as
    `sklearn.cluster.KMeans`, and the same `random_state` gives the same start. It also takes rows with NaN, whose
    distance is that over the entries seen, and a `device`.

    Parameters
    ----------
    n_clusters : int
        K.
    init : {"k-means++", "random"}, callable or array [K, d]
        First centers; a callable takes (X, K, random_state=...) and returns them.
    n_init : int or "auto"
        Number of starts; the best end is kept. "auto" is 10 for "random" and callables, else 1.
    max_iter : int
        Iterations of each start.
    tol : float
        Stop when the centers move by no more than this, squared and summed, relative to the mean variance of X.
    verbose : int
        Show progress.
    random_state : int, RandomState or None
        Randomness of the starts.
    copy_x : bool
        X is never changed; there for scikit-learn's signature.
    algorithm : {"lloyd", "elkan"}
        Both are Lloyd's here: they give the same answer.
    device : str, torch.device or None
        Where torch computes, such as "cuda".

    Attributes
    ----------
    cluster_centers_ : array [K, d]
    labels_ : array [n]
    inertia_ : float
        sum_i w_i |x_i - c_(label i)|^2.
    n_iter_ : int
    n_features_in_, feature_names_in_
        What X looked like.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> km = KMeans(n_clusters=2, random_state=0).fit(X)
    >>> km.inertia_
    16.0
    >>> sorted(km.cluster_centers_.tolist())
    [[1.0, 2.0], [10.0, 2.0]]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        device: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.device = device

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Cluster the rows of X.

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
            If X, the weights or a parameter do not fit.

        Warns
        -----
        ConvergenceWarning
            If fewer than K clusters are left.
        """
        check_numbers(self, ["n_clusters", "max_iter", "tol"])
        check_device(self.device)
        check_choice(self, "algorithm", ["lloyd", "elkan"])
        X = self._rows(X, reset=True)
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} should be >= n_clusters={self.n_clusters}.")
        weights = check_sample_weight(sample_weight, len(X))
        init, random = self._init(X.shape[1]), check_random_state(self.random_state)
        whole, w = filled(X, weights), np.ones(len(X)) if weights is None else weights
        starts = (init.centers(whole, self.n_clusters, random, w) for _ in range(self._count(init)))
        runs = (self._cluster(X, weights, centers) for centers in starts)
        return self._keep(reduce(_better, runs), X.dtype)

    def _init(self, d: int) -> _Init:
        if isinstance(self.init, str):
            check_choice(self, "init", INITS)
            return _seeded(self.init)
        if callable(self.init):
            return _called(self.init, d)
        centers = check_centers(self.init, self.n_clusters, d)
        return _Init(lambda X, K, random, weights: centers, 1, fixed=True)

    def _count(self, init: _Init) -> int:
        """How many starts."""
        if self.n_init == "auto":
            return init.usual
        check_numbers(self, ["n_init"])
        if init.fixed and self.n_init != 1:
            warnings.warn(
                "Explicit initial center position passed: performing only one init in KMeans instead of "
                f"n_init={self.n_init}.",
                RuntimeWarning,
                stacklevel=3,
            )
            return 1
        return self.n_init

    def _cluster(self, X: Array, weights: Array | None, centers: Array) -> _Clustering:
        K, variance = self.n_clusters, float(np.nanmean(np.nanvar(X.astype(np.float64), axis=0)))
        em = Lloyd(
            start={
                "mixing.probs": np.full(K, 1 / K),
                "components.loc": centers,
                "components.covariance": np.full(K, variance or 1.0),
            },
            frozen=("mixing.probs", "components.covariance"),
            assignment="hard",
            estimate="ml",
            shift=self.tol * variance,
            max_iter=self.max_iter + 1,  # the last E-step is followed by no M-step
            progress=bool(self.verbose),
        )
        data = tensor(X, self.device).double()
        w = None if weights is None else tensor(weights, self.device)
        model = models.GaussianMixture(K, X.shape[1], covariance="spherical").to(self.device)
        fit = em.fit(model, data, w)
        centers = fit.parameters["components.loc"].cpu().numpy()
        labels = self._nearest(X, centers)
        return _Clustering(centers, labels, _inertia(X, weights, centers, labels), len(fit.trace["bound"]) - 1)

    def _keep(self, best: _Clustering, dtype: Any) -> Self:
        found = len(np.unique(best.labels))
        if found < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({self.n_clusters}). Possibly "
                "due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.cluster_centers_ = best.centers.astype(dtype)
        self.labels_, self.inertia_, self.n_iter_ = best.labels, best.inertia, best.steps
        return self

    def predict(self, X: Any) -> NDArray[np.int32]:
        """The nearest center of each row of X, [n]."""
        check_is_fitted(self)
        return self._nearest(self._rows(X, reset=False), self.cluster_centers_)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> NDArray[np.int32]:
        """`fit`, then the labels."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """`fit`, then `transform`."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def transform(self, X: Any) -> Array:
        """Distances to the centers, [n, K]; of rows with gaps as `sklearn.metrics.nan_euclidean_distances` has them."""
        check_is_fitted(self)
        X = self._rows(X, reset=False)
        return (nan_euclidean_distances if np.isnan(X).any() else euclidean_distances)(X, self.cluster_centers_)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the sum of squared distances to the nearest center."""
        check_is_fitted(self)
        X = self._rows(X, reset=False)
        weights = check_sample_weight(sample_weight, len(X))
        return -_inertia(X, weights, self.cluster_centers_, self._nearest(X, self.cluster_centers_))

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _rows(self, X: Any, reset: bool) -> Array:
        return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan")

    def _nearest(self, X: Array, centers: Array) -> NDArray[np.int32]:
        return answers(
            _Nearness(centers, self.device), X, len(centers), lambda near: near.max(0).indices, self.device
        ).astype(np.int32)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class _Nearness:
    """(|x_i|^2 - |x_i - c_k|^2) / 2 over the entries of x_i that are seen, [K, n]: largest for the nearest center."""

    def __init__(self, centers: Array, device: Any) -> None:
        self.middle = torch.as_tensor(centers.mean(0), dtype=torch.float64, device=device)
        self.centers = torch.as_tensor(centers, dtype=torch.float64, device=device) - self.middle
        self.half = self.centers.square() / 2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x - self.middle
        if not bool(x.sum().isnan()):
            return torch.addmm(self.half.sum(1, keepdim=True), self.centers, x.T, beta=-1)
        return self.centers @ x.nan_to_num().T - self.half @ (~x.isnan()).to(x).T


def _inertia(X: Array, weights: Array | None, centers: Array, labels: NDArray[np.int32]) -> float:
    """sum_i w_i |x_i - c_(label i)|^2 over the entries that are seen."""
    square = np.nansum((X.astype(np.float64) - centers[labels]) ** 2, axis=1)
    return float(square.sum() if weights is None else weights @ square)
