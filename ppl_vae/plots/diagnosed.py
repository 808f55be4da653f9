"""All figures of a diagnosis."""

from typing import Any

from matplotlib.axes import Axes

from ppl_vae.plots.aggregate import aggregate_marginals, aggregate_plane, hole_samples
from ppl_vae.plots.bounds import kl_bars
from ppl_vae.plots.pixels import Shape

__all__ = ["diagnosis_figures"]


def diagnosis_figures(
    diagnosis: Any, fit: Any = None, shape: Shape | None = None, labels: Any = None
) -> dict[str, Axes]:
    """Every figure that a diagnosis has, by name.

    Parameters
    ----------
    diagnosis : Diagnosis
        From fit.diagnose.
    fit : Fit, optional
        That was diagnosed, to decode draws from holes.
    shape : sequence of int, optional
        Of its images.
    labels : Tensor or array, optional
        [n] classes of the data that were given to diagnose.

    Returns
    -------
    dict of Axes
        "KL of each unit", "aggregate posterior", "units against the prior", "samples from holes"; those that exist.
    """
    found: dict[str, Axes] = {}
    if diagnosis.collapse.kl_per_unit is not None:
        found["KL of each unit"] = kl_bars(diagnosis.collapse.kl_per_unit)
    if diagnosis.hole.prior is not None:
        found["aggregate posterior"] = aggregate_plane(diagnosis, labels)
        found["units against the prior"] = aggregate_marginals(diagnosis)
    if fit is not None and shape is not None and len(diagnosis.hole.empty):
        found["samples from holes"] = hole_samples(fit, diagnosis, shape)
    return found
