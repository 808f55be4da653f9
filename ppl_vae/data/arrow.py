"""Parquet and CSV files, read by Arrow piece by piece."""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppl_vae.data.blocks import Block, Choice, stacked
from ppl_vae.data.readers import CUT_SHORT, Gap, Reader, Wanted, file_stamp
from ppl_vae.data.tables import check_names, first_row, is_number
from ppl_vae.errors import DataError

__all__ = ["csv_readers", "parquet_readers"]


class _ParquetFile:
    """Rows of a Parquet file, row group by row group."""

    on_disk = True

    def __init__(self, path: Path, choice: Choice, gaps: frozenset[str]) -> None:
        self._path, self._choice, self._gaps = path, choice, gaps
        with _parquet(path) as file:
            self._plan(file)
            self.num_rows: int | None = file.metadata.num_rows

    def pieces(self, rows: int, wanted: Wanted) -> Iterator[Block | Gap]:
        with _parquet(self._path) as file:
            plan, position = self._plan(file), 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if wanted(position, position + count):
                    yield from self._group(file, group, rows, plan)
                else:
                    yield Gap(count)
                position += count

    def _group(self, file: Any, group: int, rows: int, plan: dict[str, Any]) -> Iterator[Block]:
        from pyarrow import ArrowException

        batches = file.iter_batches(rows, row_groups=[group], columns=list(plan))
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                columns = {name: batch.column(name).cast(kind, safe=False) for name, kind in plan.items()}
            except (ArrowException, OSError) as error:
                raise DataError(f"{self._path}: row group {group} cannot be read ({error}). {CUT_SHORT}") from error
            yield _from_arrow(columns, self._choice)

    def _plan(self, file: Any) -> dict[str, Any]:
        """Columns to read and the type each is taken as: the schema's, so that no batch differs from the next."""
        schema = file.schema_arrow
        # pandas stores row labels that have no name under these names; they are no data.
        chosen = self._choice.columns is not None
        features, own = self._choice.split([n for n in schema.names if chosen or not n.startswith("__index_level_")])
        return {name: self._type(name, schema.field(name).type) for name in [*features, *own]}

    def _type(self, name: str, kind: Any) -> Any:
        from pyarrow import float64, types, uint8

        whole = types.is_integer(kind) or types.is_boolean(kind)
        if types.is_floating(kind) or (whole and name not in self._gaps):
            return uint8() if types.is_boolean(kind) else kind
        if whole or types.is_decimal(kind) or types.is_null(kind):
            return float64()
        raise DataError(
            f"{self._path}: column '{name}' is not numeric: it holds {kind}. Convert it, or say which columns to take: "
            "columns=[...]."
        )

    def stamp(self) -> tuple[Any, ...]:
        return file_stamp(self._path)


def _from_arrow(columns: dict[str, Any], choice: Choice) -> Block:
    return stacked({name: column.to_numpy(zero_copy_only=False) for name, column in columns.items()}, choice)


def _parquet(path: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        # A buffer: a row group is otherwise held whole.
        return ParquetFile(path, buffer_size=1 << 20)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a Parquet file that can be read ({error}). {CUT_SHORT}") from error


def parquet_readers(paths: Sequence[Path], choice: Choice) -> list[Reader]:
    """A reader for each file, which take an integer column as floats as soon as one of them has a null in it."""
    gaps = frozenset().union(*map(_columns_with_gaps, paths))
    return [_ParquetFile(path, replace(choice, source=str(path)), gaps) for path in paths]


def _columns_with_gaps(path: Path) -> frozenset[str]:
    """Columns that may hold nulls, by the file's own statistics: integers become floats there, in every block."""
    with _parquet(path) as file:
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return frozenset(c.path_in_schema for c in columns if c.statistics is None or c.statistics.null_count != 0)


class _CsvFile:
    """Rows of a CSV file, every column as float64: what a later row holds must not change the type."""

    on_disk = True
    num_rows: int | None = None

    def __init__(self, path: Path, choice: Choice) -> None:
        self._path, self._choice = path, choice

    def pieces(self, rows: int, wanted: Wanted) -> Iterator[Block | Gap]:
        from pyarrow import ArrowException

        try:
            names, reader = self._open()
            for batch in reader:
                yield _from_arrow({name: batch.column(name) for name in names}, self._choice)
        except (ArrowException, OSError) as error:
            raise DataError(f"{self._path}: is not a regular table of numbers: {self._said(error)}.") from error

    def _open(self, threads: bool = True) -> tuple[list[str], Any]:
        from pyarrow import csv, float64

        names, header, delimiter = self._header()
        check_names(names, self._path, self._choice.columns is not None)
        features, own = self._choice.split(names)
        wanted = [*features, *own]
        reader = csv.open_csv(
            self._path,
            read_options=csv.ReadOptions(column_names=names, skip_rows=header, use_threads=threads),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(wanted, float64()), include_columns=wanted),
        )
        return wanted, reader

    def _said(self, error: Exception) -> str:
        """In words: Arrow counts columns from 0, whose names users know, and rows from 1 with the header's lines."""
        from pyarrow import ArrowException

        try:
            deque(self._open(threads=False)[1], 0)  # several threads do not know the row
        except (ArrowException, OSError) as again:
            error = again
        names, header, _ = self._header()
        message = re.sub(r"CSV column #(\d+)", lambda found: f"column '{names[int(found[1])]}'", str(error))
        return re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - header - 1} (counted from 0)", message)

    def _header(self) -> tuple[list[str], int, str]:
        """Names of the columns, lines up to their own (itself too; 0 where there is none), and the separator."""
        first, delimiter = first_row(self._path)
        if all(map(is_number, first)):
            return [f"x{i}" for i in range(len(first))], 0, delimiter
        return first, _lines_to_header(self._path), delimiter

    def stamp(self) -> tuple[Any, ...]:
        return file_stamp(self._path)


def _lines_to_header(path: Path) -> int:
    with path.open(encoding="utf-8-sig") as lines:
        return 1 + next(number for number, line in enumerate(lines) if line.strip())


def csv_readers(paths: Sequence[Path], choice: Choice) -> list[Reader]:
    """A reader for each file."""
    return [_CsvFile(path, replace(choice, source=str(path))) for path in paths]
