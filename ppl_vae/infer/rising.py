"""What a training left: a bound still on its way up, or fallen, and parameters that stood still."""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fallen", "idle", "rising"]

LEAST = 5
"""Epochs that each side of the comparison needs."""
ERRORS = 4.0
"""Standard errors that tell a rise from noise."""
NATS = 0.5
"""A rise that matters to a posterior, of all data: q that is one standard deviation off in one parameter lacks it."""
EACH = 0.01
"""A rise that matters to a point estimate, of a datum."""


def rising(bounds: Sequence[float], total: float | None) -> str | None:
    """A remark if the bound gained much from the first to the second half of the last third of the epochs.

    Parameters
    ----------
    bounds : sequence of float
        The bound of each epoch, in nats per datum.
    total : float or None
        Weight of all data, where there is a posterior of parameters.

    Examples
    --------
    >>> print(rising([-3 - 0.99**epoch for epoch in range(100)], total=100))  # doctest: +ELLIPSIS
    the bound was still rising at the end, by 7.0 nats of all data ...
    >>> rising([-3.0] * 100, total=100)
    """
    last = len(bounds) // 6
    if last < LEAST:
        return None
    before, after = bounds[-2 * last : -last], bounds[-last:]
    gain, error = _gain(before, after)
    if gain >= ERRORS * error and gain >= (EACH if total is None else NATS / total):
        by = f"{gain:.2g} nats of a datum" if total is None else f"{gain * total:.1f} nats of all data"
        return (
            f"the bound was still rising at the end, by {by} within the last third of the epochs: take more epochs or "
            "a larger learning rate"
        )
    return None


def fallen(bounds: Sequence[float]) -> str | None:
    """A remark if the bound ended below where it was in every one of the first epochs.

    Examples
    --------
    >>> fallen([-10.0 * 1.5**epoch for epoch in range(30)])
    'the bound ended at -2.5e+05, below all of its first epochs (-51 at least): take a smaller learning rate'
    >>> fallen([-3 - 0.9**epoch for epoch in range(30)])
    """
    last = len(bounds) // 6
    if last < 1 or max(bounds[-last:]) >= min(bounds[:last]):
        return None
    return (
        f"the bound ended at {max(bounds[-last:]):.2g}, below all of its first epochs ({min(bounds[:last]):.2g} at "
        "least): take a smaller learning rate"
    )


def _gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Difference of two means, and its standard error."""
    variance = statistics.variance(before) / len(before) + statistics.variance(after) / len(after)
    return statistics.fmean(after) - statistics.fmean(before), math.sqrt(variance)


def idle(names: Sequence[str], parameters: Sequence[Tensor], began: Sequence[Tensor]) -> list[str]:
    """A remark if some parameters, and not all, are to the bit what they were.

    Examples
    --------
    >>> idle(["a", "b"], [torch.ones(2), torch.zeros(2)], [torch.zeros(2), torch.zeros(2)])
    ['b did not move: its gradient or its step was zero throughout']
    """
    each = zip(names, parameters, began, strict=True)
    still = [name for name, p, before in each if p.numel() and torch.equal(p, before)]
    if not still or len(still) == len(names):
        return []
    named = ", ".join(still[:3]) + (f" and {len(still) - 3} more" if len(still) > 3 else "")
    return [f"{named} did not move: its gradient or its step was zero throughout"]
