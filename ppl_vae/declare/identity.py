"""What a model is beside its parameters and buffers: the kinds, settings and code of its modules, in JSON."""

import hashlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.declare.observations import as_tensor

__all__ = ["code_of", "fingerprint", "settings", "sources"]

LIBRARIES = ("torch", "pyro", "ppl_vae", "builtins", "typing", "abc")
"""Whose code is known by its version."""
FITTED = ("training", "shared_guide", "guide_name")
"""What engines set, beside the parameters of families."""
UNKNOWN = object()
SOME = 64
"""Rows of which a fingerprint knows every number, and steps of a schedule that it knows."""


def settings(model: nn.Module) -> dict[str, Any]:
    """Class and settings of every module, by path: what `__init__` was told and has kept in numbers and names.

    Examples
    --------
    >>> settings(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))["1"]
    {'class': 'Tanh'}
    """
    return {path or "model": {"class": type(module).__qualname__, **_settings(module)} for path, module in _own(model)}


def sources(model: nn.Module) -> dict[str, Any]:
    """Code and constants of every class that is no library's, by its name."""
    found: dict[str, Any] = {}
    for _, module in _own(model):
        for cls in type(module).__mro__:
            if cls.__module__.partition(".")[0] not in LIBRARIES:
                parts = {name: _of_class(value) for name, value in vars(cls).items() if not name.startswith("__")}
                made = {"__init__": _of_class(vars(cls).get("__init__"))}
                found[cls.__qualname__] = {k: v for k, v in {**made, **parts}.items() if v is not UNKNOWN}
    return found


def code_of(function: Callable[..., Any]) -> str:
    """A digest of what a function does: its code, and the numbers and names that it takes from around it."""
    code = function.__code__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
    around = {name: _plain(cell.cell_contents) for name, cell in cells.items()}
    around |= {name: _plain(function.__globals__[name]) for name in code.co_names if name in function.__globals__}
    kept = sorted((name, value) for name, value in around.items() if value is not UNKNOWN)
    defaults = [_plain(value) for value in function.__defaults__ or ()]
    told = [value for value in defaults if value is not UNKNOWN]
    return hashlib.sha256(repr((_bytecode(code), kept, told)).encode()).hexdigest()


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
                torch.linspace(0, max(len(tensor) - 1, 0), min(SOME, len(tensor)), dtype=torch.float64).round().long()
                if tensor.dim()
                else ...
            )
            bits = sum(int(_bits(part).sum(dtype=torch.int64)) for part in tensor.reshape(-1).split(1 << 22))
            digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape), bits % (1 << 64))).encode())
            digest.update(_bits(tensor[rows].reshape(-1)).cpu().numpy().tobytes())
    return digest.hexdigest()


def _bits(flat: Tensor) -> Tensor:
    """The numbers of a vector as integers: sums of those are exact, on every machine and in any order."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
    return flat.detach().contiguous().view(sizes[flat.element_size()])


def _own(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the declaration; those of q are made by engines."""
    return [(path, m) for path, m in model.named_modules() if not path.startswith(("local_posteriors", "shared_"))]


def _settings(module: nn.Module) -> dict[str, Any]:
    fitted = {*FITTED, *getattr(module, "constraints", ())}
    told = {name: _plain(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in told.items() if value is not UNKNOWN and name not in fitted}


def _of_class(value: Any) -> Any:
    """What a class has under a name: of a node or a method its code, of a constant its value."""
    for name in ("function", "fget", "__func__"):
        value = getattr(value, name, None) or value
    return code_of(value) if isinstance(value, types.FunctionType) else _plain(value)


def _plain(value: Any) -> Any:
    """Numbers and names as they are, arrays of them by a digest."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.Size):
        return str(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        if value.dtype.kind not in "biuf":
            return hashlib.sha256(repr((str(value.dtype), value.shape)).encode() + value.tobytes()).hexdigest()
        value = as_tensor(value)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return fingerprint({"": value})
    if isinstance(value, list | tuple):
        parts = [_plain(one) for one in value]
        return UNKNOWN if any(one is UNKNOWN for one in parts) else parts
    return UNKNOWN


def _bytecode(code: types.CodeType) -> list[Any]:
    inner = [_bytecode(one) if isinstance(one, types.CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), code.co_names, inner]


def _constant(value: Any) -> str:
    # The order of a set of strings is another one in every process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
