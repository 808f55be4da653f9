"""The errors users meet. Each message says what was given, what was expected and what to do."""

from numbers import Integral
from typing import Any

__all__ = ["NO_DATA", "DataError", "DeclarationError", "EngineError", "check_count", "check_particles"]

NO_DATA = "this fit holds no data (it was loaded from a file, or made from a stream or a loader)"
"""What an error says before it says how to pass them."""


class DeclarationError(TypeError):
    """A model declaration that cannot mean anything: an unknown parent, a cycle, a missing event dimension."""


class DataError(ValueError):
    """Data that a model or a reader cannot take: wrong shape, out of support, missing, not a table at all."""


class EngineError(RuntimeError):
    """A request that an engine or a fit cannot answer, such as EM on a model with a continuous latent."""


def check_count(n: Any) -> None:
    """Refuse to draw fewer than one datum, or a part of one."""
    if not isinstance(n, Integral) or n < 1:
        raise DataError(f"sample(n) draws n data, a whole number and at least 1; got {n!r}")


def check_particles(n: Any) -> None:
    """Refuse fewer draws for a datum than one, or a part of one."""
    if not isinstance(n, Integral) or n < 1:
        raise EngineError(f"num_particles is how many draws each datum has, a whole number and at least 1; got {n!r}")
