"""Standard errors of a fit from the curvature of its log-likelihood."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.func import functional_call, grad, jacrev, vjp

from ppl_vae.coordinates import Coordinates, coordinates
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.weights import check_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["StandardErrors", "standard_errors"]

ELEMENTS_AT_ONCE = 1 << 22
"""Bounds the largest temporary of the second derivative, [P, rows, components and features]."""
SINGULAR = 1e-10
"""Smallest eigenvalue of the information, scaled to a unit diagonal, that still counts as positive."""
UNDETERMINED = 10.0
"""Standard error of a logit or a log beyond which a parameter is on the boundary as far as the data can tell."""
BOUNDED = (type(constraints.simplex), type(constraints.positive), type(constraints.unit_interval))
"""Sets whose free coordinates are logs or logits."""
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
        By default those the fit was made with.
    kind : {"information", "sandwich"}
        "information" takes the model for true, and w_i for a count: datum i is w_i independent rows. "sandwich" holds
        for a model that is only close to the truth, and takes each datum for one independent draw however much it
        weighs (survey or importance weights).

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
    obs, w = _given(fit, data, weights)
    free = coordinates(fit.model, fit.settings.get("frozen", ()))
    if not free.size:
        raise EngineError("standard_errors: every parameter is frozen, so there is nothing to estimate")
    known = dict(fit.model.named_parameters()) | fit.parameters
    estimate = {name: known[name].detach() for name in free.sets}
    u = free.vector(estimate)
    with pyro.validation_enabled(False), fit.model.numeric():
        gradient, information, meat = _derivatives(fit, free, obs, w, u)
    inverse, condition = _invert(free, information)
    _check_boundary(free, inverse)
    distance = float((gradient @ inverse @ gradient).clamp_min(0).sqrt())
    variance = kinds[kind](inverse, meat)
    J = jacrev(lambda v: torch.cat([value.flatten() for value in free.values(v).values()]))(u)
    covariance = J @ variance @ J.mT
    errors = covariance.diagonal().clamp_min(0).sqrt().split([value.numel() for value in estimate.values()])
    shaped = {name: e.reshape(estimate[name].shape) for name, e in zip(estimate, errors, strict=True)}
    return StandardErrors(estimate, shaped, covariance, information, condition, distance, kind, _status(fit, distance))


def _given(fit: Fit, data: Any, weights: Any) -> tuple[Observations, Tensor]:
    """Data and weights of a fit whose information can be had."""
    if not isinstance(fit.model, LatentVariableModel) or fit.engine != "EM":
        raise EngineError(
            f"standard_errors takes an EM fit of a declared model, got one by {fit.engine} of "
            f"{type(fit.model).__name__}; the spread of fit.draws is the uncertainty of a fit with draws"
        )
    if data is None and fit.data is None:
        raise EngineError("this fit was loaded from a file, which holds no data: standard_errors(fit, data)")
    obs = fit.data if data is None else fit.model.check(data)
    if continuous := fit.model.draws_latents(obs):
        raise EngineError(f"standard_errors needs every latent to be finite, and {continuous[0]!r} is not")
    own = fit.weights if data is None and weights is None else weights
    return obs, check_weights(own, len(obs)).to(fit.model.like)


class _LogLikelihood(torch.nn.Module):
    """log p(x_i | theta), [n], as a module, so that functional_call can set its networks."""

    def __init__(self, model: LatentVariableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: dict[str, Tensor], obs: Observations) -> Tensor:
        with self.model.bind(values):
            return self.model.log_weights(obs, 1)[0]


def _derivatives(fit: Fit, free: Coordinates, obs: Observations, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient [P] of the log-likelihood, the information A and the scores' B, [P, P]."""
    program = _LogLikelihood(fit.model)

    def log_prob(v: Tensor, rows: Observations) -> Tensor:
        values = free.values(v)
        networks = {f"model.{name}": values.pop(name) for name in free.networks}
        return functional_call(program, networks, (values, rows))

    def total(v: Tensor, rows: Observations, own: Tensor) -> Tensor:
        return (own * log_prob(v, rows)).sum()

    def log_prior(v: Tensor) -> Tensor:
        return fit.model.log_prior({**fit.parameters, **free.values(v)})

    P = len(u)
    gradient, information, meat = u.new_zeros(P), u.new_zeros(P, P), u.new_zeros(P, P)
    for index in torch.arange(len(obs)).split(_rows_at_once(fit, obs, P)):
        rows, own = obs.rows(index), w[index]
        scores = _scores(partial(log_prob, rows=rows), u)
        gradient += scores @ own
        meat += (scores * own.square()) @ scores.mT
        information -= jacrev(grad(partial(total, rows=rows, own=own)))(u)
    if fit.bound.endswith("log p(theta)"):
        gradient += grad(log_prior)(u)
        information -= jacrev(grad(log_prior))(u)
    return gradient, (information + information.mT) / 2, meat


def _scores(log_prob: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """The derivative d l_i / du of every datum, [P, n], in P backward passes rather than n."""
    # The gradient of sum_i c_i l_i is linear in c: its derivative is the matrix of scores.
    value, pull, *_ = vjp(log_prob, u)
    return jacrev(lambda c: pull(c)[0])(torch.ones_like(value))


def _rows_at_once(fit: Fit, obs: Observations, P: int) -> int:
    members = max([family.batch for family in fit.model.families().values()], default=1)
    width = sum(value[0].numel() for value in obs.values.values())
    return max(1, ELEMENTS_AT_ONCE // (P * members * width))


def _invert(free: Coordinates, information: Tensor) -> tuple[Tensor, float]:
    """A^-1, and the condition number of A scaled to a unit diagonal."""
    owners, scale = free.owners(), information.diagonal()
    bad = ~(torch.isfinite(information).all(1) & (scale > 0))
    if bool(bad.any()):
        raise _not_positive(owners[int(bad.nonzero()[0])], scale[bad][0].item())
    root = scale.sqrt()
    value, vector = torch.linalg.eigh(information / root[:, None] / root)
    if value[0] <= SINGULAR:
        raise _not_positive(owners[int(vector[:, 0].abs().argmax())], value[0].item())
    return (vector / value) @ vector.mT / root[:, None] / root, (value[-1] / value[0]).item()


def _not_positive(name: str, value: float) -> EngineError:
    return EngineError(
        f"the information is not positive definite ({value:.3g} in a direction that is mostly {name}): the fit is at "
        f"no strict maximum. Two components may be the same, one may be empty, or {name} sits on a bound; fit with "
        f"fewer components, a smaller tol, a prior, or keep it out with EM(frozen=({name!r},))"
    )


def _check_boundary(free: Coordinates, inverse: Tensor) -> None:
    """Refuse a probability or a rate that the data cannot tell from zero: its curvature is that of a spike."""
    for name, error in zip(free.owners(), inverse.diagonal().sqrt().tolist(), strict=True):
        if error > UNDETERMINED and isinstance(_scalar_set(free.sets[name]), BOUNDED):
            raise EngineError(
                f"{name} is on the boundary of its set as far as these data can tell (the standard error of its log "
                f"or logit is {error:.3g}); keep it out with EM(frozen=({name!r},)), use fewer components, or a prior"
            )


def _scalar_set(constraint: Constraint) -> Constraint:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


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
