"""What an E-step puts in the place of q(z): the posterior, its best value, a draw from it, or a tempered posterior."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.families.workspace import out
from ppl_vae.infer.parts import Chunk

__all__ = ["ASSIGNMENTS", "Assign", "Assigned", "hard", "soft", "stirred", "stochastic", "tempered"]

STIR = 0.1
"""Standard deviation of the noise in log responsibilities while a schedule cools."""


@dataclass(frozen=True)
class Assigned:
    """Responsibilities r [C, n] over C values of the latents, log p(x_i), [n], and the bound on it that r maximises.

    `objective` is None where the bound is tight.
    """

    r: Tensor
    log_prob: Tensor
    objective: Tensor | None = None


Assign = Callable[[Tensor, Chunk], Assigned]


def soft(joint: Tensor, chunk: Chunk) -> Assigned:
    """The posterior r = p(z | x), from log p(x, z), [C, n] (000 (8))."""
    best = joint.amax(0)
    r = torch.sub(joint, best, out=out(joint, *joint.shape)).exp_()
    total = r.sum(0)
    return Assigned(r.div_(total), total.log_().add_(best))


def hard(joint: Tensor, chunk: Chunk) -> Assigned:
    """All mass on the most probable value: classification EM; its bound is max_z log p(x, z)."""
    best = joint.max(0)
    r = torch.zeros_like(joint).scatter_(0, best.indices[None], 1.0)
    return Assigned(r, torch.logsumexp(joint, 0), best.values)


def stochastic(seed: int, iteration: int) -> Assign:
    """One draw from p(z | x) for each datum (Celeux and Diebolt 1985), the same whatever the threads."""

    def assign(joint: Tensor, chunk: Chunk) -> Assigned:
        exact = soft(joint, chunk)
        u = torch.rand(joint.shape[1], generator=_generator(seed, iteration, chunk), dtype=torch.float64).to(joint)
        drawn = (exact.r.cumsum(0) < u).sum(0).clamp_max(len(joint) - 1)
        return Assigned(torch.zeros_like(joint).scatter_(0, drawn[None], 1.0), exact.log_prob)

    return assign


def tempered(temperature: float) -> Assign:
    """R proportional to p(x, z)^(1/T), which maximises E_r[log p(x, z)] + T H(r) (Ueda and Nakano 1998)."""

    def assign(joint: Tensor, chunk: Chunk) -> Assigned:
        scaled = soft(joint / temperature, chunk)
        return Assigned(scaled.r, torch.logsumexp(joint, 0), temperature * scaled.log_prob)

    return assign


def stirred(temperature: float, seed: int, iteration: int) -> Assign:
    """Tempered, each log responsibility moved by a little noise.

    At a high temperature all components meet in one point, a saddle that EM from there never leaves; the noise keeps
    them apart, for cooling to separate.
    """
    exact = tempered(temperature)

    def assign(joint: Tensor, chunk: Chunk) -> Assigned:
        found = exact(joint, chunk)
        noise = torch.randn(joint.shape, generator=_generator(seed, iteration, chunk), dtype=torch.float64).to(joint)
        r = found.r * (STIR * noise).exp()
        return Assigned(r / r.sum(0), found.log_prob, found.objective)

    return assign


def _generator(seed: int, iteration: int, chunk: Chunk) -> torch.Generator:
    """Random numbers that depend on the rows, not on who works on them."""
    state = (seed * 1_000_003 + iteration) * 2_147_483_647 % (1 << 62) + chunk.start
    return torch.Generator().manual_seed(state)


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
