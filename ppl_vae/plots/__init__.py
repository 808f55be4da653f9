"""Figures: functions that take and return matplotlib Axes, and leave pyplot alone.

Colours stay apart for colour-blind readers and on light and dark paper.
"""

from ppl_vae.plots.aggregate import aggregate_marginals, aggregate_plane, code_usage, hole_samples
from ppl_vae.plots.bounds import bound, epochs, kl_bars
from ppl_vae.plots.calibration import calibration
from ppl_vae.plots.chains import trace_rank
from ppl_vae.plots.choice import intervals, selection
from ppl_vae.plots.diagnosed import diagnosis_figures
from ppl_vae.plots.graph import render
from ppl_vae.plots.latent import feature_walks, latent_map, traversals
from ppl_vae.plots.mixture import fit_ellipses
from ppl_vae.plots.pixels import images, latent_space, prior_samples, reconstructions
from ppl_vae.plots.predictive import predictive_check

__all__ = [
    "aggregate_marginals",
    "aggregate_plane",
    "bound",
    "calibration",
    "code_usage",
    "diagnosis_figures",
    "epochs",
    "feature_walks",
    "fit_ellipses",
    "hole_samples",
    "images",
    "intervals",
    "kl_bars",
    "latent_map",
    "latent_space",
    "predictive_check",
    "prior_samples",
    "reconstructions",
    "render",
    "selection",
    "trace_rank",
    "traversals",
]
