"""What a model's factors say of each datum: importance weights, classes, means."""

import math
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.families.product import Blocks
from ppl_vae.missing import Incomplete, conditional_mean
from ppl_vae.objectives import Sites
from ppl_vae.objectives.sites import total

__all__ = [
    "class_probabilities",
    "completed",
    "expected_of",
    "finite_posterior",
    "log_classes",
    "log_weights",
    "reconstructed",
]


def log_weights(sites: Sites, count: int) -> Tensor:
    """Log p(x, z) - log q(z) at the drawn latents, finite ones summed out exactly, [count, n]."""
    joint = _weights(sites)
    summed = torch.logsumexp(joint.flatten(0, -2), 0) if joint.dim() > 1 else joint
    return summed.reshape(count, -1)


def _weights(sites: Sites) -> Tensor:
    """Log p(x, z) - log q of the latents that were drawn, every finite value in its own dimension, [*enumerated, n]."""
    return sites.joint() - total(sites.log_q[name] for name in sites.drawn)


def finite_posterior(sites: Sites) -> Tensor:
    """Probability of every combination of finite values given x, [*enumerated, n]: exact where no latent was drawn.

    Beside drawn latents, those with a declared posterior have that, and the others are exact given the draws.
    """
    joint = _weights(sites)
    if not sites.drawn:
        return torch.softmax(joint.flatten(0, -2), 0).view(joint.shape) if joint.dim() > 1 else torch.ones_like(joint)
    log_q = total(sites.log_q[name] for name in sites.enumerated)
    marginal = sites.marginal(joint)
    # Where p excludes what q does not, nothing tells the values that are summed out apart.
    given = torch.where(marginal == -torch.inf, -math.log(joint.numel() / marginal.numel()), joint - marginal)
    return (given + log_q).exp()


def log_classes(sites: Sites, name: str, count: int) -> Tensor:
    """What each draw says of a finite latent, [count, n, K], whose sum over draws is in proportion to its posterior.

    Beside drawn latents y it is log q(z = k | x) where z has a declared posterior, else log p(x, z = k, y) - log q(y).
    """
    given = name in sites.enumerated and bool(sites.drawn)
    joint = finite_posterior(sites).log() if given else _weights(sites)
    dim = {**sites.enumerated, **sites.summed}[name]
    others = [d for d in range(-joint.dim(), -1) if d != dim]
    marginal = torch.logsumexp(joint, others, keepdim=True) if others else joint
    return marginal.movedim(dim, -1).reshape(count, -1, marginal.shape[dim])


def class_probabilities(sites: Sites, name: str, count: int) -> Tensor:
    """The posterior of a finite latent by `count` draws of the others, [n, K]."""
    return torch.softmax(torch.logsumexp(log_classes(sites, name, count), 0), -1)


def reconstructed(sites: Sites, name: str, count: int, value: Tensor) -> Tensor:
    """E[x | z] under the posterior of the finite latents, mean over draws of the others, [n, *event].

    Of numbers of categories it is that of their one-hot vectors: the probabilities, [n, *event, C].
    """
    d = sites.p[name]
    probs = _category_probs(d)
    if probs is not None:
        return _averaged(sites, probs, count, d.event_dim + 1)
    with suppress(NotImplementedError):
        if not bool((means := d.mean).isnan().any()):
            return _averaged(sites, means, count, d.event_dim)
    law = d.base if isinstance(d, Incomplete) else d
    raise EngineError(f"reconstruct gives means, and {name!r}, a {type(law).__name__}, has none: take sample(n)")


def expected_of(sites: Sites, name: str, count: int, value: Tensor) -> Tensor:
    """E[x | x_seen] as one row of numbers a datum, [n, numbers]: probabilities in place of categories.

    Read where entries of the value [n count, *event] are missing.
    """
    d = sites.p[name]
    gap = d.missing if isinstance(d, Incomplete) else torch.zeros_like(value, dtype=torch.bool)
    parts = []
    for law, x, hidden in _columns(d, value, gap):
        probs = _category_probs(law)
        each = conditional_mean(law, x, hidden) if probs is None else probs
        mean = _averaged(sites, each, count, law.event_dim + (probs is not None))
        parts.append(mean.reshape(len(mean), -1))
    return torch.cat(parts, 1)


def completed(d: TorchDistribution, name: str, expected: Tensor, value: Tensor, missing: Tensor) -> Tensor:
    """The value [n, *event] with what `expected_of` says where it is missing: of categories, the most probable one."""
    parts, at = [], 0
    for law, x, hidden in _columns(d, value, missing):
        probs = _category_probs(law)
        width = law.event_shape.numel() * (1 if probs is None else probs.shape[-1])
        found = expected[:, at : at + width]
        found = found.reshape(x.shape) if probs is None else found.reshape(*x.shape, -1).argmax(-1).to(x)
        if bool((found.isnan() & hidden).any()):
            raise EngineError(f"impute gives means, and {name!r}, a {type(law).__name__}, has none: take sample(n)")
        parts.append(torch.where(hidden, found, x))
        at += width
    return parts[0] if len(parts) == 1 else torch.cat([part.reshape(len(value), -1) for part in parts], 1)


def _columns(d: TorchDistribution, *values: Tensor) -> list[tuple[Any, ...]]:
    """The laws of independent columns, each with its part of these values; any other law whole."""
    law = d.base if isinstance(d, Incomplete) else d
    if not isinstance(law, Blocks):
        return [(law, *values)]
    return list(zip(law.parts, *(law.split(value) for value in values), strict=True))


def _averaged(sites: Sites, each: Tensor, count: int, event_dim: int) -> Tensor:
    """Mean of [*enumerated, n, *event] under the posterior of the finite latents, and over draws, [n, *event]."""
    shares, event = _shares(sites, count), each.shape[each.dim() - event_dim :]
    weighted = shares.reshape(*shares.shape, *[1] * event_dim) * each.expand(shares.shape + event)
    summed = weighted.flatten(0, shares.dim() - 2).sum(0) if shares.dim() > 1 else weighted
    return summed.reshape(count, -1, *event).sum(0)


def _shares(sites: Sites, count: int) -> Tensor:
    """What every combination of finite values and every draw counts in a mean, [*enumerated, n count].

    Draws of q count alike, but for data of which entries are missing that q looks at: it has seen something in their
    place, so draws count by p(x, z) / q(z).
    """
    alike = finite_posterior(sites) / count
    seen = {name: d for name, d in sites.p.items() if name in sites.looked_at}
    gaps = [d.missing.reshape(len(d.missing), -1).any(1) for d in seen.values() if isinstance(d, Incomplete)]
    if count == 1 or not gaps or not sites.drawn:
        return alike
    joint = _weights(sites)
    by_draw = joint.reshape(*joint.shape[:-1], count, -1)
    whole = by_draw.flatten(0, -2).logsumexp(0)
    weighted = (by_draw - whole).exp().reshape(joint.shape)
    return torch.where(torch.stack(gaps).any(0) & (whole > -torch.inf).repeat(count), weighted, alike)


def _category_probs(d: TorchDistribution) -> Tensor | None:
    """[..., C] of a law whose values are numbers of categories."""
    while isinstance(d, Incomplete | dist.Independent):
        d = d.base if isinstance(d, Incomplete) else d.base_dist
    return d.probs if isinstance(d, dist.Categorical) else None
