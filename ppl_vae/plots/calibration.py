"""Ranks of simulated truths: their distribution function in its simultaneous band."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from ppl_vae.calibration import band
from ppl_vae.plots.style import GREY, color, new_axes

if TYPE_CHECKING:
    from ppl_vae.calibration import Calibration

__all__ = ["calibration"]


def calibration(found: "Calibration", ax: Axes | None = None, names: Sequence[str] | None = None) -> Axes:
    """Draw ECDF(u) - u of every quantity, with the band that holds it where the posterior is right.

    A curve that rises above the band on the left and falls below it on the right is a posterior that is too narrow;
    the other way round it is too wide; a curve on one side only is a bias.

    Parameters
    ----------
    found : Calibration
        By `pv.calibrate` or `pv.calibrate_latents`.
    ax : Axes, optional
        Draw here.
    names : sequence of str, optional
        Quantities; all by default.
    """
    ax = new_axes(ax, (7.0, 3.6))
    at, lower, upper = band(len(found.u), 1 - found.error)
    ax.fill_between(at, lower - at, upper - at, color=GREY, alpha=0.25, linewidth=0, label="band", step="mid")
    for j, name in enumerate(found.names):
        if names is None or name in names:
            ecdf = np.searchsorted(np.sort(found.u[:, j]), at, side="right") / len(found.u)
            ax.plot(at, ecdf - at, color=color(j), linewidth=1.2, label=name)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set(xlabel="rank of the truth among draws, as a fraction", ylabel="ECDF minus uniform", xlim=(0, 1))
    ax.legend(
        frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), ncols=1 + len(found.names) // 16
    )
    return ax
