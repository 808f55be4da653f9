"""A fit as one file: safetensors and JSON, no code and no data."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from ppl_vae.errors import DataError, EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.records import read_record, write_record

__all__ = ["load", "save"]

FORMAT = 1
"""Version of the file format."""


def save(fit: Fit, path: str | os.PathLike[str]) -> Path:
    """Write a fit; an older file is replaced only when the new one is complete."""
    if not hasattr(fit.model, "_identity"):  # an ordinary Pyro program
        raise EngineError(
            "the fit of a Pyro program cannot be written to a file, since no file could be read back into a program: "
            "fit with checkpoint=, and the same call gives this fit again; or torch.save dict(fit.parameters) and "
            "fit.draws, which are tensors by name"
        )
    path = Path(path)
    tensors = {f"state/{k}": v for k, v in fit.model.state_dict().items()}
    tensors |= {f"draws/{k}": v for k, v in fit.draws.items()}
    tensors |= {f"trace/{k}": v for k, v in fit.trace.items()}
    tensors |= {f"sample_stats/{k}": v for k, v in fit.sample_stats.items()}
    tensors |= {f"history/{k}": v for k, v in fit.history.items()}
    record = {
        "format": FORMAT,
        "model": type(fit.model).__name__,
        "dtype": str(fit.model.like.dtype).removeprefix("torch."),
        "guide": fit.model.guide_name,
        "local": fit.model.local_size,
        "shapes": {} if fit.data is None else {k: list(v.shape[1:]) for k, v in fit.data.values.items()},
        "made_with": fit.model._identity()["settings"],
        "columns": {k: list(names) for k, names in fit.model._columns.items()},
        **{k: getattr(fit, k) for k in ("engine", "bound", "seconds", "seed", "settings", "versions")},
        "status": asdict(fit.status),
    }
    write_record(path, record, tensors)
    return path


def load(path: str | os.PathLike[str], model: Any) -> Fit:
    """Read a fit back into a declaration of the same class and shape; see Fit.load."""
    if isinstance(model, type):
        raise DataError(f"load takes an object as it was fitted, {model.__name__}(...), got the class itself")
    record, tensors = _read(Path(path))
    if record["model"] != type(model).__name__:
        raise DataError(f"{path} is a fit of {record['model']}, the model given is {type(model).__name__}")
    model = model.unfitted().to(getattr(torch, record["dtype"]))
    model.rebuild(record["guide"], record["local"], record["shapes"])
    state = _under("state", tensors)
    stored = {name: tuple(value.shape) for name, value in state.items()}
    own = {k: stored.get(k, "of any shape") if is_lazy(v) else tuple(v.shape) for k, v in model.state_dict().items()}
    _compare_shapes(path, model, stored, own)
    draws = _under("draws", tensors)
    shared = {name: tuple(shape) for name, shape in model.shared_shapes().items() if name in draws}
    _compare_shapes(path, model, {name: tuple(draws[name].shape[2:]) for name in shared}, shared)
    made_with = record.get("made_with", {})
    _compare_settings(path, made_with, _settings(model, made_with))
    model.load_state_dict(state)
    model.know({name: tuple(columns) for name, columns in record.get("columns", {}).items()})
    model.eval()  # as fitted: batch normalisation and its like stand still
    fit = Fit(
        model=model,
        draws=draws,
        trace=_under("trace", tensors),
        sample_stats=_under("sample_stats", tensors),
        history=_under("history", tensors),
        status=Status(**{**record["status"], "notes": tuple(record["status"]["notes"])}),
        **{k: record[k] for k in ("engine", "bound", "seconds", "seed", "settings", "versions")},
    )
    for family in model.families().values():
        if family.prior is None:
            family.hold(family.constraints)
    if fit.is_point and fit.draws:
        model.fix(fit.draw(0))
    return fit


def _compare_shapes(
    path: str | os.PathLike[str], model: Any, stored: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    wrong = [name for name in sorted({*own, *stored}) if own.get(name) != stored.get(name)]
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{path} does not fit this {type(model).__name__}: {name} is {stored.get(name, 'absent')} in the file "
            f"and {own.get(name, 'absent')} in the model; build the model as it was fitted"
        )


def _settings(model: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What modules were made with; what lazy ones know only from data, a class and a width, is as in the file."""
    own: dict[str, Any] = model._identity()["settings"]
    for path, module in model.named_modules():
        if isinstance(module, LazyModuleMixin):
            learned = [name for name, value in own[path].items() if name == "class" or (type(value), value) == (int, 0)]
            own[path] |= {name: value for name, value in stored.get(path, {}).items() if name in learned}
    return own


def _compare_settings(path: str | os.PathLike[str], stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Warn of modules that were made with other numbers: shapes do not tell, and the answers are other ones."""
    other = []
    for module, theirs in stored.items():
        here = own.get(module, {})
        moved = [name for name, value in theirs.items() if value != here.get(name)]
        names = ["class"] if "class" in moved else moved
        other += [f"{module}.{name} was {theirs[name]!r} and is {here.get(name)!r} here" for name in names]
    if other:
        warnings.warn(
            f"{path} is a fit of another model: {', '.join(other)}; build the model as it was fitted, or its answers "
            "are those of another one",
            stacklevel=4,
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix + "/"): v for k, v in tensors.items() if k.startswith(prefix + "/")}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise DataError(f"there is no file {path}; save a fit with fit.save(path)")
    record, tensors = read_record(path)
    if record["format"] > FORMAT:
        raise DataError(f"{path} was written in format {record['format']} by a newer ppl_vae; this one reads {FORMAT}")
    return record, tensors
