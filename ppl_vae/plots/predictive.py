"""Replicated data beside the observed: whether the fitted model makes data like these."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from ppl_vae.alone import seeded_rng
from ppl_vae.counted import every_datum
from ppl_vae.plots.style import GREY, array, color, new_axes, values_of

__all__ = ["predictive_check"]

FEW = 30
"""Integer data with at most this many values are drawn by frequency, not by density."""


def predictive_check(
    fit: Any,
    data: Any = None,
    ax: Axes | None = None,
    feature: int = 0,
    statistic: Callable[[np.ndarray], float] | None = None,
    draws: int = 40,
    seed: int = 0,
) -> Axes:
    """Draw data sets from the fit, each with a theta of its own, beside the observed one.

    Parameters
    ----------
    fit : Fit
        Any fit without inputs, or with `data` that hold them.
    data : optional
        Observed values; the training data by default, each as many times as its weight says.
    ax : Axes, optional
        Where to draw.
    feature : int
        Which feature's density is drawn.
    statistic : callable, optional
        Data [n, d] to a number; its values over the replicates are drawn instead of a density.
    draws : int
        Number of replicated data sets, each as large as the data.
    seed : int
        Seed of the replicates.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    >>> predictive_check(fit, statistic=lambda x: x[:, 1].std(), draws=5).get_ylabel()
    'replicates'
    """
    obs, name, columns = values_of(fit, data)
    obs = obs if data is not None else every_datum(fit)
    observed = _matrix(array(obs.values[name][torch.arange(len(obs))]))
    if name in obs.missing:
        observed = np.where(_matrix(array(obs.missing[name])), np.nan, observed)
    replicates = [_matrix(x) for x in _replicate(fit, obs, name, draws, seed)]
    ax = new_axes(ax)
    if statistic is not None:
        return _statistic(ax, statistic, observed, replicates)
    curve = _curve(np.concatenate([observed[:, feature], *(x[:, feature] for x in replicates)]), observed[:, feature])
    for number, x in enumerate(replicates):
        label = "drawn from the fit" if number == 0 else None
        ax.plot(*curve(x[:, feature]), color=color(0), lw=0.7, alpha=0.4, label=label)
    ax.plot(*curve(observed[:, feature]), color=color(1), lw=2.4, label="observed")
    ax.set_xlabel(columns[feature])
    ax.set_ylabel("density")
    ax.set_ylim(bottom=0)
    # Above the axes: among so many curves matplotlib looks long for a place, and says so.
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return ax


def _matrix(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _replicate(fit: Any, obs: Any, name: str, draws: int, seed: int) -> list[np.ndarray]:
    """Draw data sets [n, *event] at evenly spaced draws of the shared latents."""
    inputs = {n: obs.values[n] for n in fit.model.inputs}
    found = []
    with seeded_rng(seed):
        for s in fit.spaced(draws):
            with fit.model.bind(fit.draw(s)):
                x = fit.model.sample(len(obs), **inputs)
            found.append(array(x[name] if isinstance(x, dict) else x))
    return found


def _curve(everything: np.ndarray, observed: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """How a sample becomes a curve: frequencies of a few whole numbers, else a kernel density."""
    finite = everything[np.isfinite(everything)]
    if bool((finite == np.round(finite)).all()) and np.ptp(finite) <= FEW:
        grid = np.arange(finite.min(), finite.max() + 1)
        return lambda x: (grid, np.array([(x == v).mean() for v in grid]))
    real = observed[np.isfinite(observed)]
    margin = 0.25 * np.ptp(real)
    grid = np.linspace(real.min() - margin, real.max() + margin, 200)
    return lambda x: (grid, _density(x[np.isfinite(x)], grid))


def _density(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density with Silverman's bandwidth of the smaller of sd and IQR / 1.34."""
    spread = min(x.std(), np.subtract(*np.percentile(x, [75, 25])) / 1.34) or x.std() or 1.0
    width = 0.9 * spread * len(x) ** -0.2
    # Binned first: the cost does not grow with n.
    count, edges = np.histogram(x, bins=400)
    center = (edges[1:] + edges[:-1]) / 2
    kernel = np.exp(-0.5 * ((grid[:, None] - center) / width) ** 2)
    return kernel @ count / (len(x) * width * np.sqrt(2 * np.pi))


def _statistic(
    ax: Axes, statistic: Callable[[np.ndarray], float], observed: np.ndarray, replicates: list[np.ndarray]
) -> Axes:
    values = np.array([statistic(x) for x in replicates], dtype=float)
    here = float(statistic(observed))
    ax.hist(values, bins="auto", color=color(0), alpha=0.6, label="drawn from the fit")
    share = float((values >= here).mean())
    ax.axvline(here, color=color(1), lw=2.4, label="observed")
    ax.axvline(values.mean(), color=GREY, lw=1, ls="--")
    ax.set_title(f"{share:.0%} of the replicates are not below the observed", fontsize="medium")
    ax.set_xlabel(getattr(statistic, "__name__", "statistic").replace("<lambda>", "statistic"))
    ax.set_ylabel("replicates")
    ax.legend(frameon=False)
    return ax
