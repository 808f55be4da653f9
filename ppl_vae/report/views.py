"""Linked views by Altair: data with their responsibilities, draws of two parameters. Without Altair a page has none."""

import json
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from markupsafe import Markup

from ppl_vae.compare import Table
from ppl_vae.fit import Fit
from ppl_vae.plots.chains import scalars
from ppl_vae.plots.mixture import raw
from ppl_vae.plots.style import array, color, values_of

__all__ = ["View", "as_json", "data_view", "draws_view", "runtime"]

ROWS = 1000
"""Data, and draws, in a view."""
SCALARS = 12
"""Parameters to choose from."""
QUIET = "#808891"
SAME = 0.999


@dataclass
class View:
    """A Vega-Lite program with what it is and how to read it."""

    name: str
    title: str
    caption: str
    spec: Markup


@lru_cache
def runtime() -> Markup | None:
    """What draws Vega-Lite programs, a script that fetches nothing; None where Altair's parts are not installed."""
    try:
        import altair  # noqa: F401
        import vl_convert
    except ImportError:
        return None
    bundle: Any = vl_convert.javascript_bundle  # its stub asks for an argument that has a default
    return Markup(bundle().replace("</script", "<\\/script"))


def as_json(value: Any) -> Markup:
    """Values for a script of a page: nothing in them can end it.

    Examples
    --------
    >>> "</script>" in as_json({"a": "</script>"})
    False
    """
    return Markup(json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c"))


def _beside(left: Any, right: Any, params: tuple[Any, ...], said: str) -> Markup:
    """The program of two views that share their choices, without its address, in the page's ink and type."""
    import altair as alt

    ink = {**dict.fromkeys(("labelColor", "titleColor"), "currentColor"), "labelFontSize": 12, "titleFontSize": 12}
    lines = dict.fromkeys(("tickColor", "domainColor"), "currentColor")
    with warnings.catch_warnings():
        # One choice in both views is what is meant.
        warnings.filterwarnings("ignore", "Automatically deduplicated")
        chart = alt.concat(left, right, columns=2).add_params(*params)
        chart = chart.properties(background="transparent", description=said)
        chart = chart.configure(font="system-ui, sans-serif").configure_view(stroke=None)
        chart = chart.configure_axis(
            **ink, **lines, titleFontWeight="normal", gridColor=QUIET, gridOpacity=0.2, tickCount=6
        )
        chart = chart.configure_legend(**ink, titleFontWeight="normal", orient="top")
        found = chart.to_dict()
    found.pop("$schema", None)
    return as_json(found)


def _rectangle() -> Any:
    """A choice of rows by drawing a rectangle in any view."""
    import altair as alt

    return alt.selection_interval(name="marked", mark=alt.BrushConfig(fill=QUIET, fillOpacity=0.2, stroke=QUIET))


def data_view(table: Table, shares: dict[str, np.ndarray], order: dict[str, list[int]]) -> View | None:
    """The data in the plane, and how sure a fit is of each one's component.

    Parameters
    ----------
    table : Table
        The comparison.
    shares : dict of array
        Responsibilities [n, K] by fit.
    order : dict of list
        Component `order[name][k]` of each fit takes colour k.
    """
    import altair as alt

    rows, columns = _data_rows(table, shares, order)
    K = max((r.shape[1] for r in shares.values()), default=0)
    if not rows or K < 2:
        return None
    shown = alt.selection_point(
        name="shown",
        fields=["fit"],
        value=next(iter(order)),
        bind=alt.binding_select(options=list(order), name="responsibilities of "),
    )
    near, even = alt.Scale(zero=False), alt.Scale(domain=[1 / K, 1], nice=False)
    across = alt.X("x0:Q", scale=near, title=columns[0])
    up = alt.Y("x1:Q", scale=near, title=columns[1]) if len(columns) > 1 else alt.Y("row:Q", title="row of the data")
    sure = alt.Y("sure:Q", scale=even, title="largest responsibility")
    tips = [alt.Tooltip(f"x{j}:Q", format=".4g", title=c) for j, c in enumerate(columns)]
    tips += [alt.Tooltip("component:N"), alt.Tooltip("sure:Q", format=".3f", title="largest responsibility")]
    base = alt.Chart(alt.Data(values=rows)).transform_filter(shown).mark_circle(size=34).encode(tooltip=tips)
    marked, left, right = _rectangle(), base.encode(x=across, y=up), base.encode(x=across, y=sure)
    shades = alt.Scale(domain=[str(k) for k in range(K)], range=[color(k) for k in range(K)])
    seen = {
        "color": alt.condition(marked, alt.Color("component:N", scale=shades), alt.value(QUIET)),
        "opacity": alt.condition(marked, alt.value(0.85), alt.value(0.12)),
    }
    said = "The data, and the largest responsibility of each; a rectangle in one marks the other"
    return View(
        "data-view",
        "Which data are uncertain",
        "Left, the data; right, the largest responsibility of each, which is low between components. Draw a rectangle "
        "in one to mark the same data in the other; a double click takes it back. The fit is chosen below.",
        _beside(left.encode(**seen), right.encode(**seen), (shown, marked), said),
    )


def _data_rows(
    table: Table, shares: dict[str, np.ndarray], order: dict[str, list[int]]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A row for each datum and fit, and the names of the features shown."""
    first = next(iter(order), None)
    if first is None:
        return [], ()
    obs, node, columns = values_of(table.fits[first], raw(table.data))
    x = array(obs.with_gaps(node)).reshape(len(obs), -1).astype(float)[:, :2]
    keep = [i for i in np.linspace(0, len(x) - 1, min(ROWS, len(x))).astype(int).tolist() if np.isfinite(x[i]).all()]
    rows = []
    for name, places in order.items():
        r = shares[name][:, places]
        best, sure = r.argmax(1), r.max(1)
        rows += [
            {
                "fit": name,
                "row": i,
                "component": str(best[i]),
                "sure": round(float(sure[i]), 4),
                **{f"x{j}": float(f"{v:.6g}") for j, v in enumerate(x[i])},
            }
            for i in keep
        ]
    return rows, tuple(columns[:2])


def draws_view(fit: Fit) -> View | None:
    """Draws of two parameters to choose, beside the trace of the first.

    Parameters
    ----------
    fit : Fit
        With draws; None is returned for others.
    """
    import altair as alt

    columns = {} if fit.is_point else dict(list(scalars(fit).items())[:SCALARS])
    if len(columns) < 2:
        return None
    options, chains = list(columns), next(iter(columns.values())).shape[0]
    first = alt.param(name="first", value=options[0], bind=alt.binding_select(options=options, name="first "))
    other = alt.binding_select(options=options, name="second ")
    second = alt.param(name="second", value=_companion(columns), bind=other)
    near, tips = alt.Scale(zero=False), ["chain:N", "draw:Q", alt.Tooltip("a:Q", format=".4g"), "b:Q"]
    base = alt.Chart(alt.Data(values=_draw_rows(fit, columns))).mark_point(size=16, filled=True)
    base = base.transform_calculate(a="datum[first]", b="datum[second]").encode(
        shape=alt.Shape("diverging:N", scale=alt.Scale(domain=[0, 1], range=["circle", "cross"]), legend=None),
        tooltip=tips,
    )
    a: dict[str, Any] = {"scale": near, "title": "first parameter"}
    left = base.encode(x=alt.X("a:Q", **a), y=alt.Y("b:Q", scale=near, title="second parameter"))
    marked, right = _rectangle(), base.encode(x=alt.X("draw:Q"), y=alt.Y("a:Q", **a))
    shades = alt.Scale(domain=[str(k) for k in range(chains)], range=[color(k) for k in range(chains)])
    seen = {
        "color": alt.condition(marked, alt.Color("chain:N", scale=shades), alt.value(QUIET)),
        "opacity": alt.condition(marked, alt.value(0.7), alt.value(0.1)),
    }
    said = "Draws of two parameters by chain, and the trace of the first; a rectangle marks both"
    return View(
        "draws-view",
        f"Draws of two parameters, {fit.engine}",
        "Left, draws of the two parameters chosen below, by chain; right, those of the first in turn. Draw a rectangle "
        "in one to see the same draws in the other: a chain that keeps to one corner, or a corner that is visited in "
        "one spell, means that the chains have not mixed. Crosses are divergent transitions.",
        _beside(left.encode(**seen), right.encode(**seen), (first, second, marked), said),
    )


def _companion(columns: dict[str, np.ndarray]) -> str:
    """The parameter that goes most with the first one, without repeating it as the second of two shares does."""
    names = list(columns)
    with np.errstate(invalid="ignore"):  # a parameter that never moves goes with none
        r = np.abs(np.corrcoef(np.stack([columns[name].reshape(-1) for name in names])))[0, 1:]
    r[~np.isfinite(r) | (r > SAME)] = -1.0
    return names[1 + int(r.argmax())]


def _draw_rows(fit: Fit, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    chains, length = next(iter(columns.values())).shape
    keep = np.linspace(0, length - 1, min(length, max(1, ROWS // chains))).astype(int).tolist()
    diverging = fit.sample_stats.get("diverging")
    return [
        {
            "chain": str(c),
            "draw": s,
            "diverging": 0 if diverging is None else int(diverging[c, s]),
            **{name: float(f"{value[c, s]:.5g}") for name, value in columns.items()},
        }
        for c in range(chains)
        for s in keep
    ]
