"""Which component of each fit is which: responsibilities by fit, and the order that makes them agree."""

from typing import Any

import numpy as np
import torch

from ppl_vae.align import match
from ppl_vae.compare import Table
from ppl_vae.errors import EngineError
from ppl_vae.plots.mixture import raw
from ppl_vae.plots.style import array

__all__ = ["places", "responsibilities"]


def responsibilities(table: Table) -> dict[str, np.ndarray]:
    """p(z = k | x_i) [n, K] by fit, of those that have one finite latent."""
    found: dict[str, np.ndarray] = {}
    for name, fit in table.fits.items():
        try:
            r: Any = fit.responsibilities(raw(table.data))
        except (EngineError, AttributeError):
            continue
        if not isinstance(r, dict):
            found[name] = array(r).astype(float)
    return found


def places(shares: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """Own number of the component that takes each place: the places are those of the first fit.

    Examples
    --------
    >>> r = np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> places({"EM": r, "NUTS": r[:, ::-1]})
    {'EM': [0, 1], 'NUTS': [1, 0]}
    """
    first = next(iter(shares.values()), None)
    found = {}
    for name, r in shares.items():
        same = first is not None and r.shape == first.shape
        order = match(torch.tensor(first), torch.tensor(r.copy())) if same else torch.arange(r.shape[1])
        found[name] = order.tolist()
    return found
