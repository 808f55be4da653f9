"""What an E-step puts in the place of q(z): the posterior, its best value, a draw from it, or a tempered posterior."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.families.workspace import out
from ppl_vae.infer.parts import Chunk

__all__ = ["ASSIGNMENTS", "Assign", "Assigned", "hard", "soft", "stochastic", "tempered"]


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
        generator = torch.Generator().manual_seed(
            (seed * 1_000_003 + iteration) * 2_147_483_647 % (1 << 62) + chunk.start
        )
        u = torch.rand(joint.shape[1], generator=generator, dtype=torch.float64).to(joint)
        drawn = (exact.r.cumsum(0) < u).sum(0).clamp_max(len(joint) - 1)
        return Assigned(torch.zeros_like(joint).scatter_(0, drawn[None], 1.0), exact.log_prob)

    return assign


def tempered(temperature: float) -> Assign:
    """R proportional to p(x, z)^(1/T), which maximises E_r[log p(x, z)] + T H(r) (Ueda and Nakano 1998)."""

    def assign(joint: Tensor, chunk: Chunk) -> Assigned:
        scaled = soft(joint / temperature, chunk)
        return Assigned(scaled.r, torch.logsumexp(joint, 0), temperature * scaled.log_prob)

    return assign


ASSIGNMENTS: dict[str, Callable[[int, int, float], Assign]] = {
    "soft": lambda seed, iteration, temperature: soft if temperature == 1 else tempered(temperature),
    "hard": lambda seed, iteration, temperature: hard,
    "stochastic": lambda seed, iteration, temperature: stochastic(seed, iteration),
}
"""Assignment by name, from a seed, an iteration and a temperature."""
