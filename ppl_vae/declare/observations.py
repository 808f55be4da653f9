"""Data as a model sees them: named tensors with one row per datum, and what of them is missing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import narwhals as nw
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_vae.data.tables import Table, frame_of_any_size
from ppl_vae.declare.tiling import tile
from ppl_vae.errors import DataError
from ppl_vae.missing import fill

__all__ = ["Observations", "are_named", "as_tensor", "check_order", "observe"]

COUNTED = re.compile(r"(x|column_)?\d+")
"""What arrays', pandas' and polars' columns are called that nobody has named."""
REAL = "real numbers are expected: pass x.real, x.imag or abs(x), or real and imaginary parts as columns of their own"


@dataclass(frozen=True)
class Observations:
    """Observed values and inputs by name, [n, *event], NaN filled with zero and remembered in `missing`.

    `weights`, [n], are for likelihoods that take a mean over the rows of a batch; None counts all rows alike.
    `once`, of data that are repeated, are the rows of which they are copies.
    """

    values: Mapping[str, Any]
    missing: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Tensor | None = None
    once: "Observations | None" = None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def with_gaps(self, name: str) -> Tensor:
        """The value of a node, NaN where it is missing."""
        value, missing = self.values[name], self.missing.get(name)
        return value if missing is None else value.masked_fill(missing, torch.nan)

    def rows(self, index: Tensor | slice) -> "Observations":
        """The data `index`; a slice makes no copy."""
        return Observations(
            {name: value[index] for name, value in self.values.items()},
            {name: value[index] for name, value in self.missing.items()},
            self.columns,
            None if self.weights is None else self.weights[index],
        )

    def drawn(self) -> "Observations":
        """All data, as one draw where a source draws its rows anew each time they are taken."""
        return self.rows(slice(None))

    def spaced(self, count: int) -> Tensor:
        """Numbers of `count` evenly spaced data, of all where there are fewer."""
        # float32 knows no whole numbers beyond 2^24.
        return torch.linspace(0, len(self) - 1, min(count, len(self)), dtype=torch.float64).long()

    def repeat(self, times: int) -> "Observations":
        """The data `times` over, one copy after the other."""
        if times == 1:
            return self
        return Observations(
            {name: tile(value, times) for name, value in self.values.items()},
            {name: tile(value, times) for name, value in self.missing.items()},
            self.columns,
            None if self.weights is None else tile(self.weights, times),
            self if self.once is None else self.once,
        )

    def to(self, like: Tensor) -> "Observations":
        """Floating values in the dtype and on the device of `like`; integers only moved."""

        def cast(value: Any) -> Any:
            whole = isinstance(value, Tensor) and not value.is_floating_point()
            return value.to(like.device if whole else like)

        return Observations(
            {name: cast(value) for name, value in self.values.items()},
            {name: value.to(like.device) for name, value in self.missing.items()},
            self.columns,
            None if self.weights is None else cast(self.weights),
        )


def observe(data: Any, observed: list[str], inputs: tuple[str, ...], optional: list[str]) -> Observations:
    """Read data for a model.

    Parameters
    ----------
    data : Tensor, array, data frame, Table or mapping
        One value when the model has one observed node and no inputs, else a mapping by name, or a table whose
        columns have the names.
    observed, inputs, optional : list of str
        The names that must and that may be there.

    Raises
    ------
    DataError
        Naming the node that nobody passed, the unknown name, or the sizes that disagree.
    """
    frame = None if isinstance(data, Mapping) else _by_column(data, [*observed, *inputs], inputs)
    if frame is not None:
        data = frame
    if not isinstance(data, Mapping):
        if len(observed) != 1 or inputs:
            raise DataError(
                f"this model needs a mapping with {', '.join([*observed, *inputs])}; got {type(data).__name__}"
                f"{_columns_said(data)}"
            )
        data = {observed[0]: data}
    expected = [*observed, *inputs]
    absent = [name for name in expected if name not in data]
    if absent:
        unseen = "; pass NaN where it was not observed" if absent[0] in observed else ""
        raise DataError(
            f"nobody passed {absent[0]!r}: the model needs {', '.join(expected)}; got {', '.join(data)}{unseen}"
        )
    unknown = [name for name in data if name not in (*expected, *optional)]
    if unknown:
        raise DataError(f"data has {unknown[0]!r}, which is no node or input of this model: {', '.join(expected)}")
    values, missing, columns = {}, {}, {}
    for name, value in data.items():
        values[name], names = _tensor(name, value)
        if names:
            columns[name] = names
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"the data disagree about the number of rows: {sizes}")
    if not next(iter(sizes.values())):
        raise DataError(f"the data are empty: {', '.join(sizes)} has 0 rows, at least 1 is needed")
    for name, value in values.items():
        if isinstance(value, Tensor) and _has_nan(value):
            gap = value.isnan()
            missing[name], values[name] = gap, fill(value, gap)
    return Observations(values, missing, columns)


def are_named(columns: tuple[str, ...]) -> bool:
    """Whether columns have names, and not only numbers."""
    return not all(map(COUNTED.fullmatch, columns))


def check_order(fitted: Mapping[str, tuple[str, ...]], columns: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse data whose columns have other names, or another order, than those that the model was fitted to.

    Names that only count the columns, as those of an array, say nothing, nor does that of a single column.
    """
    for name, own in columns.items():
        known = fitted.get(name, own)
        unnamed = set(own) != set(known) and not (are_named(own) and are_named(known))
        if own == known or unnamed or len(own) == len(known) == 1:
            continue
        absent = [column for column in known if column not in own]
        advice = (
            f"{absent[0]!r} is missing; rename the columns, or pass x.to_numpy() to go by their places"
            if absent
            else f"pass x[{list(known)}]"
        )
        raise DataError(
            f"{name!r} has the columns {', '.join(own)}, and the model was fitted to {', '.join(known)} in this "
            f"order: {advice}"
        )


def _by_column(data: Any, names: list[str], inputs: tuple[str, ...]) -> dict[str, Tensor] | None:
    """The columns of a table by name, if they are what several nodes and inputs are called.

    Whole numbers that are given stay so, since nodes index with them.
    """
    if len(names) < 2 or not set(names) <= set(getattr(data, "columns", ())):
        return None
    table = data if isinstance(data, Table) else frame_of_any_size(data)
    found = {name: table.values[:, j] for j, name in enumerate(table.columns)}
    frame = None if isinstance(data, Table) else nw.from_native(data, eager_only=True)
    whole = [] if frame is None else [n for n in inputs if frame[n].dtype.is_integer() and not _has_nan(found[n])]
    return {**found, **{name: found[name].long() for name in whole}}


def _columns_said(data: Any) -> str:
    columns = list(map(str, getattr(data, "columns", ())))
    return f" with columns {', '.join(columns)}" if columns else ""


def _has_nan(value: Tensor) -> bool:
    # One sum, in a sixth of the time, rules most batches out; infinities of both signs make it NaN too.
    return value.is_floating_point() and bool(value.sum().isnan()) and bool(value.isnan().any())


def _tensor(name: str, value: Any) -> tuple[Any, tuple[str, ...]]:
    names: tuple[str, ...] = ()
    if isinstance(value, str | PathLike):
        raise DataError(
            f"{name!r} is the path {str(value)!r}: read it by pv.data.read_table(path), or by pv.data.stream(path) "
            "where it is larger than memory"
        )
    if isinstance(value, Tensor):
        tensor = value
    elif isinstance(value, Table):
        tensor, names = value.values, value.columns
    elif isinstance(value, np.ndarray | list | tuple | float | int):
        tensor = _from_array(name, value)
    elif hasattr(value, "__getitem__") and hasattr(value, "__len__") and hasattr(value, "probabilities"):
        return value, ()  # draws its rows anew each time they are taken
    else:
        table = frame_of_any_size(value)
        column = len(getattr(value, "shape", ())) == 1  # a Series is [n], not a table of one column
        tensor, names = table.values[:, 0] if column else table.values, table.columns
    if tensor.layout is not torch.strided:
        raise DataError(f"{name!r} is a sparse tensor ({tensor.layout}); pass it dense, x.to_dense()")
    if tensor.is_complex():
        raise DataError(f"{name!r} is a tensor of {tensor.dtype}; {REAL}")
    if tensor.dim() == 0:
        raise DataError(f"{name!r} is a single number; one row per datum is expected, a tensor [n, ...]")
    return tensor, names


def _from_array(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(float), np.nan) if np.ma.is_masked(value) else value.data
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        if array.dtype.kind == "c":
            raise DataError(f"{name!r} is an array of {array.dtype}; {REAL}")
        advice = "; convert it with .astype(float)" if array.dtype.kind == "O" else ""
        raise DataError(f"{name!r} is an array of {array.dtype}; numbers are expected{advice}")
    return as_tensor(array)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array, copied where torch cannot use it as it is: read-only, backwards, or in foreign byte order."""
    kind = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    backwards = any(stride < 0 for stride in array.strides)
    return torch.as_tensor(np.require(array.copy() if backwards else array, kind, "W"))
