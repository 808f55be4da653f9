"""Blocks of rows, and the one way from a batch in any container to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.tables import Table, choose, frame_of, numbers
from ppl_vae.errors import DataError

__all__ = ["Block", "Choice", "Layout", "difference", "join", "stacked", "to_block"]

Layout = tuple[tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]]
"""Columns, then dtype and shape of an event for each tensor."""


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size in bytes."""


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of a stream.

    Attributes
    ----------
    values : Tensor or dict of Tensor
        ``[rows, *event]``, in the dtype of the source, or such a tensor for each name when the source gives mappings.
        NaN where a value is missing. A block of tensors held in memory shares theirs.
    weights : Tensor or None
        [rows], float64, finite and not negative.
    start : int
        Number of the first row in the stream.
    columns : tuple of str
        Names of the columns of a table, or the names of a mapping.

    Examples
    --------
    >>> block = Block(torch.ones(3, 2), None, 10)
    >>> len(block), block.start, len(block.rows(slice(1, 3)))
    (3, 10, 2)
    """

    values: Tensor | dict[str, Tensor]
    weights: Tensor | None = None
    start: int = 0
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors()[0])

    @property
    def data(self) -> Any:
        """The values as a model reads them: a table where they have columns, so that it sees which is which."""
        if isinstance(self.values, dict) or self.values.dim() != 2 or not self.columns:
            return self.values
        return Table(self.values, self.columns, "a stream", 0)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the block, the weights last."""
        values = list(self.values.values()) if isinstance(self.values, dict) else [self.values]
        return values if self.weights is None else [*values, self.weights]

    @property
    def index(self) -> Tensor:
        """Numbers of its rows in the stream, [rows]."""
        return torch.arange(self.start, self.start + len(self))

    def rows(self, index: slice | Tensor) -> "Block":
        """The rows `index`, under the same `start`."""
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Block":
        """The block with every tensor changed, the weights too."""
        return self._with([change(tensor) for tensor in self.tensors()])

    def _with(self, tensors: Sequence[Tensor]) -> "Block":
        rest = list(tensors)
        weights = None if self.weights is None else rest.pop()
        values = dict(zip(self.values, rest, strict=True)) if isinstance(self.values, dict) else rest[0]
        return replace(self, values=values, weights=weights)

    def to_bytes(self) -> bytes:
        """The numbers, one tensor after the other."""
        return b"".join(t.cpu().contiguous().view(torch.uint8).numpy().tobytes() for t in self.tensors())

    def bits(self) -> int:
        """The sum of the bits of all numbers, as integers: it changes with any one of them, and with most changes."""
        return sum(int(t.view(_INTEGERS[t.element_size()]).sum()) for t in self.tensors())

    def layout(self) -> Layout:
        """What all blocks of a stream share."""
        return self.columns, tuple((str(t.dtype).removeprefix("torch."), tuple(t.shape[1:])) for t in self.tensors())


def join(blocks: Sequence[Block], start: int) -> Block:
    """One block of the rows of several of one layout."""
    first = blocks[0]
    if len(blocks) == 1:
        return replace(first, start=start)
    parts = zip(*(block.tensors() for block in blocks), strict=True)
    return replace(first._with([torch.cat(part) for part in parts]), start=start)


def difference(first: Layout, found: Layout) -> str:
    """In words, what of a layout changed."""
    if first[0] != found[0]:
        return f"columns {list(found[0])} where {list(first[0])} were expected"
    pairs = zip(first[1], found[1], strict=True)
    (dtype, event), (other, shape) = next((a, b) for a, b in pairs if a != b)
    return f"rows of shape {list(shape)} in {other} where {list(event)} in {dtype} was expected"


@dataclass(frozen=True)
class Choice:
    """Which columns are features and which holds the weights, of rows that are numbered from `first`."""

    source: str
    columns: tuple[str, ...] | None = None
    weights: str | None = None
    first: int = 0

    def split(self, there: Sequence[str]) -> tuple[list[str], list[str]]:
        """Features and the weights' column (none or one), from the columns that there are.

        Raises
        ------
        DataError
            An unknown column, a column named twice, weights among the features, or no feature left.
        """
        own = [] if self.weights is None else choose(there, [self.weights], self.source)
        if self.columns is not None and self.weights in self.columns:
            raise DataError(f"{self.source}: column '{self.weights}' holds the weights; leave it out of columns.")
        if self.columns is not None:
            return choose(there, self.columns, self.source), own
        left = [name for name in there if name not in own]
        return choose(left, None, self.source), own


def to_block(batch: Any, choice: Choice) -> Block:
    """Rows in any container: tensor, array, `Table`, mapping of names to arrays, or data frame.

    Raises
    ------
    DataError
        Not numbers (the message names the column), not one row per datum, unknown columns, or a container that is
        none of these.
    """
    for kind, convert in _CONTAINERS.items():
        if isinstance(batch, kind):
            return convert(batch, choice)
    return stacked(_frame_columns(batch, choice), choice)


# Containers


def _from_tensor(tensor: Tensor, choice: Choice) -> Block:
    values = _plain_tensor(tensor, choice.source)
    if values.dim() > 2:
        if choice.columns is not None or choice.weights is not None:
            shape = list(values.shape)
            raise DataError(
                f"{choice.source}: rows of shape {shape[1:]} have no columns to choose; [n, d] was expected."
            )
        return Block(values)
    width = 1 if values.dim() == 1 else values.shape[1]
    return _from_matrix(values, [f"x{i}" for i in range(width)], choice)


def _from_matrix(matrix: Tensor, names: Sequence[str], choice: Choice) -> Block:
    features, own = choice.split(names)
    weights = _weights(matrix[:, names.index(own[0])]) if own else None
    if features != list(names):
        matrix = matrix[:, [names.index(name) for name in features]]
    return Block(matrix, weights, columns=tuple(features))


def _from_mapping(mapping: Mapping[str, Any], choice: Choice) -> Block:
    features, own = choice.split(list(mapping))
    values = {name: _any_tensor(mapping[name], f"{choice.source}: '{name}'") for name in features}
    weights = _weights(_any_tensor(mapping[own[0]], f"{choice.source}: '{own[0]}'")) if own else None
    sizes = {name: len(value) for name, value in values.items()} | ({} if weights is None else {own[0]: len(weights)})
    if len(set(sizes.values())) > 1:
        raise DataError(f"{choice.source}: the values disagree about the number of rows: {sizes}.")
    return Block(values, weights, columns=tuple(features))


def stacked(columns: Mapping[str, np.ndarray], choice: Choice) -> Block:
    """The columns of a table side by side."""
    features, own = choice.split(list(columns))
    # Stacked in their common dtype, the weights apart: they must not widen float32 features.
    matrix = torch.from_numpy(np.column_stack([_plain(columns[name]) for name in features]))
    weights = _weights(torch.from_numpy(np.array(columns[own[0]]))) if own else None
    return Block(matrix, weights, columns=tuple(features))


def _frame_columns(frame: Any, choice: Choice) -> dict[str, np.ndarray]:
    series = {str(one.name): one for one in frame_of(frame, choice.source).iter_columns()}
    features, own = choice.split(list(series))
    return {name: _column(series[name], choice) for name in [*features, *own]}


def _column(series: Any, choice: Choice) -> np.ndarray:
    keeps = series.dtype.is_float() or (series.dtype.is_integer() and not series.is_null().any())
    return series.to_numpy() if keeps else numbers(series, choice.source, choice.first)


# Numbers

_WIDER: dict[Any, Any] = {
    np.dtype(np.bool_): np.uint8,
    np.dtype(np.uint16): np.int32,
    np.dtype(np.uint32): np.int64,
    np.dtype(np.uint64): np.float64,
    np.dtype(np.longdouble): np.float64,
}
"""NumPy's dtypes that torch lacks or cannot compute with."""


def _plain(array: np.ndarray) -> np.ndarray:
    """In a dtype and a memory order that torch takes; a view where it can be one."""
    if isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array if array.dtype.kind == "f" else array.astype(np.float64), np.nan)
    native = array.dtype.newbyteorder("=")
    plain = np.asarray(array).astype(_WIDER.get(native, native), copy=False)
    simple = plain.flags.writeable and all(stride >= 0 for stride in plain.strides)
    return plain if simple else plain.copy()


def _any_tensor(values: Any, source: str) -> Tensor:
    return _plain_tensor(values if isinstance(values, Tensor) else _array_tensor(values, source), source)


def _array_tensor(values: Any, source: str) -> Tensor:
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{source}: an array of {array.dtype} was given; real numbers were expected. Convert it first.")
    return torch.from_numpy(_plain(array))


def _plain_tensor(tensor: Tensor, source: str) -> Tensor:
    if tensor.dim() == 0:
        raise DataError(f"{source}: a single number was given; one row per datum was expected, [n, ...].")
    if tensor.layout is not torch.strided:
        raise DataError(f"{source}: a sparse tensor ({tensor.layout}) was given; pass it dense, x.to_dense().")
    if tensor.is_complex():
        raise DataError(
            f"{source}: a tensor of {tensor.dtype} was given; real numbers were expected. Convert it first."
        )
    return tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()


def _weights(column: Tensor) -> Tensor:
    return column.to(torch.float64)


_CONTAINERS: dict[type, Callable[[Any, Choice], Block]] = {
    Tensor: _from_tensor,
    np.ndarray: lambda array, choice: _from_tensor(_array_tensor(array, choice.source), choice),
    Table: lambda table, choice: _from_matrix(table.values, table.columns, choice),
    Mapping: _from_mapping,
}
