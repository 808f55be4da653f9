"""Both halves of an E-step for normals on whitened data y [d, n]: log densities [K, n], and sums over the data.

A quadratic form is a product with the features (1, y, y y'): fastest, and exact to eps times the largest precision
relative to the data's. Beyond `SHARPEST`, or with many features, distances are taken from y - m instead.
"""

import math
from copy import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from ppl_vae.families.distances import Distances, Mahalanobis, Scaled, lower_inverse
from ppl_vae.families.workspace import buffer, out

__all__ = ["LOG_2PI", "SHARPEST", "Kernel", "Separable", "inverse_factor"]

LOG_2PI = math.log(2 * math.pi)

SHARPEST = 1e4
"""Largest precision relative to the data's at which the products of features keep 12 digits."""


class Kernel(Protocol):
    """What one E-step calls for each chunk."""

    def expand(self, features: Any) -> Any:
        """What both halves need of y."""
        ...

    def log_density(self, expanded: Any) -> Tensor:
        """Log N(y_i; m_k, Sigma_k), [K, n]."""
        ...

    def expect(self, expanded: Any, r: Tensor) -> dict[str, Tensor]:
        """sum_i r_ki (1, y_i, y_i y_i')."""
        ...


@runtime_checkable
class Separable(Kernel, Protocol):
    """A kernel some members of which can be had alone. Its sums have a "count" of each member."""

    @property
    def pooled(self) -> frozenset[str]:
        """Names of the sums that are over all members."""
        ...

    @property
    def distances(self) -> Distances:
        """How far y is from each member."""
        ...

    def members(self, index: Tensor) -> "Separable":
        """The kernel of these members only."""
        ...


def _density(coefficients: Tensor, features: Tensor) -> Tensor | None:
    return out(features, len(coefficients), features.shape[1])


def inverse_factor(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """W with W Sigma W' = I, lower triangular [K, d, d], and log|Sigma| / 2, [K]."""
    factor = torch.linalg.cholesky(covariance)
    return lower_inverse(factor), factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@dataclass(frozen=True)
class Pairs:
    """Products y_b y_j of features: for each block of b, all b in it with all j from its first on.

    Attributes
    ----------
    blocks : list
        First b and first not in it.
    at, times : Tensor
        Of each of (1, y, products), as u_b u_j with u = (1, y): (1 + d) b + j, and minus what it counts in u' P u / 2.
        Within a block each pair stands twice.
    back : Tensor
        Which of them is the product of features i and j, [d * d].
    """

    blocks: list[tuple[int, int]]
    at: Tensor
    times: Tensor
    back: Tensor

    @classmethod
    @lru_cache
    def of(cls, d: int, device: torch.device) -> "Pairs":
        """For d features."""
        step = max(1, d // 8)
        blocks = [(lo, min(lo + step, d)) for lo in range(0, d, step)]
        first = [(0, j, -0.5 if j == 0 else -1.0) for j in range(1 + d)]
        pairs = [
            (1 + b, 1 + j, -0.5 if j < hi else -1.0) for lo, hi in blocks for b in range(lo, hi) for j in range(lo, d)
        ]
        places = {(b, j): 1 + d + place for place, (b, j, _) in enumerate(pairs)}
        back = [places.get((i, j), places.get((j, i))) for i in range(1, 1 + d) for j in range(1, 1 + d)]
        at, times = [b * (1 + d) + j for b, j, _ in first + pairs], [times for *_, times in first + pairs]
        times_of = torch.tensor(times, dtype=torch.float64, device=device)
        return cls(blocks, torch.tensor(at, device=device), times_of, torch.tensor(back, device=device))


def _affine(m: Tensor, inverse: Tensor) -> Tensor:
    """(-W m, W), [K, d, 1 + d]: W (y - m) from (1, y)."""
    return torch.cat([-(inverse @ m[:, :, None]), inverse], 2)


class Products:
    """Full covariances by the features (1, y, products of y): two matrix products."""

    WIDEST: ClassVar[int] = 24
    """Features beyond which `Triangular` is faster."""
    pooled: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, m: Tensor, inverse: Tensor, constant: Tensor) -> None:
        d = m.shape[1]
        self.pairs = Pairs.of(d, m.device)
        self.distances = Mahalanobis(m, inverse, constant - 0.5 * d * LOG_2PI)
        affine = _affine(m, inverse)
        self.coefficients = (affine.mT @ affine).flatten(1)[:, self.pairs.at] * self.pairs.times.to(m.dtype)
        self.coefficients[:, 0] += self.distances.peak

    @cached_property
    def triangular(self) -> "Triangular":
        """The same kernel, faster for few members: its numbers for a datum are K d, not the features' d^2 / 2."""
        own = self.distances
        return Triangular(own.m, own.W, own.peak + 0.5 * own.m.shape[1] * LOG_2PI)

    def members(self, index: Tensor) -> Separable:
        """The kernel of these members only."""
        if 2 * len(index) * self.distances.m.shape[1] < self.coefficients.shape[1]:
            return self.triangular.members(index)
        own = copy(self)
        own.coefficients = self.coefficients[index]
        return own

    def expand(self, y: Tensor) -> Tensor:
        """[p, n]."""
        d, n = y.shape
        features = buffer(y, self.coefficients.shape[1], n)
        features[0] = 1
        features[1 : 1 + d] = y
        at = 1 + d
        for lo, hi in self.pairs.blocks:
            size = (hi - lo) * (d - lo)
            torch.mul(y[lo:hi, None], y[None, lo:], out=features[at : at + size].view(hi - lo, d - lo, n))
            at += size
        return features

    def log_density(self, expanded: Tensor) -> Tensor:
        return torch.mm(self.coefficients, expanded, out=_density(self.coefficients, expanded))

    def expect(self, expanded: Tensor, r: Tensor) -> dict[str, Tensor]:
        sums, d = r @ expanded.mT, self.distances.m.shape[1]
        second = sums[:, self.pairs.back].view(-1, d, d)
        return {"count": sums[:, 0], "first": sums[:, 1 : 1 + d], "second": second}


class Triangular:
    """Full covariances by distances |W_k (y - m_k)|, in blocks of rows that skip the zeros of W."""

    pooled: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, m: Tensor, inverse: Tensor, constant: Tensor) -> None:
        d = m.shape[1]
        self.K, self.constant = len(m), (constant - 0.5 * d * LOG_2PI)[:, None]
        self.distances = Mahalanobis(m, inverse, self.constant[:, 0])
        parts = 1 if d < 32 else 4
        edges = [round(d * i / parts) for i in range(parts + 1)]
        self.blocks = list(pairwise(edges))
        affine = _affine(m, inverse)
        self.rows = [affine[:, lo:hi, : 1 + hi].reshape(-1, 1 + hi).contiguous() for lo, hi in self.blocks]

    def members(self, index: Tensor) -> Self:
        """The kernel of these members only."""
        own = copy(self)
        own.K, own.constant = len(index), self.constant[index]
        own.rows = [rows.view(self.K, -1, rows.shape[1])[index].reshape(-1, rows.shape[1]) for rows in self.rows]
        return own

    def expand(self, y: Tensor) -> Tensor:
        """[1 + d, n], a row of ones first."""
        return torch.cat([torch.ones_like(y[:1]), y])

    def log_density(self, expanded: Tensor) -> Tensor:
        square: Tensor | float = 0.0
        for (lo, hi), rows in zip(self.blocks, self.rows, strict=True):
            z = torch.mm(rows, expanded[: 1 + hi], out=out(rows, len(rows), expanded.shape[1]))
            square = square + z.square_().view(self.K, hi - lo, -1).sum(1)
        return torch.add(self.constant, square, alpha=-0.5)

    def expect(self, expanded: Tensor, r: Tensor) -> dict[str, Tensor]:
        K, d = self.K, len(expanded) - 1
        first, second = r.new_empty(K, d), r.new_empty(K, d, d)
        for lo, hi in self.blocks:
            shape = (K, hi - lo, expanded.shape[1])
            weighted = torch.mul(r[:, None], expanded[1 + lo : 1 + hi], out=out(r, *shape))
            weighted = weighted.reshape(K * (hi - lo), -1)
            block = (weighted @ expanded[: 1 + hi].mT).view(K, hi - lo, 1 + hi)
            first[:, lo:hi] = block[:, :, 0]
            second[:, lo:hi, :hi] = block[:, :, 1:]
            second[:, :lo, lo:hi] = block[:, :, 1 : 1 + lo].mT
        return {"count": r.sum(1), "first": first, "second": second}


class Shared:
    """One covariance for all members: y is whitened once more, then distances are to K points."""

    pooled: ClassVar[frozenset[str]] = frozenset({"second"})

    def __init__(self, m: Tensor, inverse: Tensor, constant: Tensor) -> None:
        K, d = m.shape
        self.inverse, self.points = inverse, m @ inverse.mT
        self.sharp = bool(inverse.square().sum() > SHARPEST)
        self.constant = constant - 0.5 * d * LOG_2PI
        self.distances = Mahalanobis(m, inverse.expand(K, d, d), self.constant.expand(K))

    def members(self, index: Tensor) -> Self:
        """The kernel of these members only."""
        own = copy(self)
        own.points = self.points[index]
        return own

    def expand(self, y: Tensor) -> Tensor:
        return y

    def log_density(self, expanded: Tensor) -> Tensor:
        z = self.inverse @ expanded
        if self.sharp:
            distance = torch.stack([(z - point[:, None]).square().sum(0) for point in self.points])
            return self.constant - 0.5 * distance
        own = self.constant - 0.5 * self.points.square().sum(1, keepdim=True)
        return torch.addmm(own - 0.5 * z.square().sum(0), self.points, z)

    def expect(self, expanded: Tensor, r: Tensor) -> dict[str, Tensor]:
        second = (expanded * r.sum(0)) @ expanded.mT
        return {"count": r.sum(1), "first": r @ expanded.mT, "second": second}


Expanded = tuple[Tensor | None, Tensor, Tensor]
"""Rows of what is seen (None: everything), y, and y above its squares."""


class Squares:
    """A variance for each feature, by the features (1, y, y^2); for data with gaps (seen, y, y^2), 0 where unseen."""

    pooled: ClassVar[frozenset[str]] = frozenset()
    by_member: ClassVar[tuple[str, ...]] = ("whole", "rest")
    """What the densities of complete data need of each member."""

    def __init__(self, m: Tensor, scale: Tensor, log_scale: Tensor) -> None:
        """From whitened means and standard deviations [K, d], and log standard deviations in the data's units."""
        self.m, self.scale, self.d = m, scale, m.shape[1]
        precision = scale**-2
        self.normaliser = -log_scale - 0.5 * LOG_2PI
        self.each = self.normaliser - 0.5 * precision * m.square()
        self.whole = self.each.sum(1, keepdim=True)
        self.rest = torch.cat([precision * m, self.quadratic(-0.5 * precision)], 1)

    @property
    def distances(self) -> Distances:
        """How far y is from each member."""
        return Scaled(self.m, self.scale, self.normaliser.sum(1))

    def members(self, index: Tensor) -> Self:
        """The kernel of these members only, for complete data."""
        own = copy(self)
        for name in self.by_member:
            setattr(own, name, getattr(self, name)[index])
        return own

    def quadratic(self, by_feature: Tensor) -> Tensor:
        """What multiplies, or sums up, the squares: one column a feature."""
        return by_feature

    def squares(self, y: Tensor, rows: Tensor) -> None:
        """Write the rows of squares."""
        torch.mul(y, y, out=rows)

    def expand(self, features: Any) -> Expanded:
        """What is seen, y, and y above its squares."""
        y, seen = features if isinstance(features, tuple) else (features, None)
        rows = buffer(y, self.rest.shape[1], y.shape[1])
        rows[: self.d] = y
        self.squares(y, rows[self.d :])
        return seen, y, rows

    def log_density(self, expanded: Expanded) -> Tensor:
        seen, _, rows = expanded
        each = self.whole if seen is None else self.each @ seen
        return torch.mm(self.rest, rows, out=_density(self.rest, rows)).add_(each)

    def expect(self, expanded: Expanded, r: Tensor) -> dict[str, Tensor]:
        seen, _, rows = expanded
        count, sums = r.sum(1), r @ rows.mT
        seen_by = count[:, None].expand(-1, self.d) if seen is None else r @ seen.mT
        second = sums[:, self.d :]
        return {"count": count, "seen": seen_by, "first": sums[:, : self.d], "second": self.shaped(second)}

    def shaped(self, second: Tensor) -> Tensor:
        """In the shape of the covariance parameter."""
        return second


class Norms(Squares):
    """One variance for all features, by the features (1, y, |y|^2)."""

    def quadratic(self, by_feature: Tensor) -> Tensor:
        return by_feature[:, :1]

    def squares(self, y: Tensor, rows: Tensor) -> None:
        torch.sum(torch.mul(y, y, out=out(y, *y.shape)), 0, keepdim=True, out=rows)

    def shaped(self, second: Tensor) -> Tensor:
        return second[:, 0]


class _Distances(Squares):
    """Densities of sharp members from y - m, where products of features would lose digits."""

    by_member: ClassVar[tuple[str, ...]] = (*Squares.by_member, "m", "scale", "normaliser")

    def log_density(self, expanded: Expanded) -> Tensor:
        seen, y, _ = expanded
        density, normaliser = super().log_density(expanded), self.normaliser
        constant = normaliser.sum(1, keepdim=True) if seen is None else normaliser @ seen
        for k in (self.scale.amin(1) ** -2 > SHARPEST).nonzero()[:, 0].tolist():
            square = ((y - self.m[k, :, None]) / self.scale[k, :, None]).square_()
            density[k] = constant[k] - 0.5 * (square if seen is None else square * seen).sum(0)
        return density


class Centred(_Distances):
    """`Squares` with densities from y - m."""


class CentredNorms(_Distances, Norms):
    """`Norms` with densities from y - m."""
