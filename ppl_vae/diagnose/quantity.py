"""One diagnosed number, with what it means and whether it is good."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vae.counted import counted_mean

__all__ = ["Quantity", "error", "measured", "undefined"]


@dataclass(frozen=True)
class Quantity:
    """One diagnosed number.

    Attributes
    ----------
    name : str
        Its name in the table.
    part : str
        "collapse", "prior hole" or "inference".
    meaning : str
        What it is, and how it was estimated.
    value : float or None
        None where it is not defined.
    standard_error : float or None
        Of the value, over data and draws; None where there is none, NaN where a single draw leaves it unknown.
    unit : str
        Such as "nats".
    ok : bool or None
        The verdict: False is a warning, None where there is nothing to judge.
    why : str
        Why it is not defined.
    each : tuple of float
        Of a quantity of several units, the largest values; `value` is the first of them.

    Examples
    --------
    >>> print(Quantity("KL", "collapse", "mean KL(q || p)", 2.5, 0.1, "nats", ok=True).text)
    2.50 ± 0.10 nats
    """

    name: str
    part: str
    meaning: str
    value: float | None = None
    standard_error: float | None = None
    unit: str = ""
    ok: bool | None = None
    why: str = ""
    each: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The value with its error and unit, or why it is not defined."""
        if self.value is None:
            return f"not defined: {self.why}"
        if self.each:
            return f"{'  '.join(f'{value:.2f}' for value in self.each)} {self.unit}"
        if self.standard_error is None:
            return f"{self.value:.4g} {self.unit}".rstrip()
        return f"{with_error(self.value, self.standard_error)} {self.unit}".rstrip()

    @property
    def verdict(self) -> str:
        """Either "ok" or "warning", or nothing."""
        return {True: "ok", False: "warning", None: ""}[self.ok]


def with_error(value: float, error: float) -> str:
    """A value to the digits that its standard error leaves, and the error to two of its own.

    Examples
    --------
    >>> with_error(-12.34567, 0.0213), with_error(1234.5, 30.0), with_error(0.5, 0.0)
    ('-12.346 ± 0.021', '1234 ± 30', '0.5 ± 0')
    >>> with_error(0.5, float("nan"))
    '0.5 (standard error unknown)'
    """
    if math.isnan(error):
        return f"{value:.4g} (standard error unknown)"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g} ± {error:.2g}"
    places = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def measured(
    name: str, part: str, meaning: str, value: Any, error: Any = None, unit: str = "nats", ok: Any = None
) -> Quantity:
    """A quantity from numbers or tensors of one number; a value that is not a number is not defined."""
    value, error, ok = (v.item() if isinstance(v, Tensor) else v for v in (value, error, ok))
    if math.isnan(value):
        return undefined(name, part, meaning, "the estimate is not a number")
    return Quantity(name, part, meaning, float(value), None if error is None else float(error), unit, ok)


def undefined(name: str, part: str, meaning: str, why: str) -> Quantity:
    """A quantity that this model or these data do not have."""
    return Quantity(name, part, meaning, why=why)


def error(values: Tensor) -> float | None:
    """Standard error of a mean over data, None for one datum."""
    return counted_mean(values)[1] if len(values) > 1 else None
