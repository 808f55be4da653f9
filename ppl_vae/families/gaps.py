"""Rows with missing entries under a full covariance: exact marginal densities and conditional expectations."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppl_vae.families.distances import Distances
from ppl_vae.families.kernels import LOG_2PI, Separable

__all__ = ["Gaps", "split_by_pattern"]


@dataclass(frozen=True)
class Pattern:
    """Rows that miss the same features: their places in the chunk, and their seen entries [d_seen, rows]."""

    rows: Tensor
    seen: Tensor
    hidden: Tensor
    values: Tensor


@dataclass(frozen=True)
class Gaps:
    """A chunk of n rows: the complete ones whitened [d, rows], the others by pattern, in units of each feature."""

    n: int
    rows: Tensor
    complete: Tensor
    patterns: list[Pattern]


def split_by_pattern(centred: Tensor, missing: Tensor, whitened: Tensor, unit: Tensor) -> Gaps:
    """Sort the rows of centred data [n, d] by what they miss; `whitened` [n, d] is read where rows are complete."""
    patterns = []
    kinds, which = torch.unique(missing, dim=0, return_inverse=True)
    rows = which.new_zeros(0)
    for number, kind in enumerate(kinds):
        own = (which == number).nonzero()[:, 0]
        if not bool(kind.any()):
            rows = own
            continue
        seen, hidden = (~kind).nonzero()[:, 0], kind.nonzero()[:, 0]
        patterns.append(Pattern(own, seen, hidden, (centred[own][:, seen] / unit[seen]).mT.contiguous()))
    return Gaps(len(centred), rows, whitened[rows].mT.contiguous(), patterns)


class WithGaps:
    """The E-step `inner` on complete rows, and on the others the law of what is seen.

    For a pattern with seen entries o and hidden entries h, log p(x_o) = log N(x_o; mu_o, Sigma_oo), and the sums take
    E[x_h | x_o] = mu_h + Sigma_ho Sigma_oo^-1 (x_o - mu_o) with
    Cov[x_h | x_o] = Sigma_hh - Sigma_ho Sigma_oo^-1 Sigma_oh
    (Ghahramani and Jordan 1994).
    """

    def __init__(self, inner: Separable, m: Tensor, covariance: Tensor, R: Tensor) -> None:
        self.inner, self.m, self.sigma, self.R = inner, m, covariance, R

    @property
    def pooled(self) -> frozenset[str]:
        """Names of the sums that are over all members."""
        return self.inner.pooled

    @property
    def distances(self) -> Distances:
        """How far y is from each member."""
        return self.inner.distances

    def members(self, index: Tensor) -> Separable:
        """The kernel of these members only, for complete data."""
        return self.inner.members(index)

    # Made when the first row with gaps comes: most data have none.

    @cached_property
    def unit(self) -> Tensor:
        """Scales of the features, [d]: the covariance's entries need not be of one size."""
        return self.R.norm(dim=1)

    @cached_property
    def whiten(self) -> Tensor:
        """R in these units."""
        return self.R / self.unit[:, None]

    @cached_property
    def loc(self) -> Tensor:
        """Means, [K, d]."""
        return (self.m @ self.R.mT) / self.unit

    @cached_property
    def covariance(self) -> Tensor:
        """Covariances, [K, d, d]."""
        K, d = self.m.shape
        return (self.sigma / self.unit / self.unit[:, None]).expand(K, d, d)

    def expand(self, features: Any) -> Any:
        if not isinstance(features, Gaps):
            return self.inner.expand(features)
        return features, self.inner.expand(features.complete)

    def log_density(self, expanded: Any) -> Tensor:
        if not isinstance(expanded, tuple):
            return self.inner.log_density(expanded)
        gaps, complete = expanded
        density = self.loc.new_zeros(len(self.loc), gaps.n)
        density[:, gaps.rows] = self.inner.log_density(complete)
        for pattern in gaps.patterns:
            if len(pattern.seen):
                density[:, pattern.rows] = self._marginal(pattern)
        return density

    def _factor(self, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Cholesky factor of Sigma_oo, and x_o - mu_o, [K, d_seen, rows]."""
        factor = torch.linalg.cholesky(self.covariance[:, pattern.seen][:, :, pattern.seen])
        return factor, pattern.values - self.loc[:, pattern.seen, None]

    def _marginal(self, pattern: Pattern) -> Tensor:
        factor, off = self._factor(pattern)
        z = torch.linalg.solve_triangular(factor, off, upper=False)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1) + self.unit[pattern.seen].log().sum()
        return -0.5 * (z.square().sum(1) + len(pattern.seen) * LOG_2PI) - log_det[:, None]

    def expect(self, expanded: Any, r: Tensor) -> dict[str, Tensor]:
        if not isinstance(expanded, tuple):
            return self.inner.expect(expanded, r)
        gaps, complete = expanded
        sums = self.inner.expect(complete, r[:, gaps.rows])
        for pattern in gaps.patterns:
            more = self._completed(pattern, r[:, pattern.rows])
            more["second"] = more["second"] if sums["second"].dim() == 3 else more["second"].sum(0)
            sums = {name: value + more[name] for name, value in sums.items()}
        return sums

    def _completed(self, pattern: Pattern, r: Tensor) -> dict[str, Tensor]:
        """Sums over one pattern's rows, in whitened coordinates."""
        seen, hidden = pattern.seen, pattern.hidden
        factor, off = self._factor(pattern)
        cross = torch.linalg.solve_triangular(factor, self.covariance[:, seen][:, :, hidden], upper=False)
        x = self.loc[:, :, None].expand(-1, -1, r.shape[1]).clone()
        x[:, seen] = pattern.values.expand(len(r), -1, -1)
        x[:, hidden] += cross.mT @ torch.linalg.solve_triangular(factor, off, upper=False)
        left = torch.zeros_like(self.covariance)
        left[:, hidden[:, None], hidden] = self.covariance[:, hidden][:, :, hidden] - cross.mT @ cross
        y = torch.linalg.solve_triangular(self.whiten, x, upper=False)
        half = torch.linalg.solve_triangular(self.whiten, left, upper=False)
        spread = torch.linalg.solve_triangular(self.whiten, half.mT, upper=False)
        weighted = r[:, None] * y
        count = r.sum(1)
        return {
            "count": count,
            "first": weighted.sum(2),
            "second": weighted @ y.mT + count[:, None, None] * spread,
        }
