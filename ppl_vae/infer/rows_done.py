"""Numbers of many data that are found block by block, and the file from which the same call goes on."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare.identity import fingerprint
from ppl_vae.declare.observations import Observations
from ppl_vae.errors import EngineError
from ppl_vae.evidence import Evidence
from ppl_vae.infer.identity import differences
from ppl_vae.records import read_record, writable, write_record

__all__ = ["EVIDENCE", "RowsDone", "columns", "evidence", "question", "said"]

WRITE_EVERY = 10.0
"""Seconds between two writes of a checkpoint."""
EVIDENCE = ("value", "standard_error", "effective_sample_size", "k_hat")
"""Columns of an Evidence by importance weights."""


def question(model: Any, obs: Observations, **settings: Any) -> dict[str, Any]:
    """What a checkpoint must share with the call: the model's parameters, the data, and how they are looked at."""
    return {
        "model": {"class": type(model).__name__, **model._identity()},
        "parameters": fingerprint({**model.state_dict(), **model._bound}),
        "data": fingerprint({**obs.values, **{f"{name}, missing": gap for name, gap in obs.missing.items()}}),
        **settings,
        "device": model.like.device.type,
    }


class RowsDone:
    """Columns of numbers that are known of the first `done` of n data, and the file that keeps them.

    Parameters
    ----------
    checkpoint : path, optional
        The file; without one nothing is kept.
    call : str
        The function whose file it is.
    header : mapping
        What the file must share with the call, see `question`.
    columns : sequence of str
        Names of the numbers.
    n : int
        Data.

    Raises
    ------
    EngineError
        If the file is of another call.
    DataError
        If no file can be written there, or it is damaged.

    Examples
    --------
    >>> found = RowsDone(None, "sums", {}, ["square"], 3)
    >>> found.work([torch.tensor([0, 1]), torch.tensor([2])], lambda rows: {"square": rows**2}, lambda done: None)
    >>> found.columns["square"].tolist()
    [0.0, 1.0, 4.0]
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None,
        call: str,
        header: Mapping[str, Any],
        columns: Sequence[str],
        n: int,
    ) -> None:
        self.path = None if checkpoint is None else writable(checkpoint)
        self.kind, self.header = f"ppl_vae {call}", header
        self.columns = {name: torch.full((n,), torch.nan, dtype=torch.float64) for name in columns}
        self.done = 0
        if self.path is not None and self.path.exists():
            record, self.columns = read_record(self.path, self.kind, f"checkpoint of {call}")
            self.done = record["done"]
            if differs := differences(record["header"], dict(header)):
                said = "; ".join(differs)
                raise EngineError(f"{self.path} is of another call: {said}; name another file, or remove this one")
        self.written, self.last = self.done, time.monotonic()

    def work(
        self,
        blocks: Iterable[Tensor],
        of_block: Callable[[Tensor], Mapping[str, Tensor | None]],
        after: Callable[["RowsDone"], None],
    ) -> None:
        """Fill in the columns of these rows, block by block in order; what is done by an interruption is kept."""
        try:
            for rows in blocks:
                for name, value in of_block(rows).items():
                    if value is not None:
                        self.columns[name][rows] = value[: len(rows)].to(self.columns[name])
                self.done += len(rows)
                after(self)
                if time.monotonic() - self.last > WRITE_EVERY:
                    self._write()
        finally:
            self._write()

    def _write(self) -> None:
        if self.path is not None and self.done > self.written:
            write_record(self.path, {"header": self.header, "done": self.done}, self.columns, self.kind)
            self.written, self.last = self.done, time.monotonic()


def columns(block: Evidence) -> dict[str, Tensor | None]:
    """An Evidence as the columns in EVIDENCE."""
    return {name: getattr(block, name) for name in EVIDENCE}


def evidence(found: RowsDone) -> Evidence:
    """The columns in EVIDENCE as an Evidence."""
    value, error, ess, k_hat = (found.columns[name] for name in EVIDENCE)
    return Evidence(value, error, ess, "importance", None if k_hat.isnan().all() else k_hat)


def said(found: RowsDone) -> str:
    """The mean of what is done, in words."""
    return f"mean {found.columns['value'][: found.done].mean().item():.3f} nats"
