"""Importance weights of q, and the bound that the same draws give."""

import torch
from torch import Tensor

from ppl_vae.declare.answers import log_weights
from ppl_vae.diagnose.codes import Codes
from ppl_vae.evidence import Evidence, RunningWeights
from ppl_vae.objectives import Elbo

__all__ = ["draw_weights", "weigh"]

ROWS_AT_ONCE = 1 << 14
"""Data times draws held in memory at once."""


def draw_weights(codes: Codes, count: int) -> tuple[Tensor, Tensor]:
    """The bound and log p(x_i, z) - log q(z | x_i) at `count` draws of q, [count, n] nats each, in float64.

    They differ where finite latents have a q: the bound takes their mean under it, the weights sum them out.
    """
    log_w, bound = [], []
    at_once = max(1, ROWS_AT_ONCE // count)
    with torch.no_grad(), codes.model.numeric():
        for start in range(0, codes.n, at_once):
            own = torch.arange(start, min(start + at_once, codes.n), device=codes.model.like.device)
            sites = codes.model.bound_sites(codes.obs.rows(own).repeat(count), own.repeat(count))
            log_w.append(log_weights(sites, count).double())
            bound.append(Elbo(count).particles(sites).double())
    return torch.cat(bound, 1), torch.cat(log_w, 1)


def weigh(log_w: Tensor) -> Evidence:
    """Log p(x_i) with error, effective sample size and k-hat, from log weights [count, n]."""
    weights = RunningWeights(len(log_w))
    weights.add(log_w)
    return weights.evidence()
