"""Whether a bound was still on its way up when the training ended."""

import math
import statistics
from collections.abc import Sequence

__all__ = ["rising"]

LEAST = 10
"""Epochs that each side of the comparison needs."""
ERRORS = 4.0
"""Standard errors that tell a rise from noise."""
NATS = 0.5
"""A rise that matters, of all data together: q that is one standard deviation off in one parameter lacks as much."""


def rising(bounds: Sequence[float], total: float) -> str | None:
    """A remark if the bound gained `NATS` and more from the first to the second half of the last third of the epochs.

    Parameters
    ----------
    bounds : sequence of float
        The bound of each epoch, in nats per datum.
    total : float
        Weight of all data.

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
    gain = statistics.fmean(after) - statistics.fmean(before)
    error = math.sqrt((statistics.variance(before) + statistics.variance(after)) / last)
    if gain * total < NATS or gain < ERRORS * error:
        return None
    return (
        f"the bound was still rising at the end, by {gain * total:.1f} nats of all data within the last third of the "
        "epochs: take more epochs or a larger learning rate"
    )
