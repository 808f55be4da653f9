"""Where the rows of a stream come from: containers in memory, iterables that start anew, files."""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import narwhals as nw
import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.blocks import Block, Choice, to_block
from ppl_vae.data.tables import Table
from ppl_vae.errors import DataError

__all__ = [
    "CUT_SHORT",
    "Gap",
    "Memory",
    "Reader",
    "Restartable",
    "Wanted",
    "file_stamp",
    "is_mapped",
    "spans",
    "starter",
]

CUT_SHORT = "It may be cut short or damaged: copy it or write it again."

Wanted = Callable[[int, int], bool]
"""(start, stop) -> whether any of these rows is wanted; what is not may be left unread."""


@dataclass(frozen=True)
class Gap:
    """Rows that were left unread because nobody wanted them."""

    count: int

    def __len__(self) -> int:
        return self.count


class Reader(Protocol):
    """Rows in pieces of any length, the same at every pass."""

    num_rows: int | None
    """None where the number is not known without reading."""

    on_disk: bool
    """Whether reading ahead on a thread is safe and of use."""

    def pieces(self, rows: int, wanted: Wanted) -> Iterator[Block | Gap]:
        """All rows in order, about `rows` at a time."""

    def stamp(self) -> tuple[Any, ...]:
        """What tells these data from others without reading them; empty where only the rows can."""


class Memory:
    """A tensor, an array, a mapping of them, a `Table` or a data frame."""

    on_disk = False

    def __init__(self, source: Any, choice: Choice) -> None:
        self._rows = _rows_of(source, choice)
        self.num_rows: int | None = _length(source, self._rows)

    @staticmethod
    def takes(source: Any) -> bool:
        """Whether this is such a container."""
        frame = nw.dependencies.is_into_dataframe(source) or nw.dependencies.is_into_series(source)
        return frame or isinstance(source, Tensor | np.ndarray | Table | Mapping)

    def pieces(self, rows: int, wanted: Wanted) -> Iterator[Block | Gap]:
        """Views, one of them a block."""
        for start, stop in spans(self.num_rows or 0, rows):
            yield self._rows(slice(start, stop)) if wanted(start, stop) else Gap(stop - start)

    def stamp(self) -> tuple[Any, ...]:
        """Nothing."""
        return ()


def _rows_of(source: Any, choice: Choice) -> Callable[[slice], Block]:
    """Rows on demand. Tensors and arrays are sliced first, so that what has to be copied is copied block by block."""
    if isinstance(source, Tensor) and source.layout is not torch.strided:
        to_block(source, choice)  # refused there, in words
    if isinstance(source, Tensor | np.ndarray) and source.ndim:
        return lambda rows: to_block(source[rows], choice)
    if isinstance(source, Mapping):
        arrays = {name: v if isinstance(v, Tensor) else np.asarray(v) for name, v in source.items()}
        return lambda rows: to_block({name: v[rows] if v.ndim else v for name, v in arrays.items()}, choice)
    return to_block(source, choice).rows


def _length(source: Any, rows: Callable[[slice], Block]) -> int:
    return len(source) if isinstance(source, Tensor | np.ndarray) and source.ndim else len(rows(slice(None)))


def spans(count: int, rows: int) -> Iterable[tuple[int, int]]:
    """(start, stop) of consecutive parts of `rows`, the last one shorter."""
    return pairwise([*range(0, count, rows), count])


class Restartable:
    """An iterable that starts anew at every pass, or a callable that returns an iterator."""

    on_disk = False
    num_rows: int | None = None

    def __init__(self, source: Any, choice: Choice) -> None:
        self._start, self._choice = starter(source, choice.source), choice

    def pieces(self, rows: int, wanted: Wanted) -> Iterator[Block | Gap]:
        """Its batches."""
        position = 0
        for batch in self._start():
            # A copy, because the maker may fill one buffer again and again.
            block = to_block(batch, replace(self._choice, first=position)).map(Tensor.clone)
            position += len(block)
            yield block

    def stamp(self) -> tuple[Any, ...]:
        """Nothing."""
        return ()


def starter(source: Any, name: str) -> Callable[[], Iterator[Any]]:
    """What starts a pass over an iterable, or calls a callable that returns an iterator.

    Raises
    ------
    DataError
        If there can be one pass only; from what it returns, if the callable returns no iterator.
    """
    if isinstance(source, Iterator):
        raise only_once(name)
    return source.__iter__ if isinstance(source, Iterable) else partial(_begun, source, name)


def _begun(make: Callable[[], Any], name: str) -> Iterator[Any]:
    batches = make()
    try:
        return iter(batches)
    except TypeError:
        said = getattr(make, "__name__", repr(make))
        raise DataError(
            f"{name}: {said}() returned a {type(batches).__name__}; it must return an iterator of batches. Is a return "
            "or a yield forgotten?"
        ) from None


def only_once(name: str) -> DataError:
    """What to say of an iterator where a pass has to start anew."""
    return DataError(
        f"{name}: this iterator can be read only once, and a fit reads its data many times. Give what makes it: the "
        "generator function itself, not called, or an object whose __iter__ starts anew."
    )


def is_mapped(source: Any) -> bool:
    """Whether an array is a whole file mapped into memory, and not a part of one."""
    return isinstance(source, np.memmap) and isinstance(source.base, mmap.mmap) and source.filename is not None


def file_stamp(path: Path) -> tuple[Any, ...]:
    """Name, bytes and time of the last change."""
    found = path.stat()
    return path.name, found.st_size, found.st_mtime_ns
