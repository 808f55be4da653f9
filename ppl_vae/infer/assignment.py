"""What an E-step puts in the place of q(z): the posterior, its best value, a draw from it, or a tempered posterior."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppl_vae.families.workspace import out
from ppl_vae.infer.parts import Chunk

__all__ = [
    "ASSIGNMENTS",
    "Assign",
    "Assigned",
    "alike",
    "hard",
    "posterior",
    "soft",
    "stirred",
    "stochastic",
    "tempered",
    "uniforms",
]

NOTHING = 1e-290
"""Responsibility that counts as zero."""
LOWEST = -690.0
"""Log responsibility, relative to the largest, below which none is computed."""
FEW = 4096
"""Data whose logarithms take no longer than calls do."""
ALIKE = 1e-6
"""Difference of responsibilities that rounding, and gradients that were not followed to their end, make."""
STIR = 0.1
"""Standard deviation of the noise in log responsibilities while a schedule cools."""


@dataclass(frozen=True)
class Assigned:
    """What an E-step found for each datum.

    Attributes
    ----------
    r : Tensor
        Responsibilities [C, n] over C values of the latents.
    best, share : Tensor
        max_z log p(x_i, z), [n], and the posterior probability of that z: log p(x) = log p(x, z) - log p(z | x).
    objective : Tensor, optional
        The bound on log p(x_i) that r maximises, [n]; None where it is tight.
    """

    r: Tensor
    best: Tensor
    share: Tensor
    objective: Tensor | None = None

    @property
    def log_prob(self) -> Tensor:
        """Log p(x_i), [n]."""
        return self.best - self.share.log()

    def log_likelihood(self, weights: Tensor | None) -> Tensor:
        """The sum of w_i log p(x_i)."""
        if weights is not None:
            return weights @ self.log_prob
        n, rows = self.share.shape[0], min(64, int(600 / math.log(self.r.shape[0] + 1)))
        if n < FEW:
            return self.log_prob.sum()
        # Logarithms are dear: those of products of shares, each at least 1 / C, are as good.
        products = self.share[: n - n % rows].view(rows, -1).prod(0)
        return self.best.sum() - products.log_().sum() - self.share[n - n % rows :].log().sum()


Assign = Callable[[Tensor, Chunk], Assigned]


def posterior(joint: Tensor) -> Assigned:
    """The posterior r = p(z | x), from log p(x, z), [C, n] (000 (8))."""
    n = joint.shape[1]
    best = torch.amax(joint, 0, out=out(joint, n))
    if bool(joint.amin() >= best.amax() + LOWEST):
        r = torch.softmax(joint, 0, out=out(joint, *joint.shape))
        return Assigned(r, best, torch.amax(r, 0, out=out(joint, n)))
    # Numbers nearly too small to be held are a hundred times slower, and worth nothing.
    held = torch.maximum(joint, best + LOWEST, out=out(joint, *joint.shape))
    r = torch.softmax(held, 0, out=out(joint, *joint.shape))
    share = torch.amax(r, 0, out=out(joint, n))
    return Assigned(torch.threshold_(r, NOTHING, 0.0), best, share)


def alike(r: Tensor) -> bool:
    """Whether responsibilities [C, n] are the same for all data, of two values and two data or more."""
    return min(r.shape) > 1 and bool((r.amax(1) - r.amin(1)).max() < ALIKE)


def soft(joint: Tensor, chunk: Chunk) -> Assigned:
    """The posterior itself, tight: the bound is log p(x)."""
    return posterior(joint)


def hard(joint: Tensor, chunk: Chunk) -> Assigned:
    """All mass on the most probable value: classification EM; its bound is max_z log p(x, z)."""
    exact = posterior(joint)
    best = joint.max(0, keepdim=True).indices  # argmax over the first dimension is ten times slower
    r = torch.zeros_like(joint).scatter_(0, best, 1.0)
    return Assigned(r, exact.best, exact.share, exact.best)


def stochastic(seed: int, iteration: int) -> Assign:
    """One draw from p(z | x) for each datum (Celeux and Diebolt 1985)."""

    def assign(joint: Tensor, chunk: Chunk) -> Assigned:
        exact = posterior(joint)
        u = uniforms(seed, iteration, chunk, 1)[0].to(joint)
        drawn = (exact.r.cumsum(0) < u).sum(0).clamp_max(len(joint) - 1)
        return Assigned(torch.zeros_like(joint).scatter_(0, drawn[None], 1.0), exact.best, exact.share)

    return assign


def tempered(temperature: float) -> Assign:
    """R proportional to p(x, z)^(1/T), which maximises E_r[log p(x, z)] + T H(r) (Ueda and Nakano 1998)."""

    def assign(joint: Tensor, chunk: Chunk) -> Assigned:
        exact, scaled = posterior(joint), posterior(joint / temperature)
        return Assigned(scaled.r, exact.best, exact.share, temperature * scaled.log_prob)

    return assign


def stirred(temperature: float, seed: int, iteration: int) -> Assign:
    """Tempered, each log responsibility moved by a little noise.

    At a high temperature all components meet in one point, a saddle that EM from there never leaves; the noise keeps
    them apart, for cooling to separate.
    """
    exact = tempered(temperature)

    def assign(joint: Tensor, chunk: Chunk) -> Assigned:
        found = exact(joint, chunk)
        noise = (uniforms(seed, iteration, chunk, len(joint)) - 0.5).to(joint)
        r = found.r * (math.sqrt(12) * STIR * noise).exp()
        return replace(found, r=r / r.sum(0))

    return assign


def uniforms(seed: int, draw: int, chunk: Chunk, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each row, [count, n]: those of its place in the data, whatever chunk it is in."""
    first, n = chunk.start * count, len(chunk.obs)
    step, skipped = divmod(first, 4)  # a step of Philox's counter gives four numbers
    generator = np.random.Generator(np.random.Philox(key=(seed, draw), counter=step))
    return torch.from_numpy(generator.random(skipped + n * count)[skipped:]).view(n, count).T


def _soft(seed: int, iteration: int, temperature: float, cooling: bool) -> Assign:
    if temperature == 1:
        return soft
    return stirred(temperature, seed, iteration) if cooling and temperature > 1 else tempered(temperature)


ASSIGNMENTS: dict[str, Callable[[int, int, float, bool], Assign]] = {
    "soft": _soft,
    "hard": lambda seed, iteration, temperature, cooling: hard,
    "stochastic": lambda seed, iteration, temperature, cooling: stochastic(seed, iteration),
}
"""Assignment by name, from a seed, an iteration, a temperature and whether a schedule will still change it."""
