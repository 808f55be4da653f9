"""The E-step as a map over chunks of data and a sum: responsibilities, then expected sufficient statistics."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.program import Placed, Scope, enumerate_values
from ppl_vae.errors import EngineError
from ppl_vae.families import Family, Sums
from ppl_vae.infer.assignment import Assign, soft
from ppl_vae.infer.parts import Chunk

__all__ = ["Expectation", "Plan", "Replace", "Term", "added"]

Replace = Callable[[Chunk, Tensor], Tensor]


@dataclass
class Expectation:
    """Sums of an E-step, which add over chunks.

    Attributes
    ----------
    log_prob : Tensor
        sum_i w_i log p(x_i), total nats.
    objective : Tensor
        What the E-step's assignment maximises; log_prob itself for exact posteriors.
    table : Tensor
        sum_i w_i r_i, [*enumerated, 1].
    sums : dict
        What each family needs, by path.
    """

    log_prob: Tensor
    objective: Tensor
    table: Tensor
    sums: dict[str, Sums]

    def __add__(self, other: "Expectation") -> "Expectation":
        sums = dict(self.sums)
        for path, more in other.sums.items():
            _add(sums, path, more)
        return Expectation(
            self.log_prob + other.log_prob, self.objective + other.objective, self.table + other.table, sums
        )


def added(parts: Iterable[Expectation]) -> Expectation:
    """The sum of at least one E-step."""
    return reduce(Expectation.__add__, parts)


def _add(sums: dict[str, Sums], path: str, more: Sums) -> None:
    have = sums.get(path)
    sums[path] = more if have is None else {name: have[name] + value for name, value in more.items()}


@dataclass(frozen=True)
class Term:
    """One factor of the joint: who made it, along which dimension its value varies, and its values as features."""

    family: Family
    index: Tensor | None
    column: int = -1
    expanded: Any = None
    kernel: Any = None


@dataclass
class Joint:
    """Log p(x_i, z) of one chunk with every value of z in its own dimension, [*enumerated, n], and its factors."""

    value: Tensor
    terms: list[Term] = field(default_factory=list)


class Plan:
    """What of an E-step does not depend on the data, made once: tables of the latents, kernels of the families.

    Parameters
    ----------
    model : LatentVariableModel
        With its shared latents bound.
    few : Observations
        Some rows, to see what is observed.
    """

    def __init__(self, model: LatentVariableModel, few: Observations) -> None:
        self.model = model
        self.paths = {id(family): path for path, family in model.families().items()}
        self.dims: dict[str, int] = {}
        self.values: Scope = {}
        self.latents: list[Term] = []
        self.tables: list[Tensor] = []
        self.partly: list[tuple[str, Tensor, Tensor]] = []
        self.direct: list[tuple[str, Term]] = []
        self.by_chunk: list[str] = []
        shared = {name: placed for name, placed in model.scope(few).items() if placed.event_dim is None}
        for node in model.local_nodes():
            known = {**shared, **self.values}
            if all(parent in known for parent in node.parents):
                self._once(node.name, known, few)
            else:
                self._each_chunk(node.name, few)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Number of values of each finite latent."""
        return {name: self.values[name].value.shape[dim] for name, dim in self.dims.items()}

    def _once(self, name: str, known: Scope, few: Observations) -> None:
        """A factor that is the same for every datum, its own value apart."""
        d = self.model.law(name, known)
        family, index, given = getattr(d, "origin", (None, None, ()))
        if name in few.values and not self.model.partly_observed(name, few):
            if family is None or given:
                self.by_chunk.append(name)
            else:
                self.direct.append((name, Term(family, _thin(index), kernel=family.kernel())))
            return
        column = self._enumerate(name, d)
        value = self.values[name].value
        table = d.log_prob(value)
        if name in few.values:
            self.partly.append((name, value, table))
        else:
            self.tables.append(table)
        if family is not None:
            features = family.features(value.reshape(-1, *d.event_shape))
            self.latents.append(Term(family, _thin(index), column, family.kernel().expand(features), family.kernel()))

    def _each_chunk(self, name: str, few: Observations) -> None:
        """A factor whose parents differ from datum to datum."""
        if name not in few.values or self.model.partly_observed(name, few):
            scope = {**self.model.scope(few), **self.values}
            self._enumerate(name, self.model.law(name, scope))
        self.by_chunk.append(name)

    def _enumerate(self, name: str, d: Any) -> int:
        if not d.has_enumerate_support:
            raise EngineError(f"EM needs every latent to be finite, and {name!r} is not; fit this model by SVI")
        column = self.dims[name] = -2 - len(self.dims)
        self.values[name] = Placed(enumerate_values(d, column), d.event_dim)
        return column

    def joint(self, chunk: Chunk) -> Joint:
        """Log p(x_i, z), and the factors whose statistics are summed datum by datum."""
        terms: list[Term] = []
        value: Tensor | None = None
        for name, term in self.direct:
            expanded = term.kernel.expand(chunk.features[name])
            density = _gather(term.kernel.log_density(expanded), term.index)
            value = density if value is None else value + density
            terms.append(Term(term.family, term.index, -1, expanded, term.kernel))
        for table in self.tables:
            value = table if value is None else value + table
        for name, values, table in self.partly:
            log = self.model.restrict(name, values, chunk.obs, table)
            value = log if value is None else value + log
        value = torch.zeros((), dtype=self.model.like.dtype, device=self.model.like.device) if value is None else value
        return self._dependent(chunk, Joint(value, terms)) if self.by_chunk else Joint(value, terms)

    def _dependent(self, chunk: Chunk, joint: Joint) -> Joint:
        scope = {**self.model.scope(chunk.obs), **self.values}
        for name in self.by_chunk:
            d = self.model.law(name, scope)
            value, hidden = scope[name].value, name in self.dims
            family, index, _ = getattr(d, "origin", (None, None, ()))
            if family is None or hidden:
                d = self.model.distribution(name, scope, chunk.obs)
                log = self.model.restrict(name, value, chunk.obs, d.log_prob(value))
            if family is not None:
                kernel = family.kernel()
                features = family.features(value.reshape(-1, *d.event_shape)) if hidden else chunk.features[name]
                expanded = kernel.expand(features)
                if not hidden:
                    log = _gather(kernel.log_density(expanded), _thin(index))
                joint.terms.append(Term(family, _thin(index), self.dims.get(name, -1), expanded, kernel))
            joint.value = joint.value + log
        return joint

    def log_joint(self, chunk: Chunk, joint: Joint) -> Tensor:
        """Log p(x_i, z) in full, [*enumerated or 1, n]."""
        return joint.value.expand(*(joint.value.shape[:-1] or (1,)), len(chunk.obs))

    def expect(self, chunk: Chunk, assign: Assign = soft, replace: Replace | None = None) -> Expectation:
        """E-step of one chunk (000 (8), (11))."""
        joint = self.joint(chunk)
        value = self.log_joint(chunk, joint)
        assigned = assign(value.flatten(0, -2), chunk)
        r = assigned.r.view(value.shape)
        if replace is not None:
            r = replace(chunk, r)
        log_prob, objective = assigned.log_prob, assigned.objective
        if chunk.weights is not None:
            r = r * chunk.weights
            log_prob = chunk.weights * log_prob
            objective = log_prob if objective is None else chunk.weights * objective
        total = log_prob.sum()
        sums: dict[str, Sums] = {}
        for term in joint.terms:
            R = _scatter(r, term.index, term.family.batch, term.column)
            _add(sums, self.paths[id(term.family)], term.kernel.expect(term.expanded, R))
        return Expectation(total, total if objective is None else objective.sum(), r.sum(-1, keepdim=True), sums)

    def finish(self, e: Expectation) -> dict[str, Sums]:
        """The sums of every family, those of the latents read off the table."""
        sums = dict(e.sums)
        for term in self.latents:
            R = _scatter(e.table, term.index, term.family.batch, term.column)
            _add(sums, self.paths[id(term.family)], term.kernel.expect(term.expanded, R))
        return sums


def _thin(index: Tensor | None) -> Tensor | None:
    """An index that is the same for every datum, as a column."""
    if index is not None and index.dim() and index.shape[-1] > 1 and index.stride(-1) == 0:
        return index[..., :1]
    return index


def _gather(density: Tensor, index: Tensor | None) -> Tensor:
    """From log p(x_i | member), [K, n], to the members that a node was called with, [*enumerated, n]."""
    if index is None:
        return density[0]
    if index.dim() == 0:
        return density[index]
    if index.shape[-1] == 1 and density.shape[1] != 1:
        flat = index.flatten()
        chosen = density if _in_order(flat, len(density)) else density.index_select(0, flat)
        return chosen.reshape(*index.shape[:-1], -1)
    rows = index.reshape(-1, index.shape[-1]).expand(-1, density.shape[1])
    return density.gather(0, rows).reshape(*index.shape[:-1], -1)


def _in_order(index: Tensor, K: int) -> bool:
    """Whether the index is 0, ..., K - 1."""
    return len(index) == K and bool((index == torch.arange(K, device=index.device)).all())


def _scatter(r: Tensor, index: Tensor | None, K: int, column: int) -> Tensor:
    """Responsibility of each member for each value of a node, [K, values], summed over everything else."""
    r = r.movedim(column, -1)
    if index is None:
        return r.flatten(0, -2).sum(0, keepdim=True) if r.dim() > 1 else r[None]
    index = index.reshape(*[1] * (r.dim() - index.dim()), *index.shape).movedim(column, -1)
    spare = [dim for dim in range(r.dim() - 1) if index.shape[dim] == 1 and r.shape[dim] > 1]
    r = r.sum(spare, keepdim=True) if spare else r
    if index.shape[-1] == 1:
        rows = index.expand(*r.shape[:-1], 1).flatten()
        flat = r.reshape(-1, r.shape[-1])
        if _in_order(rows, K):
            return flat
        return r.new_zeros(K, r.shape[-1]).index_add_(0, rows, flat)
    rows = index.expand(r.shape).reshape(-1, r.shape[-1])
    return r.new_zeros(K, r.shape[-1]).scatter_add_(0, rows, r.reshape(rows.shape))
