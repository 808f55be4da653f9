"""Draws while they are made: what was planned, who is told, and what is left when somebody ends it early."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.fit import Status
from ppl_vae.infer.callbacks import Callbacks
from ppl_vae.progress import Update

__all__ = ["Chains", "Plan", "Watch", "complete"]


@dataclass(frozen=True)
class Plan:
    """How much to sample, and who is told."""

    num_samples: int
    warmup: int
    seed: int
    show: bool = False
    hooks: Callbacks = field(default_factory=Callbacks)

    @property
    def length(self) -> int:
        """Draws of a chain, those of the warm-up included."""
        return self.warmup + self.num_samples


@dataclass(frozen=True)
class Chains:
    """Draws [chain, draw, size], the sampler's record [chain, draw], and how it ended if before its end."""

    u: np.ndarray
    stats: dict[str, Tensor]
    ended: Status | None = None


class Watch:
    """Draws are noted from any thread; the main one tells progress and callbacks of them."""

    def __init__(self, plan: Plan, chains: int, update: Update) -> None:
        self.plan, self.update = plan, update
        self.total = chains * plan.length
        self.noted: deque[tuple[int, int]] = deque()
        self.failures: list[Exception] = []
        self.step = 0

    def note(self, chain: int, draw: int) -> None:
        """One more draw."""
        self.noted.append((chain, draw))

    def told(self, said: str) -> bool:
        """Whether to go on, after telling of what was noted since."""
        hooks = self.plan.hooks
        while self.noted:
            chain, draw = self.noted.popleft()
            hooks.begin(self.step)
            stop = hooks.end(self.step, {"chain": chain, "draw": draw, "warmup": float(draw < self.plan.warmup)})
            self.step += 1
            if stop:
                return False
        self.update(self.step, said)
        return True


def complete(u: np.ndarray, stats: dict[str, Tensor], ended: Status) -> Chains:
    """What chains that were cut short have in common: the largest rectangle without gaps."""
    made = np.isfinite(u).all(-1).sum(1)
    length = max(made, key=lambda n: (made >= n).sum() * n)
    if not length:
        raise EngineError(f"NUTS was ended before any draw was kept: {ended.message}")
    kept = np.flatnonzero(made >= length)
    return Chains(u[kept, :length], {name: value[kept, :length] for name, value in stats.items()}, ended)
