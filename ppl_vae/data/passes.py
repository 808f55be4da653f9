"""A pass over a stream: blocks of one size out of pieces of any, and the check that every pass sees the same."""

import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import torch

from ppl_vae.data.blocks import Block, Layout, difference, join
from ppl_vae.data.readers import Gap
from ppl_vae.errors import DataError

__all__ = ["Gather", "Seen", "read_ahead"]

_AS_BEFORE = "Every pass must give the same rows in the same order: do not shuffle, append or overwrite during a fit."


def read_ahead(blocks: Generator[Block, None, None]) -> Generator[Block, None, None]:
    """Read the next block on a thread while the last one is used; a consumer that stops early ends the thread."""
    with closing(blocks), ThreadPoolExecutor(1, "ppl_vae.data.stream") as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block


@dataclass
class Gather:
    """Pieces of any length in, blocks of `rows` rows out, of those that are `mine`."""

    rows: int
    mine: Callable[[int], bool]
    position: int = 0
    _held: list[Block] = field(default_factory=list)

    def add(self, piece: Block | Gap) -> Iterator[Block]:
        """The blocks that this piece completes."""
        taken = 0
        while taken < len(piece):
            number, within = divmod(self.position, self.rows)
            step = min(self.rows - within, len(piece) - taken)
            if isinstance(piece, Block) and self.mine(number):
                self._held.append(piece.rows(slice(taken, taken + step)))
            taken += step
            self.position += step
            if within + step == self.rows:
                yield from self.rest()

    def rest(self) -> Iterator[Block]:
        """The block of what is held."""
        if self._held:
            held, self._held = self._held, []
            yield join(held, self.position - sum(map(len, held)))


@dataclass
class Seen:
    """What the first pass saw, and later ones must see again.

    Of each block its length, a checksum of its first and last row and the sum of its bits are remembered: rows that
    change places inside a block are not noticed, and change no sum over it either.
    """

    source: str
    total: int | None
    layout: Layout | None = None
    _marks: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def check_layout(self, piece: Block | Gap, row: int) -> None:
        """Refuse a piece, from `row` on, whose columns, dtypes or shapes differ from the first one's."""
        if isinstance(piece, Gap) or not len(piece):
            return
        self.layout = self.layout or piece.layout()
        if piece.layout() != self.layout:
            raise DataError(
                f"{self.source}: changes at row {row}: {difference(self.layout, piece.layout())}. "
                "All rows need the same columns and dtypes. Say the dtype where tensors are made: engines set torch's "
                "default dtype while they run."
            )

    def check(self, block: Block) -> Block:
        """Refuse numbers that are none when a block is first seen, and one that differs from what was seen."""
        ends = block.rows(torch.tensor([0, len(block) - 1]))
        mark = len(block), zlib.crc32(ends.to_bytes()), block.bits()
        stop = block.start + len(block)
        if block.start not in self._marks:
            _check_numbers(block, self.source)
        known = self._marks.setdefault(block.start, mark)
        before = block.start + known[0] if self.total is None else self.total
        if stop > before or len(block) > known[0]:
            self._refuse(f"goes on after row {min(before, block.start + known[0])}, its last row so far")
        if len(block) < known[0]:
            self._refuse(f"ends early: after {stop} rows, and there were {before} before")
        if mark != known:
            self._refuse(f"rows {block.start} to {stop - 1} are not those of the first pass")
        return block

    def end(self, rows: int) -> None:
        """Refuse a pass that ended after `rows` rows where there were more, and a source without rows."""
        if not rows and self._marks:
            self._refuse("gives no rows any more")
        if not rows:
            raise DataError(f"{self.source}: there are no rows; at least 1 is needed.")
        if self.total is not None and rows != self.total:
            self._refuse(f"ends early: after {rows} rows, and there were {self.total} before")
        self.total = rows

    def _refuse(self, what: str) -> None:
        raise DataError(f"{self.source}: {what}. {_AS_BEFORE}")


def _check_numbers(block: Block, source: str) -> None:
    named = block.values if isinstance(block.values, dict) else {"": block.values}
    for name, values in named.items():
        bad = values.isinf().nonzero() if values.is_floating_point() else values.new_empty(0)
        if len(bad):
            row, *place = bad[0].tolist()
            column = name or (block.columns[place[0] if place else 0] if block.columns else "")
            where = f"column '{column}'" if column else "a value"
            raise DataError(
                f"{source}: {where} is infinite in row {block.start + row} (counted from 0); finite numbers were "
                "expected. Correct it, or make it NaN if the value is missing."
            )
    if block.weights is not None and not bool((ok := block.weights.isfinite() & (block.weights >= 0)).all()):
        row = int((~ok).nonzero()[0])
        raise DataError(
            f"{source}: weights must be finite and non-negative; row {block.start + row} (counted from 0) "
            f"has {block.weights[row].item():g}."
        )
