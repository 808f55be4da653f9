"""Center and scale of a table, chunk by chunk: what a family takes from data before it sums over them."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["center_and_scale"]


def center_and_scale(parts: Iterable[tuple[Tensor, Tensor | None]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation [d] of the entries seen, in one pass; a constant column has its own size.

    Parameters
    ----------
    parts : iterable of (x [n, d], weights [n] or None)
        NaN entries are missing.
    like : Tensor
        With the dtype and device of the answer.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 5.0], [3.0, float("nan")]])
    >>> [value.tolist() for value in center_and_scale([(x, None)], x)]
    [[2.0, 5.0], [1.0, 5.0]]
    """
    total, mean, square = (like.new_zeros(1) for _ in range(3))
    least = torch.finfo(like.dtype).tiny
    for x, weights in parts:
        x = x.to(like)
        seen = (~x.isnan()).to(x)
        w = seen if weights is None else seen * weights.to(x)[:, None]
        own = w.sum(0)
        own_mean = (w * x.nan_to_num()).sum(0) / own.clamp_min(least)
        own_square = (w * (x - own_mean).nan_to_num().square()).sum(0)
        # Means and squares of two parts put together without the loss of digits (Chan, Golub and LeVeque 1983).
        both, off = (total + own).clamp_min(least), own_mean - mean
        mean = mean + off * own / both
        square = square + own_square + off.square() * total * own / both
        total = total + own
    deviation = (square / total.clamp_min(least)).sqrt()
    resolution = 8 * torch.finfo(mean.dtype).eps * mean.abs()
    return mean, torch.where(deviation > resolution, deviation, mean.abs() + (mean == 0))
