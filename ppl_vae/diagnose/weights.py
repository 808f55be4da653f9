"""Importance weights of q, and the bound that the same draws give."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ppl_vae.declare.answers import log_weights
from ppl_vae.diagnose.codes import Codes
from ppl_vae.evidence import Evidence, RunningWeights, exact
from ppl_vae.infer.rows_done import EVIDENCE, RowsDone, columns, evidence, said
from ppl_vae.objectives import Elbo

__all__ = ["bound_and_evidence", "draw_weights", "weigh"]

ROWS_AT_ONCE = 1 << 14
"""Data times draws held in memory at once."""


def bound_and_evidence(
    codes: Codes, count: int, seed: int, found: RowsDone, update: Callable[[int, str], None]
) -> tuple[Tensor, Evidence]:
    """The bound of each datum and its log p(x), by the same `count` draws of q, [n] nats each.

    Draws depend on the seed and the datum's block only, so that what `found` has already is what would be found again.
    """

    def of_block(rows: Tensor) -> dict[str, Tensor | None]:
        with codes.model.aside((seed * 1_000_003 + int(rows[0])) % (1 << 63)):
            each, log_w = _draws(codes, rows, count)
        return {"bound": each.mean(0), **columns(weigh(log_w))}

    found.work(_blocks(codes, count, found.done), of_block, lambda so_far: update(so_far.done, said(so_far)))
    bound = found.columns["bound"]
    if codes.finite:
        return bound, exact(found.columns["value"])
    # A point mass has one draw, whose weight is the bound.
    return bound, replace(exact(bound), method="bound") if codes.points else evidence(found)


BOUND = ("bound", *EVIDENCE)
"""Columns of what `bound_and_evidence` finds."""


def draw_weights(codes: Codes, count: int) -> tuple[Tensor, Tensor]:
    """The bound and log p(x_i, z) - log q(z | x_i) at `count` draws of q, [count, n] nats each, in float64.

    They differ where finite latents have a q: the bound takes their mean under it, the weights sum them out.
    """
    bound, log_w = zip(*(_draws(codes, rows, count) for rows in _blocks(codes, count)), strict=True)
    return torch.cat(bound, 1), torch.cat(log_w, 1)


def _blocks(codes: Codes, count: int, done: int = 0) -> Iterator[Tensor]:
    """Rows of the data that are not done, so many at a time that their draws fit in memory."""
    at_once = max(1, ROWS_AT_ONCE // count)
    return (torch.arange(start, min(start + at_once, codes.n)) for start in range(done, codes.n, at_once))


def _draws(codes: Codes, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), codes.model.numeric():
        own = rows.to(codes.model.like.device)
        sites = codes.model.bound_sites(codes.obs.rows(own).repeat(count), own.repeat(count))
        return Elbo(count).particles(sites).double(), log_weights(sites, count).double()


def weigh(log_w: Tensor) -> Evidence:
    """Log p(x_i) with error, effective sample size and k-hat, from log weights [count, n]."""
    weights = RunningWeights(len(log_w))
    weights.add(log_w)
    return weights.evidence()
