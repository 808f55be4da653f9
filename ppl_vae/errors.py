"""The errors users meet. Each message says what was given, what was expected and what to do."""

from numbers import Integral
from typing import Any

__all__ = [
    "NO_DATA",
    "DataError",
    "DeclarationError",
    "EngineError",
    "check_count",
    "check_particles",
    "check_seed",
    "check_whole",
    "is_whole",
]

NO_DATA = "this fit holds no data (it was loaded from a file, or made from a stream or a loader)"
"""What an error says before it says how to pass them."""


class DeclarationError(TypeError):
    """A model declaration that cannot mean anything: an unknown parent, a cycle, a missing event dimension."""


class DataError(ValueError):
    """Data that a model or a reader cannot take: wrong shape, out of support, missing, not a table at all."""


class EngineError(RuntimeError):
    """A request that an engine or a fit cannot answer, such as EM on a model with a continuous latent."""


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number, NumPy's included, and at least `least`; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_whole(where: str, least: int = 1, error: type[Exception] = EngineError, **settings: Any) -> None:
    """Refuse settings that are not whole numbers, or below `least`."""
    for name, value in settings.items():
        if not is_whole(value, least):
            raise error(f"{where}: {name} must be a whole number, at least {least}, got {value!r}")


def check_seed(seed: Any, error: type[Exception] = EngineError) -> int:
    """The seed, if torch, NumPy and scikit-learn all take it; of NumPy's whole numbers torch takes none."""
    if not is_whole(seed, 0) or seed >= 2**32:
        raise error(f"seed must be a whole number, at least 0 and below 2**32; got {seed!r}")
    return int(seed)


def check_count(n: Any) -> None:
    """Refuse to draw fewer than one datum, or a part of one."""
    if not is_whole(n):
        raise DataError(f"sample(n) draws n data, a whole number and at least 1; got {n!r}")


def check_particles(n: Any) -> None:
    """Refuse fewer draws for a datum than one, or a part of one."""
    if not is_whole(n):
        raise EngineError(f"num_particles is how many draws each datum has, a whole number and at least 1; got {n!r}")
