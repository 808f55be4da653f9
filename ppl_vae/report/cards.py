"""Cards for notebooks: what a model, a fit or a comparison is, at a glance. Static, small, light and dark."""

from typing import Any

import numpy as np

from ppl_vae.compare import COLUMNS, Table, format_cell
from ppl_vae.datatree import posterior_draws
from ppl_vae.diagnostics import convergence
from ppl_vae.fit import Fit
from ppl_vae.report.equations import equations, posteriors
from ppl_vae.report.page import drawn_model, render

__all__ = ["cells", "fit_html", "model_html", "table_html"]

MOST = 24
"""Scalars shown on a fit's card."""


def model_html(model: Any) -> str:
    """Show a model: its drawing, its equations, how many free parameters, what to call next.

    Parameters
    ----------
    model : LatentVariableModel
        The declaration.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> "p(x | z)" in model_html(pv.models.GaussianMixture(2, 2))
    True
    """
    count = model.count_free()
    calls = ["pv.SVI(epochs=100).fit(model, x)"]
    if not posteriors(model):
        calls.insert(0, "pv.EM().fit(model, x)")
    if not count:
        calls.append("pv.NUTS().fit(model, x)")
    return render(
        "model.html",
        title=type(model).__name__,
        doc=(type(model).__doc__ or "").strip().split("\n")[0],
        drawing=drawn_model(model),
        equations=equations(model),
        count=count,
        calls=calls,
    )


def fit_html(fit: Fit) -> str:
    """Show a fit: how it ended, its diagnostics and parameters, the model, what to call next.

    Parameters
    ----------
    fit : Fit
        Of any engine.
    """
    facts = [
        ("status", str(fit.status)),
        ("kind", "point estimate" if fit.is_point else f"{fit.num_draws} draws"),
        ("seconds", f"{fit.seconds:.2f}"),
        ("seed", str(fit.seed)),
    ]
    if len(fit.trace.get("bound", ())):
        facts.append((fit.bound, f"{fit.trace['bound'][-1].item():.4f}"))
    found = convergence(fit)
    if found is not None:
        facts += [("worst R-hat", f"{found.rhat:.4f}"), ("smallest ESS", f"{found.ess:.0f}")]
        facts.append(("divergences", str(found.divergences)))
    facts += [(name, str(value)) for name, value in fit.settings.items() if name != "seed"]
    rows, more = _scalars(fit)
    return render(
        "fit.html",
        title=f"{type(fit.model).__name__} by {fit.engine}",
        ok=fit.status.ok,
        facts=facts,
        rows=rows,
        more=more,
        sampled=not fit.is_point,
        drawing=drawn_model(fit.model),
        equations=equations(fit.model),
        versions=", ".join(f"{k} {v}" for k, v in fit.versions.items()),
        calls=["fit.log_predictive(x)", "fit.sample(n)", "fit.to_datatree()", "fit.save(path)"],
    )


def _scalars(fit: Fit) -> tuple[list[tuple[str, str, str]], int]:
    """Name, mean and standard deviation of the first scalars, and how many there are besides."""
    rows: list[tuple[str, str, str]] = []
    total = 0
    for name, draws in posterior_draws(fit).items():
        values = draws.flatten(0, 1).double().numpy()
        for where in np.ndindex(*values.shape[1:]):
            total += 1
            if len(rows) < MOST:
                one = values[(slice(None), *where)]
                label = f"{name}[{', '.join(map(str, where))}]" if where else name
                rows.append((label, f"{one.mean():.4g}", f"{one.std():.2g}" if len(one) > 1 else ""))
    return rows, total - len(rows)


def table_html(table: Table) -> str:
    """Show a comparison: the table with its warnings.

    Parameters
    ----------
    table : Table
        From ppl_vae.compare.
    """
    return render("table.html", title="Comparison", names=list(table.fits), rows=cells(table), warnings=table.warnings)


def cells(table: Table) -> list[tuple[str, str, list[str]]]:
    """Column name, its meaning, and the text of every fit's cell."""
    frame = table.to_frame()
    return [
        (str(column), COLUMNS[str(column)], [format_cell(str(column), frame.loc[name, column]) for name in table.fits])
        for column in frame.columns
    ]
