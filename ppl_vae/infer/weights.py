"""Weights of the data: datum i counts w_i times, with the same meaning in every engine."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.counted import same_data
from ppl_vae.data import Stream
from ppl_vae.declare import Observations
from ppl_vae.errors import DataError
from ppl_vae.fit import Fit

__all__ = ["check_weights", "counting", "empty_rows", "one_source", "own_weights"]


def check_weights(weights: Any, n: int) -> Tensor:
    """[n] weights, ones where none are given.

    Raises
    ------
    DataError
        If they are no numbers, their number is wrong, one is negative or not finite, or all are zero.

    Examples
    --------
    >>> check_weights(None, 2).tolist()
    [1.0, 1.0]
    """
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    try:
        w = torch.as_tensor(weights if isinstance(weights, Tensor) else np.asarray(weights), dtype=torch.float64)
    except (TypeError, ValueError) as error:
        said = f"an array of {weights.dtype}" if isinstance(weights, np.ndarray) else f"a {type(weights).__name__}"
        raise DataError(f"weights are {said}; pass one number per datum, such as weights.astype(float)") from error
    if w.shape != (n,):
        raise DataError(f"weights have shape {tuple(w.shape)}; one non-negative number per datum is expected, ({n},)")
    if not bool(torch.isfinite(w).all()) or bool((w < 0).any()):
        bad = int((~torch.isfinite(w) | (w < 0)).nonzero()[0])
        raise DataError(f"weights must be finite and non-negative; weight {bad} is {w[bad].item():g}")
    if not bool((w > 0).any()):
        raise DataError("all weights are zero: there is no datum left to fit")
    return w


def one_source(stream: Stream, column: Tensor | None, weights: Any) -> None:
    """Refuse weights that are given beside the stream's own column of weights.

    Raises
    ------
    DataError
        Naming the stream.
    """
    if column is not None and weights is not None:
        raise DataError(
            f"{stream} has a column of weights, and weights= were given too; pass one of them (multiply them for both)"
        )


def empty_rows(model: Any, obs: Any) -> Tensor | None:
    """Which rows [n] have no observed value at all; None where none has."""
    if not isinstance(obs, Observations) or not obs.missing:
        return None
    nodes = [name for name in obs.values if name not in model.inputs]
    if any(name not in obs.missing for name in nodes):
        return None
    empty = torch.stack([gaps.reshape(len(gaps), -1).all(1) for gaps in obs.missing.values()]).all(0)
    return empty if bool(empty.any()) else None


def counting(model: Any, obs: Any, weights: Tensor | None) -> Tensor | None:
    """Weights under which rows without any value do not count, which have log p = 0 whatever the model."""
    empty = empty_rows(model, obs)
    if empty is None or bool(empty.all()):
        return weights
    own = torch.ones(len(obs), dtype=torch.float64) if weights is None else weights
    return own * ~empty.to(own.device)


def own_weights(fit: Fit, obs: Any, weights: Any = None) -> Tensor | None:
    """The weights [n] of data that a fit is asked about: those given, else the fit's if these are its training data."""
    own = fit.weights if fit.weights is not None and fit.data is not None and same_data(fit.data, obs) else None
    return counting(fit.model, obs, own if weights is None else check_weights(weights, len(obs)))
