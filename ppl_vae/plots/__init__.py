"""Figures: functions that take and return matplotlib Axes, and leave pyplot alone.

Colours stay apart for colour-blind readers and on light and dark paper.
"""

from ppl_vae.plots.bounds import bound, epochs, kl_bars
from ppl_vae.plots.chains import trace_rank
from ppl_vae.plots.choice import intervals, selection
from ppl_vae.plots.graph import render
from ppl_vae.plots.mixture import fit_ellipses
from ppl_vae.plots.pixels import images, latent_space, prior_samples, reconstructions
from ppl_vae.plots.predictive import predictive_check

__all__ = [
    "bound",
    "epochs",
    "fit_ellipses",
    "images",
    "intervals",
    "kl_bars",
    "latent_space",
    "predictive_check",
    "prior_samples",
    "reconstructions",
    "render",
    "selection",
    "trace_rank",
]
