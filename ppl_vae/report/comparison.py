"""The page of a comparison."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ppl_vae import families, plots
from ppl_vae.align import match
from ppl_vae.compare import Table
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.plots.mixture import raw
from ppl_vae.report.cards import cells
from ppl_vae.report.equations import equations
from ppl_vae.report.figures import drawing, new_figure, svg
from ppl_vae.report.page import drawn_model, render, write
from ppl_vae.report.words import reference, spoken, verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["distinct", "foot", "write_comparison"]

FEATURES = 6
"""Features shown in the predictive check."""


def write_comparison(table: Table, path: str | os.PathLike[str], command: str | None = None) -> Path:
    """Write a comparison as one HTML file that needs no network.

    Parameters
    ----------
    table : Table
        From ppl_vae.compare.
    path : path
        File to write; an older one is replaced only when the new one is complete.
    command : str, optional
        What to type to get the same page.
    """
    first = next(iter(table.fits.values()))
    name = reference(table) or next((n for n, fit in table.fits.items() if not fit.is_point), next(iter(table.fits)))
    heads, rows = _parameters(table)
    with drawing():
        predictive = _predictive(table.fits[name], table.data)
        figures = {"ellipses": _ellipses(table), "bound": _bound(table), "chains": _chains(table.fits[name])}
    text = render(
        "comparison.html",
        title=f"{type(first.model).__name__}: {', '.join(table.fits)}",
        lead=_lead(table, first),
        summary=verdict(table),
        warnings=table.warnings,
        names=list(table.fits),
        rows=cells(table),
        ellipse_caption=_ellipse_caption(first),
        parameters=rows,
        heads=heads,
        reference=reference(table),
        predictive=predictive,
        predictive_name=name,
        chains_name=name,
        **figures,
        **foot(first.model, table.fits, command),
    )
    return write(path, text)


def foot(model: Any, fits: dict[str, Fit], command: str | None) -> dict[str, Any]:
    """What every page ends with: graph, equations, seed, versions, settings."""
    first = next(iter(fits.values()))
    return {
        "graph": drawn_model(model),
        "equations": equations(model),
        "command": command,
        "seed": ", ".join(str(s) for s in dict.fromkeys(fit.seed for fit in fits.values())),
        "versions": ", ".join(f"{k} {v}" for k, v in first.versions.items()),
        "settings": {name: spoken(fit.settings) for name, fit in fits.items()},
    }


def _lead(table: Table, first: Fit) -> str:
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in table.data.values.items())
    names = ", ".join(c for own in table.data.columns.values() for c in own)
    columns = f" ({names})" if names else ""
    return f"One declaration, {len(table.fits)} fits, {len(table.data)} data: {shapes}{columns}."


def _ellipses(table: Table) -> list[tuple[str, Markup]]:
    """One figure per fit of the observed normal family, the components in the colours of the first fit."""
    found = []
    first: Any = None
    for name, fit in table.fits.items():
        data = raw(table.data)
        try:
            r = fit.responsibilities(data)
            order = None if first is None or r.shape != first.shape else match(first.double(), r.double()).tolist()
            first = r if first is None else first
            ax = plots.fit_ellipses(fit, data, new_figure(3.5, 2.9).add_subplot(), order=order)
        except (EngineError, AttributeError):
            continue
        found.append((name, svg(ax.figure, f"Data coloured by component, with the components of {name}")))
    return found


def _ellipse_caption(fit: Fit) -> str:
    made = [f for f in fit.model.families().values() if isinstance(f, families.Normal)]
    ghosts = " Thin lines are single draws of a fit that has draws: how much they spread is how uncertain it is."
    if made and made[0].n_features == 1:
        return "Grey bars are the data, coloured lines each component's density, the dashed line their sum." + ghosts
    return (
        "Each point has its components' colours mixed by responsibility. Ellipses hold 1 and 2 standard deviations."
        + ghosts
    )


def _bound(table: Table) -> Markup | None:
    if not any(len(fit.trace.get("bound", ())) for fit in table.fits.values()):
        return None
    ax = plots.bound(table.fits, new_figure(6.6, 3.4).add_subplot())
    return svg(ax.figure, f"Bound in nats per datum against seconds for {', '.join(table.fits)}")


def _chains(fit: Fit) -> list[Markup] | None:
    if fit.is_point or next(iter(fit.draws.values())).shape[0] < 2:
        return None
    trace, rank = plots.trace_rank(fit)
    return [
        svg(trace, "Density and trace of each parameter by chain"),
        svg(rank, "Ranks of each parameter by chain"),
    ]


def _predictive(fit: Fit, data: Any) -> list[tuple[str, Markup]]:
    if fit.model.inputs:
        return []
    found = []
    columns = plots.style.values_of(fit, raw(data))[2]
    for j, column in enumerate(columns[:FEATURES]):
        ax = plots.predictive_check(fit, raw(data), new_figure(3.5, 2.5).add_subplot(), feature=j)
        ax.set_xlabel("")
        found.append((column, svg(ax.figure, f"Density of {column} in the data and in data drawn from the fit")))
    return found


def distinct(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Leave out rows that repeat an earlier one to nine digits: a covariance has each entry twice.

    Examples
    --------
    >>> import pandas as pd
    >>> distinct(pd.DataFrame({"EM": [0.1, 0.2, 0.1 + 1e-15]}))["EM"].tolist()
    [0.1, 0.2]
    """
    return frame[~frame.map("{:.9g}".format).duplicated()]


def _parameters(table: Table) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """Heads and rows of the parameters side by side, with the reference's interval."""
    frame = table.parameters()
    name = reference(table)
    fits = [n for n in table.fits if n in frame]
    lower, upper = f"{name} lower", f"{name} upper"
    interval = name is not None and lower in frame
    rows = []
    for label, row in distinct(frame).iterrows():
        cells = []
        for fit in fits:
            out = interval and fit != name and not row[lower] <= row[fit] <= row[upper]
            cells.append((f"{row[fit]:#.4g}" if row[fit] == row[fit] else "", bool(out and row[fit] == row[fit])))
        if interval:
            cells.append((f"{row[lower]:#.4g} to {row[upper]:#.4g}", False))
        rows.append((str(label), cells))
    return [*fits, *([f"{name} 90% interval"] if interval else [])], rows
