"""The E-step as a map over chunks of data and a sum: responsibilities, then expected sufficient statistics."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.program import Placed, Scope, enumerate_values
from ppl_vae.errors import EngineError
from ppl_vae.families import Family, Sums

__all__ = ["Chunk", "Expectation", "chunks", "expectation", "joint_terms"]

ELEMENTS_AT_ONCE = 1 << 22
"""Bounds the largest temporary, [K, chunk, d]."""


@dataclass(frozen=True)
class Chunk:
    """Rows of the data with their weights, and what each family keeps of them between iterations."""

    obs: Observations
    weights: Tensor
    start: int
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Expectation:
    """Result of one E-step over all chunks: log p(x_i), [n], and the sums each family needs, by path."""

    log_prob: Tensor
    sums: dict[str, Sums]


@dataclass(frozen=True)
class _Term:
    """One node at one E-step: who made its distribution, and along which dimension its value varies."""

    family: Family
    index: Tensor | None
    features: Tensor
    column: int


def chunks(model: LatentVariableModel, obs: Observations, weights: Tensor, members: int) -> list[Chunk]:
    """Cut the data so that no temporary grows with n, and compute each family's features once."""
    width = sum(value[0].numel() for value in obs.values.values())
    size = max(1, ELEMENTS_AT_ONCE // max(1, members * width))
    observed = model.observed_families(obs)
    parts = []
    for start in range(0, len(obs), size):
        rows = torch.arange(start, min(start + size, len(obs)))
        part = obs.rows(rows)
        features = {name: family.features(part.values[name]) for name, family in observed.items()}
        parts.append(Chunk(part, weights[rows], start, features))
    return parts


def joint_terms(model: LatentVariableModel, chunk: Chunk) -> tuple[Tensor, dict[str, _Term], dict[str, int]]:
    """Log p(x_i, z) with every value of z in its own dimension, [*enumerated, n], and who made each factor."""
    scope: Scope = model.scope(chunk.obs)
    joint: Tensor = chunk.weights.new_zeros(())
    terms: dict[str, _Term] = {}
    dims: dict[str, int] = {}
    for node in model.local_nodes():
        d = model.distribution(node.name, scope, chunk.obs)
        column = -1
        if node.name not in scope:
            if not d.has_enumerate_support:
                raise EngineError(
                    f"EM needs every latent to be finite, and {node.name!r} is not; fit this model by SVI"
                )
            column = dims[node.name] = -2 - len(dims)
            scope[node.name] = Placed(enumerate_values(d, column), d.event_dim)
        value = scope[node.name].value
        origin = getattr(d, "origin", None)
        if origin is None:
            joint = joint + d.log_prob(value)
            continue
        family, index = origin
        features = chunk.features.get(node.name)
        if features is None or column != -1:
            features = family.features(value.reshape(-1, *d.event_shape))
            joint = joint + d.log_prob(value)
        else:
            joint = joint + _gather(family.log_density(features), index)
        terms[node.name] = _Term(family, index, features, column)
    return joint, terms, dims


def expectation(
    model: LatentVariableModel,
    parts: list[Chunk],
    responsibilities: Callable[[Chunk, Tensor], Tensor] | None = None,
) -> Expectation:
    """E-step over all chunks (000 (8), (11)).

    Parameters
    ----------
    model : LatentVariableModel
        With its shared latents bound.
    parts : list of Chunk
        The data.
    responsibilities : callable, optional
        Replaces the exact posterior [*enumerated, n] of a chunk: starts and repairs.
    """
    paths = {id(family): path for path, family in model.families().items()}
    log_prob: list[Tensor] = []
    sums: dict[str, Sums] = {}
    for chunk in parts:
        joint, terms, _ = joint_terms(model, chunk)
        flat = joint.flatten(0, -2) if joint.dim() > 1 else joint[None]
        evidence = torch.logsumexp(flat, 0)
        r = (joint - evidence).exp()
        if responsibilities is not None:
            r = responsibilities(chunk, r)
        r = r * chunk.weights
        for term in terms.values():
            path = paths[id(term.family)]
            R = _scatter(r, term.index, term.family.batch, term.column)
            _add(sums, path, term.family.expect(term.features, R))
        log_prob.append(evidence)
    return Expectation(torch.cat(log_prob), sums)


def _add(sums: dict[str, Sums], path: str, more: Sums) -> None:
    have = sums.get(path)
    sums[path] = more if have is None else {name: have[name] + value for name, value in more.items()}


def _gather(density: Tensor, index: Tensor | None) -> Tensor:
    """From log p(x_i | member), [K, n], to the members that a node was called with, [*enumerated, n]."""
    if index is None:
        return density[0]
    if index.dim() == 0:
        return density[index]
    if index.shape[-1] == 1 and density.shape[1] != 1:
        flat = index.flatten()
        same = len(flat) == len(density) and bool((flat == torch.arange(len(flat), device=flat.device)).all())
        chosen = density if same else density.index_select(0, flat)
        return chosen.reshape(*index.shape[:-1], -1)
    rows = index.reshape(-1, index.shape[-1]).expand(-1, density.shape[1])
    return density.gather(0, rows).reshape(*index.shape[:-1], -1)


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
        return r.new_zeros(K, r.shape[-1]).index_add_(0, rows, r.reshape(-1, r.shape[-1]))
    rows = index.expand(r.shape).reshape(-1, r.shape[-1])
    return r.new_zeros(K, r.shape[-1]).scatter_add_(0, rows, r.reshape(rows.shape))


def expected_log_joint(model: LatentVariableModel, parts: list[Chunk], posterior: list[Tensor]) -> Iterator[Tensor]:
    """Q(theta) = sum_i w_i E_r[log p(x_i, z)] chunk by chunk, differentiable in theta (000 (9))."""
    for chunk, r in zip(parts, posterior, strict=True):
        joint, _, _ = joint_terms(model, chunk)
        r, joint = torch.broadcast_tensors(r, joint)
        # A value ruled out by its prior has responsibility 0, and 0 * -inf is not 0.
        yield (chunk.weights * torch.where(r > 0, r * joint, 0.0)).sum()


def posteriors(model: LatentVariableModel, parts: list[Chunk]) -> list[Tensor]:
    """Responsibilities of each chunk, [*enumerated, n], detached."""
    found = []
    for chunk in parts:
        joint, _, _ = joint_terms(model, chunk)
        flat = joint.flatten(0, -2) if joint.dim() > 1 else joint[None]
        found.append((joint - torch.logsumexp(flat, 0)).exp().detach())
    return found


def finite_sizes(model: LatentVariableModel, chunk: Chunk) -> Mapping[str, int]:
    """Number of values of each finite latent."""
    joint, _, dims = joint_terms(model, chunk)
    return {name: joint.shape[dim] for name, dim in dims.items()}
