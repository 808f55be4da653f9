"""scikit-learn's BayesianGaussianMixture, by our variational Bayes EM."""

from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_scalar

from ppl_vae import models
from ppl_vae.declare import LatentVariableModel
from ppl_vae.families import Categorical, DirichletPosterior, DirichletPrior, Posterior
from ppl_vae.sklearn.checks import check_choice, check_covariance_prior, check_shape
from ppl_vae.sklearn.conjugate import ChangeVB, RegularisedPrior, expected, posterior
from ppl_vae.sklearn.covariance import COVARIANCES, ILL_DEFINED
from ppl_vae.sklearn.density import Density, answers, kept, tensor
from ppl_vae.sklearn.engine import Chronicle
from ppl_vae.sklearn.mixture import Mixture, Outcome
from ppl_vae.sklearn.starts import RESPONSIBILITIES, SEEDS, filled
from ppl_vae.sklearn.sticks import SticksPosterior, SticksPrior

__all__ = ["BayesianGaussianMixture"]

Array = NDArray[np.floating]

WEIGHT_PRIORS = {"dirichlet_process": SticksPrior, "dirichlet_distribution": DirichletPrior}


class BayesianGaussianMixture(Mixture):
    """A Gaussian mixture whose parameters have a posterior, by variational Bayes EM; scikit-learn's estimator (T6).

    Weights have a Dirichlet law or that of a truncated Dirichlet process, means and covariances a
    normal-inverse-Wishart law; of many components, those that the data do not need are left with the prior's small
    weight. Answers are at the expected log joint E_q[log p(x, z | theta)]. It also takes `sample_weight`, rows with
    NaN, and a `device`.

    For "full" it is scikit-learn's posterior. For the other covariance types it is the exact posterior of the model:
    a tied covariance has the degrees of freedom of all data (scikit-learn: those of an average component), a spherical
    one those of all features, and the expected log precision of a variance is that of a gamma law. The bound keeps its
    constants: it bounds log p(X).

    Parameters
    ----------
    n_components : int
        K, the largest number of components.
    covariance_type : {"full", "tied", "diag", "spherical"}
        Form of the covariances.
    tol : float
        Stop when the bound changes by less, in total nats.
    reg_covar : float
        Added to every variance of the data, in the square of its unit.
    max_iter, n_init, init_params, random_state, warm_start, verbose, verbose_interval
        As in `GaussianMixture`.
    weight_concentration_prior_type : {"dirichlet_process", "dirichlet_distribution"}
        Law of the weights.
    weight_concentration_prior : float, optional
        Its concentration, 1 / K by default: the smaller, the fewer components are used.
    mean_precision_prior : float, optional
        How many data the prior of a mean counts for, 1 by default.
    mean_prior : array [d], optional
        Center of the means' prior, the mean of X by default.
    degrees_of_freedom_prior : float, optional
        Above d - 1, d by default.
    covariance_prior : array or float, optional
        Scale of the covariances' prior, [d, d], [d] or a number; the covariance of X by default.
    device : str, torch.device or None
        Where torch computes.

    Attributes
    ----------
    weights_, means_, covariances_ : array
        Mean weights, means, and inverses of the mean precisions.
    weight_concentration_ : array [K], or two of them
        The Dirichlet law's concentrations; for the process the two of each share's beta law.
    mean_precision_, degrees_of_freedom_ : array [K]
        The counts behind means and covariances ([K, d] for "diag" and "spherical" where X has gaps; one number of
        degrees for "tied").
    weight_concentration_prior_, mean_precision_prior_, mean_prior_, degrees_of_freedom_prior_, covariance_prior_
        The prior.
    precisions_, precisions_cholesky_, converged_, n_iter_, lower_bound_, lower_bounds_
        As in `GaussianMixture`, the bound in total nats.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> X = pv.data.faithful().values.numpy()
    >>> bgm = BayesianGaussianMixture(n_components=5, max_iter=500, random_state=0).fit(X)
    >>> int((bgm.weights_ > 0.01).sum())
    2
    """

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
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
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.device = device

    # The prior.

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self, "weight_concentration_prior_type", WEIGHT_PRIORS)
        for name in ("weight_concentration_prior", "mean_precision_prior", "degrees_of_freedom_prior"):
            if getattr(self, name) is not None:
                check_scalar(getattr(self, name), name, Real, min_val=0, include_boundaries="neither")

    def _prepare(self, X: Array, weights: Array | None) -> None:
        d, kind = X.shape[1], self.covariance_type
        mean, covariance = _moments(filled(X, weights).astype(np.float64), weights)
        self.weight_concentration_prior_ = _or(self.weight_concentration_prior, 1 / self.n_components)
        self.mean_precision_prior_ = _or(self.mean_precision_prior, 1.0)
        self.mean_prior_ = mean if self.mean_prior is None else check_shape(self.mean_prior, (d,), "means")
        self.degrees_of_freedom_prior_ = _or(self.degrees_of_freedom_prior, d)
        if not self.degrees_of_freedom_prior_ > d - 1:
            raise ValueError(
                f"The parameter 'degrees_of_freedom_prior' should be greater than {d - 1}, but got "
                f"{self.degrees_of_freedom_prior_:.3f}."
            )
        if self.covariance_prior is None:
            self.covariance_prior_ = COVARIANCES[kind].of_data(covariance)
        else:
            self.covariance_prior_ = check_covariance_prior(self.covariance_prior, kind, d)

    def _model(self) -> models.GaussianMixture:
        form = COVARIANCES[self.covariance_type]
        K, d, scale = self.n_components, len(self.mean_prior_), np.asarray(self.covariance_prior_, dtype=np.float64)
        if form.singular(scale):  # fewer rows than features, or a constant one
            scale = scale + self.reg_covar * form.unit(1, d).reshape(scale.shape)
        if form.singular(scale):
            raise ValueError(ILL_DEFINED)
        prior = RegularisedPrior(
            mean=torch.as_tensor(self.mean_prior_, dtype=torch.float64),
            strength=float(self.mean_precision_prior_),
            df=float(self.degrees_of_freedom_prior_),
            scale=torch.as_tensor(scale),
            reg_covar=float(self.reg_covar),
        )
        weights = WEIGHT_PRIORS[self.weight_concentration_prior_type](float(self.weight_concentration_prior_))
        return models.GaussianMixture(K, d, covariance=form.form, prior=(weights, prior)).double().to(self.device)

    # One run.

    def _run(self, X: Array, weights: Array | None, random: Any, again: bool, chronicle: Chronicle) -> Outcome:
        begin: dict[str, Any] = (
            {"last": self._last} if again else {"start": tensor(self._start(X, weights, random), self.device).double()}
        )
        vb = ChangeVB(
            **begin,
            tol=self.tol,
            max_iter=self.max_iter + 1,  # the first step is not counted: it is at the posterior of the start
            chronicle=chronicle,
            num_draws=1,
            progress=False,
        )
        fit = vb.fit(
            self._model(), tensor(X, self.device).double(), None if weights is None else tensor(weights, self.device)
        )
        return Outcome(_arrays(fit.q), fit.trace["bound"].tolist()[1:], fit.status.code == "converged")

    def _check_last(self, d: int) -> None:
        super()._check_last(d)
        process = self.weight_concentration_prior_type == "dirichlet_process"
        if isinstance(self.weight_concentration_, tuple) != process:
            raise ValueError(
                "warm_start=True goes on from the last fit, whose weights have another law than "
                f"weight_concentration_prior_type={self.weight_concentration_prior_type!r}: set warm_start=False, or "
                "fit a clone"
            )

    def _last(self, model: LatentVariableModel) -> dict[str, Posterior]:
        """The posterior that the fitted arrays are of, for this model."""
        families = model.families()
        arrays = (self.means_, self.covariances_, self.mean_precision_, self.degrees_of_freedom_)
        return {
            "mixing": _of_weights(families["mixing"], self.weight_concentration_),
            "components": posterior(families["components"], *arrays),
        }

    def _start(self, X: Array, weights: Array | None, random: Any) -> Array:
        """Responsibilities [n, K]."""
        whole = filled(X, weights)
        if self.init_params in RESPONSIBILITIES:
            return RESPONSIBILITIES[self.init_params](whole, self.n_components, random, weights)
        seeds = SEEDS[self.init_params](whole, self.n_components, random, weights).astype(np.float64)
        # The posterior after K data, one for each component.
        own = ChangeVB(start=torch.eye(len(seeds)).double(), max_iter=1, num_draws=1, progress=False)
        return self._responsibilities(X, self._of(_arrays(own.fit(self._model(), seeds).q)))

    def _responsibilities(self, X: Array, of: Density) -> Array:
        return answers(of, X, self.n_components, lambda joint: joint.softmax(0).T, self.device)

    def _keep(self, best: Outcome, dtype: Any) -> None:
        values, form = best.values, COVARIANCES[self.covariance_type]
        self.weight_concentration_ = values["concentration"]
        self.weights_, self.means_ = values["weights"].astype(dtype), values["means"].astype(dtype)
        self.covariances_ = values["covariances"].astype(dtype)
        self.mean_precision_, self.degrees_of_freedom_ = values["strength"], values["df"]
        factor = form.factor(values["covariances"])
        self.precisions_cholesky_ = factor.astype(dtype)
        self.precisions_ = form.precisions(factor).astype(dtype)

    # The expected log joint.

    def _density(self) -> Density:
        return self._of(
            {
                "concentration": self.weight_concentration_,
                "weights": self.weights_,
                "means": self.means_,
                "covariances": self.covariances_,
                "strength": self.mean_precision_,
                "df": self.degrees_of_freedom_,
            }
        )

    def _of(self, values: dict[str, Any]) -> Density:
        names = ("weights", "means", "covariances", "strength", "df")
        arrays = (_expected_log_weights(values["concentration"]), *(values[name] for name in names))
        return kept(expected, self.covariance_type, self.device, arrays)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _moments(X: Array, weights: Array | None) -> tuple[Array, Array]:
    """Mean [d] and unbiased covariance [d, d]."""
    w = np.ones(len(X)) if weights is None else weights
    mean = np.average(X, axis=0, weights=w)
    return mean, (w[:, None] * (X - mean)).T @ (X - mean) / max(w.sum() - 1, 1.0)


def _of_weights(family: Any, concentration: Any) -> SticksPosterior | DirichletPosterior:
    """The law of the weights from its numbers."""
    laws = [torch.as_tensor(np.asarray(a, dtype=np.float64)).to(family.like) for a in np.atleast_2d(concentration)]
    return SticksPosterior(family, *laws) if len(laws) == 2 else DirichletPosterior(family, *laws)


def _expected_log_weights(concentration: Any) -> Array:
    """E_q[log pi_k], [K]."""
    family = Categorical(len(np.atleast_2d(concentration)[0])).double()
    return _of_weights(family, concentration).kernel().log_probs.numpy()


def _arrays(q: dict[str, Any]) -> dict[str, Any]:
    """The posterior's numbers under scikit-learn's names."""
    mixing, components = (replace(own) for own in (q["mixing"], q["components"]))
    center = {**mixing.center(), **components.center()}
    found = {
        "weights": center["probs"],
        "means": center["loc"],
        "covariances": center["covariance"],
        "strength": _thin(components.strength),
        "df": _thin(components.df),
    }
    laws = (mixing.first, mixing.second) if isinstance(mixing, SticksPosterior) else (mixing.concentration,)
    concentration = tuple(law.cpu().numpy() for law in laws)
    numbers = {name: value.detach().cpu().numpy() for name, value in found.items()}
    return {**numbers, "concentration": concentration if len(concentration) == 2 else concentration[0]}


def _thin(value: torch.Tensor) -> torch.Tensor:
    """[K] of [K, d] whose columns are the same."""
    return value[:, 0] if value.dim() == 2 and bool((value == value[:, :1]).all()) else value
