"""What a model is beside its parameters and buffers: the kinds, settings and code of its modules, in JSON."""

import argparse
import dis
import hashlib
import json
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_vae.declare.observations import as_tensor

__all__ = ["buffers", "code_of", "fingerprint", "held", "portrait", "settings", "sources"]

LIBRARIES = ("torch", "pyro", "ppl_vae", "builtins", "typing", "abc")
"""Whose code is known by its version."""
FITTED = ("training", "shared_guide", "guide_name")
"""What engines set, beside the parameters of families."""
SETTINGS = (Distribution, ELBO, Messenger, Reparam)
"""Library objects that are what they were told."""
PLAIN_OBJECTS = (types.SimpleNamespace, argparse.Namespace)
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


def sources(model: nn.Module, seen: set[int] | None = None) -> dict[str, Any]:
    """Code and constants of every class that is no library's, by its name."""
    found: dict[str, Any] = {}
    for _, module in _own(model):
        for cls in type(module).__mro__:
            if cls.__module__.partition(".")[0] not in LIBRARIES:
                parts = {name: _of_class(value, seen) for name, value in vars(cls).items() if not name.startswith("__")}
                made = {"__init__": _of_class(vars(cls).get("__init__"), seen)}
                found[cls.__qualname__] = {k: v for k, v in {**made, **parts}.items() if v is not UNKNOWN}
    return found


def code_of(function: types.FunctionType, seen: set[int] | None = None) -> str:
    """A digest of what a function does: its code, what it encloses, and what of the same kind it takes from its file.

    Of what its file has, numbers and functions: objects there, such as a script's settings or records, may be others in
    every run.
    """
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=False)
    inner = partial(portrait, seen=set() if seen is None else seen)
    enclosed = {name: inner(_content(cell)) for name, cell in cells}
    for name in code.co_names:
        value = function.__globals__.get(name, UNKNOWN)
        told = inner(value) if isinstance(value, types.FunctionType) else _plain(value)
        if told is not UNKNOWN:
            enclosed[name] = told
    defaults = [inner(value) for value in function.__defaults__ or ()]
    named = {name: inner(value) for name, value in (function.__kwdefaults__ or {}).items()}
    parts = (_bytecode(code), sorted(enclosed.items(), key=lambda item: item[0]), defaults, named)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def portrait(value: Any, seen: set[int] | None = None) -> Any:
    """A value in JSON, the same in every process that has the same one; what training moves is left out.

    Functions are their code and what they enclose, objects their class and fields, networks their settings and the
    values of what is frozen in them. Of what belongs to a library, such as a lock or a file, there is the class alone,
    and of what was `seen` before, since objects may hold each other.

    Examples
    --------
    >>> from functools import partial
    >>> portrait(partial(torch.full, (), 2.0)) == portrait(partial(torch.full, (), 3.0))
    False
    """
    told = _plain(value)
    if told is not UNKNOWN:
        return told
    name = _name(value)
    seen = set() if seen is None else seen
    if id(value) in seen:
        return name
    seen.add(id(value))
    inner = partial(portrait, seen=seen)
    if isinstance(value, Tensor):  # a parameter: training moves it unless it is frozen
        return [name, list(value.shape), None if value.requires_grad else fingerprint({"": value.detach()})]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(portrait(one, set(seen)), sort_keys=True) for one in value)
    if isinstance(value, list | tuple):
        return [inner(one) for one in value]
    if isinstance(value, Mapping):
        return {_key(key): inner(one) for key, one in value.items()}
    if isinstance(value, partial):
        return {name: [inner(value.func), inner(value.args), inner(value.keywords)]}
    if isinstance(value, types.FunctionType):
        if not _is_librarys(value):
            return {name: code_of(value, seen)}
        return {name: [inner(_content(cell)) for cell in value.__closure__ or ()]}
    if isinstance(value, types.MethodType):
        return {name: [inner(value.__func__), inner(value.__self__)]}
    if isinstance(value, type):
        return {name: [_each(part, inner) for part in _parts(value)]} if _is_users(value) else name
    if isinstance(value, nn.Module):
        return {name: [settings(value), sources(value, seen), held(value, inner)]}
    return _object(value, name, inner)


def held(model: nn.Module, told: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """What modules hold beside `settings` that training leaves, by path: objects, functions, frozen values."""
    told = told or portrait
    found: dict[str, Any] = {}
    for path, module in _own(model):
        kept = {} if _is_librarys(type(module)) else _fields(module)
        named = {n: v for n, v in kept.items() if n[0] != "_" and n not in FITTED and _plain(v) is UNKNOWN}
        if isinstance(module, AutoGuide):
            named["init_scale"] = getattr(module, "_init_scale", None)
        if not getattr(module, "_of_fit", False):  # whose parameters an engine froze
            named |= {n: p for n, p in module.named_parameters(recurse=False) if not p.requires_grad}
        found |= {f"{path}.{n}".lstrip("."): told(v) for n, v in named.items()}
    return found


def buffers(model: nn.Module) -> dict[str, str]:
    """Values of the floating buffers, by path, as they are before training; a library's networks draw and move theirs.

    Of a library's modules there are single numbers only, such as a temperature.
    """
    return {
        f"{path}.{name}".lstrip("."): fingerprint({"": b})
        for path, module in _own(model)
        for name, b in module.named_buffers(recurse=False)
        if b.is_floating_point() and (b.dim() == 0 or not _is_librarys(type(module)))
    }


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


def _object(value: Any, name: str, inner: Callable[[Any], Any]) -> Any:
    """Class and fields of what a user wrote, and of a library's objects that are but their settings."""
    if is_dataclass(value):
        return {name: _each({f.name: getattr(value, f.name) for f in fields(value) if f.compare}, inner)}
    if isinstance(value, SETTINGS):
        constraints = getattr(value, "arg_constraints", None) if isinstance(value, Distribution) else None
        public = {n: v for n, v in vars(value).items() if not n.startswith("_")}
        return {name: _each({n: getattr(value, n) for n in constraints} if constraints else public, inner)}
    return {name: [inner(type(value)), _each(_fields(value), inner)]} if _is_users(type(value)) else name


def _each(named: Mapping[str, Any], inner: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: inner(one) for name, one in named.items()}


def _fields(value: Any) -> dict[str, Any]:
    """What an object was made with: without what its methods write, such as a count of calls."""
    written = _written(type(value))
    return {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in written}


def _parts(cls: type) -> list[Any]:
    """What a user's class and those above it have of functions and constants."""
    mine, written = [vars(one).items() for one in cls.__mro__ if _is_users(one)], _written(cls)
    return [
        {n: _inside(v) for n, v in items if _is_function(v) or not (n.startswith("__") or n in written)}
        for items in mine
    ]


def _written(cls: type) -> set[str]:
    """Attributes that methods assign after an object has been made."""
    mine = [item for one in cls.__mro__ if _is_users(one) for item in vars(one).items()]
    later = [f for n, f in mine if _is_function(f) and n not in ("__init__", "__post_init__")]
    return {str(do.argval) for f in later for do in dis.get_instructions(f) if do.opname == "STORE_ATTR"}


def _is_librarys(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] in (*LIBRARIES, *sys.stdlib_module_names) and not _is_script(value)


def _is_script(value: Any) -> bool:
    return str(value.__module__) in ("__main__", "__mp_main__")


def _is_users(cls: type) -> bool:
    """Whether a class is neither a library's nor of an installed package."""
    if cls in PLAIN_OBJECTS:
        return True
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    return not _is_librarys(cls) and "site-packages" not in file


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing has been put into it yet
        return None


def _key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(portrait(key), sort_keys=True)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _settings(module: nn.Module) -> dict[str, Any]:
    fitted = {*FITTED, *getattr(module, "constraints", ())}
    told = {name: _plain(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in told.items() if value is not UNKNOWN and name not in fitted}


def _of_class(value: Any, seen: set[int] | None = None) -> Any:
    """What a class has under a name: of a node or a method its code, of a constant its value."""
    value = _inside(value)
    return code_of(value, seen) if _is_function(value) else _plain(value)


def _inside(value: Any) -> Any:
    """The function of a node, a property or a static method; anything else as it is."""
    for name in ("function", "fget", "__func__"):
        value = getattr(value, name, None) or value
    return value


def _is_function(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


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
