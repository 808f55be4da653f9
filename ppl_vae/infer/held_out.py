"""The bound on data that are not trained on, and whether it got better by more than its own noise."""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel
from ppl_vae.infer.batches import Batches

__all__ = ["HeldOut"]


class HeldOut:
    """The bound of held-out data, with the same noise at every look, so that looks can be compared datum by datum.

    Parameters
    ----------
    model : LatentVariableModel
        As it is trained.
    batches : Batches
        The held-out data, in their order.
    seed : int
        Of the noise.
    """

    def __init__(self, model: LatentVariableModel, batches: Batches, seed: int) -> None:
        self.model, self.batches, self.seed = model, batches, seed
        self.best: Tensor | None = None

    def look(self) -> Tensor:
        """The bound of each datum, [n] nats."""
        model = self.model
        with model.standing(), model.aside(self.seed), torch.no_grad(), model.numeric():
            shared, _ = model.draw_shared()
            with model.bind(shared):
                parts = [model.elbo(batch.obs)[: batch.real] for batch in self.batches.epoch(0)]
        return torch.cat(parts)

    def better(self, bound: Tensor) -> bool:
        """Whether the mean gain over the best look is larger than its standard error; then this is the best look."""
        if self.best is not None:
            gain = (bound - self.best).double()
            error = gain.std(correction=0) / math.sqrt(len(gain))
            # A gain over -inf is infinite, and has no standard error.
            if not (gain.mean() == torch.inf or gain.mean() > error):
                return False
        self.best = bound
        return True

    def state(self) -> Any:
        """For a checkpoint."""
        return self.best

    def restore(self, state: Any) -> None:
        """Take a checkpoint's state."""
        self.best = state
