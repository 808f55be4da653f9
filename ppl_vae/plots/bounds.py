"""How a fit climbed, and what its latent units carry."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ppl_vae.fit import Fit
from ppl_vae.plots.style import array, color, new_axes

__all__ = ["bound", "epochs", "kl_bars"]

MANY = 32
"""Units from which bars have no number each."""
WIDE = 30.0
"""Ratio of the longest to the shortest run from which seconds are drawn on a logarithmic axis."""


def bound(fits: Fit | Mapping[str, Fit], ax: Axes | None = None) -> Axes:
    """Draw what each engine climbs, in nats per datum, against seconds; NUTS climbs nothing and is left out.

    EM's curve is log p(X | theta) / n (plus log p(theta) / n for MAP); that of SVI is its ELBO per datum, which with
    shared latents bounds log p(X) / n. The legend names the quantity: two curves of different ones cannot be compared
    in height, only in time.

    Parameters
    ----------
    fits : Fit or mapping of Fit
        One fit, or several by name.
    ax : Axes, optional
        Where to draw.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    >>> bound(fit).get_ylabel()
    'nats per datum'
    """
    named = {fits.engine: fits} if isinstance(fits, Fit) else fits
    ax = new_axes(ax)
    ends = []
    for number, (name, fit) in enumerate(named.items()):
        if "bound" not in fit.trace or not len(fit.trace["bound"]):
            continue
        seconds = np.maximum(array(fit.trace["seconds"]), 1e-4)
        ends.append(seconds[-1])
        values, quantity = per_datum(fit)
        ax.plot(seconds, values, color=color(number), lw=1.4, label=f"{name}: {quantity}")
        if "validation" in fit.trace:
            held_out = array(fit.trace["validation"])
            ax.plot(seconds[: len(held_out)], held_out, color=color(number), ls="--", label=f"{name}: ELBO, held out")
    if ends and max(ends) > WIDE * min(ends):
        ax.set_xscale("log")
    ax.set_xlabel("seconds")
    ax.set_ylabel("nats per datum")
    if ends:
        ax.legend(frameon=False, loc="lower right")
    return ax


def per_datum(fit: Fit) -> tuple[np.ndarray, str]:
    """Give the trace in nats per datum, and what it is."""
    values = array(fit.trace["bound"])
    if fit.engine not in ("EM", "VB"):
        return values, fit.bound.split(",")[0]
    count = float(fit.weights.sum()) if fit.weights is not None else len(fit.data) if fit.data is not None else None
    name = fit.bound.replace("theta", "θ")
    if count is None:
        return values, f"{name}, total"
    return values / count, f"({name}) / n" if "+" in name else f"{name} / n"


def epochs(fit: Fit, ax: Axes | None = None) -> Axes:
    """Draw the ELBO per datum by epoch, training and held out, without the steep first epochs.

    Parameters
    ----------
    fit : Fit
        Of SVI.
    ax : Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    curves: dict[str, Any] = {"training": fit.trace["bound"], "held out": fit.trace.get("validation", [])}
    for number, (name, values) in enumerate(curves.items()):
        y = array(values)
        if len(y):
            ax.plot(np.arange(1, len(y) + 1), y, color=color(number), ls="-" if number == 0 else "--", label=name)
    settled = np.concatenate([array(v)[len(v) // 20 :] for v in curves.values() if len(v)])
    room = 0.05 * np.ptp(settled) + 1e-9
    ax.set_ylim(settled.min() - room, settled.max() + room)
    ax.set_xlabel("epoch")
    ax.set_ylabel("ELBO, nats per datum")
    ax.legend(frameon=False, loc="lower right")
    return ax


def kl_bars(kl: Any, ax: Axes | None = None) -> Axes:
    """KL(q(z_j | x) || p(z_j)) of each latent unit, largest first; a unit near zero carries nothing.

    Parameters
    ----------
    kl : Tensor or array
        [units], nats.
    ax : Axes, optional
        Where to draw.

    Examples
    --------
    >>> [t.get_text() for t in kl_bars([0.1, 2.0]).get_xticklabels()]
    ['1', '0']
    """
    values = array(kl).astype(float)
    order = np.argsort(-values, kind="stable")
    ax = new_axes(ax)
    ax.bar(np.arange(len(values)), values[order], color=color(0))
    few = order[: len(order) if len(order) <= MANY else 0]
    ax.set_xticks(np.arange(len(few)), [str(j) for j in few])
    ax.set_xlabel("latent unit")
    ax.set_ylabel("KL, nats per datum")
    return ax
