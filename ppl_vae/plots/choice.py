"""Which number of components a criterion prefers, and how well each parameter is known."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from ppl_vae.criteria import CRITERIA, Cell, spoken
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.plots.chains import scalars
from ppl_vae.plots.style import GREY, color, new_axes
from ppl_vae.select import Selection
from ppl_vae.uncertainty import StandardErrors

__all__ = ["intervals", "selection"]

MARKERS = "osD^vP*X<>"
Z = 1.959963984540054
"""97.5% quantile of the standard normal."""


def selection(found: Selection, ax: Axes | None = None, criterion: str | None = None) -> Axes:
    """Draw a criterion against the number of components, one line for each setting of the rest, the best one ringed.

    Fits that degenerated or failed have no point on a line: they are crosses at the foot.

    Parameters
    ----------
    found : Selection
        From ppl_vae.select.
    ax : Axes, optional
        Where to draw.
    criterion : str, optional
        Another name in CRITERIA than the one that chose.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> found = pv.select(pv.models.GaussianMixture, pv.data.faithful(), n_components=[1, 2], progress=False)
    >>> selection(found).get_ylabel()
    'BIC, smaller is better'
    """
    name = criterion or found.criterion
    best, rule = found.best_by(name), CRITERIA[name]
    ax = new_axes(ax, (6.0, 4.0))
    for number, (label, cells) in enumerate(_lines(found).items()):
        good = [cell for cell in cells if cell.eligible]
        style = {"color": color(number), "marker": MARKERS[number % len(MARKERS)], "markersize": 5, "lw": 1.5}
        x, y = [_place(found, cell) for cell in good], [rule.value(cell) for cell in good]
        ax.plot(x, y, label=label or None, **style)  # type: ignore[arg-type]
        lost = [_place(found, cell) for cell in cells if not cell.eligible]
        ax.plot(lost, [0.02] * len(lost), "x", color=color(number), transform=ax.get_xaxis_transform())
    ax.plot(_place(found, best), rule.value(best), "o", markersize=13, mfc="none", mec=GREY, mew=1.8)
    _ticks(found, ax)
    ax.set_ylabel(f"{name.replace('_', ' ') if '_' in name else name.upper()}, {rule.better}")
    if len(_lines(found)) > 1:
        ax.legend(frameon=False)
    return ax


def _size(found: Selection) -> str | None:
    """The swept keyword that is the number of components."""
    return next((n for n in found.grid if all(cell.settings[n] == cell.components for cell in found.cells)), None)


def _lines(found: Selection) -> dict[str, list[Cell]]:
    """Cells by the settings other than the number of components."""
    size = _size(found)
    lines: dict[str, list[Cell]] = {}
    for cell in found.cells:
        rest = ", ".join(str(spoken(v)) for n, v in cell.settings.items() if n != size) if size else ""
        lines.setdefault(rest, []).append(cell)
    return lines


def _place(found: Selection, cell: Cell) -> float:
    size = _size(found)
    return float(cell.settings[size]) if size else float(found.cells.index(cell))


def _ticks(found: Selection, ax: Axes) -> None:
    size = _size(found)
    if size:
        ax.set_xticks(sorted(found.grid[size]))
        ax.set_xlabel(size.replace("n_", "number of "))
    else:
        ax.set_xticks(range(len(found.cells)), [cell.label for cell in found.cells], rotation=30, ha="right")


def intervals(sources: Mapping[str, StandardErrors | Fit], ax: Axes | None = None) -> Axes:
    """Draw the 95% intervals of every scalar side by side: by standard errors, or the quantiles of a fit's draws.

    All are drawn on the scale of the first: as distances from its estimate, in its standard errors, so that parameters
    of different units share one axis.

    Parameters
    ----------
    sources : mapping of StandardErrors or Fit
        By name; fits need draws (a bootstrap, NUTS, SVI) with components in the same order.
    ax : Axes, optional
        Where to draw.

    Raises
    ------
    EngineError
        For a fit without draws.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 1), pv.data.faithful().values[:, :1])
    >>> ax = intervals({"information": pv.standard_errors(fit)})
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['components.covariance[0, 0, 0]', 'components.loc[0, 0]']
    """
    found = {name: _interval(name, source) for name, source in sources.items()}
    center, error = _scale(next(iter(found.values())))
    rows = [label for label in center if error[label] > 0]
    ax = new_axes(ax, (6.0, 0.8 + 0.3 * len(rows)))
    offsets = np.linspace(-0.2, 0.2, len(found)) if len(found) > 1 else np.zeros(1)
    for number, (name, interval) in enumerate(found.items()):
        shown = [label for label in rows if label in interval]
        lower, middle, upper = (
            np.array([(interval[label][j] - center[label]) / error[label] for label in shown]) for j in range(3)
        )
        y = np.array([rows.index(label) for label in shown]) + offsets[number]
        ends = np.stack([middle - lower, upper - middle]).clip(0)
        ax.errorbar(middle, y, xerr=ends, fmt="o", color=color(number), markersize=4, capsize=3, label=name)
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.set_xlabel(f"difference from the estimate of {next(iter(found))}, in its standard errors")
    if len(found) > 1:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


Interval = dict[str, tuple[float, float, float]]
"""Lower end, centre and upper end of each scalar by name; the second of two equal ones is left out."""


def _scale(first: Interval) -> tuple[dict[str, float], dict[str, float]]:
    """Centre and standard error of each scalar."""
    centers = {label: middle for label, (_, middle, _) in first.items()}
    return centers, {label: (upper - lower) / (2 * Z) for label, (lower, _, upper) in first.items()}


def _interval(name: str, source: StandardErrors | Fit) -> Interval:
    found: Interval = {}
    if isinstance(source, StandardErrors):
        ends = {str(k): (row["lower"], row["estimate"], row["upper"]) for k, row in source.to_frame().iterrows()}
    elif source.is_point:
        raise EngineError(f"{name} is a point estimate without draws: pass its standard_errors or its bootstrap")
    else:
        draws = {label: value.ravel() for label, value in scalars(source).items()}
        ends = {k: (np.quantile(v, 0.025), v.mean(), np.quantile(v, 0.975)) for k, v in draws.items()}
    for label, three in ends.items():
        if not any(np.allclose(three, other, rtol=1e-12, atol=0) for other in found.values()):
            found[label] = three
    return found
