"""Weights of the data: datum i counts w_i times, with the same meaning in every engine."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.counted import same_data
from ppl_vae.errors import DataError
from ppl_vae.fit import Fit

__all__ = ["check_weights", "own_weights"]


def check_weights(weights: Any, n: int) -> Tensor:
    """[n] weights, ones where none are given.

    Raises
    ------
    DataError
        If their number is wrong, one is negative or not finite, or all are zero.

    Examples
    --------
    >>> check_weights(None, 2).tolist()
    [1.0, 1.0]
    """
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    w = torch.as_tensor(weights, dtype=torch.float64)
    if w.shape != (n,):
        raise DataError(f"weights have shape {tuple(w.shape)}; one non-negative number per datum is expected, ({n},)")
    if not bool(torch.isfinite(w).all()) or bool((w < 0).any()):
        bad = int((~torch.isfinite(w) | (w < 0)).nonzero()[0])
        raise DataError(f"weights must be finite and non-negative; weight {bad} is {w[bad].item():g}")
    if not bool((w > 0).any()):
        raise DataError("all weights are zero: there is no datum left to fit")
    return w


def own_weights(fit: Fit, obs: Any, weights: Any = None) -> Tensor | None:
    """The weights [n] of data that a fit is asked about: those given, else the fit's if these are its training data."""
    if weights is not None:
        return check_weights(weights, len(obs))
    return fit.weights if fit.weights is not None and fit.data is not None and same_data(fit.data, obs) else None
