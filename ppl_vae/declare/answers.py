"""What a model's factors say of each datum: importance weights, classes, means."""

from contextlib import suppress
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.objectives import Sites

__all__ = ["class_probabilities", "log_weights", "mean_of"]


def log_weights(sites: Sites, count: int) -> Tensor:
    """Log p(x, z) - log q(z) at the drawn latents, finite ones summed out exactly, [count, n]."""
    total = _weights(sites)
    summed = torch.logsumexp(total.flatten(0, -2), 0) if total.dim() > 1 else total
    return summed.reshape(count, -1)


def _weights(sites: Sites) -> Tensor:
    """Log p(x, z) - log q of the latents that were drawn, every finite value in its own dimension, [*enumerated, n]."""
    total: Any = sites.joint()
    for name, log_q in sites.log_q.items():
        if name not in sites.enumerated:
            total = total - log_q
    return total


def class_probabilities(sites: Sites, name: str, count: int) -> Tensor:
    """p(z = k | x) from the joint over all finite latents, the others by importance weights, [n, K]."""
    joint = _weights(sites)
    dim = {**sites.enumerated, **sites.summed}[name]
    others = [d for d in range(-joint.dim(), -1) if d != dim]
    marginal = torch.logsumexp(joint, others, keepdim=True) if others else joint
    log_k = marginal.movedim(dim, -1).reshape(-1, marginal.shape[dim])
    return torch.softmax(torch.logsumexp(log_k.reshape(count, -1, marginal.shape[dim]), 0), -1)


def mean_of(sites: Sites, name: str, count: int) -> Tensor:
    """E[x | z] under the posterior of the finite latents, mean over draws of the others, [n, *event]."""
    d = sites.p[name]
    means = _means(d, name)
    joint = _weights(sites)
    if joint.dim() == 1:
        mean = means.expand(len(joint), *d.event_shape)
    else:
        weight = torch.softmax(joint.flatten(0, -2), 0).reshape(joint.shape)
        each = means.expand(joint.shape + d.event_shape)
        weight = weight.reshape(*weight.shape, *[1] * len(d.event_shape))
        mean = (weight * each).flatten(0, joint.dim() - 2).sum(0)
    return mean.reshape(count, -1, *d.event_shape).mean(0)


def _means(d: TorchDistribution, name: str) -> Tensor:
    with suppress(NotImplementedError):
        if not bool((means := d.mean).isnan().any()):
            return means
    raise EngineError(f"reconstruct gives means, and {name!r}, a {type(d).__name__}, has none: take sample(n)")
