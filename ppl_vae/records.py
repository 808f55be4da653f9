"""Records on disk: named tensors and JSON in one safetensors file, which only a complete one replaces; no pickle."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ppl_vae.errors import DataError

__all__ = ["read_record", "write_record"]


def write_record(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor], key: str = "ppl_vae") -> None:
    """Write `record` (what JSON can hold) and tensors by name; `key` says of what kind the record is.

    Examples
    --------
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.safetensors"
    ...     write_record(path, {"n": 3}, {"x": torch.ones(2)})
    ...     read_record(path)
    ({'n': 3}, {'x': tensor([1., 1.])})
    """
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    _write_atomically(path, safetensors.torch.save(contiguous, {key: json.dumps(record, default=str)}))


def read_record(path: Path, key: str = "ppl_vae", what: str = "saved fit") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_record` wrote under the same key.

    Raises
    ------
    DataError
        If the file was cut short or holds something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise DataError(f"{path} is not a {what}, or was cut short: {error}") from error
    if key not in metadata:
        raise DataError(f"{path} is a safetensors file, but not a {what} written by ppl_vae")
    return json.loads(metadata[key]), tensors


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
