"""Tables of numbers: from files, data frames, arrays and tensors, all through one check."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import torch

from ppl_vae.errors import DataError

__all__ = ["Table", "from_frame", "read_table"]

# A column is turned into numbers only when it is wanted: text in a column that nobody asked for is no error.
_Columns = Mapping[str, Callable[[], np.ndarray]]


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers by row and column.

    Attributes
    ----------
    values : torch.Tensor
        [n, d], float64, in the units of the source; NaN where a value is missing, never infinite.
    columns : tuple of str
        The d names.
    source : str
        Where the numbers come from, for reports.
    missing_rows : int
        How many of the n rows hold at least one NaN. They are kept.

    Examples
    --------
    >>> table = from_frame(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]))
    >>> len(table), table.columns, table.missing_rows
    (2, ('x0', 'x1'), 1)
    """

    values: torch.Tensor
    columns: tuple[str, ...]
    source: str
    missing_rows: int

    def __len__(self) -> int:
        return len(self.values)


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Table:
    r"""Read a table of numbers from a CSV, Parquet or .npy file.

    A CSV may be separated by commas, semicolons or tabs; blank lines are skipped; a first row of numbers means that
    there is no header, and the columns are then called x0, x1, ... Empty cells (and NA, NaN, null) are NaN.

    Parameters
    ----------
    path : path-like
        The file; its extension (.csv, .parquet, .npy) says what it is.
    columns : sequence of str, optional
        The columns to take, in this order. Without it every column is taken, and each must be numeric.

    Returns
    -------
    Table
        values [n, d], n >= 2, d >= 1.

    Raises
    ------
    DataError
        No such file; a folder; empty; a header only; a single row; unknown columns; text, an infinity, or nothing at
        all in a column; not a file of its kind.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.csv")
    ...     _ = file.write_text("height,weight\n1.7,60\n1.8,\n")
    ...     table = read_table(file)
    >>> table.columns, table.missing_rows
    (('height', 'weight'), 1)
    """
    file = _existing_file(Path(path).expanduser())
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            f"{file}: a file of type '{file.suffix or 'no extension'}' was given; tables are read from "
            f"{', '.join(_READERS)}. Convert it, or give the file its right extension."
        )
    try:
        content = reader(file, columns is not None)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}). Check the path and its permissions.") from error
    return _from_frame(content, columns, str(file))


def from_frame(frame: Any, columns: Sequence[str] | None = None) -> Table:
    """Take the numbers out of a data frame, an array or a tensor.

    Parameters
    ----------
    frame : data frame, series, array or tensor
        Any data frame or series that narwhals knows (pandas, polars, pyarrow, ...), or a NumPy array or tensor [n, d]
        or [n], whose columns are called x0, x1, ... Nulls are NaN; booleans are 0 and 1.
    columns : sequence of str, optional
        The columns to take, in this order. Without it every column is taken, and each must be numeric.

    Returns
    -------
    Table
        values [n, d], n >= 2, d >= 1.

    Raises
    ------
    DataError
        Not such an object; no rows or one row; unknown columns; text, an infinity, or nothing at all in a column.

    Examples
    --------
    >>> import numpy as np
    >>> from_frame(np.arange(6.0).reshape(3, 2), columns=["x1"]).values.squeeze(-1)
    tensor([1., 3., 5.], dtype=torch.float64)
    """
    return _from_frame(frame, columns, _kind(frame))


# Files


def _existing_file(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file; give one of {', '.join(_READERS)}.")
    if not path.exists():
        raise DataError(f"{path}: there is no such file. Check the name, and the folder that it is relative to.")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes); a header and at least two rows were expected.")
    return path


def _read_csv(path: Path, chosen: bool) -> Any:
    from pyarrow import ArrowInvalid
    from pyarrow import csv as arrow

    first, delimiter = first_row(path)
    check_names(first, path, chosen)
    names = [] if not all(map(is_number, first)) else [f"x{i}" for i in range(len(first))]
    try:
        table = arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(column_names=names),
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(strings_can_be_null=True),
        )
    except ArrowInvalid as error:
        raise DataError(
            f"{path}: is not a regular CSV table: {error}. Every row needs as many cells as the header."
        ) from error
    return table if names else table.rename_columns(first)


def check_names(names: list[str], path: Path, chosen: bool) -> None:
    """Refuse a column without a name, unless columns were chosen."""
    if not chosen and "" in names:
        raise DataError(
            f"{path}: column {names.index('') + 1} has no name (row numbers that were written along?). "
            "Name it in the header, or say which columns to take: --columns, or columns=[...]."
        )


def first_row(path: Path) -> tuple[list[str], str]:
    """Cells of the first line that is not blank, and the separator."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            first = next((line for line in lines if line.strip()), "")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a CSV file in UTF-8 ({error}). Save it again as CSV in UTF-8.") from error
    if not first:
        raise DataError(f"{path}: the file is empty (blank lines only); a header and at least two rows were expected.")
    delimiter = max(",;\t", key=first.count)
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter))]
    # "1.5,,2" is either a row with a gap or a header: a guess would lose or invent a datum.
    if "" in cells and any(map(is_number, cells)) and all(map(is_number, filter(None, cells))):
        raise DataError(f"{path}: the first line holds numbers and empty cells ({first.strip()!r}). Add a header line.")
    return cells, delimiter


def _read_parquet(path: Path, chosen: bool) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            # pandas stores row labels that have no name under these names; they are no data.
            names = [name for name in file.schema_arrow.names if chosen or not name.startswith("__index_level_")]
            return file.read().select(names)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a Parquet file that can be read ({error}).") from error


def refuse_objects(path: Path, error: Exception) -> None:
    """Say it where the cause is an array of Python objects, which NumPy tells only in words."""
    if any(said in str(error) for said in ("Object arrays", "Python objects")):
        raise DataError(
            f"{path}: holds an array of Python objects (dtype object); numbers are expected. Convert it with "
            ".astype(float), and write it again with numpy.save."
        ) from error


def _read_npy(path: Path, chosen: bool) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        refuse_objects(path, error)
        raise DataError(f"{path}: is not a .npy file of numbers ({error}). Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays (.npz), not one array. Save one array with numpy.save.")
    return array


_READERS: dict[str, Callable[[Path, bool], Any]] = {".csv": _read_csv, ".parquet": _read_parquet, ".npy": _read_npy}


# The one way from any container to a Table


def frame_of_any_size(frame: Any) -> Table:
    """As from_frame, of data that a model is asked about: one row is enough, and a column may be all missing."""
    return _from_frame(frame, None, _kind(frame), least=1)


def _kind(frame: Any) -> str:
    kind = type(frame)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _from_frame(frame: Any, columns: Sequence[str] | None, source: str, least: int = 2) -> Table:
    container = frame
    if isinstance(container, torch.Tensor):
        container = _tensor_to_numpy(container)
    available = _array_columns(container, source) if isinstance(container, np.ndarray) else _columns(container, source)
    names = choose(available, columns, source)
    return _table({name: available[name]() for name in names}, source, least)


def _table(columns: dict[str, np.ndarray], source: str, least: int) -> Table:
    rows = len(next(iter(columns.values())))
    if rows < least:
        found = "a single row" if rows else "no rows (a header only)"
        raise DataError(f"{source}: {found}; a model needs at least {'two rows' if least > 1 else 'one row'} of data.")
    for name, values in columns.items():
        _check_infinite(name, values, source)
        if least > 1:
            _check_seen(name, values, source)
    matrix = torch.from_numpy(np.column_stack(list(columns.values())))
    return Table(matrix, tuple(columns), source, int(matrix.isnan().any(-1).sum()))


def _check_infinite(name: str, values: np.ndarray, source: str) -> None:
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        raise DataError(
            f"{source}: column '{name}' holds an infinity in row {infinite[0]} (counted from 0; {infinite.size} "
            "in all); finite numbers were expected. Correct it, or leave the cell empty if the value is missing."
        )


def _check_seen(name: str, values: np.ndarray, source: str) -> None:
    if np.isnan(values).all():
        raise DataError(
            f"{source}: column '{name}' has no value in any row. Leave it out: --columns, or columns=[...]."
        )


def choose(available: Iterable[str], columns: Sequence[str] | None, source: str) -> list[str]:
    """The columns asked for, all without asking; an unknown one is an error that names its like."""
    there = list(available)
    wanted = there if columns is None else [columns] if isinstance(columns, str) else list(columns)
    if not wanted:
        raise DataError(f"{source}: no columns are left; name at least one of: {_listed(there)}.")
    twice = [name for name, count in Counter(wanted).items() if count > 1]
    if twice:
        raise DataError(f"{source}: columns asked for more than once: {', '.join(twice)}. Name each once.")
    unknown = [name for name in wanted if name not in there]
    if unknown:
        hints = ", ".join(f"'{name}'{_near(name, there)}" for name in unknown)
        raise DataError(f"{source}: there is no column {hints}. The columns are: {_listed(there)}.")
    return wanted


def _near(name: str, there: list[str]) -> str:
    lower = {other.lower(): other for other in there}
    matches = get_close_matches(str(name).lower(), lower, n=2)
    return f" (did you mean {' or '.join(repr(lower[match]) for match in matches)}?)" if matches else ""


def _listed(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _tensor_to_numpy(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.detach().cpu()
    return plain.numpy() if plain.is_complex() else plain.double().numpy()


def _array_columns(array: np.ndarray, source: str) -> _Columns:
    if array.ndim not in (1, 2):
        raise DataError(
            f"{source}: an array of shape {list(array.shape)} was given; [n] or [n, d] was expected. "
            "Reshape it to one row per datum."
        )
    if array.dtype.kind not in "biuf":
        raise DataError(f"{source}: an array of {array.dtype} was given; real numbers were expected. Convert it first.")
    matrix = array[:, None] if array.ndim == 1 else array
    floats = np.ma.filled(matrix.astype(np.float64), np.nan)
    return {f"x{i}": partial(np.take, floats, i, axis=1) for i in range(floats.shape[1])}


def _columns(frame: Any, source: str) -> _Columns:
    table = frame_of(frame, source)
    return {str(series.name): partial(numbers, series, source) for series in table.iter_columns()}


def frame_of(frame: Any, source: str) -> nw.DataFrame[Any]:
    """Any data frame or series, through narwhals."""
    try:
        native = nw.from_native(frame, eager_only=True, allow_series=True)
    except nw.exceptions.DuplicateError as error:
        raise DataError(f"{source}: two columns have the same name ({error}). Rename one of them.") from error
    except TypeError as error:
        raise DataError(
            f"{source}: this is not a table; a data frame, an array or a tensor [n, d] was expected (collect a lazy "
            "frame first). Data in blocks, a stream's or a DataLoader's, are for EM, VB, SVI, evaluate and "
            "standard_errors; to everything else pass one block at a time."
        ) from error
    return native.to_frame() if isinstance(native, nw.Series) else native


def numbers(series: nw.Series[Any], source: str, first: int = 0) -> np.ndarray:
    """A column as float64, nulls as NaN; text is an error that names the column and the row, counted from `first`."""
    if not (series.dtype.is_numeric() or series.dtype == nw.Boolean):
        values = [(row, value) for row, value in enumerate(series.to_list(), first) if not _is_real(value)]
        if values:
            row, value = next((pair for pair in values if not is_number(pair[1])), values[0])
            raise DataError(
                f"{source}: column '{series.name}' is not numeric: {value!r} in row {row} (counted from 0). "
                "Correct it, or say which columns to take: columns=[...], on the command line --columns, of a data "
                "frame x[[...]]."
            )
    return series.cast(nw.Float64).to_numpy()


def _is_real(value: Any) -> bool:
    return value is None or isinstance(value, Real)


def is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
