"""What simulation-based calibration found: ranks of the truth among posterior draws, and whether they are uniform."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["Calibration", "Uniformity", "uniformity"]

ERROR = 0.05
"""Probability that a calibrated posterior is called wrong in any of its quantities."""
BINS = 20
SHAPE = 2.0
"""Standard errors from which shift or spread give a departure its name."""


@dataclass(frozen=True)
class Uniformity:
    """Whether values u in (0, 1), one a simulation, are uniform.

    Attributes
    ----------
    name : str
        The quantity.
    inside : bool
        Whether the empirical distribution function stays inside the simultaneous band.
    p_value : float
        Of the chi-squared test over equal bins.
    shift : float
        Mean of y = Phi^-1(u), standard normal where u is uniform, in standard errors: positive where the truth lies
        above the posterior.
    spread : float
        (variance of y - 1) in standard errors: positive where the posterior is too narrow.
    asymmetry : float
        p-value of the two-sample Kolmogorov-Smirnov test between u and 1 - u (Yao et al. 2018); NaN if not asked.
    """

    name: str
    inside: bool
    p_value: float
    shift: float
    spread: float
    asymmetry: float = float("nan")

    @property
    def verdict(self) -> str:
        """One of "calibrated", "too narrow", "too wide", "biased low", "biased high", two of them, "not uniform"."""
        if self.inside:
            return "calibrated"
        found = [word for word, holds in (
            ("too narrow", self.spread > SHAPE),
            ("too wide", self.spread < -SHAPE),
            ("biased low", self.shift > SHAPE),
            ("biased high", self.shift < -SHAPE),
        ) if holds]  # fmt: skip
        return " and ".join(found) or "not uniform"

    def advice(self) -> str:
        """A sentence on what the verdict means."""
        return f"{self.name}: {ADVICE.get(self.verdict.split(' and ')[0], ADVICE['not uniform'])}"


ADVICE = {
    "calibrated": "ranks are uniform; intervals cover as often as they say",
    "too narrow": "ranks pile up at both ends: the posterior is too narrow, its intervals cover less than they say; "
    "sample by NUTS, or take a richer guide",
    "too wide": "ranks pile up in the middle: the posterior is too wide, its intervals cover more than they say",
    "biased low": "the truth lies too often above the draws: the posterior is biased low",
    "biased high": "the truth lies too often below the draws: the posterior is biased high",
    "not uniform": "ranks leave the band without one clear shape: look at the plot; draws that are not independent, or "
    "an engine that failed now and then, do that",
}


def uniformity(name: str, u: np.ndarray, error: float = ERROR, asymmetry: bool = False) -> Uniformity:
    """Judge values in (0, 1) by a simultaneous band that uniform ones leave with probability `error`.

    References
    ----------
    Säilynoja, Bürkner and Vehtari (2022), "Graphical test for discrete uniformity and its applications in goodness of
    fit evaluation and multiple sample comparison".

    Examples
    --------
    >>> u = (np.arange(200) + 0.5) / 200
    >>> uniformity("mu", u).verdict, uniformity("mu", 0.5 + (u - 0.5) / 2).verdict
    ('calibrated', 'too wide')
    """
    from scipy import stats

    n = len(u)
    at, lower, upper = band(n, 1 - error)
    ecdf = np.searchsorted(np.sort(u), at, side="right") / n
    bins = max(2, min(BINS, n // 5))
    # A normal posterior of the wrong place and width makes y ~ N(shift, width^-2): one does not hide in the other.
    y = stats.norm.ppf(u.clip(1e-12, 1 - 1e-12))
    counts = np.histogram(u, bins, (0.0, 1.0))[0]
    return Uniformity(
        name=name,
        inside=bool(((ecdf >= lower) & (ecdf <= upper)).all()),
        p_value=float(stats.chisquare(counts).pvalue),
        shift=float(y.mean() * np.sqrt(n)),
        spread=float((y.var() - 1) * np.sqrt(n / 2)),
        asymmetry=float(stats.ks_2samp(u, 1 - u).pvalue) if asymmetry else float("nan"),
    )


@cache
def band(n: int, probability: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, and the simultaneous band of the empirical distribution function of n uniform values there."""
    from arviz_stats.ecdf_utils import get_pointwise_confidence_band, simulate_confidence_bands

    points = np.arange(1, n) / n
    rng = np.random.default_rng(0)
    pointwise = simulate_confidence_bands(n, 1, points, probability, 1000, rng)
    return points, *get_pointwise_confidence_band(pointwise, n, points)


@dataclass(frozen=True)
class Calibration:
    """Ranks of simulated truths among draws of their posteriors, as values in (0, 1).

    Attributes
    ----------
    names : tuple of str
        The quantities.
    u : array
        [simulation, quantity]: (rank + v) / (L + 1), v uniform and L the number of draws, which is uniform where the
        posterior is right whatever L is.
    record : dict of arrays
        "truth", "mean", "sd" and "draws" (L), [simulation, quantity]; "seconds" and "divergences", [simulation].
    failures : tuple of str
        Why fits failed; their simulations are left out.
    kind : str
        What was calibrated.
    asymmetry : bool
        Whether symmetry of u is judged too, as for amortised guides.
    """

    names: tuple[str, ...]
    u: np.ndarray
    record: dict[str, np.ndarray] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    kind: str = ""
    asymmetry: bool = False

    @property
    def error(self) -> float:
        """Probability that one calibrated quantity is called wrong: 0.05 shared among all."""
        return ERROR / len(self.names)

    def verdicts(self) -> list[Uniformity]:
        """A judgement of each quantity."""
        return [uniformity(name, self.u[:, j], self.error, self.asymmetry) for j, name in enumerate(self.names)]

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the posterior."""
        return not self.warnings()

    def warnings(self) -> tuple[str, ...]:
        """What speaks against the posterior, a sentence each."""
        said = [one.advice() for one in self.verdicts() if not one.inside]
        if self.failures:
            said.append(f"{len(self.failures)} fits failed and are left out, the first because {self.failures[0]}")
        if (few := self._few_draws()) is not None:
            said.append(few)
        return tuple(said)

    def _few_draws(self) -> str | None:
        draws = self.record.get("draws")
        if draws is None or np.median(draws) >= BINS:
            return None
        scarcest = self.names[int(np.median(draws, 0).argmin())]
        return (
            f"after thinning {scarcest} has a median of {np.median(draws, 0).min():.0f} independent draws: ranks are "
            f"coarse, so a posterior of the wrong width passes more easily; sample longer"
        )

    def to_frame(self) -> "pd.DataFrame":
        """The judgements as a table, a row for each quantity."""
        import pandas as pd

        rows = [
            {"quantity": v.name, "verdict": v.verdict, "p_value": v.p_value, "shift": v.shift, "spread": v.spread}
            | ({"asymmetry_p": v.asymmetry} if self.asymmetry else {})
            | ({"draws": float(np.median(self.record["draws"][:, j]))} if "draws" in self.record else {})
            for j, v in enumerate(self.verdicts())
        ]
        return pd.DataFrame(rows).set_index("quantity")

    def to_datatree(self) -> "xr.DataTree":
        """U as ArviZ's group "prior_sbc", for `arviz_plots.plot_ecdf_pit`."""
        import arviz_base

        values = {name: self.u[None, :, j] for j, name in enumerate(self.names)}
        return arviz_base.from_dict({"prior_sbc": values})

    def plot(self, ax: "Axes | None" = None, names: Sequence[str] | None = None) -> "Axes":
        """The difference of each empirical distribution function from the uniform one, in its band."""
        from ppl_vae.plots import calibration

        return calibration(self, ax, names)

    def __str__(self) -> str:
        head = f"{self.kind}: {len(self.u)} simulations"
        if "seconds" in self.record:
            head += f", {float(self.record['seconds'].mean()):.3g} s each"
        said = self.warnings() or ("ranks of every quantity are uniform",)
        return "\n".join([head, self.to_frame().round(3).to_string(), *said])

    def _repr_html_(self) -> str:
        said: Any = self.warnings() or ("ranks of every quantity are uniform",)
        items = "".join(f"<li>{escape(one)}</li>" for one in said)
        title = escape(f"{self.kind}: {len(self.u)} simulations")
        return f"<p><b>{title}</b></p>{self.to_frame().round(3).to_html()}<ul>{items}</ul>"
