"""All figures of a diagnosis."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ppl_vae.diagnose import code_shares
from ppl_vae.errors import EngineError
from ppl_vae.plots.aggregate import aggregate_marginals, aggregate_plane, code_usage, hole_samples
from ppl_vae.plots.bounds import kl_bars
from ppl_vae.plots.latent import MOST, feature_walks, latent_map, traversals
from ppl_vae.plots.pixels import Shape, prior_samples, reconstructions
from ppl_vae.plots.style import array

__all__ = ["diagnosis_figures", "usage_figures"]

FEATURES = 40
"""Features from which no walks are drawn."""


def diagnosis_figures(
    diagnosis: Any, fit: Any = None, shape: Shape | None = None, labels: Any = None
) -> dict[str, Axes]:
    """Every figure that a diagnosis has, by name.

    Parameters
    ----------
    diagnosis : Diagnosis
        From fit.diagnose.
    fit : Fit, optional
        That was diagnosed, to decode from its codes.
    shape : sequence of int, optional
        Of its images.
    labels : Tensor or array, optional
        [n] classes of the data that were given to diagnose.

    Returns
    -------
    dict of Axes
        "KL of each unit", "aggregate posterior", "units against the prior"; with the fit "traversals", and "usage of z"
        of a discrete latent z; with the shape of images "reconstructions", "prior samples", "latent map", "samples from
        holes". Those that exist.
    """
    found: dict[str, Axes] = {}
    if diagnosis.collapse.kl_per_unit is not None:
        found["KL of each unit"] = kl_bars(diagnosis.collapse.kl_per_unit)
    if diagnosis.hole.prior is not None:
        found["aggregate posterior"] = aggregate_plane(diagnosis, labels)
        found["units against the prior"] = aggregate_marginals(diagnosis)
    if fit is None:
        return found
    found |= usage_figures(fit, diagnosis.data)
    found |= _walks(fit, diagnosis, shape)
    return found | (_pictures(fit, diagnosis, shape) if shape is not None else {})


def usage_figures(fit: Any, data: Any) -> dict[str, Axes]:
    """How often the values of each discrete latent are used, by "usage of z"; none where all are continuous."""
    return {f"usage of {name}": code_usage(share) for name, share in code_shares(fit, data).items()}


def _walks(fit: Any, diagnosis: Any, shape: Shape | None) -> dict[str, Axes]:
    """Walks along the units that carry most; none between codes or values, where nothing was trained."""
    carried = diagnosis.collapse.variance if diagnosis.collapse.kl_per_unit is None else diagnosis.collapse.kl_per_unit
    if diagnosis.training.codebook or diagnosis.training.finite or carried is None:
        return {}
    units = np.argsort(-array(carried), kind="stable")[:MOST].tolist()
    if shape is not None:
        return _that_exist({"traversals": lambda: traversals(fit, diagnosis.data, shape, units=units)})
    width = len(next(iter(diagnosis.data.values.values()))[0].flatten())
    if width > FEATURES:
        return {}
    return _that_exist({"traversals": lambda: feature_walks(fit, diagnosis.data, units=units)})


def _pictures(fit: Any, diagnosis: Any, shape: Shape) -> dict[str, Axes]:
    data = diagnosis.data
    makers: dict[str, Callable[[], Axes]] = {
        "reconstructions": lambda: reconstructions(fit, data, shape),
        "prior samples": lambda: prior_samples(fit, shape, inputs=data.values),
        "latent map": lambda: latent_map(fit, shape, inputs=data.values),
    }
    if len(diagnosis.hole.empty):
        makers["samples from holes"] = lambda: hole_samples(fit, diagnosis, shape)
    return _that_exist(makers)


def _that_exist(makers: dict[str, Callable[[], Axes]]) -> dict[str, Axes]:
    """The figures that this model has: a law may have no mean, a latent no plane."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except EngineError:
            continue
    return found
