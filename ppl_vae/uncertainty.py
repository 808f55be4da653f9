"""Standard errors of a fit from the curvature of its log-likelihood."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev

from ppl_vae.alone import unvalidated
from ppl_vae.coordinates import coordinates
from ppl_vae.data import Stream
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import NO_DATA, EngineError
from ppl_vae.fit import Fit, Status, check_fit
from ppl_vae.infer.weights import check_weights, one_source
from ppl_vae.information import check_boundary, derivatives, invert

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["StandardErrors", "standard_errors"]

AWAY, NEAR = 1.0, 0.1
"""Distance from the maximum, in standard errors, that spoils the answer, and that is worth a note."""


@dataclass(frozen=True)
class StandardErrors:
    """Estimates with their standard errors, each in its parameter's own shape.

    Attributes
    ----------
    estimate, standard_error : dict of Tensor
        By parameter.
    covariance : Tensor
        [D, D] of all scalars of the estimates, in the order of `to_frame`.
    information : Tensor
        [P, P] observed information in free coordinates: minus the second derivative of the log-likelihood.
    condition : float
        Largest over smallest eigenvalue of the information scaled to a unit diagonal.
    distance : float
        How far the estimate is from the maximum of the log-likelihood of these data, in standard errors.
    kind : str
        "information" or "sandwich".
    status : Status
        Whether to believe it.
    """

    estimate: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    covariance: Tensor
    information: Tensor
    condition: float
    distance: float
    kind: str
    status: Status

    def to_frame(self, level: float = 0.95) -> "pd.DataFrame":
        """One row per scalar: estimate, standard error, and the interval estimate +- z standard errors."""
        import pandas as pd

        z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()
        labels = [
            f"{name}[{', '.join(map(str, where))}]" if where else name
            for name, value in self.estimate.items()
            for where in np.ndindex(*value.shape)
        ]
        estimate = torch.cat([value.flatten() for value in self.estimate.values()]).numpy()
        error = torch.cat([value.flatten() for value in self.standard_error.values()]).numpy()
        columns = {"estimate": estimate, "standard error": error}
        bounds = {"lower": estimate - z * error, "upper": estimate + z * error}
        return pd.DataFrame({**columns, **bounds}, index=labels)

    def __repr__(self) -> str:
        head = f"Standard errors by the {self.kind} ({self.status})"
        return f"{head}\n{self.to_frame().to_string(float_format='{:.4g}'.format)}"

    def _repr_html_(self) -> str:
        from ppl_vae.report import errors_html

        return errors_html(self)


def standard_errors(fit: Fit, data: Any = None, weights: Any = None, kind: str = "information") -> StandardErrors:
    r"""Standard errors from the observed information, by automatic differentiation.

    In free coordinates u (logits, logs, log-Cholesky factors), with l_i(u) = log p(x_i | theta(u)), every finite
    latent summed out, and weights w_i:

        A = - sum_i w_i d^2 l_i / du du',    B = sum_i w_i^2 s_i s_i',  s_i = d l_i / du.

    Var(u) is A^-1 (kind="information"), or A^-1 B A^-1 (kind="sandwich"); Var(theta) = J Var(u) J', J = d theta / du.
    Where the fit maximised the posterior, A has the log prior's curvature too: the Laplace approximation.

    Parameters
    ----------
    fit : Fit
        By EM. Parameters named in its `frozen` are taken as known.
    data, weights : optional
        By default those the fit was made with; a fit to a stream needs the stream.
    kind : {"information", "sandwich"}
        "information" takes the model for true, and w_i for a count: datum i is w_i independent rows. "sandwich" holds
        for a model that is only close to the truth, and takes each datum for one independent draw however much it
        weighs (survey or importance weights).

    Returns
    -------
    StandardErrors
        One for each scalar of every estimated parameter, in the parameter's own shape, with their covariance [D, D].

    Raises
    ------
    EngineError
        For a fit with draws or continuous latents; where the information is not positive definite, naming the
        parameter: a saddle point, two equal components, a parameter on the boundary of its set.

    References
    ----------
    Louis (1982), "Finding the observed information matrix when using the EM algorithm". White (1982), "Maximum
    likelihood estimation of misspecified models".

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 1), x)
    >>> error = standard_errors(fit).standard_error["components.loc"].item()
    >>> round(error / (x.std(correction=0).item() / 101**0.5), 6)  # sigma / sqrt(n)
    1.0
    """
    kinds = {"information": _inverse_information, "sandwich": _sandwich}
    if kind not in kinds:
        raise EngineError(f"standard_errors: kind must be one of {', '.join(kinds)}; got {kind!r}")
    _check(fit, data)
    free = coordinates(fit.model, fit.settings.get("frozen", ()))
    if not free.size:
        raise EngineError("standard_errors: every parameter is frozen, so there is nothing to estimate")
    known = dict(fit.model.named_parameters()) | fit.parameters
    estimate = {name: known[name].detach() for name in free.sets}
    u = free.vector(estimate)
    with unvalidated(), fit.model.numeric():
        gradient, information, meat = derivatives(fit, free, _batches(fit, data, weights), u)
    inverse, condition = invert(free, information)
    check_boundary(free, inverse, u)
    distance = float((gradient @ inverse @ gradient).clamp_min(0).sqrt())
    variance = kinds[kind](inverse, meat)
    J = jacrev(lambda v: torch.cat([value.flatten() for value in free.values(v).values()]))(u)
    covariance = J @ variance @ J.mT
    errors = covariance.diagonal().clamp_min(0).sqrt().split([value.numel() for value in estimate.values()])
    shaped = {name: e.reshape(estimate[name].shape) for name, e in zip(estimate, errors, strict=True)}
    return StandardErrors(estimate, shaped, covariance, information, condition, distance, kind, _status(fit, distance))


def _check(fit: Fit, data: Any) -> None:
    """Refuse fits whose information cannot be had."""
    check_fit("standard_errors", fit)
    if not isinstance(fit.model, LatentVariableModel) or fit.engine != "EM":
        raise EngineError(
            f"standard_errors takes an EM fit of a declared model, got one by {fit.engine} of "
            f"{type(fit.model).__name__}; the spread of fit.draws is the uncertainty of a fit with draws"
        )
    if data is None and fit.data is None:
        raise EngineError(f"{NO_DATA}: standard_errors(fit, data)")


def _batches(fit: Fit, data: Any, weights: Any) -> Iterator[tuple[Observations, Tensor]]:
    """The data with their weights, block by block where they come so."""
    if not isinstance(data, Stream):
        obs = fit.data if data is None else fit.model.check(data)
        own = fit.weights if data is None and weights is None else weights
        yield obs, check_weights(own, len(obs)).to(fit.model.like)
        return
    for block in data:
        one_source(data, block.weights, weights)
        own = block.weights if weights is None else weights[block.start : block.start + len(block)]
        yield fit.model.check(block.data, block.index), check_weights(own, len(block)).to(fit.model.like)


def _inverse_information(inverse: Tensor, meat: Tensor) -> Tensor:
    return inverse


def _sandwich(inverse: Tensor, meat: Tensor) -> Tensor:
    return inverse @ meat @ inverse


def _status(fit: Fit, distance: float) -> Status:
    where = f"the gradient is {distance:.2g} standard errors from zero"
    if distance > AWAY:
        return Status("failed", f"{where}: the fit is at no maximum for these data (other data, a variance floor)")
    notes = (f"{where}: lower tol",) if distance > NEAR else ()
    return Status(
        "finished", "the information is positive definite", (*notes, *([] if fit.status.ok else [str(fit.status)]))
    )
