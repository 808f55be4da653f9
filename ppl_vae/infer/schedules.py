"""Schedules: numbers that change with the epoch, such as the weight beta of the KL term."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppl_vae.errors import EngineError

__all__ = [
    "Constant",
    "Cyclical",
    "Linear",
    "Schedule",
    "constant",
    "cyclical",
    "linear",
    "schedule",
    "weighed",
    "within",
]

Schedule = Callable[[float], float]
"""The value at an epoch, fractions allowed."""


@dataclass(frozen=True)
class Constant:
    """One number at every epoch."""

    value: float

    def __call__(self, epoch: float) -> float:
        """The value, whatever the epoch."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """A number that moves evenly from start to end over the first epochs, and stays."""

    start: float
    end: float
    epochs: float

    def __call__(self, epoch: float) -> float:
        """The value at an epoch, fractions allowed."""
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)


@dataclass(frozen=True)
class Cyclical:
    """A number that rises from start to end and falls back at once, several times, and then stays at the end."""

    start: float
    end: float
    epochs: float
    cycles: int
    rise: float

    def __call__(self, epoch: float) -> float:
        """The value at an epoch, fractions allowed."""
        if epoch >= self.epochs:
            return self.end
        tau = math.fmod(epoch * self.cycles / self.epochs, 1.0)
        return self.start + (self.end - self.start) * min(1.0, tau / self.rise)


def constant(value: float) -> Constant:
    """Schedule that is one number, as the number itself is where a schedule is taken.

    Parameters
    ----------
    value : float
        The number.

    Examples
    --------
    >>> constant(0.5)(3)
    0.5
    """
    return Constant(float(value))


def linear(start: float, end: float, epochs: float) -> Linear:
    """Schedule for beta: KL warm-up.

    Parameters
    ----------
    start, end : float
        First and last value.
    epochs : float
        Length of the way.

    Raises
    ------
    EngineError
        If `epochs` is not positive.

    Examples
    --------
    >>> warm_up = linear(0, 1, epochs=10)
    >>> warm_up(5), warm_up(20)
    (0.5, 1.0)
    """
    if not epochs > 0:
        raise EngineError(f"linear: epochs must be positive, got {epochs}; for no warm-up take the number {end} itself")
    return Linear(start, end, epochs)


def cyclical(start: float, end: float, epochs: float, cycles: int = 4, rise: float = 0.5) -> Cyclical:
    """Schedule for beta: cyclical annealing, which opens the way through z again and again.

    With cycles of length `epochs / cycles` and tau in [0, 1) the way within a cycle,

        beta = start + (end - start) min(1, tau / rise)

    and `end` from `epochs` on.

    Parameters
    ----------
    start, end : float
        Value at the beginning of each cycle, and at its end.
    epochs : float
        Length of all cycles together.
    cycles : int
        How many there are.
    rise : float
        Part of a cycle in which the value rises, above 0 and at most 1; in the rest it stays at `end`.

    Raises
    ------
    EngineError
        If `epochs`, `cycles` or `rise` is out of its range.

    References
    ----------
    Fu, H. et al. (2019). Cyclical annealing schedule: a simple approach to mitigating KL vanishing. NAACL, 240-250.

    Examples
    --------
    >>> beta = cyclical(0, 1, epochs=40, cycles=4, rise=0.5)
    >>> [beta(epoch) for epoch in (0, 2.5, 5, 9, 10, 12.5, 40)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1]
    """
    if not epochs > 0 or cycles < 1 or not 0 < rise <= 1:
        raise EngineError(
            f"cyclical: epochs must be positive, cycles at least 1 and rise in (0, 1]; got epochs={epochs}, "
            f"cycles={cycles}, rise={rise}"
        )
    return Cyclical(start, end, epochs, cycles, rise)


def schedule(value: float | Schedule, name: str = "beta") -> Schedule:
    """A number or a function of the epoch as a function of the epoch.

    Raises
    ------
    EngineError
        If it is neither, or a number that is negative or not finite.

    Examples
    --------
    >>> schedule(1.0)(7), schedule(lambda epoch: epoch / 10)(7)
    (1.0, 0.7)
    """
    if callable(value):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return constant(value)
    raise EngineError(f"{name} must be a number that is not negative, or a function of the epoch; got {value!r}")


def within(value: Any, last: int, holds: Callable[[float], bool], words: str) -> None:
    """Refuse a setting, or a function of the epoch, that is not a number for which `holds` at all epochs to the last.

    Raises
    ------
    EngineError
        With `words` that say what the setting must be.

    Examples
    --------
    >>> within(lambda epoch: 1 - epoch, 3, lambda T: T > 0, "T must be positive")
    Traceback (most recent call last):
        ...
    ppl_vae.errors.EngineError: T must be positive at every epoch; at 1 it is 0
    """
    for epoch in range(last + 1 if callable(value) else 1):
        found = value(epoch) if callable(value) else value
        try:
            good = math.isfinite(found) and holds(float(found))
        except TypeError:
            good = False
        if not good:
            said = f" at every epoch; at {epoch} it is {found!r}" if callable(value) else f"; got {found!r}"
            raise EngineError(words + said)


def weighed(objective: Any, beta: Any, epochs: int) -> dict[str, float]:
    """How the KL term was weighed over the epochs that were run, in numbers: advice against collapse depends on it.

    Examples
    --------
    >>> weighed(None, lambda epoch: min(1.0, epoch / 10), 30)
    {'warm_up': 10, 'last_beta': 1.0, 'free_bits': 0.0}
    """
    weight, last = schedule(beta), max(epochs - 1, 0)
    moving = [epoch for epoch in range(last) if weight(epoch) != weight(last)]
    return {
        "warm_up": moving[-1] + 1 if moving else 0,
        "last_beta": float(weight(last)),
        "free_bits": getattr(objective, "free_bits", 0.0),
    }
