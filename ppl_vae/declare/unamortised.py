"""Data whose missing entries an encoder has seen something in the place of: its q may be far from their posterior."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare.local import HALF
from ppl_vae.declare.observations import Observations
from ppl_vae.declare.order import looked_at
from ppl_vae.declare.prototypes import moves
from ppl_vae.evidence import importance

__all__ = ["badly_covered", "unamortised", "uneven", "with_gaps"]


def with_gaps(model: Any, obs: Observations) -> Tensor:
    """Numbers of the data with missing entries that a declared posterior looks at, where a search could find others."""
    looked = looked_at(model._graph)
    gaps = [gaps.reshape(len(gaps), -1).any(1) for name, gaps in obs.missing.items() if name in looked]
    none = torch.zeros(0, dtype=torch.long, device=model.like.device)
    if not gaps or not model._graph.posteriors:
        return none
    laws = model.prototypes(obs)
    searchable = all(moves(laws[name]) for name in model.draws_latents(obs))
    return torch.stack(gaps).any(0).nonzero()[:, 0] if searchable else none


def uneven(log_w: Tensor) -> Tensor:
    """Where weights [count, n] are worth less than half of their draws, [n]."""
    return ~(importance(log_w).effective_sample_size >= HALF * len(log_w))


def badly_covered(model: Any, obs: Observations, count: int) -> Tensor:
    """Numbers of the data with missing entries at which the weights of the declared posterior's draws are uneven."""
    rows = with_gaps(model, obs)
    return rows[uneven(model.all_log_weights(obs.rows(rows), count))] if len(rows) else rows


@contextmanager
def unamortised(model: Any) -> Iterator[None]:
    """Within the block no latent has a declared posterior: every datum has a q of its own, found by a search."""
    model.__dict__["_graph"] = replace(model._graph, posteriors={})
    try:
        yield
    finally:
        del model.__dict__["_graph"]
