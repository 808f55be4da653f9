"""What a fit is worth among others: log-likelihood, number of parameters, and the criteria made of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppl_vae.fit import Fit, Status

__all__ = ["CRITERIA", "Cell", "Criterion", "spoken"]


@dataclass
class Cell:
    """One setting of the declaration and what its best fit is worth.

    Attributes
    ----------
    settings : dict
        The swept keywords with this cell's values.
    components : int or None
        K, the number of values of the finite latent; None without exactly one.
    parameters : int
        Number of free scalars: K - 1 for K weights, d (d + 1) / 2 for a covariance matrix.
    count : float
        Number of data, or the sum of their weights.
    status : Status
        How the best fit ended, or why there is none.
    fit : Fit or None
        The best of the engine's own starts and those from neighbours; None where no start gave a fit.
    start : str
        Where it came from: "engine", or the neighbour.
    log_likelihood : float
        log p(X | theta), total, nats.
    entropy : float
        - sum_i w_i sum_k r_ik log r_ik of the responsibilities, total, nats; NaN where components is None.
    held_out : float
        Mean log p(x) of the validation data, nats per datum; NaN without any.
    seconds : float
        Wall-clock time of all its starts.
    """

    settings: dict[str, Any]
    components: int | None
    parameters: int
    count: float
    status: Status
    fit: Fit | None = None
    start: str = ""
    log_likelihood: float = math.nan
    entropy: float = math.nan
    held_out: float = math.nan
    seconds: float = 0.0

    @property
    def eligible(self) -> bool:
        """Whether this cell may be the best: an unbounded likelihood or a failed fit may not."""
        return self.fit is not None and self.status.code not in ("degenerate", "failed")

    @property
    def label(self) -> str:
        """The settings as text."""
        return ", ".join(f"{name}={spoken(value)}" for name, value in self.settings.items()) or "the only setting"


@dataclass(frozen=True)
class Criterion:
    """A number by which cells are chosen; `sign` is 1 where larger is better, -1 where smaller is."""

    value: Callable[[Cell], float]
    sign: int
    meaning: str

    @property
    def better(self) -> str:
        """Which end of the criterion is the good one."""
        return "larger is better" if self.sign > 0 else "smaller is better"


def _aic(cell: Cell) -> float:
    return -2 * cell.log_likelihood + 2 * cell.parameters


def _bic(cell: Cell) -> float:
    return -2 * cell.log_likelihood + cell.parameters * math.log(cell.count)


def _icl(cell: Cell) -> float:
    return _bic(cell) + 2 * cell.entropy


def _held_out(cell: Cell) -> float:
    return cell.held_out


CRITERIA = {
    "bic": Criterion(_bic, -1, "-2 log p(X | theta) + p log n (Schwarz 1978)"),
    "aic": Criterion(_aic, -1, "-2 log p(X | theta) + 2 p (Akaike 1974)"),
    "icl": Criterion(_icl, -1, "BIC + 2 times the entropy of the responsibilities (Biernacki et al. 2000)"),
    "held_out": Criterion(_held_out, 1, "log p(x) of the validation data, nats per datum"),
}
"""Criteria by name. BIC, AIC and ICL have the field's usual sign and scale, twice the nats, smaller is better."""


def spoken(value: Any) -> str | int | float:
    """A setting as a table shows it; an object by its class."""
    return value if isinstance(value, str | int | float) else "None" if value is None else type(value).__name__
