"""A component that has lost its data starts again from the data that the others explain worst."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.infer.assignment import uniforms
from ppl_vae.infer.expectation import Plan
from ppl_vae.infer.mstep import each_chunk
from ppl_vae.infer.parts import Chunk, Parts

__all__ = ["Found", "Key", "first_rows", "fit_badly", "given_away", "in_random_order"]

Key = Callable[[Chunk], Tensor]
"""What rows are sorted by, [n]."""
DRAWS = 1 << 32
"""Number of the first draw for a restart: those of assignments come before."""


@dataclass(frozen=True)
class Found:
    """Numbers of rows, in order, and their weights, [m] each."""

    rows: Tensor
    weights: Tensor


def fit_badly(plan: Plan) -> Key:
    """Log p(x_i): the rows that the components explain worst come first."""
    return lambda chunk: torch.logsumexp(plan.log_joint(chunk, plan.joint(chunk)).flatten(0, -2), 0).cpu()


def in_random_order(seed: int, draw: int) -> Key:
    """Times of an exponential race at rates w_i: a row of weight 2 comes as early as the first of two of weight 1.

    That is so in law: rows that are twice in the data have two draws.
    """
    return lambda chunk: -torch.log1p(-uniforms(seed, DRAWS + draw, chunk, 1)[0]) / _weights(chunk)


def first_rows(parts: Parts, key: Key, weight: float) -> Found:
    """The rows with the smallest keys, as many as weigh `weight` together; none of weight 0."""
    keys = weights = torch.zeros(0, dtype=torch.float64)
    rows = torch.zeros(0, dtype=torch.long)
    for chunk in each_chunk(parts):
        own = _weights(chunk)
        here = own.nonzero()[:, 0]
        keys = torch.cat([keys, key(chunk)[here].double()])
        weights, rows = torch.cat([weights, own[here]]), torch.cat([rows, here + chunk.start])
        keys, weights, rows = _first(keys, weights, rows, weight)
    if parts.share.world > 1:
        # A process has fewer rows than another: its places that are left over weigh nothing.
        counts = parts.share.stacked(torch.tensor(len(rows), dtype=torch.float64))
        own = torch.zeros(3, int(counts.max()), dtype=torch.float64)
        own[:, : len(rows)] = torch.stack([keys, weights, rows.double()])
        keys, weights, numbers = parts.share.stacked(own).movedim(1, 0).flatten(1)
        there = weights > 0
        _, weights, rows = _first(keys[there], weights[there], numbers[there].long(), weight)
    return Found(rows, weights)


def _first(keys: Tensor, weights: Tensor, rows: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    order = keys.argsort(stable=True)
    before = weights[order].cumsum(0) - weights[order]
    order = order[before < weight]
    return keys[order], weights[order], rows[order]


def _weights(chunk: Chunk) -> Tensor:
    ones = torch.ones(len(chunk.obs), dtype=torch.float64)
    return ones if chunk.weights is None else chunk.weights.cpu().double()


def given_away(found: Found, lost: list[int], K: int, weight: float) -> Callable[[Chunk, Tensor], Tensor]:
    """Responsibilities with `weight` of the rows found given to each lost component, the j-th share to the j-th.

    A row where one share ends and the next begins is divided, so that one of weight 2 is given as two rows are.
    """
    ends = found.weights.cumsum(0)
    edges = weight * torch.arange(len(lost) + 1, dtype=torch.float64)[:, None]
    shares = torch.minimum(ends, edges[1:]) - torch.maximum(ends - found.weights, edges[:-1])
    shares = shares.clamp_min(0) / found.weights  # [lost, m], of each row

    def replaced(chunk: Chunk, r: Tensor) -> Tensor:
        here = (found.rows >= chunk.start) & (found.rows < chunk.start + len(chunk.obs))
        columns, own = (found.rows[here] - chunk.start).to(r.device), shares[:, here].to(r)
        given = torch.zeros(K, own.shape[1]).to(r).index_copy(0, torch.tensor(lost, device=r.device), own)
        return r.index_copy(1, columns, (1 - own.sum(0)) * r[:, columns] + given)

    return replaced
