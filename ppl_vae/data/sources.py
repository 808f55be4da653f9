"""Streams: data larger than memory, as blocks of rows that are the same at every pass."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.blocks import Block, Choice, join
from ppl_vae.data.files import ArrayFile, files_at, open_files
from ppl_vae.data.passes import Gather, Seen, read_ahead
from ppl_vae.data.readers import Memory, Reader, Restartable, is_mapped
from ppl_vae.errors import DataError, check_seed, check_whole

__all__ = ["Block", "Stream", "stream"]


def stream(
    source: Any, columns: Sequence[str] | None = None, weights: str | None = None, rows: int = 65536
) -> "Stream":
    """Read data block by block, as often as it is asked for.

    Parameters
    ----------
    source : path, list of paths, tensor, array, mapping, data frame, iterable or callable
        - A .npy file (C or Fortran order), a Parquet or a CSV file; a folder, a pattern such as ``part-*.parquet`` or a
          list of such files of one kind. A folder's and a pattern's files are read in the order of their names.
        - A tensor, an array, a memory map, any data frame that narwhals knows, or a mapping of names to tensors
          ``[n, *event]`` for models that observe several nodes.
        - An iterable of batches in any of these forms that starts anew at every pass, or a callable that returns an
          iterator (a generator function, not called).
    columns : sequence of str, optional
        The columns to take, in this order. Without it every column is taken, and each must be numeric. Columns of
        arrays are called x0, x1, ...
    weights : str, optional
        The column that holds the weights of the rows; it is no feature.
    rows : int
        Rows of a block. Blocks have exactly so many, the last one fewer, whatever the pieces of the source.

    Returns
    -------
    Stream
        Its blocks keep the dtypes of the source. A missing value is NaN; integer columns with nulls are float64, and
        the columns of a CSV always are. Its first block has been read.

    Raises
    ------
    DataError
        No such file, a damaged or an empty one; an iterator that cannot start anew; no rows; a column of text; unknown
        columns; an infinity; a weight that is negative or not finite; `rows` that are no whole number of at least 1.

    Examples
    --------
    >>> import torch
    >>> source = stream(torch.arange(10.0).reshape(5, 2), weights="x1", rows=2)
    >>> [(block.start, len(block)) for block in source], source.columns
    ([(0, 2), (2, 2), (4, 1)], ('x0',))
    """
    check_whole("stream", error=DataError, rows=rows)
    reader, name = _reader_of(source, columns, weights)
    return Stream(reader, name, rows)


def _reader_of(source: Any, columns: Sequence[str] | None, weights: str | None) -> tuple[Reader, str]:
    paths = files_at(source)
    name = _named(source, paths)
    wanted = None if columns is None else (columns,) if isinstance(columns, str) else tuple(columns)
    choice = Choice(name, wanted, weights)
    if paths:
        return open_files(paths, choice), name
    if is_mapped(source):
        return ArrayFile(Path(name), lambda: source, choice), name
    iterable = not Memory.takes(source) and (hasattr(source, "__iter__") or callable(source))
    return (Restartable(source, choice) if iterable else Memory(source, choice)), name


def _named(source: Any, paths: Sequence[Any]) -> str:
    if paths:
        return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files from {paths[0]} to {paths[-1]}"
    kind = type(source)
    return str(source.filename) if is_mapped(source) else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


class Stream:
    """Blocks of rows, the same at every pass; made by `stream`.

    Iterating gives every block in order. What the first pass saw is remembered: a later pass that is shorter, longer
    or otherwise different (columns, dtypes, or a number in a block) is a `DataError` that says where.
    Files are read one block ahead on a thread, so about three blocks are in memory at a time.

    Attributes
    ----------
    columns : tuple of str
        Names of the features, or of the entries of a mapping; empty for arrays of more than two dimensions.
    rows_at_once : int
        Rows of every block but the last.

    Examples
    --------
    >>> import torch
    >>> source = stream(lambda: (torch.full((3, 1), float(i)) for i in range(3)), rows=4)
    >>> source.num_rows, [len(block) for block in source], source.num_rows
    (None, [4, 4, 1], 9)
    """

    def __init__(self, reader: Reader, name: str, rows: int) -> None:
        self._reader, self._name, self.rows_at_once = reader, name, rows
        self._seen = Seen(name, reader.num_rows)
        self.columns: tuple[str, ...] = self._first().columns

    def __repr__(self) -> str:
        count = "unknown" if self.num_rows is None else self.num_rows
        return f"Stream({self._name}, {count} rows in blocks of {self.rows_at_once}, columns {', '.join(self.columns)})"

    @property
    def num_rows(self) -> int | None:
        """Rows in all; None until a pass has ended where the source cannot say."""
        return self._seen.total

    def __iter__(self) -> Iterator[Block]:
        return self._pass(_every)

    def shard(self, rank: int, world: int) -> Iterator[Block]:
        """The blocks i of one pass with i % world == rank: the share of one process.

        Arrays and .npy files are read only where they are wanted, Parquet files only in the row groups that are;
        everything else is read and passed over.

        Raises
        ------
        DataError
            If rank is not one of 0, ..., world - 1.

        Examples
        --------
        >>> import torch
        >>> [block.start for block in stream(torch.ones(10, 1), rows=2).shard(1, 2)]
        [2, 6]
        """
        if not 0 <= rank < world:
            raise DataError(f"{self._name}: shard {rank} of {world} was asked for; ranks are 0 to world - 1.")
        return self._pass(lambda block: block % world == rank)

    def sample(self, n: int, seed: int = 0, weights: Tensor | None = None) -> Block:
        """Draw rows uniformly without replacement, in one pass.

        Row i gets a key u_i ~ Uniform(0, 1) from one generator that moves on row by row; the n smallest keys win. The
        draw depends on the seed and the rows, not on the size of a block.

        Parameters
        ----------
        n : int
            Rows to draw; all rows where there are fewer.
        seed : int
            Seed of the keys.

        Raises
        ------
        DataError
            If `n` or `seed` is no whole number, or out of range.

        Returns
        -------
        Block
            [min(n, rows)] rows in their order in the stream, with their weights; `start` is 0.

        References
        ----------
        Vitter, J. S. (1985). Random sampling with a reservoir. ACM Transactions on Mathematical Software 11, 37-57.

        Examples
        --------
        >>> import torch
        >>> stream(torch.arange(100), rows=7).sample(3, seed=1).values.tolist()
        [61, 75, 93]
        """
        check_whole(f"{self._name}: sample", error=DataError, n=n)
        seed = check_seed(seed, DataError)
        generator = np.random.default_rng(seed)
        kept: list[Block] = []
        keys, bound = np.empty(0), 1.0
        for block in self:
            if weights is not None:
                block = replace(block, weights=weights[block.start : block.start + len(block)])
            fresh = generator.random(len(block))
            near = np.flatnonzero(fresh < bound)
            # Indexing copies: a row that is kept does not keep its block in memory.
            kept.append(block.rows(torch.from_numpy(near)))
            keys = np.concatenate([keys, fresh[near]])
            if len(keys) > 2 * n:
                kept, keys = _smallest(kept, keys, n)
                bound = keys.max()
        return _smallest(kept, keys, n)[0][0]

    def fingerprint(self) -> str:
        """What tells these data from others, cheaply: the same in every process that reads the same source.

        Of files the name (without its folder), size and time of the last change; of anything else the first block and
        the number of rows where it is known from the start; of both the columns and dtypes.

        Examples
        --------
        >>> import torch
        >>> one, other = stream(torch.ones(5, 2)), stream(torch.zeros(5, 2))
        >>> one.fingerprint() == stream(torch.ones(5, 2)).fingerprint() != other.fingerprint()
        True
        """
        stamp = self._reader.stamp()
        digest = hashlib.sha256(repr((self._seen.layout, self._reader.num_rows, stamp)).encode())
        if not stamp:
            digest.update(self._first().to_bytes())
        return digest.hexdigest()

    def _first(self) -> Block:
        with closing(self._pass(_every)) as blocks:
            return next(blocks)

    def _pass(self, mine: Callable[[int], bool]) -> Generator[Block, None, None]:
        blocks = self._blocks(mine)
        return read_ahead(blocks) if self._reader.on_disk else blocks

    def _blocks(self, mine: Callable[[int], bool]) -> Generator[Block, None, None]:
        def wanted(start: int, stop: int) -> bool:
            return any(mine(block) for block in range(start // self.rows_at_once, -(-stop // self.rows_at_once)))

        gather = Gather(self.rows_at_once, mine)
        for piece in self._reader.pieces(self.rows_at_once, wanted):
            self._seen.check_layout(piece, gather.position)
            for block in gather.add(piece):
                yield self._seen.check(block)
        for block in gather.rest():
            yield self._seen.check(block)
        self._seen.end(gather.position)


def _every(block: int) -> bool:
    return True


def _smallest(kept: list[Block], keys: np.ndarray, n: int) -> tuple[list[Block], np.ndarray]:
    """The n rows of the smallest keys, in their order in the stream."""
    best = np.sort(np.argsort(keys, kind="stable")[:n])
    return [join(kept, 0).rows(torch.from_numpy(best))], keys[best]
