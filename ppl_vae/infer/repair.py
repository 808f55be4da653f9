"""A component that has lost its data starts again from the data that the others explain worst."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_vae.infer.expectation import Plan
from ppl_vae.infer.mstep import each_chunk
from ppl_vae.infer.parts import Chunk, Parts

__all__ = ["given_away", "worst_rows"]


def worst_rows(plan: Plan, parts: Parts, count: int) -> Tensor:
    """Numbers of the `count` rows with the smallest log p(x_i), worst first."""
    kept, keys = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
    for chunk in each_chunk(parts):
        log_prob = torch.logsumexp(plan.log_joint(chunk, plan.joint(chunk)).flatten(0, -2), 0).cpu()
        if chunk.weights is not None:
            log_prob = log_prob.masked_fill(chunk.weights.cpu() == 0, torch.inf)
        keys = torch.cat([keys, log_prob])
        kept = torch.cat([kept, torch.arange(len(log_prob)) + chunk.start])
        best = keys.topk(min(count, len(keys)), largest=False).indices
        kept, keys = kept[best], keys[best]
    if parts.share.world == 1:
        return kept
    # A process may have fewer rows than `count`: its places that are left over have no number.
    full = torch.tensor([[torch.inf], [-1.0]], dtype=torch.float64).repeat(1, count)
    full[:, : len(keys)] = torch.stack([keys, kept])
    keys, kept = parts.share.stacked(full).movedim(1, 0).flatten(1)
    kept = kept[keys.topk(count, largest=False).indices].long()
    return kept[kept >= 0]


def given_away(rows: Tensor, lost: list[int], K: int) -> Callable[[Chunk, Tensor], Tensor]:
    """Responsibilities with equal shares of `rows` given to each lost component, the j-th share to the j-th."""
    share = len(rows) // len(lost)
    owner = torch.tensor(lost).repeat_interleave(share)
    rows = rows[: len(owner)]

    def replaced(chunk: Chunk, r: Tensor) -> Tensor:
        here = (rows >= chunk.start) & (rows < chunk.start + len(chunk.obs))
        columns = (rows[here] - chunk.start).to(r.device)
        one_hot = torch.nn.functional.one_hot(owner[here], K).T.to(r)
        return r.index_copy(1, columns, one_hot)

    return replaced
