"""The sets that values live in."""

from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = ["of_entries"]


def of_entries(support: Constraint) -> Constraint:
    """The set of a single entry, below all that make entries one event.

    Examples
    --------
    >>> of_entries(constraints.independent(constraints.positive, 2)) is constraints.positive
    True
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
