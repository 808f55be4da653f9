"""Data sorted by the components that they can belong to.

Of those data of a group with the most probable component g a group keeps, for each j, a lower bound of
min_i (log p(x_i, g) - log p(x_i, j)), and an upper one of max_i q_ig / 2. Both are exact at the theta at which these
densities were last computed, and from how far the normals move (`Stretch`) follows what they are at the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.families import Sums
from ppl_vae.families.kernels import Separable
from ppl_vae.families.workspace import reused_buffers
from ppl_vae.infer.assignment import posterior
from ppl_vae.infer.expectation import Expectation

__all__ = ["Groups", "Margins", "Mixture", "Part", "Total"]


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
class Margins:
    """Of each kind of data, those with one most probable component g.

    Attributes
    ----------
    kind : Tensor
        Numbers of the kinds, [B].
    least : Tensor
        min_i (log p(x_i, g) - log p(x_i, j)), [K, B].
    lowest : Tensor
        min_i log p(x_i, g), [B].
    """

    kind: Tensor
    least: Tensor
    lowest: Tensor

    @classmethod
    def of(cls, kind: Tensor, least: Tensor, lowest: Tensor) -> Self:
        """From margins in any order, with as many as there are of a kind: data, or margins of some of them."""
        kinds, place = kind.unique(return_inverse=True)
        return cls(
            kinds,
            least.new_full((len(least), len(kinds)), torch.inf).scatter_reduce_(
                1, place.expand(len(least), -1), least, "amin"
            ),
            lowest.new_full(kinds.shape, torch.inf).scatter_reduce_(0, place, lowest, "amin"),
        )

    def __add__(self, other: "Margins") -> "Margins":
        kind, lowest = torch.cat([self.kind, other.kind]), torch.cat([self.lowest, other.lowest])
        return Margins.of(kind, torch.cat([self.least, other.least], 1), lowest)


@dataclass(frozen=True)
class Part:
    """Some rows of a group: whitened columns y [d, n], weights, and which bounds hold for them, [n], in their order."""

    y: Tensor
    weights: Tensor | None
    bound: Tensor

    @cached_property
    def runs(self) -> tuple[Tensor, list[int]]:
        """The numbers of the bounds, and for how many rows each stands."""
        bounds, counts = self.bound.unique_consecutive(return_counts=True)
        return bounds, counts.tolist()

    def margins(self, among: Mixture, place: Tensor) -> Margins:
        """Those from some components, of which bound b has its own at `place[b]`."""
        bounds, counts = self.runs
        with reused_buffers():
            log, _ = among.joint(self.y)
            each = zip(place[bounds].tolist(), log.split(counts, 1), strict=True)
            found = [((rows[g] - rows).amin(1), rows[g].amin()) for g, rows in each]
        return Margins(bounds, torch.stack([least for least, _ in found], 1), torch.stack([low for _, low in found]))

    def expect(self, among: Mixture) -> tuple[Tensor, Sums]:
        """Total log-likelihood, and the sums of the family."""
        with reused_buffers():
            log, expanded = among.joint(self.y)
            assigned = posterior(log)
            r = assigned.r if self.weights is None else assigned.r * self.weights
            return assigned.log_likelihood(self.weights), among.kernel.expect(expanded, r)


@dataclass(frozen=True)
class Moments:
    """What data that belong to one component alone add to an E-step, whatever the parameters."""

    count: Tensor
    mean: Tensor
    scatter: Tensor
    sums: Sums


class Groups:
    """Groups of data, and which components they need.

    Parameters
    ----------
    at : Mixture
        Where the bounds hold.
    parts : list of list of Part
        The data of each group.
    group, own : Tensor
        Which group each bound is for, and its most probable component, [B].
    least, lowest : Tensor
        The margins, [K, B], and least densities, [B].

    Attributes
    ----------
    farthest : Tensor
        The largest distances, [B].
    known : Tensor
        The candidates that each group had when its bounds were last made exact, [G, K].
    """

    def __init__(
        self, at: Mixture, parts: list[list[Part]], group: Tensor, own: Tensor, least: Tensor, lowest: Tensor
    ) -> None:
        self.at, self.parts, self.group, self.own, self.least = at, parts, group, own, least
        self.farthest = (at.peak[own] - lowest).clamp_min(0)
        self.known = torch.zeros(len(parts), len(at.peak), dtype=torch.bool)
        self.sizes = torch.tensor([sum(part.y.shape[1] for part in own) for own in parts])
        self.moments: dict[int, Moments] = {}

    def move(self, now: Mixture) -> None:
        """Let the bounds hold at another theta."""
        stretch = now.kernel.distances.stretch(self.at.kernel.distances)
        own, before = self.own, self.at.peak
        # Of data with one margin, that of those farthest from g can become the least.
        nearest = (self.least - before[own] + before[:, None] + self.farthest).clamp_min(0)
        self.farthest = stretch.most(self.farthest, own)
        self.least = now.peak[own] - self.farthest - now.peak[:, None] + stretch.least(nearest.mT).mT
        self.at = now

    def near(self, needed: Tensor) -> Tensor:
        """Components k that some datum of a group may have at less than the margin `needed` [K], [G, K]."""
        near = ~(self.least >= needed[:, None])
        near[self.own, torch.arange(len(self.own))] = True
        return torch.zeros(len(self.parts), len(near), dtype=torch.long).index_add_(0, self.group, near.mT.long()) > 0

    def work(self, near: Tensor) -> Tensor:
        """Pairs of a datum and a component that are computed: single candidates cost nothing."""
        count = near.sum(1)
        return (self.sizes * torch.where(count > 1, count, 0)).sum().double()

    def look(self, needed: Tensor) -> Tensor:
        """`near`, after the bounds of groups with candidates that they had not before were made exact."""
        near = self.near(needed)
        new = (near & ~self.known).any(1)
        for number in new.nonzero()[:, 0].tolist():
            index, place = near[number].nonzero()[:, 0], (near[number].cumsum(0) - 1)[self.own]
            among = self.at.among(index)
            exact = reduce(Margins.__add__, [part.margins(among, place) for part in self.parts[number]])
            self.least[index[:, None], exact.kind] = exact.least
            self.farthest[exact.kind] = (self.at.peak[self.own[exact.kind]] - exact.lowest).clamp_min(0)
        near = self.near(needed)
        self.known[new] = near[new]
        return near

    def expect(self, near: Tensor) -> "Total":
        """The E-step over the pairs in `near`."""
        total = Total(self.at)
        for number, (parts, candidates) in enumerate(zip(self.parts, near, strict=True)):
            index = candidates.nonzero()[:, 0]
            if len(index) == 1:
                total.add_moments(index, self._moments(number, self.at, index))
                continue
            among = self.at.among(index)
            for part in parts:
                total.add(index, *part.expect(among))
        return total

    def _moments(self, number: int, now: Mixture, index: Tensor) -> Moments:
        """Of a group whose data belong to one component."""
        if number not in self.moments:
            kernel, parts = now.kernel.members(index), self.parts[number]
            weights = [part.y.new_ones(part.y.shape[1]) if part.weights is None else part.weights for part in parts]
            count = _summed([w.sum() for w in weights])
            first = _summed([part.y @ w for part, w in zip(parts, weights, strict=True)])
            mean = first / count.clamp_min(1e-300)
            scatter, sums = [], []
            for part, w in zip(parts, weights, strict=True):
                scatter.append(now.kernel.distances.scatter(part.y - mean[:, None], w))
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
