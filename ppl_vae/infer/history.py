"""The way EM took: its parameters at a bounded number of iterations."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.infer.mstep import Values

__all__ = ["History"]

MOST = 128
"""Iterations kept; when there are more, every second one is left out."""
NUMBERS = 500_000
"""Numbers kept in all."""


class History:
    """Parameters by iteration: all of them at first, then every second, fourth, ... one, so that few are kept.

    Examples
    --------
    >>> history = History()
    >>> for iteration in range(300):
    ...     history.add(iteration, {"loc": torch.tensor([float(iteration)])})
    >>> len(history.tensors()["iteration"]), history.tensors()["loc"][:3, 0].tolist()
    (75, [0.0, 4.0, 8.0])
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        kept = dict(state["kept"]) if state else {}
        self.step: int = state["step"] if state else 1
        self.iterations: list[int] = kept.pop("iteration").tolist() if kept else []
        self.values: list[Values] = [{name: v[i] for name, v in kept.items()} for i in range(len(self.iterations))]

    def add(self, iteration: int, values: Values) -> None:
        """Keep the values of an iteration, if it is one of those kept."""
        size = sum(value.numel() for value in values.values())
        if not size or 2 * size > NUMBERS or iteration % self.step:
            return
        self.iterations.append(iteration)
        self.values.append(values)
        if len(self.values) > min(MOST, NUMBERS // size):
            self.step *= 2
            keep = [i % self.step == 0 for i in self.iterations]
            self.values = [v for v, kept in zip(self.values, keep, strict=True) if kept]
            self.iterations = [i for i in self.iterations if i % self.step == 0]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: later iterations leave it as it is."""
        return {"step": self.step, "kept": self.tensors()}

    def tensors(self) -> dict[str, Tensor]:
        """Each parameter [iterations kept, *event], and under "iteration" which ones these are."""
        if not self.values:
            return {}
        stacked = {name: torch.stack([v[name].detach().cpu() for v in self.values]) for name in self.values[0]}
        return {"iteration": torch.tensor(self.iterations), **stacked}
