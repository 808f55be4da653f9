"""The sets that values live in."""

from copy import copy
from inspect import getattr_static

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint
from torch.distributions.transforms import Transform

from ppl_vae.alone import unvalidated
from ppl_vae.missing import Incomplete

__all__ = ["ENDS", "bounds", "law_of_entries", "log_density", "of_any_row", "of_entries"]

ENDS = ("lower_bound", "upper_bound")
"""What an interval calls its ends."""


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


def law_of_entries(d: TorchDistribution) -> TorchDistribution:
    """The law below all that `to_event` made one event.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> law_of_entries(dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)).event_shape
    torch.Size([])
    """
    while isinstance(d, Independent):
        d = d.base_dist
    return d


def of_any_row(support: Constraint) -> Constraint:
    """The set whose ends are given for some rows, [rows, ...], for any number of them, where they are the same for all.

    Examples
    --------
    >>> tries = constraints.integer_interval(0, torch.tensor([10, 10, 10]))
    >>> of_any_row(tries).check(torch.tensor([10.0, 11.0]))
    tensor([ True, False])
    """
    found = copy(support)
    for name in ENDS:
        end = getattr(support, name, None)
        if isinstance(end, Tensor) and end.dim() and bool((end == end[0]).all()):
            setattr(found, name, end[0])
    return found


def bounds(d: TorchDistribution) -> list[Tensor]:
    """The ends of the set that each entry lives in, [] or [rows, ...], where parameters of the law decide on them.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> bounds(dist.Uniform(0.0, torch.tensor([1.0, 5.0]))), bounds(dist.Gamma(1.0, 1.0))
    ([tensor(0.), tensor([1., 5.])], [])
    """
    inner = law_of_entries(d)
    if not isinstance(getattr_static(type(inner), "support", None), property):
        return []
    try:
        support = of_entries(inner.support)
    except NotImplementedError:
        return []
    return [torch.as_tensor(getattr(support, name)) for name in ENDS if hasattr(support, name)]


def log_density(d: TorchDistribution, value: Tensor) -> Tensor:
    """Log p(value), minus infinity outside a support that parameters decide on, where torch computes something else.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> log_density(dist.Pareto(torch.tensor([1.0, 3.0]), 1.0), torch.tensor(2.0))
    tensor([-1.3863,    -inf])
    """
    with unvalidated():
        log_p = d.log_prob(value)
    if isinstance(d, Incomplete) or d.has_enumerate_support or not bounds(d):  # what is missing is in every set
        return log_p
    return torch.where(d.support.check(value), log_p, -torch.inf)


@biject_to.register(MixtureSameFamilyConstraint)
def _bijection_of_mixture(support: MixtureSameFamilyConstraint) -> Transform:
    return biject_to(_of_components(support))


@transform_to.register(MixtureSameFamilyConstraint)
def _transform_of_mixture(support: MixtureSameFamilyConstraint) -> Transform:
    return transform_to(_of_components(support))


def _of_components(support: MixtureSameFamilyConstraint) -> Constraint:
    """The set that all components of a mixture share.

    Raises
    ------
    NotImplementedError
        If each has ends of its own: no bijection leads to their union.
    """
    base = support.base_constraint
    ends = [torch.as_tensor(getattr(of_entries(base), name, 0.0)) for name in ENDS]
    if any(end.dim() for end in ends):
        raise NotImplementedError(f"the components of a mixture have sets of their own: {base}")
    return base
