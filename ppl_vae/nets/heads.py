"""From an encoder's last numbers to what its posterior takes: location and scale, or Cholesky factor."""

import math
from collections.abc import Callable

import torch

__all__ = ["head_of", "loc_and_scale", "loc_and_tril", "raw_of_tril"]

_MOST_LOG_SCALE = 7.0
_SLOPE = math.pi / (2 * _MOST_LOG_SCALE)


def loc_and_scale(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a network's output into the location and the scale of a normal: log s = (2 L / pi) atan(pi u / (2 L)).

    With L = 7 the scale lies between exp(-7) = 9.1e-4 and exp(7) = 1.1e3, whatever the network says, so that no
    density overflows. Near u = 0 it is exp(u), and its gradient fades only as 1 / u^2.

    Parameters
    ----------
    raw : torch.Tensor
        [..., 2 k].

    Returns
    -------
    loc, scale : torch.Tensor
        [..., k] each; scale > 0.

    Examples
    --------
    >>> loc_and_scale(torch.tensor([2.0, 0.0]))
    (tensor([2.]), tensor([1.]))
    """
    loc, u = raw.chunk(2, -1)
    return loc, torch.exp(torch.atan(u * _SLOPE) / _SLOPE)


def loc_and_tril(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a network's output into the location and the Cholesky factor L of a normal's covariance L L'.

    L's diagonal is made as the scale of `loc_and_scale`; what lies below it is the network's as it is.

    Parameters
    ----------
    raw : torch.Tensor
        [..., k (k + 3) / 2]: k locations, k numbers for the diagonal, and the rows below it.

    Returns
    -------
    loc, tril : torch.Tensor
        [..., k] and [..., k, k].

    Examples
    --------
    >>> loc_and_tril(torch.tensor([1.0, 2.0, 0.0, 0.0, 3.0]))
    (tensor([1., 2.]), tensor([[1., 0.],
            [3., 1.]]))
    """
    k = (math.isqrt(9 + 8 * raw.shape[-1]) - 3) // 2
    loc, scale = loc_and_scale(raw[..., : 2 * k])
    below = raw.new_zeros(*loc.shape, k)
    row, column = torch.tril_indices(k, k, -1, device=raw.device)
    below[..., row, column] = raw[..., 2 * k :]
    return loc, torch.diag_embed(scale) + below


def raw_of_tril(loc: torch.Tensor, tril: torch.Tensor) -> torch.Tensor:
    """The inverse of `loc_and_tril`, [..., k (k + 3) / 2], for diagonals in (9.1e-4, 1.1e3).

    Examples
    --------
    >>> raw_of_tril(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
    tensor([1., 2., 0., 0., 3.])
    """
    most = _MOST_LOG_SCALE * (1 - 1e-6)
    log_scale = tril.diagonal(dim1=-2, dim2=-1).log().clamp(-most, most)
    row, column = torch.tril_indices(loc.shape[-1], loc.shape[-1], -1, device=loc.device)
    return torch.cat([loc, torch.tan(log_scale * _SLOPE) / _SLOPE, tril[..., row, column]], -1)


HEADS = {"diagonal": (loc_and_scale, lambda k: 2 * k), "full": (loc_and_tril, lambda k: k * (k + 3) // 2)}
"""From an encoder's last layer to what it returns, and the numbers that takes for k latent units."""


def head_of(covariance: str) -> tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], Callable[[int], int]]:
    """The head for this form of covariance, and its width."""
    if covariance not in HEADS:
        raise ValueError(f"covariance must be one of {', '.join(HEADS)}; {covariance!r} was given.")
    return HEADS[covariance]
