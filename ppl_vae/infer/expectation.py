"""The E-step as a map over chunks of data and a sum: responsibilities, then expected sufficient statistics."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.program import Placed, Scope, enumerate_values
from ppl_vae.errors import EngineError
from ppl_vae.families import Family, Sums
from ppl_vae.families.supports import log_density
from ppl_vae.families.workspace import reused_buffers
from ppl_vae.infer.assignment import Assign, soft
from ppl_vae.infer.parallel import threads
from ppl_vae.infer.parts import Chunk, Parts
from ppl_vae.infer.processes import mapped

__all__ = ["Expectation", "Plan", "Replace", "Term", "added", "placed", "summed"]

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
    in_order: bool = False  # the index is 0, ..., K - 1


@dataclass(frozen=True)
class Latent:
    """A finite latent whose law is the same for every datum: its values [*enumerated, 1], and their features."""

    name: str
    value: Tensor
    term: Term | None
    features: Any = None


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
        self.model, self.few = model, few
        self.paths = {id(family): path for path, family in model.families().items()}
        self.dims: dict[str, int] = {}
        self.values: Scope = {}
        self.finite: list[Latent] = []
        self.direct: list[tuple[str, Term]] = []
        self.by_chunk: list[str] = []
        for node in model.local_nodes():
            known = self._known()
            if all(parent in known for parent in node.parents):
                self._once(node.name, known, few)
            else:
                self._each_chunk(node.name, few)
        self.refresh()

    def _known(self) -> Scope:
        """What is the same for every datum: shared latents, and the finite ones with all their values."""
        scope = self.model.scope(self.few)
        return {**{name: own for name, own in scope.items() if own.event_dim is None}, **self.values}

    def refresh(self) -> None:
        """Take over the model's present parameters."""
        kernels: dict[int, Any] = {}

        def made(term: Term) -> Term:
            key = id(term.family)
            if key not in kernels:
                kernels[key] = self.kernel(term.family)
            return replace(term, kernel=kernels[key])

        self.direct = [(name, made(term)) for name, term in self.direct]
        self.latents: list[Term] = []
        self.tables: list[Tensor] = []
        self.partly: list[tuple[str, Tensor, Tensor]] = []
        for latent in self.finite:
            if latent.term is None:
                table = self.model.law(latent.name, self._known()).log_prob(latent.value)
            else:
                term = made(latent.term)
                term = replace(term, expanded=term.kernel.expand(latent.features))
                self.latents.append(term)
                table = placed(term.kernel.log_density(term.expanded), term)
            if latent.name in self.few.values:
                self.partly.append((latent.name, latent.value, table))
            else:
                self.tables.append(table)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Number of values of each finite latent."""
        return {name: self.values[name].value.shape[dim] for name, dim in self.dims.items()}

    @property
    def is_mixture(self) -> bool:
        """Whether it is one finite latent, with one law for all data, and one family with a member for each value."""
        whole = len(self.dims) == len(self.direct) == 1 and not self.by_chunk and not self.partly
        return whole and self.direct[0][1].in_order

    def kernel(self, family: Family) -> Any:
        """What stands for a family in this E-step."""
        return family.kernel()

    def _once(self, name: str, known: Scope, few: Observations) -> None:
        """A factor that is the same for every datum, its own value apart."""
        d = self.model.law(name, known)
        family, index, given = getattr(d, "origin", (None, None, ()))
        if name in few.values and not self.model.partly_observed(name, few):
            if family is None or given:
                self.by_chunk.append(name)
            else:
                self.direct.append((name, self._term(family, index, -1)))
            return
        column = self._enumerate(name, d)
        value = self.values[name].value
        if family is None:
            self.finite.append(Latent(name, value, None))
        else:
            features = family.features(value.reshape(-1, *d.event_shape))
            self.finite.append(Latent(name, value, self._term(family, index, column), features))

    def _term(self, family: Family, index: Tensor | None, column: int) -> Term:
        index = _thin(index)
        in_order = (
            index is not None and index.dim() > 0 and index.shape[-1] == 1 and _in_order(index.flatten(), family.batch)
        )
        return Term(family, index, column, in_order=in_order)

    def _each_chunk(self, name: str, few: Observations) -> None:
        """A factor whose parents differ from datum to datum."""
        if name not in few.values or self.model.partly_observed(name, few):
            scope = {**self.model.scope(few), **self.values}
            self._enumerate(name, self.model.law(name, scope))
        self.by_chunk.append(name)

    def _enumerate(self, name: str, d: Any) -> int:
        if not d.has_enumerate_support:
            if d.support.is_discrete and name not in self.model._graph.posteriors:
                self.model.require_finite(name, d)  # SVI could not fit it either
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
            density = _gathered(term.kernel.log_density(expanded), term)
            value = density if value is None else value + density
            terms.append(replace(term, expanded=expanded))
        for table in self.tables:
            value = table if value is None else torch.add(value, table, out=_same(value, table))
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
                log = self.model.restrict(name, value, chunk.obs, log_density(d, value))
            if family is not None:
                kernel = self.kernel(family)
                features = family.features(value.reshape(-1, *d.event_shape)) if hidden else chunk.features[name]
                expanded = kernel.expand(features)
                if not hidden:
                    log = _gather(kernel.log_density(expanded), _thin(index))
                joint.terms.append(Term(family, _thin(index), self.dims.get(name, -1), expanded, kernel))
            joint.value = joint.value + log
        return joint

    def log_joint(self, chunk: Chunk, joint: Joint) -> Tensor:
        """Log p(x_i, z) in full, [*enumerated or 1, n]."""
        value = joint.value.expand(*(joint.value.shape[:-1] or (1,)), len(chunk.obs))
        # A datum that does not count may be impossible, and 0 * -inf is not 0.
        return value if chunk.weights is None else value.masked_fill(chunk.weights == 0, 0.0)

    def expect(self, chunk: Chunk, assign: Assign = soft, instead: Replace | None = None) -> Expectation:
        """E-step of one chunk (000 (8), (11)); `instead` takes the place of its responsibilities."""
        with reused_buffers():
            return self._expect(chunk, assign, instead)

    def _expect(self, chunk: Chunk, assign: Assign, instead: Replace | None) -> Expectation:
        joint = self.joint(chunk)
        value = self.log_joint(chunk, joint)
        assigned = assign(value.flatten(0, -2), chunk)
        r = assigned.r.view(value.shape)
        if instead is not None:
            r = instead(chunk, r)
        weights, total, objective = chunk.weights, assigned.log_likelihood(chunk.weights), assigned.objective
        bound = total if objective is None else objective.sum() if weights is None else weights @ objective
        if weights is not None:
            r = r * weights
        sums: dict[str, Sums] = {}
        for term in joint.terms:
            R = r if term.in_order and r.dim() == 2 else _scatter(r, term.index, term.family.batch, term.column)
            _add(sums, self.paths[id(term.family)], term.kernel.expect(term.expanded, R))
        return Expectation(total, bound, r.sum(-1, keepdim=True), sums)

    def finish(self, e: Expectation) -> dict[str, Sums]:
        """The sums of every family, those of the latents read off the table."""
        sums = dict(e.sums)
        for term in self.latents:
            R = _scatter(e.table, term.index, term.family.batch, term.column)
            _add(sums, self.paths[id(term.family)], term.kernel.expect(term.expanded, R))
        return sums


def summed(
    plan: Plan,
    parts: Parts,
    num_threads: int,
    assign: Assign = soft,
    instead: Replace | None = None,
    begun: Callable[[int], None] = lambda number: None,
) -> Expectation:
    """The E-step over the data of all processes; `begun` hears the number of each block."""

    def each() -> Iterator[Expectation]:
        for number, block in enumerate(parts.blocks(), 1):
            begun(number)
            for chunk in parts.chunks(block):
                yield plan.expect(chunk, assign, instead)

    own = None
    with threads(1 if parts.num_blocks == 1 else num_threads):
        for e in each():
            own = e if own is None else own + e
    if own is None:  # a process without data adds nothing to the others
        like = added(plan.expect(chunk) for chunk in parts.cut(plan.few, None, 0))
        own = Expectation(**mapped(vars(like), torch.zeros_like))
    return Expectation(**parts.share.sum(vars(own)))


def _thin(index: Tensor | None) -> Tensor | None:
    """An index that is the same for every datum, as a column."""
    if index is not None and index.dim() and index.shape[-1] > 1 and index.stride(-1) == 0:
        return index[..., :1]
    return index


def _same(value: Tensor, table: Tensor) -> Tensor | None:
    """The memory of a sum that may be overwritten: [K, n] and [K, 1] without a gradient."""
    # torch.broadcast_shapes would take longer than a small chunk's sum.
    pairs = zip(reversed(value.shape), reversed(table.shape), strict=False)
    fits = table.dim() <= value.dim() and all(own in (1, size) for size, own in pairs)
    return value if fits and not torch.is_grad_enabled() else None


def _gathered(density: Tensor, term: Term) -> Tensor:
    """`_gather` for a term."""
    index = term.index
    if term.in_order and index is not None and density.shape[1] != 1:
        return density.reshape(*index.shape[:-1], -1)
    return _gather(density, index)


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


def placed(density: Tensor, term: Term) -> Tensor:
    """From log p(value | member), [K, values], to a table whose values vary along the term's own dimension."""
    log = _gathered(density, term)
    parents = log.shape[:-1]
    return log.movedim(-1, 0).reshape(-1, *[1] * (-term.column - 2 - len(parents)), *parents, 1)


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
