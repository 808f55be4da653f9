"""Online EM: an M-step after every batch of rows, on sums that forget (Cappe and Moulines 2009)."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae.declare import Observations
from ppl_vae.errors import EngineError
from ppl_vae.families import Sums
from ppl_vae.infer.mstep import Values
from ppl_vae.infer.parts import Chunk, Held, Parts, Streamed

if TYPE_CHECKING:
    from ppl_vae.infer.climb import Climb

__all__ = ["Batch", "Online", "batches"]

DELAY = 10
"""t_0: the first batch replaces a quarter of the sums of the first E-step at decay 0.6, not most of them."""
BLOCK = 1024
"""Rows of a batch that one thread or process takes at a time."""
PATIENCE = 3
"""Epochs without a better bound after which a run ends."""

AllSums = dict[str, Sums]
Rows = tuple[Observations, Tensor | None]


class Online:
    """Epochs of stochastic approximation in the space of expected sufficient statistics.

    After batch B, with all W weights and those of the batch W_B,

        S_t = (1 - g_t) S_{t-1} + g_t (W / W_B) S_B(theta_{t-1}),   theta_t = argmax over S_t,   g_t = (t + t_0)^-decay.

    S_0 is one E-step over all data.

    Parameters
    ----------
    climb : Climb
        The run: its data, model, E-step and M-step.
    batch_size : int
        Rows of a batch.

    References
    ----------
    Cappe, O. and Moulines, E. (2009). On-line expectation-maximization algorithm for latent data models. Journal of the
    Royal Statistical Society B 71, 593-613.
    """

    def __init__(self, climb: "Climb", batch_size: int) -> None:
        self.climb, self.batch_size, self.step = climb, batch_size, 0
        self.running: AllSums | None = None
        owned = tuple(f"{path}." for path in climb.model.families())
        if climb.owner.free() or not all(name.startswith(owned) or name in climb.em.frozen for name in climb.values):
            raise EngineError(
                "EM: batch_size needs an M-step in closed form, and this model has parameters that no family owns, or "
                "shared latents declared by hand; fit it by SVI, or leave batch_size out"
            )
        if climb.parts.share.world > 1 and isinstance(climb.parts, Streamed):
            raise EngineError(
                "EM: batches of a stream are for one process; hold the data in memory, or leave batch_size out"
            )

    def epoch(self, sums: AllSums, values: Values, number: int) -> tuple[AllSums, Values]:
        """One pass over the data in batches, from the sums of the last E-step over all data."""
        climb, em = self.climb, self.climb.em
        running = sums if self.running is None else self.running
        order = torch.Generator().manual_seed(em.seed * 1_000_003 + number)
        for batch in batches(climb.parts, self.batch_size, order):
            self.step += 1
            assign = climb.assign(number, draw=em.max_iter + self.step)
            e, plan = climb.expect(values, assign, batch=batch)
            share, gain = batch.total() / climb.total, (self.step + DELAY) ** -em.decay
            with torch.no_grad():
                running = mixed(running, plan.finish(e), 1 - gain, gain / share)
                values = climb.maximizer.closed_forms(running, values)
        self.running = running
        climb.e_steps += 1
        return running, values

    def restart(self) -> None:
        """Begin anew from the next E-step over all data, as after a repair."""
        self.step, self.running = 0, None

    def state(self) -> dict[str, Any]:
        """What the next epoch needs, for a checkpoint."""
        return {"step": self.step, "running": self.running}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.step, self.running = state["step"], state["running"]

    def settled(self, bound: list[float]) -> bool:
        """Whether the last epochs have brought nothing above the noise of the batches."""
        em, total = self.climb.em, self.climb.total
        if len(bound) <= PATIENCE:
            return False
        gain = (max(bound[-PATIENCE:]) - max(bound[:-PATIENCE])) / total
        return gain <= em.tol * max(1.0, abs(bound[-1]) / total)


def mixed(a: AllSums, b: AllSums, wa: float, wb: float) -> AllSums:
    """Every sum as wa a + wb b."""
    return {path: {name: wa * value + wb * b[path][name] for name, value in own.items()} for path, own in a.items()}


class Batch(Parts):
    """Some rows of other parts, in blocks that do not depend on the number of threads and processes."""

    def __init__(self, parts: Parts, obs: Observations, weights: Tensor | None) -> None:
        self.model, self.families, self.share, self.rows = parts.model, parts.families, parts.share, parts.rows
        self.obs, self.weights = obs, weights

    def blocks(self) -> Iterator[slice]:
        """Every so-many-th block, in this process."""
        spans = [slice(low, min(low + BLOCK, len(self.obs))) for low in range(0, len(self.obs), BLOCK)]
        return iter(spans[self.share.rank :: self.share.world])

    @property
    def num_blocks(self) -> int:
        """Blocks of this size are small: each is one thread's work."""
        return 1

    def chunks(self, block: slice) -> Iterator[Chunk]:
        """The block in chunks, their features made anew."""
        return self.cut(self.obs.rows(block), None if self.weights is None else self.weights[block], block.start)

    def total(self) -> float:
        """Sum of the weights."""
        return float(len(self.obs)) if self.weights is None else float(self.weights.sum())


def batches(parts: Parts, size: int, order: torch.Generator) -> Iterator[Batch]:
    """Disjoint batches of about `size` rows: in random order from memory, in its own order from a stream."""
    for obs, weights in SOURCES[type(parts)](parts, order):
        count = max(1, round(len(obs) / size))
        edges = torch.linspace(0, len(obs), count + 1, dtype=torch.float64).round().long().tolist()
        for low, high in pairwise(edges):
            rows = slice(low, high)
            batch = Batch(parts, obs.rows(rows), None if weights is None else weights[rows])
            if batch.total() > 0:
                yield batch


def _shuffled(parts: Held, order: torch.Generator) -> Iterator[Rows]:
    rows = torch.randperm(parts.n, generator=order).to(parts.model.like.device)
    yield parts.obs.rows(rows), None if parts.weights is None else parts.weights[rows]


def _read(parts: Streamed, order: torch.Generator) -> Iterator[Rows]:
    for block in parts.blocks():
        yield parts.rows_of(block), parts.weights_of(block)


SOURCES: dict[type[Parts], Callable[..., Iterator[Rows]]] = {Held: _shuffled, Streamed: _read}
