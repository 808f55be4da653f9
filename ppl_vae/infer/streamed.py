"""Streams as batches: blocks in their order, the rows of each block shuffled."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from torch import Tensor

from ppl_vae.data import Block, Stream
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.identity import fingerprint
from ppl_vae.errors import DataError
from ppl_vae.infer.batch import Batch, Recipe, order_of, seed_of, shared_rows
from ppl_vae.infer.loaders import BEFORE, DRAWN, Pieces, place
from ppl_vae.infer.weights import check_weights, one_source

__all__ = ["Streamed"]


class Streamed(Pieces):
    """Batches of a `Stream`: its blocks in their order, the rows of each block shuffled and cut."""

    exact = indexed = True

    def __init__(self, model: LatentVariableModel, data: Stream, weights: Any, recipe: Recipe) -> None:
        first = next(iter(data))
        if recipe.batch_size is not None and recipe.batch_size > data.rows_at_once:
            raise DataError(
                f"{data}: batch_size={recipe.batch_size} is larger than its blocks, which batches are cut from; make "
                f"the stream with rows={recipe.batch_size} or more"
            )
        super().__init__(model, data, first.data, recipe)
        self.column = first.weights
        one_source(data, self.column, weights)
        self.batch_size = min(recipe.batch_size or len(first), len(first))
        if weights is not None:
            self.all_weights = check_weights(weights, self.size)

    @property
    def size(self) -> int:
        """Rows of the stream, counted in a pass where nobody knows yet."""
        if self.data.num_rows is None:
            return sum(len(block) for block in self.data)
        return self.data.num_rows

    @property
    def weights(self) -> Tensor | None:
        """Weights of the first block, None for ones."""
        if self.all_weights is None and self.column is not None:
            return self.column.to(self.intake.model.like)
        return super().weights

    def sample(self) -> tuple[Observations, Tensor | None]:
        """Rows drawn without replacement in one pass, in their order; the same for one seed."""
        if len(self.first) == self.size:
            return super().sample()
        seed = seed_of(self.recipe.seed, BEFORE) % 2**32  # as NumPy takes them
        block = self.data.sample(self.most(), seed, self.all_weights)
        obs, weights = self.intake.observe(block.data, DRAWN), block.weights
        return obs, None if weights is None else weights.to(self.intake.model.like)

    @cached_property
    def total(self) -> float:
        """Sum of the weights, in a pass where they are a column."""
        if self.all_weights is None and self.column is not None:
            return sum(float(block.weights.sum()) for block in self.data)
        return float(self.size if self.all_weights is None else self.all_weights.sum())

    @property
    def steps(self) -> int | None:
        """Batches of an epoch, None until the number of rows is known."""
        if self.data.num_rows is None:
            return None
        blocks, rest = divmod(self.data.num_rows, self.data.rows_at_once)
        return blocks * -(-self.data.rows_at_once // self.batch_size) + -(-rest // self.batch_size)

    def drawn(self, number: int, start: int) -> Iterator[Batch]:
        """The batches, each prepared when it is asked for."""
        step = 0
        for turn, block in enumerate(self.data):
            rows, real = shared_rows(self._order(block, number, turn), self.batch_size, self.recipe.share)
            for own, count in zip(rows, real, strict=True):
                if step >= start:
                    yield self._batch(block, own, count, place(number, step))
                step += 1

    def _order(self, block: Block, number: int, turn: int) -> Tensor:
        shuffle = self.recipe.shuffle and len(block) > self.batch_size
        return order_of(len(block), shuffle, self.recipe.seed, number, turn)

    def _batch(self, block: Block, rows: Tensor, real: int, where: str) -> Batch:
        part = block.rows(rows)
        weights = part.weights if self.all_weights is None else self.all_weights[block.start + rows]
        obs = self.intake.observe(part.data, where, block.start + rows)
        return self.intake.weighed(obs, weights, block.start + rows, real)

    def fingerprint(self) -> str:
        """That of the stream, and of given weights."""
        return f"{self.data.fingerprint()} {fingerprint({'weights': self.all_weights})}"
