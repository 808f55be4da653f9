"""Means in units of the data: the coordinates in which optimisers, q and NUTS see them are free of the units."""

from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.transforms import Transform

__all__ = ["InUnits", "Located", "Standardized"]


class Scaled(Protocol):
    """A family that knows where its data lie."""

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """Place and scale of each feature, [d] each."""
        ...


class Standardized(Transform):
    r"""The bijection u -> m + s u from reals to means, with the family's units m and s as they are at that moment.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae.families import Normal
    >>> heights = Normal(1)
    >>> heights.adapt([(torch.tensor([[1600.0], [1800.0]]), None)])
    >>> Standardized(heights)(torch.tensor([0.5])).item()
    1750.0
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, family: Scaled) -> None:
        super().__init__()
        self.family = family

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Standardized) and other.family is self.family

    __hash__ = object.__hash__

    def _call(self, u: Tensor) -> Tensor:
        place, scale = self.family.units
        return place + scale * u

    def _inverse(self, loc: Tensor) -> Tensor:
        place, scale = self.family.units
        return (loc - place) / scale

    def log_abs_det_jacobian(self, u: Tensor, loc: Tensor) -> Tensor:
        """Sum of log s, [...] for u [..., d]."""
        return self.family.units[1].log().sum().expand(u.shape[:-1])


class InUnits(constraints.Constraint):
    """Real vectors, seen in a family's units."""

    event_dim = 1

    def __init__(self, family: Scaled) -> None:
        self.family = family

    def check(self, value: Tensor) -> Tensor:
        """Whether vectors are real, [...]."""
        return constraints.real_vector.check(value)


@biject_to.register(InUnits)
@transform_to.register(InUnits)
def _standardized(constraint: InUnits) -> Standardized:
    return Standardized(constraint.family)


class Located(dist.Independent):
    """The law of the means [K, d] of a family; `base` is that of each, with batch shape [K].

    Examples
    --------
    >>> import torch
    >>> from ppl_vae.families import Normal
    >>> from torch.distributions import biject_to
    >>> law = Normal(2, batch=3, prior="weak")
    >>> d = Located(dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), law)
    >>> biject_to(d.support)(torch.zeros(3, 2)).shape, d.event_shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    def __init__(self, base: Any, family: Scaled) -> None:
        self.family = family
        super().__init__(base, 1)

    @property
    def support(self) -> constraints.Constraint:
        """Every mean in the family's units."""
        return constraints.independent(InUnits(self.family), 1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Located":
        """The same law with this batch shape."""
        return Located(self.base_dist.expand(torch.Size(batch_shape) + self.event_shape[:1]), self.family)
