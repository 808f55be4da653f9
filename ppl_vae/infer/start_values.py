"""Whether given values to start from are in the sets that their parameters live in."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.coordinates import coordinates
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import DataError
from ppl_vae.families.covariance import covariance_matrix
from ppl_vae.families.supports import of_entries

__all__ = ["check_values"]


def check_values(start: Mapping[str, Tensor], model: LatentVariableModel) -> None:
    """Refuse parameters by name of which one is not finite, or outside its set.

    The edge of a set, where an M-step may have ended, and what rounding takes out of it are let pass; so are sets that
    have no word here.

    Raises
    ------
    DataError
        Naming the parameter and the first entry that is outside.
    """
    with model.numeric():
        sets = {name: of_entries(allowed) for name, allowed in coordinates(model).sets.items()}
    for name, value in start.items():
        _check(name, value, "finite", torch.isfinite)
        if sets[name] in LOOSELY:
            _check(name, value, *LOOSELY[sets[name]])


def _check(name: str, value: Tensor, said: str, inside: Callable[[Tensor], Tensor]) -> None:
    if not bool((found := inside(value)).all()):
        entry = (~found).nonzero()[0].tolist()
        raise DataError(f"start[{name!r}] must be {said}{f'; entry {entry} is not' if entry else ''}")


def _largest(s: Tensor) -> Tensor:
    return s.abs().amax((-2, -1))


LOOSELY: dict[Constraint, tuple[str, Callable[[Tensor], Tensor]]] = {
    constraints.simplex: (
        "probabilities that sum to 1",
        lambda p: (p >= 0).all(-1) & ((p.sum(-1) - 1).abs() < 1e-2),
    ),
    constraints.positive: ("positive", constraints.nonnegative.check),
    constraints.nonnegative: ("at least 0", constraints.nonnegative.check),
    covariance_matrix: (
        "symmetric and positive definite",
        lambda s: (_largest(s - s.mT) <= 1e-4 * _largest(s)) & covariance_matrix.check((s + s.mT) / 2),
    ),
}
"""What a set is called, and whether a value is in it but for rounding."""
