"""What a call and its data were, in JSON: what must be the same for a checkpoint to go on, and in every process."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare.identity import SOME, fingerprint, portrait
from ppl_vae.fit import Fit
from ppl_vae.infer.callbacks import Callback

__all__ = ["described", "differences"]


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
        value = {**value.parameters, **value.model.state_dict()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): described(part) for name, part in value.items()}
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return fingerprint({"": torch.as_tensor(value)})
    if is_dataclass(value) and not isinstance(value, type):
        name = type(value).__qualname__
        return {name: {f.name: described(getattr(value, f.name)) for f in fields(value) if f.compare}}
    if isinstance(value, Callback):  # what it counts is no setting
        return type(value).__qualname__
    return _of_function(value) if callable(value) else portrait(value)


def _of_function(value: Callable[..., Any]) -> Any:
    """A schedule is what it gives; another function is its code and what that encloses."""
    try:
        return [float(value(i)) for i in range(SOME)]
    except Exception:
        return portrait(value)


def differences(stored: Any, now: Any, name: str = "") -> list[str]:
    """In words, what of two headers differs."""
    if isinstance(stored, dict) and isinstance(now, dict):
        names = [*stored, *(key for key in now if key not in stored)]
        nested = [differences(stored.get(key), now.get(key), f"{name}.{key}" if name else key) for key in names]
        return [words for part in nested for words in part]
    if stored == now:
        return []
    short = all(len(str(value)) < 60 for value in (stored, now))
    return [f"{name} was {stored!r} there and is {now!r} here" if short else f"{name} differs"]
