"""Several processes started by torchrun: each sums its share of the blocks, and the sums are added over all."""

from dataclasses import dataclass

__all__ = ["Share"]


@dataclass(frozen=True)
class Share:
    """Which blocks are this process's: those whose number leaves `rank` when divided by `world`."""

    rank: int = 0
    world: int = 1
