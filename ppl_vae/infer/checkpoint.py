"""Checkpoints: an engine's state between two steps, in a file from which the same call goes on."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer.processes import Share
from ppl_vae.records import read_record, write_record

__all__ = ["Checkpoint", "described", "fingerprint"]

FILE = "checkpoint.safetensors"
FORMAT = 1
KEY = "ppl_vae checkpoint"
EVERY = 5.0
"""Seconds between two writes."""
SOME = 64
"""Rows of which a fingerprint knows every number, and steps of a schedule that it knows."""


class Checkpoint:
    """The file that holds an engine's last state: a tree of numbers, strings and tensors.

    The state that was kept last is written when `EVERY` seconds have passed since the last write, when it is asked
    for, and when the block is left by an exception. A complete file is only ever replaced by a complete one.

    Parameters
    ----------
    path : path, optional
        A folder, or a file that ends in .safetensors. None: nothing is written or read.
    share : Share
        Every process reads the file, the first one writes it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Checkpoint(folder) as checkpoint:
    ...         checkpoint.opened({"seed": 0})
    ...         checkpoint.keep({"step": 3, "x": torch.ones(2)}, now=True)
    ...     Checkpoint(folder).opened({"seed": 0})
    {'step': 3, 'x': tensor([1., 1.])}
    """

    def __init__(self, path: str | os.PathLike[str] | None, share: Share = Share()) -> None:  # noqa: B008
        given = None if path is None else Path(path)
        self.path = given if given is None or given.suffix == ".safetensors" else given / FILE
        self.share = share
        self.header: dict[str, Any] = {}
        self.waiting: Any = None
        self.written = -float("inf")

    @property
    def writes(self) -> bool:
        """Whether this process has a file to write."""
        return self.path is not None and self.share.leads

    def opened(self, header: Mapping[str, Any], device: torch.device | None = None) -> Any:
        """The state in the file, None where there is none yet; its header must be this one.

        Raises
        ------
        DataError
            If the file was cut short or is something else.
        EngineError
            If another call wrote it: the message says what differs.
        """
        self.header = json.loads(json.dumps(header))
        if self.path is None:
            return None
        record, tensors = read_record(self.path, KEY, "checkpoint") if self.path.is_file() else ({}, {})
        self.share.agree(f"the checkpoint {self.path}", json.dumps(record, sort_keys=True))
        if not record:
            return None
        stored = {"format": record["format"], **record["header"]}
        if different := _differences(stored, {"format": FORMAT, **self.header}):
            raise EngineError(
                f"{self.path} is the checkpoint of another call: {'; '.join(different[:3])}. Repeat that call, or keep "
                "this one in another place"
            )
        return _unpacked(record["state"], tensors, device)

    def keep(self, state: Any, now: bool = False) -> None:
        """Take the state after a step, which must not be changed afterwards; write it when it is time, or `now`."""
        if not self.writes:
            return
        self.waiting = state
        if now or time.monotonic() - self.written >= EVERY:
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        tensors: dict[str, Tensor] = {}
        state = _packed(self.waiting, "", tensors)
        write_record(self.path, {"format": FORMAT, "header": self.header, "state": state}, tensors, KEY)
        self.waiting, self.written = None, time.monotonic()

    def advice(self, kept: str) -> str:
        """How to go on after an interruption; `kept` says of when the last state is, which the first process writes."""
        if self.path is None:
            return "run the same command again; with a checkpoint it would go on where it was"
        return f"run the same command again: it resumes from {self.path}" + (f" at {kept}" if self.writes else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None and self.waiting is not None:
            self._write()


# What a call was, in JSON.


def described(value: Any) -> Any:
    """A setting as JSON that is the same in every process which has the same setting.

    Examples
    --------
    >>> described((1, "a")), described(lambda i: 2.0 * i) == described(lambda i: i + i)
    ([1, 'a'], True)
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Fit):
        value = value.parameters
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): described(part) for name, part in value.items()}
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return fingerprint({"": torch.as_tensor(value)})
    if is_dataclass(value):
        return repr(value)
    # A schedule is what it gives.
    return [float(value(i)) for i in range(SOME)] if callable(value) else type(value).__name__


def fingerprint(named: Mapping[str, Any]) -> str:
    """What tells tensors from others: their names, dtypes, shapes, the sum of their bits and some rows.

    Examples
    --------
    >>> x = torch.arange(6.0)
    >>> fingerprint({"x": x}) == fingerprint({"x": x.clone()}) != fingerprint({"x": x.flip(0)})
    True
    """
    digest = hashlib.sha256()
    for name, value in named.items():
        tensor = getattr(value, "probabilities", value)  # binary images that are drawn anew
        if tensor is not None:
            rows = (
                torch.linspace(0, max(len(tensor) - 1, 0), min(SOME, len(tensor))).round().long()
                if tensor.dim()
                else ...
            )
            bits = sum(int(_bits(part).sum(dtype=torch.int64)) for part in tensor.reshape(-1).split(1 << 22))
            digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape), bits % (1 << 64))).encode())
            digest.update(_bits(tensor[rows].reshape(-1)).cpu().numpy().tobytes())
    return digest.hexdigest()


def _bits(flat: Tensor) -> Tensor:
    """The numbers of a vector as integers: sums of those are exact, on every machine and in any order."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return flat.detach().contiguous().view(sizes[flat.element_size()])


def _differences(stored: Any, now: Any, name: str = "") -> list[str]:
    """In words, what of two headers differs."""
    if isinstance(stored, dict) and isinstance(now, dict):
        names = [*stored, *(key for key in now if key not in stored)]
        nested = [_differences(stored.get(key), now.get(key), f"{name}.{key}" if name else key) for key in names]
        return [words for part in nested for words in part]
    if stored == now:
        return []
    short = all(len(str(value)) < 60 for value in (stored, now))
    return [f"{name} was {stored!r} there and is {now!r} here" if short else f"{name} differs"]


# A state as JSON and tensors.


def _packed(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors[path] = tree
        return {"tensor": path}
    if isinstance(tree, Mapping):
        return {name: _packed(part, f"{path}/{name}", tensors) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [_packed(part, f"{path}/{number}", tensors) for number, part in enumerate(tree)]
    return tree


def _unpacked(tree: Any, tensors: Mapping[str, Tensor], device: torch.device | None) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]].to(device)
        return {name: _unpacked(part, tensors, device) for name, part in tree.items()}
    return [_unpacked(part, tensors, device) for part in tree] if isinstance(tree, list) else tree
