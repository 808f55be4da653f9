"""What a declaration asks of its data, checked once before an engine starts."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.declare.nodes import Graph
from ppl_vae.declare.observations import Observations
from ppl_vae.declare.tiling import tile
from ppl_vae.errors import DataError, DeclarationError
from ppl_vae.families.product import Blocks
from ppl_vae.families.supports import ENDS, bounds, law_of_entries, of_any_row, of_entries

__all__ = [
    "COPIES",
    "TRIAL",
    "all_bounds",
    "as_taken",
    "check",
    "check_batch",
    "check_inputs",
    "check_posterior",
    "same_bounds",
]

TRIAL = 7
"""Rows on which a declaration is tried, whatever the data: a number that few other dimensions have."""
COPIES = 32
"""Draws of a datum's latents by which it is told whether a support depends on them."""
DRAWS = 8
"""Draws of a posterior, for each row, that are looked at for values that its latent cannot have."""
FEW = 15
"""Whole numbers up to which data are counts or classes rather than pixels from 0 to 255."""


def check(
    owner: str,
    graph: Graph,
    laws: Mapping[str, TorchDistribution],
    obs: Observations,
    index: Tensor | None,
    fixed: Collection[str],
) -> Observations:
    """Check shapes, support and missing values of the data against the nodes' distributions.

    Parameters
    ----------
    owner : str
        The model's name, for messages.
    laws : mapping
        Distribution of each local node on `TRIAL` rows.
    obs : Observations
        The data.
    index : Tensor, optional
        [n], the rows' numbers in the data set, where these are a part of one.
    fixed : collection of str
        The nodes whose support does not depend on latents.

    Returns
    -------
    Observations
        The data with integers of discrete nodes in the model's dtype.

    Raises
    ------
    DataError
        Naming the node and the shapes.
    """
    values = dict(obs.values)
    check_inputs(graph.inputs, obs)
    for name, d in laws.items():
        if graph.nodes[name].kind == "latent" and name in obs.missing and not d.has_enumerate_support:
            raise DataError(
                f"{owner}.{name}: {int(obs.missing[name].sum())} values of the latent are NaN, and only a finite "
                f"latent can be observed for some data and not for others; {type(d).__name__} is not finite: pass all "
                f"values or none"
            )
        if name in values:
            values[name] = _check_value(owner, name, d, values[name], obs.missing.get(name), index, name in fixed)
    return Observations(values, obs.missing, obs.columns)


def as_taken(d: TorchDistribution, value: Any, missing: bool) -> bool:
    """Whether a node of this law takes a value in the dtype that it has: `check` leaves it then."""
    if hasattr(value, "probabilities"):
        return True
    if isinstance(d, dist.Categorical):
        return missing or value.dtype == torch.long
    return value.is_floating_point() or isinstance(getattr(d, "base_dist", d), dist.Categorical)


def check_inputs(inputs: Sequence[str], obs: Observations) -> None:
    """Refuse inputs that are NaN or infinite: everything given them would be."""
    for name in inputs:
        value = obs.values.get(name)
        if name in obs.missing:
            count = int(obs.missing[name].sum())
            raise DataError(f"input {name!r} has {count} NaN; inputs are conditioned on, fill them")
        if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isinf().any()):
            count = int(value.isinf().sum())
            raise DataError(f"input {name!r} has {count} infinite numbers; remove or repair those rows")


def check_batch(where: str, d: TorchDistribution, rows: Collection[int]) -> None:
    """Refuse a law whose batch is more than the data, of which there are so many.

    Raises
    ------
    DeclarationError
        With the dimensions that are the event's.
    """
    batch = tuple(d.batch_shape)
    if len(batch) > 1 or (batch and batch[0] not in rows):
        extra = len(batch) - 1 if batch[0] in rows else len(batch)
        raise DeclarationError(
            f"{where} has batch shape {batch} and event shape {tuple(d.event_shape)}; "
            f"only the data are a batch: add .to_event({extra}) to make the other dimensions part of the event"
        )


def check_posterior(where: str, q: TorchDistribution, latent: str, p: TorchDistribution) -> None:
    """Refuse a posterior q of a latent whose law p is of other values: bounds and densities would mean nothing.

    Raises
    ------
    DeclarationError
        With both shapes, or both numbers of values.
    """
    if q.event_shape != p.event_shape:
        raise DeclarationError(
            f"{where} has event shape {tuple(q.event_shape)}, and its latent {latent!r} has {tuple(p.event_shape)}: "
            "return a law of that shape"
        )
    if q.has_enumerate_support and p.has_enumerate_support:
        theirs, ours = (len(law.enumerate_support(expand=False)) for law in (q, p))
        if theirs != ours:
            raise DeclarationError(
                f"{where} has {theirs} values, and its latent {latent!r} has {ours}: return a law of {ours} values"
            )
    elif _reaches_beyond(q, p):
        raise DeclarationError(
            f"{where} is a {_law(q)}, whose draws are not all values of its latent {latent!r}, a {_law(p)}: return a "
            "law on the latent's own support"
        )


def _reaches_beyond(q: TorchDistribution, p: TorchDistribution) -> bool:
    """Whether q has draws that p cannot have: whole numbers for a density, or some outside an interval."""
    if q.support.is_discrete and not p.support.is_discrete:
        return True
    inside = of_any_row(of_entries(p.support))
    if p.has_enumerate_support or not any(hasattr(inside, end) for end in ENDS):
        return False
    # Laws that end in a shift call the whole line their support, whatever part of it they reach.
    unknown = of_entries(q.support) is constraints.real
    return unknown and not all(bool(inside.check(q.sample()).all()) for _ in range(DRAWS))


def _law(d: TorchDistribution) -> str:
    return type(law_of_entries(d)).__name__


def _check_value(
    owner: str,
    name: str,
    d: TorchDistribution,
    value: Tensor,
    missing: Tensor | None,
    index: Tensor | None,
    fixed: bool,
) -> Tensor:
    probabilities = getattr(value, "probabilities", None)
    sample = value if probabilities is None else value[torch.arange(min(64, len(value)))]
    shape = tuple(sample.shape[1:])
    if shape != tuple(d.event_shape):
        raise DataError(
            f"{owner}.{name} got data of shape {tuple(value.shape)}, so {shape} per datum, but the node's distribution "
            f"has event shape {tuple(d.event_shape)}; {_shape_advice(shape, tuple(d.event_shape), tuple(value.shape))}"
        )
    if not sample.is_floating_point():
        if not d.support.is_discrete and sample.dtype == torch.uint8:
            raise DataError(
                f"{owner}.{name} got bytes ({sample.dtype}) where real numbers are due; scale pixels to [0, 1] by "
                f"x / 255, or convert other numbers by .float()"
            )
        inner = d.base_dist if isinstance(d, dist.Independent) else d
        if not isinstance(inner, dist.Categorical):
            value = sample = value.to(torch.get_default_dtype())
    _check_missing(owner, name, d, missing)
    _check_support(f"{owner}.{name}", d, sample, missing, index, fixed)
    if isinstance(d, dist.Categorical) and missing is None and probabilities is None:
        return value.long()  # labels read from a file are floats, and children index with them
    return value


def _shape_advice(shape: tuple[int, ...], event: tuple[int, ...], whole: tuple[int, ...]) -> str:
    if event and whole == event:
        return "this is a single datum: pass x[None], one row"
    if shape == (*event, 1):
        return f"drop the last dimension of the data: y[{', '.join(':' * (len(whole) - 1))}, 0]"
    if len(shape) > len(event) and shape[: len(event)] == event:
        return "did the node forget .to_event?"
    if shape == () and event == (1,):
        return "reshape the data to [n, 1]"
    if torch.Size(shape).numel() == torch.Size(event).numel():
        return f"reshape the data to [n, {', '.join(map(str, event))}]"
    return "pass data of that shape, or declare the node for this one"


def _check_missing(owner: str, name: str, d: TorchDistribution, missing: Tensor | None) -> None:
    if missing is None:
        return
    free = hasattr(d, "marginal_log_prob") or (isinstance(d, dist.Independent) and not d.base_dist.event_shape)
    if d.event_shape and not free and not isinstance(d, torch.distributions.MultivariateNormal):
        partly = missing.flatten(1).any(1) & ~missing.flatten(1).all(1)
        if bool(partly.any()):
            raise DataError(
                f"{owner}.{name}: {int(partly.sum())} rows are partly NaN, and {type(d).__name__} cannot integrate "
                f"single entries out; use independent features (.to_event), a MultivariateNormal, or drop those rows"
            )


def _check_support(
    where: str, d: TorchDistribution, value: Tensor, missing: Tensor | None, index: Tensor | None, fixed: bool
) -> None:
    def row(number: int) -> str:
        return f"row {number if index is None else int(index[number])} (counted from 0)"

    if value.is_floating_point() and bool((infinite := value.isinf()).any()):
        first = int(infinite.flatten(1).any(1).nonzero()[0]) if value.dim() > 1 else int(infinite.nonzero()[0])
        raise DataError(f"{where}: {row(first)} is infinite; remove or repair it")
    if isinstance(d, Blocks):
        gaps = [None] * len(d.parts) if missing is None else d.split(missing)
        for name, part, x, gap in zip(d.names, d.parts, d.split(value), gaps, strict=True):
            _check_support(f"{where}, part {name!r}", part, x, gap, index, fixed)
        return
    if not fixed:
        return
    try:
        inside = _entries_inside(d, value)
    except (NotImplementedError, RuntimeError):  # supports that depend on parameters of a single row
        return
    if missing is not None:  # of shares, say, a whole row is inside or not
        inside = inside | (missing if inside.shape == missing.shape else missing.flatten(inside.dim()).all(-1))
    if bool(inside.all()):
        return
    first, *entry = (~inside).nonzero()[0].tolist()
    bad = value[(first, *entry)]
    shown = f"{bad.item():g}" if bad.numel() == 1 else str(bad.tolist())
    inner = d.base_dist if isinstance(d, dist.Independent) else d
    law = getattr(inner, "title", type(inner).__name__)
    message = (
        f"{where}: {int((~inside).sum())} values lie outside the support of {law}"
        f"{_bounds(of_any_row(of_entries(d.support)))}, the first is {shown} in {row(first)}"
        + (f", entry {entry}" if entry else "")
    )
    raise DataError(message + getattr(inner.support, "advice", "") + _pixel_advice(inner, value))


def _pixel_advice(law: TorchDistribution, value: Tensor) -> str:
    """What to do with data that look as if they were pixels on another scale than the law's, or no pixels."""
    grey = 'a likelihood for grey values (likelihood="gaussian-learned")'
    unit, byte = (bool(((value >= 0) & (value <= most)).all()) for most in (1, 255))
    if isinstance(law, dist.ContinuousBernoulli):
        return (
            "; scale them to [0, 1] (x / 255 where they go from 0 to 255, (x + 1) / 2 where they go from -1 to 1), or "
            f"use {grey}"
        )
    if not isinstance(law, dist.Bernoulli):
        return ""
    if unit:
        return (
            "; these look like grey pixels, and a Bernoulli is for {0, 1}: binarise them (data.images(..., "
            f'binarize="dynamic" or "threshold")), or use {grey}'
        )
    if bool((value.abs() <= 1).all()):
        return (
            "; these look like pixels from -1 to 1, and a Bernoulli is for {0, 1}: take (x + 1) / 2, and of grey ones "
            f"binarise that ((x > 0.5).float()), or use {grey}"
        )
    if byte and value.max() > FEW:
        return (
            "; these look like pixels from 0 to 255: divide them by 255, and binarise them ((x > 0.5).float()) or use "
            f"{grey}"
        )
    if byte and value.max() > 1.5:
        return "; counts take a Poisson law, classes from 0 on a Categorical"
    return ""


def all_bounds(d: TorchDistribution) -> list[Tensor]:
    """The ends of the sets that entries live in, those of all columns together."""
    return [bound for part in d.parts for bound in bounds(part)] if isinstance(d, Blocks) else bounds(d)


def same_bounds(d: TorchDistribution, others: TorchDistribution, copies: int) -> bool:
    """Whether the law of some rows has the same ends as that of so many copies of them, at other latents."""
    for one, again in zip(all_bounds(d), all_bounds(others), strict=True):
        by_row = one.dim() > 0 and len(one) > 1
        if not torch.equal(again, tile(one, copies) if by_row else one.expand_as(again)):
            return False
    return True


def _bounds(support: constraints.Constraint) -> str:
    """The ends of an interval that all entries share."""
    if not isinstance(support, constraints.integer_interval | constraints.interval):
        return ""
    ends = [torch.as_tensor(bound) for bound in (support.lower_bound, support.upper_bound)]
    if any(end.numel() > 1 for end in ends):
        return ""
    low, high = (f"{end.item():g}" for end in ends)
    return f" ({low} to {high})" if isinstance(support, constraints.integer_interval) else f" [{low}, {high}]"


def _entries_inside(d: TorchDistribution, value: Tensor) -> Tensor:
    # The set of an entry tells which one is outside, not only which row.
    return of_any_row(of_entries(d.support)).check(value)
