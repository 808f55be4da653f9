"""Records on disk: trees and named tensors in one safetensors file, which only a complete one replaces; no pickle."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppl_vae.errors import DataError

__all__ = ["packed", "read_record", "replacing", "unpacked", "writable", "write_bytes", "write_record"]

CHECKSUM = "sha256"


def writable(path: str | os.PathLike[str]) -> Path:
    """The path of a file that can be written; asked before the work, not after it.

    Raises
    ------
    DataError
        If it is a folder, or no file can be made where it is to be.
    """
    path = Path(path)
    with _said_of(path):
        if path.is_dir():
            raise DataError(f"{path} is a folder; the name of a file is needed")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.NamedTemporaryFile(dir=above):  # rights do not tell: there are file systems without new files
            return path


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """What the file system says against writing within the block, as our error about the path that the user gave."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot write {path}: the file system says '{said}'; choose another place, or make room there"
        ) from error


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
    own, text = _apart(tensors), json.dumps(record, default=str)
    with replacing(path) as temporary:
        safetensors.torch.save_file(own, temporary, {key: text, CHECKSUM: _checksum(text, own)})


def read_record(path: Path, key: str = "ppl_vae", what: str = "saved fit") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_record` wrote under the same key.

    Raises
    ------
    DataError
        If the file was cut short or edited, or holds something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies: what is read lies in the file itself, which may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise DataError(f"{path} is not a {what}, or was cut short: {error}") from error
    if key not in metadata:
        raise DataError(f"{path} is a safetensors file, but not a {what} written by ppl_vae")
    found = _checksum(metadata[key], tensors)
    if metadata.get(CHECKSUM, found) != found:
        raise DataError(f"{path} was edited or damaged: it does not hold what was written (its checksum differs)")
    return json.loads(metadata[key]), tensors


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the record and every tensor's name, dtype, shape and bits."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, none in the memory of another."""
    own: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        flat = value.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        own[name] = flat.clone() if place in places else flat
        places.add(place)
    return own


def write_bytes(path: Path, content: bytes | memoryview) -> Path:
    """Write a file that others may read, or leave the old one.

    Raises
    ------
    DataError
        If the file system refuses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bytes(Path(folder, "a.html"), b"<p>").read_bytes()
    b'<p>'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        # mkstemp makes private files; this one has the rights of any new file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place when it is complete and on the disk.

    Raises
    ------
    DataError
        If the file system refuses; the file at `path` is the old one then.
    """
    with _said_of(path):
        yield from _replacing(path)


def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put a folder's list of files on the disk, where a system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# A tree as JSON and tensors. A JSON object is never a dictionary of the tree, but says what it stands for.


def packed(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """A tree of dictionaries, lists, tuples, numbers, strings, None and tensors as JSON, and its tensors by number.

    A tensor that is there twice is held once.

    Examples
    --------
    >>> packed({3: (1.5, torch.ones(1))})
    ({'dict': [[3, {'tuple': [1.5, {'tensor': '0'}]}]]}, {'0': tensor([1.])})
    >>> unpacked(*packed({3: (1.5, torch.ones(1))}))
    {3: (1.5, tensor([1.]))}
    """
    tensors: dict[str, Tensor] = {}
    names: dict[Any, str] = {}

    def name_of(tensor: Tensor) -> str:
        memory = (tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr())
        name = names.setdefault(memory, str(len(names)))
        tensors.setdefault(name, tensor)
        return name

    def pack(part: Any) -> Any:
        if part is None or isinstance(part, str | int | float):
            return part
        if isinstance(part, Tensor):
            return {"tensor": name_of(part)}
        if isinstance(part, list):
            return [pack(one) for one in part]
        if isinstance(part, tuple):
            return {"tuple": [pack(one) for one in part]}
        if isinstance(part, Mapping):
            return {"dict": [[pack(key), pack(value)] for key, value in part.items()]}
        raise TypeError(f"a record holds numbers, strings, None, tensors and trees of those, not {part!r}")

    return pack(tree), tensors


def unpacked(tree: Any, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Any:
    """The tree that `packed` took apart, its tensors on `device`."""
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    kinds = {
        "tensor": lambda name: placed[name],
        "tuple": lambda parts: tuple(unpack(part) for part in parts),
        "dict": lambda items: {unpack(key): unpack(value) for key, value in items},
    }

    def unpack(part: Any) -> Any:
        if isinstance(part, dict):
            ((kind, content),) = part.items()
            return kinds[kind](content)
        return [unpack(one) for one in part] if isinstance(part, list) else part

    return unpack(tree)
