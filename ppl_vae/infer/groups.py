"""Data sorted by the components that they can belong to.

Groups are made at an anchor theta_0. Of those of its data with the most probable component g a group keeps, for each j,
min_i (log p(x_i, g) - log p(x_i, j)), and max_i q_ig / 2; from how far both normals have moved since (`Stretch`)
follows, at any later theta, the least that this margin can be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.families import Sums
from ppl_vae.families.kernels import Separable
from ppl_vae.families.workspace import reused_buffers
from ppl_vae.infer.assignment import posterior
from ppl_vae.infer.expectation import Expectation

__all__ = ["Groups", "Mixture", "Part", "Total"]


@dataclass(frozen=True)
class Mixture:
    """Log p(x, k) at one theta, from the components' kernel and log weights [K, 1]."""

    kernel: Separable
    log_weights: Tensor

    @cached_property
    def peak(self) -> Tensor:
        """The largest log p(x, k) over x, [K]."""
        return self.log_weights[:, 0] + self.kernel.distances.peak

    def among(self, index: Tensor) -> "Mixture":
        """These components only."""
        return Mixture(self.kernel.members(index), self.log_weights[index])

    def joint(self, y: Tensor) -> tuple[Tensor, Any]:
        """Log p(x_i, k), [K, n], of whitened columns [d, n], and what the kernel made of them."""
        expanded = self.kernel.expand(y)
        return self.kernel.log_density(expanded).add_(self.log_weights), expanded


@dataclass(frozen=True)
class Part:
    """Some rows of a group: whitened columns y [d, n], weights, and most probable components [n], in their order."""

    y: Tensor
    weights: Tensor | None
    best: Tensor

    def expect(self, mixture: Mixture) -> tuple[Tensor, Sums]:
        """Total log-likelihood, and the sums of the family."""
        with reused_buffers():
            log, expanded = mixture.joint(self.y)
            assigned = posterior(log)
            r = assigned.r if self.weights is None else assigned.r * self.weights
            return assigned.log_likelihood(self.weights), mixture.kernel.expect(expanded, r)


@dataclass(frozen=True)
class Bounds:
    """What is kept of the data of a group with the same most probable component g.

    Attributes
    ----------
    group, own : int
        Number of the group, and g.
    margin, farthest : Tensor
        min_i (log p(x_i, g) - log p(x_i, j)), [K], and max_i q_ig / 2.
    """

    group: int
    own: int
    margin: Tensor
    farthest: Tensor

    @classmethod
    def of(cls, group: int, parts: Sequence[Part], anchor: Mixture) -> list[Self]:
        """One for each most probable component in a group."""
        found: dict[int, list[Tensor]] = {}
        for part in parts:
            with reused_buffers():
                log, _ = anchor.joint(part.y)
                kinds, counts = part.best.unique_consecutive(return_counts=True)
                for g, own in zip(kinds.tolist(), log.split(counts.tolist(), 1), strict=True):
                    new = [(own[g] - own).amin(1), (anchor.peak[g] - own[g].amin()).clamp_min(0)]
                    least, most = found.get(g, new)
                    found[g] = [torch.minimum(least, new[0]), torch.maximum(most, new[1])]
        return [cls(group, g, margin, farthest) for g, (margin, farthest) in found.items()]


@dataclass(frozen=True)
class Moments:
    """What data that belong to one component alone add to an E-step, whatever the parameters."""

    count: Tensor
    mean: Tensor
    scatter: Tensor
    sums: Sums


class Groups:
    """Groups of data made at one theta, and which components they need at another."""

    def __init__(self, anchor: Mixture, groups: list[list[Part]]) -> None:
        self.anchor, self.groups = anchor, groups
        self.sizes = torch.tensor([sum(len(part.best) for part in parts) for parts in groups])
        bounds = [own for number, parts in enumerate(groups) for own in Bounds.of(number, parts, anchor)]
        self.group, self.own = (torch.tensor([getattr(b, name) for b in bounds]) for name in ("group", "own"))
        self.margin, self.farthest = (
            torch.stack([getattr(b, name) for b in bounds]) for name in ("margin", "farthest")
        )
        self.moments: dict[int, Moments] = {}

    def near(self, now: Mixture, needed: Tensor) -> Tensor:
        """Components k that some datum of a group may have at less than the margin `needed` [K], [G, K]."""
        stretch = now.kernel.distances.stretch(self.anchor.kernel.distances)
        own, before = self.own, self.anchor.peak
        least = now.peak[own] - stretch.most(self.farthest, own)
        nearest = (self.margin - before[own, None] + before + self.farthest[:, None]).clamp_min(0)
        near = ~(least[:, None] - now.peak + stretch.least(nearest) >= needed)
        near[torch.arange(len(own)), own] = True
        return torch.zeros(len(self.groups), near.shape[1], dtype=torch.long).index_add_(0, self.group, near.long()) > 0

    def work(self, near: Tensor) -> Tensor:
        """Pairs of a datum and a component that are computed: single candidates cost nothing."""
        count = near.sum(1)
        return (self.sizes * torch.where(count > 1, count, 0)).sum().double()

    def expect(self, now: Mixture, near: Tensor) -> "Total":
        """The E-step over the pairs in `near`."""
        total = Total(now)
        for number, (parts, candidates) in enumerate(zip(self.groups, near, strict=True)):
            index = candidates.nonzero()[:, 0]
            if len(index) == 1:
                total.add_moments(index, self._moments(number, now, index))
                continue
            among = now.among(index)
            for part in parts:
                total.add(index, *part.expect(among))
        return total

    def _moments(self, number: int, now: Mixture, index: Tensor) -> Moments:
        """Of a group whose data belong to one component."""
        if number not in self.moments:
            kernel, parts = now.kernel.members(index), self.groups[number]
            weights = [part.y.new_ones(part.y.shape[1]) if part.weights is None else part.weights for part in parts]
            count = _summed([w.sum() for w in weights])
            first = _summed([part.y @ w for part, w in zip(parts, weights, strict=True)])
            mean = first / count.clamp_min(1e-300)
            scatter, sums = [], []
            for part, w in zip(parts, weights, strict=True):
                scatter.append(self.anchor.kernel.distances.scatter(part.y - mean[:, None], w))
                sums.append(kernel.expect(kernel.expand(part.y), w[None]))
            total = {name: _summed([one[name] for one in sums]) for name in sums[0]}
            self.moments[number] = Moments(count, mean, _summed(scatter), total)
        return self.moments[number]


class Total:
    """The sums of an E-step over groups."""

    def __init__(self, now: Mixture) -> None:
        self.now = now
        self.log_probs: list[Tensor] = []
        self.sums: list[tuple[Tensor, Sums]] = []
        self.alone: list[tuple[Tensor, Moments]] = []

    def add(self, index: Tensor, log_prob: Tensor, sums: Sums) -> None:
        """Add what the components `index` have of some data."""
        self.log_probs.append(log_prob)
        self.sums.append((index, sums))

    def add_moments(self, index: Tensor, moments: Moments) -> None:
        """Add data that belong to one component."""
        self.sums.append((index, moments.sums))
        self.alone.append((index, moments))

    def expectation(self, path: str) -> Expectation:
        """As an E-step of the family at `path`."""
        index = torch.cat([index for index, _ in self.sums])
        K, sums = len(self.now.peak), {}
        for name in self.sums[0][1]:
            each = [own[name] for _, own in self.sums]
            if name in self.now.kernel.pooled:
                sums[name] = _summed(each)
            else:
                values = torch.cat(each)
                sums[name] = values.new_zeros(K, *values.shape[1:]).index_add_(0, index, values)
        log_prob = _summed([*self.log_probs, self._log_prob_alone()])
        return Expectation(log_prob, log_prob, sums["count"][:, None], {path: sums})

    def _log_prob_alone(self) -> Tensor:
        if not self.alone:
            return self.now.peak.new_zeros(())
        own = torch.cat([index for index, _ in self.alone])
        count, mean, scatter = (
            torch.stack([getattr(moments, name) for _, moments in self.alone]) for name in ("count", "mean", "scatter")
        )
        squares = self.now.kernel.distances.total(own, count, mean, scatter)
        return (count * self.now.peak[own] - 0.5 * squares).sum()


def _summed(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)
