"""scikit-learn's GaussianMixture, by our EM."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_vae.sklearn.checks import check_means, check_precisions, check_weights
from ppl_vae.sklearn.covariance import COVARIANCES
from ppl_vae.sklearn.density import tensor
from ppl_vae.sklearn.engine import Chronicle, MeanChangeEM, RegularisedMixture
from ppl_vae.sklearn.mixture import Mixture, Outcome
from ppl_vae.sklearn.starts import RESPONSIBILITIES, SEEDS, filled

__all__ = ["GaussianMixture"]

Array = NDArray[np.floating]
Values = dict[str, torch.Tensor]

WEIGHTS, MEANS, COVARIANCE = "mixing.probs", "components.loc", "components.covariance"


class GaussianMixture(Mixture):
    """p(x) = sum_k weights_k N(x; means_k, covariances_k), fitted by EM; scikit-learn's estimator (000 (3), 004 s.7.2).

    From the same start it takes the same steps as `sklearn.mixture.GaussianMixture`, and the same `random_state` gives
    the same start. It also takes `sample_weight`, rows with NaN, and a `device`.

    Parameters
    ----------
    n_components : int
        K.
    covariance_type : {"full", "tied", "diag", "spherical"}
        Form of the covariances; shapes [K, d, d], [d, d], [K, d], [K].
    tol : float
        EM stops when the mean log-likelihood per datum changes by less, in nats.
    reg_covar : float
        Added to every variance, in the square of the data's unit.
    max_iter : int
        Iterations of each start.
    n_init : int
        Number of starts; the best end is kept.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}
        How to start.
    weights_init, means_init, precisions_init : array, optional
        Parameters to start from: [K], [K, d], and precisions in the shape of the covariances.
    random_state : int, RandomState or None
        Randomness of the starts and of `sample`.
    warm_start : bool
        Start from the last fit.
    verbose, verbose_interval : int
        Print starts and every so-many-th iteration; 2 prints times and changes too.
    device : str, torch.device or None
        Where torch computes, such as "cuda"; arrays come back on the CPU.

    Attributes
    ----------
    weights_, means_, covariances_ : array
        The parameters, in the dtype of X; computed in float64.
    precisions_, precisions_cholesky_ : array
        Inverses of the covariances, and upper triangular U with precision U U'.
    converged_, n_iter_, lower_bound_, lower_bounds_
        Whether, after how many iterations, and at which mean log-likelihood the best start ended; its course.
    n_features_in_, feature_names_in_
        What X looked like.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, np.nan], [10, 0]])
    >>> gm = GaussianMixture(n_components=2, random_state=0).fit(X)
    >>> gm.predict([[0, 0], [12, 3]]).tolist() == gm.predict([[1, 2], [10, 2]]).tolist()
    True
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        device: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.device = device

    def bic(self, X: Any) -> float:
        """Bayesian information criterion -2 log p(X) + (number of parameters) log n; lower is better."""
        return -2 * self.score(X) * len(X) + self._n_parameters() * math.log(len(X))

    def aic(self, X: Any) -> float:
        """Akaike's information criterion -2 log p(X) + 2 (number of parameters); lower is better."""
        return -2 * self.score(X) * len(X) + 2 * self._n_parameters()

    def _n_parameters(self) -> int:
        K, d = self.means_.shape
        return COVARIANCES[self.covariance_type].free(K, d) + K * d + K - 1

    # One run of EM.

    def _prepare(self, X: Array, weights: Array | None) -> None:
        self._given(X.shape[1])

    def _given(self, d: int) -> dict[str, Array]:
        """Parameters that the user gave, checked."""
        K, found = self.n_components, {}
        if self.weights_init is not None:
            found[WEIGHTS] = check_weights(self.weights_init, K)
        if self.means_init is not None:
            found[MEANS] = check_means(self.means_init, K, d)
        if self.precisions_init is not None:
            precisions = check_precisions(self.precisions_init, self.covariance_type, K, d)
            found[COVARIANCE] = COVARIANCES[self.covariance_type].inverse(precisions)
        return found

    def _run(self, X: Array, weights: Array | None, random: Any, again: bool, chronicle: Chronicle) -> Outcome:
        model = RegularisedMixture(self.covariance_type, self.n_components, X.shape[1], self.reg_covar).to(self.device)
        data = tensor(X, self.device).double()
        w = None if weights is None else tensor(weights, self.device)
        start = self._last() if again else self._start(model, data, w, X, weights, random)
        em = MeanChangeEM(
            start=start,
            tol=self.tol,
            max_iter=self.max_iter + 1,  # the last E-step is followed by no M-step
            before=self.lower_bound_ if again else -math.inf,
            chronicle=chronicle,
            progress=False,
        )
        fit = em.fit(model, data, w)
        total = len(X) if weights is None else float(weights.sum())
        bounds = [bound / total for bound in fit.trace["bound"].tolist()[:-1]]
        values = {name: value.cpu().numpy() for name, value in fit.parameters.items()}
        return Outcome(values, bounds, fit.status.code == "converged", fit.model.components.collapsed)

    def _last(self) -> dict[str, Array]:
        return {WEIGHTS: self.weights_, MEANS: self.means_, COVARIANCE: self.covariances_}

    def _start(self, model: Any, data: Any, w: Any, X: Array, weights: Array | None, random: Any) -> Any:
        """Responsibilities, or parameters by name."""
        K, d = self.n_components, X.shape[1]
        given = self._given(d)
        if len(given) == 3:
            return given
        if self.init_params in SEEDS:
            whole, form = filled(X, weights), COVARIANCES[self.covariance_type]
            means = SEEDS[self.init_params](whole, K, random, weights)
            spread = form.seeded(whole, weights, K) + self.reg_covar * form.unit(K, d)
            form.factor(spread)  # refuses to start from a covariance of zero
            return {WEIGHTS: np.full(K, 1 / K), MEANS: means, COVARIANCE: spread, **given}
        r = RESPONSIBILITIES[self.init_params](filled(X, weights), K, random, weights)
        start = tensor(r, self.device).double()
        if not given:
            return start
        first = MeanChangeEM(start=start, max_iter=1, progress=False).fit(model, data, w)
        return {**first.parameters, **given}

    def _keep(self, best: Outcome, dtype: Any) -> None:
        form = COVARIANCES[self.covariance_type]
        covariances = best.values[COVARIANCE]
        factor = form.factor(covariances)
        self.weights_ = best.values[WEIGHTS].astype(dtype)
        self.means_ = best.values[MEANS].astype(dtype)
        self.covariances_ = covariances.astype(dtype)
        self.precisions_cholesky_ = factor.astype(dtype)
        self.precisions_ = form.precisions(factor).astype(dtype)
