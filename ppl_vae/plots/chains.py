"""Trace and rank plots, by ArviZ."""

import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from ppl_vae.datatree import posterior_draws
from ppl_vae.errors import EngineError
from ppl_vae.plots.style import BIG, GREY, PALETTE

__all__ = ["trace_rank"]

MOST = 24
"""Scalars that one figure holds; the rest are left out, in order."""
ROW = 1.15
RC: dict[str, Any] = {"figure.max_open_warning": 0, "axes.prop_cycle": cycler(color=PALETTE)}
COLUMNS = 4


def trace_rank(fit: Any) -> tuple[Figure, Figure]:
    """ArviZ's trace and rank plots of a fit's draws.

    Parameters
    ----------
    fit : Fit
        With draws.

    Returns
    -------
    trace, rank : Figure
        Chains that mix well look alike on the left of the first, and their ranks stay inside the band of the second.

    Raises
    ------
    EngineError
        For a point estimate, which has no draws.
    """
    if fit.is_point:
        raise EngineError(f"trace_rank needs draws; {fit.engine} gave a point estimate")
    import arviz_base
    import arviz_plots
    from matplotlib import pyplot

    columns = scalars(fit)
    tree = arviz_base.from_dict({"posterior": columns})
    rows = len(columns)
    wrapped = -(-rows // COLUMNS)
    before = set(pyplot.get_fignums())
    with warnings.catch_warnings(), mpl.rc_context(RC):
        warnings.simplefilter("ignore")
        try:
            trace = arviz_plots.plot_trace_dist(
                tree, backend="matplotlib", aes={"color": ["chain"]}, figure_kwargs=_size(rows, 9.0)
            )
            # ArviZ's band for several chains at once is far too wide at most lengths: each chain has a band of its
            # own, at a level that holds for all of them together (Bonferroni).
            chains = next(iter(columns.values())).shape[0]
            rank = arviz_plots.plot_rank(
                tree,
                backend="matplotlib",
                ci_prob=1 - 0.01 / chains,
                stats={"ecdf_pit": {"n_chains": 1}},
                col_wrap=COLUMNS,
                figure_kwargs=_size(wrapped, 9.0),
            )
        finally:
            # ArviZ makes its figures through pyplot: they are the caller's now, not pyplot's.
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
    return _tidy_trace(trace.viz["figure"].item()), _tidy(rank.viz["figure"].item())


def scalars(fit: Any) -> dict[str, np.ndarray]:
    """Draws [chain, draw] of each scalar, named by its place; the second of two equal ones is left out."""
    found: dict[str, np.ndarray] = {}
    for name, draws in posterior_draws(fit).items():
        values = draws.numpy()
        for where in np.ndindex(*values.shape[2:]):
            one = values[(slice(None), slice(None), *where)]
            if len(found) < MOST and not any(np.array_equal(one, other) for other in found.values()):
                found[f"{name}[{', '.join(map(str, where))}]" if where else str(name)] = one
    return found


def _size(rows: int, width: float) -> dict[str, Any]:
    return {"figsize": (width, ROW * rows + 0.6), "figsize_units": "inches"}


def _tidy(figure: Figure) -> Figure:
    """Small labels that do not overlap, lines as pixels, and no axis label but the last row's."""
    figure.set_layout_engine("constrained")
    for ax in figure.axes:
        ax.title.set_fontsize("small")
        ax.tick_params(labelsize="x-small")
        ax.xaxis.label.set_fontsize("x-small")
        for band in ax.collections:
            band.set(facecolor=GREY, edgecolor="none", alpha=0.25)
        for line in ax.lines:
            line.set_rasterized(np.size(line.get_xdata()) > BIG)
            line.set_linewidth(0.8)
    return figure


def _tidy_trace(figure: Figure) -> Figure:
    """Name each row above its density, where there is room for it."""
    _tidy(figure)
    for density, trace in zip(figure.axes[0::2], figure.axes[1::2], strict=True):
        density.set_title(trace.get_ylabel(), fontsize="small", loc="left")
        density.set_xlabel("")
        trace.set_ylabel("")
        for line in trace.lines:
            line.set_linewidth(0.4)
            line.set_linestyle("-")
    return figure
