"""The observed information of a fit: derivatives of its log-likelihood in free coordinates, summed over the data."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.func import grad, jacrev, vjp

from ppl_vae.coordinates import Coordinates
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.families.supports import of_entries
from ppl_vae.fit import Fit
from ppl_vae.functional import called_with

__all__ = ["check_boundary", "derivatives", "invert"]

ELEMENTS_AT_ONCE = 1 << 22
"""Bounds the largest temporary of the second derivative, [P, rows, components and features]."""
SINGULAR = 1e-10
"""Smallest eigenvalue of the information, scaled to a unit diagonal, that still counts as positive."""
UNDETERMINED = 10.0
"""Standard error of a logit or a log beyond which a parameter is on the boundary as far as the data can tell."""
EDGE = 5.0
"""Logit or log of a parameter next to the boundary, at least: a probability of 0.7%."""
BOUNDED = (type(constraints.simplex), type(constraints.positive), type(constraints.unit_interval))
"""Sets whose free coordinates are logs or logits."""


class _LogLikelihood(torch.nn.Module):
    """log p(x_i | theta), [n], as a module, so that `called_with` can set its networks."""

    def __init__(self, model: LatentVariableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: dict[str, Tensor], obs: Observations) -> Tensor:
        with self.model.bind(values):
            return self.model.log_weights(obs, 1)[0]


def derivatives(
    fit: Fit, free: Coordinates, batches: Iterable[tuple[Observations, Tensor]], u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient [P] of the log-likelihood, the information A and the scores' B, [P, P]."""
    program = _LogLikelihood(fit.model)

    def log_prob(v: Tensor, rows: Observations) -> Tensor:
        values = free.values(v)
        networks = {f"model.{name}": values.pop(name) for name in free.networks}
        return called_with(program, networks, values, rows)

    def total(v: Tensor, rows: Observations, own: Tensor) -> Tensor:
        return (own * log_prob(v, rows)).sum()

    def log_prior(v: Tensor) -> Tensor:
        return fit.model.log_prior({**fit.parameters, **free.values(v)})

    P = len(u)
    gradient, information, meat = u.new_zeros(P), u.new_zeros(P, P), u.new_zeros(P, P)
    for rows, own in _cut(fit, batches, P):
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


def _cut(fit: Fit, batches: Iterable[tuple[Observations, Tensor]], P: int) -> Iterator[tuple[Observations, Tensor]]:
    """Pieces of the data small enough for P derivatives of every entry at once."""
    members = max([family.batch for family in fit.model.families().values()], default=1)
    for obs, w in batches:
        if continuous := fit.model.draws_latents(obs):
            raise EngineError(f"standard_errors needs every latent to be finite, and {continuous[0]!r} is not")
        width = sum(value[0].numel() for value in obs.values.values())
        for index in torch.arange(len(obs)).split(max(1, ELEMENTS_AT_ONCE // (P * members * width))):
            yield obs.rows(index), w[index]


def invert(free: Coordinates, information: Tensor) -> tuple[Tensor, float]:
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


def check_boundary(free: Coordinates, inverse: Tensor, u: Tensor) -> None:
    """Refuse a probability or a rate that the data do not tell, or not from zero: its curvature is that of a spike."""
    each = zip(free.owners(), inverse.diagonal().sqrt().tolist(), u.abs().tolist(), strict=True)
    for name, error, size in each:
        if error > UNDETERMINED and isinstance(of_entries(free.sets[name]), BOUNDED):
            what = (
                "on the boundary of its set as far as these data can tell"
                if size > EDGE
                else "not told by these data: other values, with others of the remaining parameters, are as likely"
            )
            raise EngineError(
                f"{name} is {what} (the standard error of its log or logit is {error:.3g}); keep it out with "
                f"EM(frozen=({name!r},)), use fewer components, or a prior"
            )
