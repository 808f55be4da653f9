"""Data in memory as batches: shuffled by one permutation an epoch and cut by index, without a loader's cost."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.identity import fingerprint
from ppl_vae.infer.batch import Batch, Recipe, order_of, shared_rows, taken
from ppl_vae.infer.weights import check_weights

__all__ = ["Resident"]


class Resident:
    """Batches of a tensor, an array, a data frame or a mapping, all of it on the model's device.

    Parameters
    ----------
    model : LatentVariableModel
        Whose nodes the data are for.
    data : Tensor, array, data frame, Table, mapping or Observations
        n rows.
    weights : Tensor, optional
        [n], non-negative.
    recipe : Recipe
        Batch size (None: all rows in one batch, in their order), seed, share and whether to shuffle.
    """

    exact = indexed = True

    def __init__(self, model: LatentVariableModel, data: Any, weights: Any, recipe: Recipe) -> None:
        self.name, self.first, self.recipe = type(data).__name__, model.check(data), recipe
        self.size, self.like = len(self.first), model.like
        self.batch_size = min(recipe.batch_size or self.size, self.size)
        self.steps = -(-self.size // self.batch_size)
        checked = check_weights(weights, self.size)
        self.total = float(checked.sum())
        self.weights = None if weights is None else checked.to(self.like)

    def sample(self) -> tuple[Observations, Tensor | None]:
        """All rows and their weights."""
        return self.first, self.weights

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Epoch `number` from its batch `start` on."""
        recipe = self.recipe
        order = order_of(self.size, recipe.shuffle and self.steps > 1, recipe.seed, number)
        if self.steps == recipe.share.world == 1:
            if not start:
                yield Batch(self.first.rows(slice(None)), self._counts(order)[0], order.to(self.like.device), self.size)
            return
        rows, real = shared_rows(order, self.batch_size, recipe.share)
        rows = rows.to(self.like.device)
        counts = self._counts(rows)
        counts[torch.arange(rows.shape[1]) >= torch.tensor(real)[:, None]] = 0.0
        for step in range(start, self.steps):
            yield Batch(taken(self.first, rows[step]), counts[step], rows[step], real[step])

    def _counts(self, rows: Tensor) -> Tensor:
        """The weights of some rows, [batches, m]."""
        rows = rows.view(-1, rows.shape[-1]).to(self.like.device)
        return self.like.new_ones(rows.shape) if self.weights is None else self.weights[rows]

    def fingerprint(self) -> str:
        """What tells these data, weights included, from others."""
        gaps = {f"gaps of {name}": gaps for name, gaps in self.first.missing.items()}
        return fingerprint({**self.first.values, **gaps, "weights": self.weights})
