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
from ppl_vae.evidence import importance

__all__ = ["badly_covered", "unamortised"]


def badly_covered(model: Any, obs: Observations, count: int) -> Tensor:
    """Numbers of the data with missing entries at which the weights of the declared posterior's draws are uneven."""
    looked = looked_at(model._graph)
    gaps = [gaps.reshape(len(gaps), -1).any(1) for name, gaps in obs.missing.items() if name in looked]
    none = torch.zeros(0, dtype=torch.long, device=model.like.device)
    if not gaps or not model._graph.posteriors:
        return none
    laws = model.prototypes(obs)
    if not all(laws[name].has_rsample for name in model.draws_latents(obs)):
        return none
    rows = torch.stack(gaps).any(0).nonzero()[:, 0]
    if not len(rows):
        return none
    log_w = model.all_log_weights(obs.rows(rows), count)
    return rows[~(importance(log_w).effective_sample_size >= HALF * count)]


@contextmanager
def unamortised(model: Any) -> Iterator[None]:
    """Within the block no latent has a declared posterior: every datum has a q of its own, found by a search."""
    model.__dict__["_graph"] = replace(model._graph, posteriors={})
    try:
        yield
    finally:
        del model.__dict__["_graph"]
