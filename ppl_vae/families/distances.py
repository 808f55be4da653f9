"""Mahalanobis distances from normals, and how much they can change when the normals do.

With Sigma = W^-1 W^-T, q_k(y) = |W_k (y - m_k)|^2 and log N(y; k) = peak_k - q_k(y) / 2.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

__all__ = ["Distances", "Mahalanobis", "Scaled", "Stretch", "lower_inverse"]


@dataclass(frozen=True)
class Stretch:
    """Bounds of new distances by old ones: sqrt(low q) - shift <= sqrt(q') <= sqrt(high q) + shift; [K] each.

    From W' (y - m') = W' W^-1 W (y - m) - W' (m' - m): `low` and `high` hold the squared singular values of W' W^-1,
    and shift = |W' (m' - m)|.
    """

    low: Tensor
    high: Tensor
    shift: Tensor

    def least(self, half: Tensor) -> Tensor:
        """The least that q / 2 can have become."""
        return ((self.low * half).sqrt() - self.shift * 0.5**0.5).clamp_min(0).square()

    def most(self, half: Tensor, k: Tensor) -> Tensor:
        """The most that q_k / 2 can have become."""
        return ((self.high[k] * half).sqrt() + self.shift[k] * 0.5**0.5).square()


class Distances(Protocol):
    """Distances from K normals over whitened data y [d, n]."""

    @property
    def peak(self) -> Tensor:
        """Log N(m_k; k), [K]."""
        ...

    def stretch(self, before: Any) -> Stretch:
        """How these distances differ from those before."""
        ...

    def scatter(self, off: Tensor, weights: Tensor) -> Tensor:
        """What `total` needs of the second moments of off [d, n]."""
        ...

    def total(self, k: Tensor, count: Tensor, mean: Tensor, scatter: Tensor) -> Tensor:
        """The sum of q_k over data of a weight [S], a mean [S, d] and a scatter [S, ...] about it, [S]."""
        ...


@dataclass(frozen=True)
class Mahalanobis:
    """From means [K, d] and W [K, d, d], lower triangular."""

    m: Tensor
    W: Tensor
    peak: Tensor

    @cached_property
    def factor(self) -> Tensor:
        """W^-1, of which groups ask the same at every E-step."""
        return lower_inverse(self.W)

    def stretch(self, before: Self) -> Stretch:
        """How these distances differ from those before."""
        ratio = self.W @ before.factor
        grown = _off_identity(ratio)
        shrunk = _off_identity(lower_inverse(ratio).mT)
        shift = (self.W @ (self.m - before.m)[:, :, None]).norm(dim=(1, 2))
        return Stretch(torch.maximum(1 - grown, 1 / (1 + shrunk)).clamp_min(0), 1 + grown, shift)

    def scatter(self, off: Tensor, weights: Tensor) -> Tensor:
        """The sum of w y y', [d, d]."""
        return (off * weights) @ off.mT

    def total(self, k: Tensor, count: Tensor, mean: Tensor, scatter: Tensor) -> Tensor:
        """tr(W S W') + count |W (mean - m)|^2."""
        W = self.W[k]
        off = (W @ (mean - self.m[k])[:, :, None]).square().sum((1, 2))
        return ((W @ scatter) * W).sum((1, 2)) + count * off


@dataclass(frozen=True)
class Scaled:
    """From means and standard deviations of the features, [K, d]."""

    m: Tensor
    scale: Tensor
    peak: Tensor

    def stretch(self, before: Self) -> Stretch:
        """How these distances differ from those before."""
        ratio = (before.scale / self.scale).square()
        return Stretch(ratio.amin(1), ratio.amax(1), ((self.m - before.m) / self.scale).norm(dim=1))

    def scatter(self, off: Tensor, weights: Tensor) -> Tensor:
        """The sum of w y^2, [d]."""
        return off.square() @ weights

    def total(self, k: Tensor, count: Tensor, mean: Tensor, scatter: Tensor) -> Tensor:
        """The sum over features of (S + count (mean - m)^2) / scale^2."""
        squares = scatter + count[:, None] * (mean - self.m[k]).square()
        return (squares / self.scale[k].square()).sum(1)


def lower_inverse(lower: Tensor) -> Tensor:
    """The inverse of lower triangular matrices [..., d, d]."""
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand(lower.shape)
    return torch.linalg.solve_triangular(lower, identity, upper=False)


def _off_identity(ratio: Tensor) -> Tensor:
    """At least how far any eigenvalue of A'A is from 1, at most d^(1/16) times that, [K]."""
    gram = ratio.mT @ ratio
    off = gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    size = off.norm(dim=(1, 2), keepdim=True)
    power = off / size.clamp_min(1e-300)
    for _ in range(3):  # the norm of E^8 is nearer to that of its largest eigenvalue than the norm of E
        power = power @ power
    return size[:, 0, 0] * power.norm(dim=(1, 2)) ** (1 / 8)
