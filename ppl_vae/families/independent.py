"""Exponential families of d independent features: what Bernoulli, Poisson, Exponential and Gamma share."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.errors import DataError, DeclarationError, check_whole
from ppl_vae.families.family import NOTHING, Family, Parts, Sums
from ppl_vae.families.scalar_priors import ScalarPrior

__all__ = ["Entries", "IndependentFeatures", "Natural", "density"]

Natural = tuple[tuple[Tensor, ...], Tensor]
"""eta, S tensors [K, d], and A [K, d]."""


class Entries(NamedTuple):
    """What the E-step needs of a chunk: t(x) [S d, n] and h(x) [n], zero where x is missing; what is seen [d, n]."""

    statistics: Tensor
    base: Tensor
    seen: Tensor


def density(natural: Natural, entries: Entries) -> Tensor:
    """sum_j eta_kj' t(x_ij) - A_kj + h(x_ij) over the entries seen, [K, n]."""
    eta, log_normalizer = natural
    return torch.cat(eta, 1) @ entries.statistics - log_normalizer @ entries.seen + entries.base


class IndependentFeatures(Family):
    r"""log p(x | k) = sum_j eta_kj' t(x_j) - A_kj + h(x_j) over the features j that are seen.

    The M-step equates the mean of t under member k with its weighted mean over the entries seen, feature by feature,
    so a missing entry (NaN) is skipped exactly. A subclass sets `constraints`, `domain`, `kind` and `typical`, and
    defines `statistics`, `natural`, `solve` and `member`; `base` and `on_edge` where they are not zero; with one
    parameter that has a conjugate law also `weak`, `linear` and `evidence`.

    Parameters
    ----------
    n_features : int, optional
        d; None for a single number per datum (event shape ()).
    batch : int
        Number of members K.
    prior : ScalarPrior, "weak", optional
        Conjugate prior of the parameter, in families that have one.

    Raises
    ------
    DeclarationError
        n_features or batch below 1; a prior that is unknown, of another kind, or of a family that has none.
    """

    domain: ClassVar[Constraint] = constraints.real
    """Where the data live."""
    kind: ClassVar[str] = "real numbers"
    """The same in words, for error messages."""
    typical: ClassVar[tuple[float, ...]] = (0.0,)
    """Mean statistics before any data are seen; `solve` makes the defaults of them."""
    edge: ClassVar[str] = "are on the edge of what the family describes"
    """What is true of data on the edge that `on_edge` tells, in words."""
    weak: ClassVar[type[ScalarPrior] | None] = None
    """The weak prior of the only parameter, where a conjugate law is known."""

    means: Tensor
    adapted: Tensor

    def __init__(self, n_features: int | None = None, *, batch: int, prior: ScalarPrior | str | None = None) -> None:
        check_whole(type(self).__name__, error=DeclarationError, batch=batch)
        if n_features is not None:
            check_whole(type(self).__name__, error=DeclarationError, n_features=n_features)
        if prior is not None and self.weak is None:
            raise DeclarationError(
                f"{type(self).__name__} has no conjugate prior; pass prior=None, or declare its parameters as shared "
                f"latents and the node as a distribution of them"
            )
        super().__init__(batch, self.choose_prior(prior, self.weak or ScalarPrior))
        self.n_features = n_features
        self.shape = (batch,) if n_features is None else (batch, n_features)
        # The data's mean statistics [S, d]: the start, and the answer for a feature that a member never sees.
        self.register_buffer("means", torch.tensor(self.typical)[:, None].repeat(1, n_features or 1))
        if self.prior is not None:
            self.register_buffer("adapted", torch.tensor(False))
        self.register()

    # What a subclass defines, on entries [..., d] and parameters [K, d].

    def statistics(self, x: Tensor) -> tuple[Tensor, ...]:
        """t(x), S tensors in the shape of x."""
        return (x,)

    def base(self, x: Tensor) -> Tensor:
        """h(x), in the shape of x."""
        return torch.zeros_like(x)

    def natural(self) -> Natural:
        """Natural parameters and log normaliser at the current parameters."""
        raise NotImplementedError

    def linear(self, first: Tensor, second: Tensor) -> Natural:
        """The same, linear in the two functions of the parameter whose expectations the prior's law knows."""
        raise NotImplementedError

    def evidence(self, total: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What data whose statistics add to `total` over `seen` entries add to the two numbers of the prior's law."""
        raise NotImplementedError

    def solve(self, means: Tensor, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters [..., d] of the members whose mean statistics are nearest to `means` [..., S, d]."""
        raise NotImplementedError

    def on_edge(self, values: Mapping[str, Tensor]) -> Tensor:
        """Whether a parameter sits where only its floor keeps the likelihood bounded, [..., d]."""
        return torch.zeros_like(next(iter(values.values())), dtype=torch.bool)

    # What follows from them.

    def defaults(self) -> dict[str, Tensor]:
        """Every member at the data's mean statistics."""
        return {k: v.expand(self.batch, -1).reshape(self.shape).clone() for k, v in self.solve(self.means, {}).items()}

    def member(self, name: str, index: Tensor | None) -> Tensor:
        """Parameter `name` of members `index`."""
        value: Tensor = getattr(self, name)
        return value[0] if index is None else value[index]

    def wide(self, name: str) -> Tensor:
        """Parameter `name` as [K, d], whatever the event shape."""
        value: Tensor = getattr(self, name)
        return value.reshape(self.batch, -1)

    def read(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Entries [n, d], missing ones NaN, and which are seen.

        Raises
        ------
        DataError
            Naming the first value that lies outside the domain, by its row counted from `first`.
        """
        x = x.reshape(len(x), -1).to(self.means)
        seen = ~x.isnan()
        wrong = seen & ~(self.domain.check(x) & x.isfinite())
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise DataError(
                f"{type(self).__name__} takes {self.kind}; {int(wrong.sum())} values are not, the first is "
                f"{x[row, column].item():g} in row {first + row} (counted from 0), feature {column}; "
                "remove or recode them"
            )
        return x, seen

    def adapt(self, parts: Parts) -> None:
        """Take the data's mean statistics, and check every value."""
        total, weight, first = torch.zeros_like(self.means), torch.zeros_like(self.means[0]), 0
        for x, weights in parts:
            entries, seen = self.read(x, first)
            w = seen.to(entries) if weights is None else weights.to(entries)[:, None] * seen
            inside = torch.where(seen, entries, self.inside(entries))
            total = total + torch.stack([(w * t).sum(0) for t in self.statistics(inside)])
            weight, first = weight + w.sum(0), first + len(x)
        self.means = torch.where(weight > 0, total / weight.clamp_min(1e-300), self.means)
        if self.prior is not None:
            self.adapted = torch.tensor(True)

    def inside(self, x: Tensor) -> Tensor:
        """Some value of the domain, to stand where one is missing."""
        return torch.ones_like(x)

    def features(self, x: Tensor, *given: Tensor) -> Entries:
        """t(x) and h(x) with zeros where x is missing, and what is seen, as columns."""
        entries, seen = self.read(x)
        filled, mask = torch.where(seen, entries, self.inside(entries)), seen.to(entries)
        statistics = torch.cat([t * mask for t in self.statistics(filled)], 1)
        return Entries(statistics.mT.contiguous(), (self.base(filled) * mask).sum(1), mask.mT.contiguous())

    def log_density(self, expanded: Entries) -> Tensor:
        """Log p(x_i | k) over the entries seen, [K, n]."""
        return density(self.natural(), expanded)

    def expect(self, expanded: Entries, r: Tensor) -> Sums:
        """N_k [K], entries seen [K, d], and sum_i r_ki t(x_i) [K, S, d]."""
        totals = (r @ expanded.statistics.mT).reshape(self.batch, *self.means.shape)
        return {"count": r.sum(1), "seen": r @ expanded.seen.mT, "totals": totals}

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """The parameters at the weighted means of t over the entries seen, or the mode of the conjugate posterior."""
        if self.prior is not None and estimate == "map":
            a, b = self.prior.pair(self)
            return dict.fromkeys(self.constraints, self.prior.mode(*self.updated(a, b, sums)))
        fixed = {name: value.reshape(self.batch, -1) for name, value in fixed.items()}
        seen = sums["seen"][:, None]
        means = torch.where(seen > 0, sums["totals"] / seen.clamp_min(1e-300), self.means)
        return {name: value.reshape(self.shape) for name, value in {**self.solve(means, fixed), **fixed}.items()}

    def updated(self, a: Tensor, b: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
        """The two numbers of the prior's law after these data, in the shape of the parameter."""
        more, and_more = self.evidence(sums["totals"][:, 0], sums["seen"])
        return a + more.reshape(self.shape), b + and_more.reshape(self.shape)

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """Empty members, and members on an edge that the data as a whole are not on, or on that of every feature."""
        edge = self.on_edge({name: value.reshape(self.batch, -1) for name, value in values.items()})
        return super().degenerate(sums, values) | (edge & ~self._flat()).any(1) | edge.all(1)

    def remarks(self) -> list[str]:
        """Features in which the data as a whole are on an edge."""
        flat = self._flat()
        if not bool(flat.any()):
            return []
        return [
            f"the data {self.edge} in {int(flat.sum())} of {len(flat)} features; the density there is set by the prior "
            "or the floor"
        ]

    def _flat(self) -> Tensor:
        """[d] of bool: features in which the data as a whole are on an edge."""
        return self.on_edge(self.solve(self.means, {}))

    @property
    def width(self) -> int:
        """Densities and statistics of a datum."""
        return self.batch + self.means.numel()
