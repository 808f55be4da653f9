"""The aggregate posterior against the prior, from a diagnosis."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ppl_vae.errors import EngineError
from ppl_vae.plots.decoded import inputs_of, means_at, repeated
from ppl_vae.plots.pixels import Shape, images
from ppl_vae.plots.style import BIG, GREY, array, color, new_axes

__all__ = ["aggregate_marginals", "aggregate_plane", "code_usage", "hole_samples"]

CLASSES = 20
"""Classes from which no key of their colours is drawn."""
MANY = 64
"""Units from which only those furthest from the prior are drawn."""


def aggregate_plane(diagnosis: Any, labels: Any = None, ax: Axes | None = None) -> Axes:
    """Codes z ~ q(z | x) of the data over draws of the prior, in the plane; crosses are draws of the prior in holes.

    More than two units are seen along the two principal directions of codes and prior together, which the axes say.

    Parameters
    ----------
    diagnosis : Diagnosis
        From fit.diagnose.
    labels : Tensor or array, optional
        [n] integers, the classes of the data that were given to diagnose; codes are coloured by them.
    ax : Axes, optional
        Where to draw.

    Raises
    ------
    EngineError
        If the prior depends on each datum, so that it has no draws of its own, or codes are numbers of categories.
    """
    codes, prior, empty = (array(v) for v in _drawn(diagnosis))
    centre, turn, names = _plane(np.concatenate([codes, prior]), diagnosis.collapse.units)
    ax = new_axes(ax, (5.5, 5.0))
    shades: Any = color(0) if labels is None else [color(int(k)) for k in array(labels)[array(diagnosis.index)]]
    x, y = ((prior - centre) @ turn).T
    ax.scatter(x, y, s=6, color=GREY, alpha=0.35, lw=0, rasterized=len(x) > BIG, label="prior")
    x, y = ((codes - centre) @ turn).T
    ax.scatter(x, y, s=9, c=shades, alpha=0.75, lw=0, rasterized=len(x) > BIG, label="codes of data")
    if len(empty):
        x, y = ((empty - centre) @ turn).T
        ax.scatter(x, y, s=28, marker="x", color=color(1), lw=1.2, label="prior in holes")
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    if labels is not None:
        _key(ax, np.unique(array(labels)).astype(int))
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize="small", markerscale=1.6)
    return ax


def _key(ax: Axes, classes: np.ndarray) -> None:
    """The colours of the classes, right of the plane."""
    if len(classes) > CLASSES:
        return
    marks = [Line2D([], [], ls="none", marker="o", ms=5, color=color(int(k)), label=str(k)) for k in classes]
    place: Any = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    key = ax.add_artist(ax.legend(handles=marks, title="class", frameon=False, fontsize="small", **place))
    key.set_clip_on(False)  # or the layout leaves no room for what is beside the plane


def _drawn(diagnosis: Any) -> tuple[Any, Any, Any]:
    found = diagnosis.hole
    if found.prior is None:
        raise EngineError(f"codes and prior cannot be drawn side by side: {diagnosis['MMD'].why}")
    return found.codes, found.prior, found.empty


def _plane(points: np.ndarray, units: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Centre and two directions [units, 2] of a plane, and the names of its axes."""
    k = points.shape[1]
    if k == 1:
        return np.zeros(1), np.array([[1.0, 0.0]]), [units[0], ""]
    if k == 2:
        return np.zeros(2), np.eye(2), units
    centre = points.mean(0)
    _, s, v = np.linalg.svd(points - centre, full_matrices=False)
    share = s[:2] ** 2 / (s**2).sum()
    words = zip(("first", "second"), share, strict=True)
    return centre, v[:2].T, [f"{which} principal direction of codes and prior ({part:.0%})" for which, part in words]


def aggregate_marginals(diagnosis: Any, ax: Axes | None = None) -> Axes:
    """Each unit's codes against its prior: bars hold the middle 90% and 50%, points are medians.

    A unit that is like its prior has two like bars. Bars much longer than the prior's are a variance explosion. Equal
    bars do not yet mean an equal law: see `aggregate_plane` and the diagnosis for that.

    Parameters
    ----------
    diagnosis : Diagnosis
        From fit.diagnose.
    ax : Axes, optional
        Where to draw.
    """
    codes, prior, _ = (array(v) for v in _drawn(diagnosis))
    away = np.abs(np.log(codes.std(0).clip(1e-12) / prior.std(0).clip(1e-12)))
    chosen = np.sort(np.argsort(-away, kind="stable")[:MANY])
    ax = new_axes(ax, (max(4.0, 0.28 * len(chosen)), 3.2))
    for values, shade, shift, name in ((prior, GREY, 0.17, "prior"), (codes, color(0), -0.17, "codes of data")):
        low, left, middle, right, high = np.quantile(values[:, chosen], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        x = np.arange(len(chosen)) + shift
        ax.vlines(x, low, high, color=shade, lw=1.4)
        ax.vlines(x, left, right, color=shade, lw=4.5, label=name)
        ax.plot(x, middle, "o", ms=3, mfc="white", mec=shade, ls="none")
    names = [diagnosis.collapse.units[j] for j in chosen]
    ax.set_xticks(np.arange(len(chosen)), names, rotation=0 if len(chosen) <= 10 else 90, fontsize="small")
    ax.set_xlim(-0.6, len(chosen) - 0.4)
    ax.set_ylabel("z, middle 90% and 50%")
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small")
    return ax


def hole_samples(
    fit: Any, diagnosis: Any, shape: Shape, ax: Axes | None = None, count: int = 20, columns: int = 10
) -> Axes:
    """E[x | z] at draws of the prior that fell into holes of the aggregate posterior, the emptiest first.

    Parameters
    ----------
    fit : Fit
        That was diagnosed.
    diagnosis : Diagnosis
        From fit.diagnose.
    shape : sequence of int
        (height, width) or (channels, height, width).
    ax : Axes, optional
        Where to draw.
    count, columns : int
        How many images, and how many in a row.

    Raises
    ------
    EngineError
        If no draw of the prior fell into a hole.
    """
    holes = {name: value[:count] for name, value in diagnosis.hole.holes.items()}
    if not holes or not len(next(iter(holes.values()))):
        raise EngineError("no draw of the prior fell into a hole: there is nothing to show")
    given = repeated(inputs_of(fit.model, diagnosis.data.values), len(next(iter(holes.values()))))
    decoded = means_at(fit, holes, given)
    return images(decoded.reshape(len(decoded), -1), shape, ax, columns)


def code_usage(usage: Any, ax: Axes | None = None) -> Axes:
    """How often each code of a codebook, or value of a finite latent, is used, the most used first.

    The dashed line is even use. The perplexity exp(-sum_k p_k log p_k) is how many codes even use would take.

    Parameters
    ----------
    usage : Tensor or array
        [K] counts, or shares.
    ax : Axes, optional
        Where to draw.

    Examples
    --------
    >>> code_usage([2, 2, 0]).get_title()
    '2 of 3 codes used, perplexity 2.0'
    """
    share = array(usage).astype(float)
    share = np.sort(share / share.sum())[::-1]
    seen = share[share > 0]
    ax = new_axes(ax, (5.0, 3.0))
    ax.bar(np.arange(len(share)), share, width=1.0 if len(share) > MANY else 0.8, color=color(0))
    ax.axhline(1 / len(share), color=GREY, ls="--", lw=1)
    ax.set_xlabel("code, the most used first")
    ax.set_ylabel("share of data")
    perplexity = np.exp(-(seen * np.log(seen)).sum())
    ax.set_title(f"{len(seen)} of {len(share)} codes used, perplexity {perplexity:.1f}", fontsize="medium")
    return ax
