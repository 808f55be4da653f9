"""Scale matrices of elliptical distributions on standardised data, full and diagonal, with missing entries."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.families.covariance import covariance_matrix
from ppl_vae.families.family import Sums

__all__ = ["ELLIPSES", "Columns", "Ellipse", "columns"]


class Pattern(NamedTuple):
    """Columns of the data whose entries `seen` are there and `hidden` are not."""

    index: Any
    seen: Any
    hidden: Tensor


class Columns(NamedTuple):
    """Standardised data y [d, n], 0 where missing; seen [d, n] or [d, 1] when nothing is missing."""

    y: Tensor
    seen: Tensor
    patterns: list[Pattern]

    @property
    def sizes(self) -> Tensor:
        """Number of entries seen, [n] or [1]."""
        return self.seen.sum(0)

    def total(self, by_feature: Tensor) -> Tensor:
        """Sum over the entries seen, [n] or [1]."""
        return by_feature @ self.seen


def columns(standard: Tensor) -> Columns:
    """Standardised rows [n, d], NaN where missing, as columns."""
    missing = standard.isnan()
    d = standard.shape[1]
    everything = slice(None)
    if not bool(missing.any()):
        none = torch.arange(0, device=standard.device)
        pattern = Pattern(everything, everything, none)
        return Columns(standard.mT.contiguous(), torch.ones_like(standard[:1].mT.expand(d, 1)), [pattern])
    kinds, which = missing.unique(dim=0, return_inverse=True)
    patterns = [
        Pattern((which == k).nonzero()[:, 0], (~kind).nonzero()[:, 0], kind.nonzero()[:, 0])
        for k, kind in enumerate(kinds)
    ]
    y = standard.nan_to_num().mT.contiguous()
    return Columns(y, (~missing).to(standard).mT.contiguous(), patterns)


class Ellipse:
    """A form of the scale matrix; `relative` ones are in units of the data's scales s."""

    constraint: ClassVar[Constraint]

    def identity(self, K: int, center: Tensor) -> Tensor:
        """Unit matrices."""
        raise NotImplementedError

    def relative(self, matrix: Tensor, scale: Tensor) -> Tensor:
        """S_ij / (s_i s_j)."""
        raise NotImplementedError

    def absolute(self, matrix: Tensor, scale: Tensor) -> Tensor:
        """S_ij s_i s_j."""
        raise NotImplementedError

    def factor(self, matrix: Tensor) -> Tensor:
        """Lower triangular L with L L' = S, [..., d, d]."""
        raise NotImplementedError

    def at(self, loc: Tensor, matrix: Tensor) -> Any:
        """Distances and sums for members at loc [K, d], all relative."""
        raise NotImplementedError

    def scatter(self, sums: Sums, loc: Tensor) -> Tensor:
        """Sum of weight (y - loc)(y - loc)' over the count."""
        raise NotImplementedError

    def clip(self, matrix: Tensor, floor: Tensor) -> Tensor:
        """The matrices with eigenvalues of at least `floor` [K]."""
        raise NotImplementedError

    def eigenvalues(self, matrix: Tensor) -> Tensor:
        """[K, d]."""
        raise NotImplementedError

    def variances(self, matrix: Tensor) -> Tensor:
        """Of the features, [K, d]."""
        raise NotImplementedError

    def spread(self, y: Tensor, weights: Tensor) -> Tensor:
        """Variances of rows y [n, d] along the directions of this form, [d]; weights sum to one."""
        raise NotImplementedError

    def excused(self, flat: int, rows: int, d: int) -> int:
        """In how many directions a member may be flat because all of the data, so many rows, are."""
        return flat

    def saturated(self, d: int) -> int:
        """How many data a member fits equally well wherever they are."""
        return 2


class Full(Ellipse):
    """[K, d, d]."""

    constraint = covariance_matrix

    def identity(self, K: int, center: Tensor) -> Tensor:
        return torch.eye(len(center), dtype=center.dtype, device=center.device).repeat(K, 1, 1)

    def relative(self, matrix: Tensor, scale: Tensor) -> Tensor:
        return matrix / scale / scale[:, None]

    def absolute(self, matrix: Tensor, scale: Tensor) -> Tensor:
        return matrix * scale * scale[:, None]

    def factor(self, matrix: Tensor) -> Tensor:
        return torch.linalg.cholesky(matrix)

    def at(self, loc: Tensor, matrix: Tensor) -> "FullMembers":
        return FullMembers(loc, matrix)

    def scatter(self, sums: Sums, loc: Tensor) -> Tensor:
        cross = sums["first"][:, :, None] * loc[:, None, :]
        square = sums["weight"][:, :, None] * loc[:, :, None] * loc[:, None, :]
        return (sums["second"] - cross - cross.mT + square) / sums["degrees"].clamp_min(1e-300)[:, :, None]

    def clip(self, matrix: Tensor, floor: Tensor) -> Tensor:
        value, vector = torch.linalg.eigh(matrix)
        clipped = (vector * torch.maximum(value, floor[:, None])[:, None, :]) @ vector.mT
        return torch.where((value[:, 0] < floor)[:, None, None], clipped, matrix)

    def eigenvalues(self, matrix: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(matrix)

    def variances(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(dim1=1, dim2=2)

    def spread(self, y: Tensor, weights: Tensor) -> Tensor:
        off = y - weights @ y
        return torch.linalg.eigvalsh((weights[:, None] * off).mT @ off)

    def excused(self, flat: int, rows: int, d: int) -> int:
        # As many rows as the data have directions, and one, are that flat wherever they lie.
        return 0 if rows <= d - flat + 1 else flat

    def saturated(self, d: int) -> int:
        return d + 1


class FullMembers:
    """Members with full matrices: one Cholesky factor for each pattern of missing entries."""

    def __init__(self, loc: Tensor, matrix: Tensor) -> None:
        self.loc, self.matrix = loc, matrix

    def distances(self, data: Columns) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """(y_o - m_o)' S_oo^-1 (y_o - m_o) and log|S_oo| / 2, [K, n], with L_oo and L_oo^-1 (y_o - m_o)."""
        K, n = len(self.loc), data.y.shape[1]
        distance, half_log_det = self.loc.new_zeros(K, n), self.loc.new_zeros(K, n)
        reused = []
        for index, seen, _ in data.patterns:
            factor = torch.linalg.cholesky(self.matrix[:, seen][:, :, seen])
            z = torch.linalg.solve_triangular(factor, data.y[seen][:, index] - self.loc[:, seen, None], upper=False)
            distance[:, index] = z.square().sum(1)
            half_log_det[:, index] = factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
            reused.append((factor, z))
        return distance, half_log_det, reused

    def moments(self, data: Columns, reused: list[tuple[Tensor, Tensor]], weight: Tensor, r: Tensor) -> Sums:
        """Sums of weight E[y], weight E[y] E[y]' + r Cov[y], given what is seen of y; weight is r E[w]."""
        first, second = torch.zeros_like(self.loc), torch.zeros_like(self.matrix)
        for (index, seen, hidden), (factor, z) in zip(data.patterns, reused, strict=True):
            w = weight[:, index]
            y = data.y[:, index].expand(len(w), -1, -1)
            if len(hidden):
                cross = torch.linalg.solve_triangular(factor, self.matrix[:, seen][:, :, hidden], upper=False)
                y = y.clone()
                y[:, hidden] = self.loc[:, hidden, None] + cross.mT @ z
                left = self.matrix[:, hidden][:, :, hidden] - cross.mT @ cross
                second[:, hidden[:, None], hidden] += r[:, index].sum(1)[:, None, None] * left
            weighted = w[:, None] * y
            first, second = first + weighted.sum(2), second + weighted @ y.mT
        total = {"weight": weight.sum(1, keepdim=True), "degrees": r.sum(1, keepdim=True)}
        return {**total, "first": first, "second": second}


class Diagonal(Ellipse):
    """[K, d]."""

    constraint = constraints.positive

    def identity(self, K: int, center: Tensor) -> Tensor:
        return torch.ones_like(center).repeat(K, 1)

    def relative(self, matrix: Tensor, scale: Tensor) -> Tensor:
        return matrix / scale.square()

    def absolute(self, matrix: Tensor, scale: Tensor) -> Tensor:
        return matrix * scale.square()

    def factor(self, matrix: Tensor) -> Tensor:
        return matrix.sqrt().diag_embed()

    def at(self, loc: Tensor, matrix: Tensor) -> "DiagonalMembers":
        return DiagonalMembers(loc, matrix)

    def scatter(self, sums: Sums, loc: Tensor) -> Tensor:
        square = sums["second"] - 2 * sums["first"] * loc + sums["weight"] * loc.square()
        return square / sums["degrees"].clamp_min(1e-300)

    def clip(self, matrix: Tensor, floor: Tensor) -> Tensor:
        return torch.maximum(matrix, floor[:, None])

    def eigenvalues(self, matrix: Tensor) -> Tensor:
        return matrix

    def variances(self, matrix: Tensor) -> Tensor:
        return matrix

    def spread(self, y: Tensor, weights: Tensor) -> Tensor:
        return weights @ (y - weights @ y).square()


class DiagonalMembers:
    """Members with diagonal matrices: given w the features are independent, so missing entries are skipped."""

    def __init__(self, loc: Tensor, matrix: Tensor) -> None:
        self.loc, self.matrix = loc, matrix

    def distances(self, data: Columns) -> tuple[Tensor, Tensor, None]:
        """sum_j (y_j - m_j)^2 / S_j and sum_j log S_j / 2 over what is seen, [K, n] and [K, n or 1]."""
        off = data.y - self.loc[:, :, None]
        distance = (off.square() * (data.seen / self.matrix[:, :, None])).sum(1)
        return distance, self.matrix.log() @ data.seen / 2, None

    def moments(self, data: Columns, reused: None, weight: Tensor, r: Tensor) -> Sums:
        """Sums of weight (1, y, y^2) and of r over what is seen of each feature, [K, d] each."""
        seen = data.seen.expand(data.y.shape).mT
        first, second = weight @ data.y.mT, weight @ data.y.mT.square()
        return {"weight": weight @ seen, "degrees": r @ seen, "first": first, "second": second}


ELLIPSES: dict[str, Ellipse] = {"full": Full(), "diagonal": Diagonal()}
