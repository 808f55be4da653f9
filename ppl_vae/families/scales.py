"""Centers and scales of a table, chunk by chunk: what a family takes from data before it sums over them."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["center_and_scale", "flat_remark", "middle", "thinned"]

ROWS = 8192
"""Rows that quantiles are taken of."""


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


def thinned(parts: Iterable[tuple[Tensor, Tensor | None]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Every s-th of the rows that count, s the smallest power of two that leaves at most `ROWS`: x [m, d], weights [m].

    The same whatever the chunks. Rows of weight zero, and rows that are all NaN, do not count.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(20000.0)[:, None]
    >>> one, two = thinned([(x, None)], x), thinned([(x[:7], None), (x[7:], None)], x)
    >>> len(one[0]), torch.equal(one[0], two[0])
    (5000, True)
    """
    kept, weight = like.new_zeros(0, like.shape[-1]), like.new_zeros(0)
    stride, count = 1, 0
    for x, weights in parts:
        w = torch.ones_like(x[:, 0]) if weights is None else weights
        counts = (w > 0) & ~x.isnan().all(1)
        x, w = x[counts].to(like), w[counts].to(like)
        first = -count % stride
        count += len(x)
        kept, weight = torch.cat([kept, x[first::stride]]), torch.cat([weight, w[first::stride]])
        while len(kept) > ROWS:
            kept, weight, stride = kept[::2], weight[::2], 2 * stride
    return kept, weight


def middle(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted median, and distance of the quartiles over that of N(0, 1), [d] each, of the entries seen of x [n, d].

    No quarter of the data moves them far. Where the quartiles are equal the scale is that of `center_and_scale`.

    Examples
    --------
    >>> import torch
    >>> x = torch.cat([torch.linspace(-1, 1, 101), torch.tensor([1e9])])[:, None]
    >>> [round(value.item(), 2) for value in middle(x, torch.ones(102))]
    [0.01, 0.76]
    """
    _, scale = center_and_scale([(x, weights)], x)
    if not len(x):
        return torch.zeros_like(scale), scale
    seen = ~x.isnan()
    least = x.masked_fill(~seen, torch.inf).amin(0)
    least = torch.where(least.isfinite(), least, 0.0)
    value, order = torch.where(seen, x, least).sort(0)
    w = (seen * weights[:, None]).gather(0, order)
    place = (w.cumsum(0) - w / 2) / w.sum(0).clamp_min(torch.finfo(x.dtype).tiny)

    def quantile(q: float) -> Tensor:
        above = (place < q).sum(0, keepdim=True).clamp_max(len(x) - 1)
        low, high = (above - 1).clamp_min(0), above
        step = place.gather(0, high) - place.gather(0, low)
        share = ((q - place.gather(0, low)) / step.clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
        return torch.lerp(value.gather(0, low), value.gather(0, high), share)[0]

    center, width = quantile(0.5), (quantile(0.75) - quantile(0.25)) / 1.349
    resolution = 8 * torch.finfo(x.dtype).eps * center.abs()
    return center, torch.where(width > resolution, width, scale)


def flat_remark(flat: int, directions: int, floor: float) -> list[str]:
    """What to say of data that do not spread in some directions; nothing where they do in all."""
    if not flat:
        return []
    return [
        f"the data do not spread in {flat} of {directions} directions (constant features, too few rows, or features "
        f"collinear to 1e-6 of their scale, which float64 does not resolve); the density there is set by the prior, or "
        f"by the floor of {floor:g} of the scale"
    ]
