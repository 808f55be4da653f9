"""Files read piece by piece, one or many; here .npy, and in `arrow` Parquet and CSV."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppl_vae.data.arrow import csv_readers, parquet_readers
from ppl_vae.data.blocks import Block, Choice, Layout, difference, to_block
from ppl_vae.data.readers import CUT_SHORT, Gap, Reader, Wanted, file_stamp, spans
from ppl_vae.data.tables import refuse_objects
from ppl_vae.errors import DataError

__all__ = ["ArrayFile", "files_at", "open_files"]


def files_at(source: Any) -> list[Path]:
    """The files that a path, a folder, a pattern or a list of paths stands for; none for any other source.

    Raises
    ------
    DataError
        No such file, an empty one, or a folder or pattern without files of a known kind.
    """
    if isinstance(source, str | os.PathLike):
        return _expanded(str(source))
    if isinstance(source, list | tuple) and source and all(isinstance(part, str | os.PathLike) for part in source):
        return [path for part in source for path in _expanded(str(part))]
    return []


def _expanded(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        found = [
            file for file in path.rglob("*") if file.suffix.lower() in _KINDS and not file.name.startswith((".", "_"))
        ]
    elif not path.exists() and glob.has_magic(text):
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]
    else:
        found = [path]
    if not found:
        raise DataError(f"{text}: there are no files of these kinds: {', '.join(_KINDS)}. Check the folder.")
    for file in found:
        _check_file(file)
    return sorted(found)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Check the name, and the folder that it is relative to.")
    if path.suffix.lower() not in _KINDS:
        raise DataError(
            f"{path}: a file of type '{path.suffix or 'no extension'}' was given; blocks are read from "
            f"{', '.join(_KINDS)}. Convert it, or give the file its right extension."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes).")


def open_files(paths: Sequence[Path], choice: Choice) -> Reader:
    """The reader of files of one kind, in the order given."""
    kinds = {path.suffix.lower() for path in paths}
    if len(kinds) > 1:
        raise DataError(f"{choice.source}: files of several kinds ({', '.join(sorted(kinds))}); give those of one.")
    readers = _KINDS[kinds.pop()](paths, choice)
    return readers[0] if len(readers) == 1 else _Files(paths, readers)


class _Files:
    """Files one after the other."""

    on_disk = True

    def __init__(self, paths: Sequence[Path], readers: Sequence[Reader]) -> None:
        self._paths, self._readers = paths, readers
        counts = [reader.num_rows for reader in readers]
        self.num_rows = None if None in counts else sum(count or 0 for count in counts)

    def pieces(self, rows: int, wanted: Wanted) -> Iterator[Block | Gap]:
        position, first = 0, None
        for path, reader in zip(self._paths, self._readers, strict=True):
            for piece in reader.pieces(rows, partial(_shifted, wanted, position)):
                if isinstance(piece, Block):
                    first = first or piece.layout()
                    self._check(path, first, piece.layout())
                yield piece
                position += len(piece)

    def _check(self, path: Path, first: Layout, found: Layout) -> None:
        if found != first:
            raise DataError(
                f"{path}: is unlike {self._paths[0]}: {difference(first, found)}. Write the files with one schema, or "
                "say which columns to take: columns=[...]."
            )

    def stamp(self) -> tuple[Any, ...]:
        return tuple(reader.stamp() for reader in self._readers)


def _shifted(wanted: Wanted, by: int, start: int, stop: int) -> bool:
    return wanted(start + by, stop + by)


class ArrayFile:
    """Rows of a mapped array, by plain reads of its file: a page of the map that was read would count as ours."""

    on_disk = True

    def __init__(self, path: Path, header: Callable[[], np.memmap], choice: Choice) -> None:
        self._path, self._header, self._choice = path, header, choice
        array = header()
        if array.ndim == 0 or array.dtype.kind not in "biuf":
            to_block(np.empty(array.shape, array.dtype), choice)  # refused there, in words
        self.num_rows: int | None = len(array)

    def pieces(self, rows: int, wanted: Wanted) -> Iterator[Block | Gap]:
        """Parts of `rows` rows; an unwanted part is not read."""
        array = self._header()
        read = _rows if array.flags.c_contiguous else _fortran_rows
        with self._path.open("rb", buffering=0) as file:
            for start, stop in spans(len(array), rows):
                part = to_block(read(file, array, start, stop), self._choice) if wanted(start, stop) else None
                yield part or Gap(stop - start)

    def stamp(self) -> tuple[Any, ...]:
        """The file's."""
        return file_stamp(self._path)


def _rows(file: Any, array: np.memmap, start: int, stop: int) -> np.ndarray:
    event = array.shape[1:]
    width = int(np.prod(event, dtype=np.int64))
    return _numbers_at(file, array, start * width, (stop - start) * width).reshape(stop - start, *event)


def _fortran_rows(file: Any, array: np.memmap, start: int, stop: int) -> np.ndarray:
    """Entry by entry: in Fortran order all rows of one entry of the event lie together."""
    event, n = array.shape[1:], len(array)
    entries = range(int(np.prod(event, dtype=np.int64)))
    columns = [_numbers_at(file, array, entry * n + start, stop - start) for entry in entries]
    return np.ascontiguousarray(np.stack(columns).reshape(*event[::-1], stop - start).T)


def _numbers_at(file: Any, array: np.memmap, first: int, count: int) -> np.ndarray:
    file.seek(array.offset + first * array.dtype.itemsize)
    found = np.fromfile(file, array.dtype, count)
    if len(found) < count:
        raise DataError(f"{array.filename}: the file ends before its last row. {CUT_SHORT}")
    return found


def _npy_header(path: Path) -> np.memmap:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        refuse_objects(path, error)
        raise DataError(f"{path}: is not a .npy file of numbers that can be read ({error}). {CUT_SHORT}") from error


def _npy_readers(paths: Sequence[Path], choice: Choice) -> list[Reader]:
    return [ArrayFile(path, partial(_npy_header, path), replace(choice, source=str(path))) for path in paths]


_KINDS: dict[str, Callable[[Sequence[Path], Choice], list[Reader]]] = {
    ".npy": _npy_readers,
    ".parquet": parquet_readers,
    ".csv": csv_readers,
}
