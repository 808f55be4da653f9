"""Cards of a selection and of standard errors: tables of numbers, one row per cell or scalar."""

from ppl_vae import plots
from ppl_vae.criteria import CRITERIA
from ppl_vae.report.figures import drawing, new_figure, svg
from ppl_vae.report.page import render
from ppl_vae.select import Selection, format_cell
from ppl_vae.uncertainty import StandardErrors

__all__ = ["errors_html", "selection_html"]

MOST = 60
"""Rows shown on a card."""


def selection_html(found: Selection) -> str:
    """Show a selection: its table, and the criterion against the number of components.

    Parameters
    ----------
    found : Selection
        From ppl_vae.select.
    """
    frame, best = found.to_frame().drop(columns="best"), found.best_cell
    columns = [str(name) for name in frame.columns if name not in found.grid]
    texts = [[format_cell(name, row[name]) for name in columns] for _, row in frame.iterrows()]
    with drawing():
        ax = plots.selection(found, new_figure(4.6, 3.2).add_subplot())
        picture = svg(ax.figure, f"{found.criterion} of every cell; the best is {best.label}")
    return render(
        "grid.html",
        title=f"Selection by {found.criterion}, {CRITERIA[found.criterion].better}",
        warnings=[f"{cell.label}: {cell.status}" for cell in found.cells if not cell.status.ok],
        heads=["settings", *(name.replace("_", " ") for name in columns)],
        rows=[(cell.label, row, cell is best) for cell, row in zip(found.cells, texts, strict=True)][:MOST],
        drawing=picture,
        calls=["selection.best", "selection.to_frame()", "selection.plot()"],
    )


def errors_html(found: StandardErrors) -> str:
    """Show standard errors: estimate, error and interval of every scalar.

    Parameters
    ----------
    found : StandardErrors
        From ppl_vae.standard_errors.
    """
    frame = found.to_frame()
    rows = [(str(label), [f"{value:.4g}" for value in row], False) for label, row in frame.iterrows()]
    return render(
        "grid.html",
        title=f"Standard errors by the {found.kind}",
        warnings=[*([] if found.status.ok else [found.status.message]), *found.status.notes],
        heads=["parameter", *map(str, frame.columns)],
        rows=rows[:MOST],
        drawing=None,
        calls=["errors.to_frame()", "errors.covariance"],
    )
