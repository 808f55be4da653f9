"""The page of a comparison."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ppl_vae import families, plots
from ppl_vae.compare import Table
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.plots.mixture import raw
from ppl_vae.records import writable
from ppl_vae.report.cards import cells
from ppl_vae.report.chains import chains_of
from ppl_vae.report.components import places, responsibilities
from ppl_vae.report.equations import equations
from ppl_vae.report.figures import drawing, new_figure, svg
from ppl_vae.report.methods import comparison_methods
from ppl_vae.report.page import drawn_model, render, write
from ppl_vae.report.steps import Steps, em_steps
from ppl_vae.report.views import View, as_json, data_view, draws_view, runtime
from ppl_vae.report.words import reference, spoken, verdict
from ppl_vae.rows import K_LIMIT

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
    path = writable(path)
    first = next(iter(table.fits.values()))
    name = reference(table) or next((n for n, fit in table.fits.items() if not fit.is_point), next(iter(table.fits)))
    heads, rows = _parameters(table)
    shares = responsibilities(table)
    order = places(shares)
    with drawing():
        predictive = _predictive(table.fits[name], table.data)
        steps = _steps(table, order)
        pareto = _pareto(table, name)
        figures = {"ellipses": _ellipses(table, order), "bound": _bound(table), "chains": chains_of(table.fits[name])}
    views, script = _views(table, shares, order, table.fits[name])
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
        renumbered=_renumbered(name, order.get(name, [])),
        steps=steps,
        notes=table.notes,
        pareto=pareto,
        steps_data=as_json({"frames": steps.frames}) if steps else None,
        views=views,
        runtime=script,
        methods=comparison_methods(table.fits, table.data, any(r.elpd_loo is not None for r in table.rows.values())),
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


def _ellipses(table: Table, order: dict[str, list[int]]) -> list[tuple[str, Markup]]:
    """One figure per fit of the observed normal family, the components in the colours of the first fit."""
    found = []
    for name, own in order.items():
        try:
            ax = plots.fit_ellipses(table.fits[name], raw(table.data), new_figure(3.9, 3.1).add_subplot(), order=own)
        except (EngineError, AttributeError):
            continue
        found.append((name, svg(ax.figure, f"Data coloured by component, with the components of {name}")))
    return found


def _steps(table: Table, order: dict[str, list[int]]) -> Steps | None:
    """The iterations of the first fit that keeps them."""
    name = next((n for n in order if table.fits[n].history), None)
    return None if name is None else em_steps(table.fits[name], table.data, order[name])


def _views(
    table: Table, shares: dict[str, np.ndarray], order: dict[str, list[int]], sampled: Fit
) -> tuple[list[View], Markup | None]:
    """Linked views and what draws them; none where Altair is not installed."""
    script = runtime()
    if script is None:
        return [], None
    found = [view for view in (data_view(table, shares, order), draws_view(sampled)) if view is not None]
    return found, script if found else None


def _ellipse_caption(fit: Fit) -> str:
    made = [f for f in fit.model.families().values() if isinstance(f, families.Normal)]
    ghosts = " Thin lines are single draws of a fit that has draws: how much they spread is how uncertain it is."
    if made and made[0].n_features == 1:
        return "Grey bars are the data, coloured lines each component's density, the dashed line their sum." + ghosts
    return (
        "Each point has its components' colours mixed by responsibility. Ellipses hold 1 and 2 standard deviations."
        + ghosts
    )


def _renumbered(name: str, order: list[int]) -> str:
    """Says so where a fit's own numbers of components are not those of the tables."""
    if order == sorted(order):
        return ""
    own, others = ", ".join(map(str, order)), ", ".join(map(str, range(len(order))))
    return f"Components have {name}'s own numbers here: its {own} are {others} in the tables and figures above."


def _bound(table: Table) -> Markup | None:
    if not any(len(fit.trace.get("bound", ())) for fit in table.fits.values()):
        return None
    ax = plots.bound(table.fits, new_figure(4.9, 3.2).add_subplot())
    return svg(ax.figure, f"Bound in nats per datum against seconds for {', '.join(table.fits)}")


def _pareto(table: Table, name: str) -> Markup | None:
    """Pareto k of each datum under the fit's leave-one-out."""
    elpd = table.elpd.get(name)
    if elpd is None:
        return None
    k = np.asarray(elpd.pareto_k).reshape(-1)
    bad = k > K_LIMIT
    ax = new_figure(4.9, 2.6).add_subplot()
    ax.scatter(np.flatnonzero(~bad), k[~bad], s=8, color=plots.style.color(0), linewidths=0, rasterized=len(k) > 500)
    ax.scatter(np.flatnonzero(bad), k[bad], s=22, color=plots.style.color(1), marker="x")
    ax.axhline(K_LIMIT, color=plots.style.GREY, lw=1, ls="--")
    ax.set_xlabel("row of the data")
    ax.set_ylabel("Pareto k")
    return svg(ax.figure, f"Pareto k of each datum; {int(bad.sum())} of {len(k)} are above {K_LIMIT}")


def _predictive(fit: Fit, data: Any) -> list[tuple[str, Markup]]:
    if fit.model.inputs:
        return []
    found = []
    columns = plots.style.values_of(fit, raw(data))[2]
    for j, column in enumerate(columns[:FEATURES]):
        ax = plots.predictive_check(fit, raw(data), new_figure(3.9, 2.7).add_subplot(), feature=j)
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
