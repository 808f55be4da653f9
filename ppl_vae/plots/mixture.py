"""The data with a mixture's components: ellipses in the plane, densities on the line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from ppl_vae import families
from ppl_vae.errors import EngineError
from ppl_vae.plots.style import BIG, GREY, array, blend, color, new_axes, values_of

__all__ = ["fit_ellipses"]

GHOSTS = 25
"""Draws shown behind the mean of a fit that has draws."""


def fit_ellipses(
    fit: Any,
    data: Any = None,
    ax: Axes | None = None,
    dims: tuple[int, int] = (0, 1),
    order: Sequence[int] | None = None,
) -> Axes:
    """Draw data coloured by responsibility, with each normal component.

    In the plane: ellipses at 1 and 2 standard deviations. On the line: a histogram with every component's share of
    the density. Behind the posterior mean of a fit with draws, a few draws are drawn thinly.

    Parameters
    ----------
    fit : Fit
        Of a model whose observed node is a family `Normal`.
    data : optional
        Observed values; the training data by default.
    ax : Axes, optional
        Where to draw.
    dims : (int, int)
        The two features to show.
    order : sequence of int, optional
        Component `order[k]` takes colour k, so that several fits share their colours.

    Raises
    ------
    EngineError
        If no observed node is made by a Normal family.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    >>> fit_ellipses(fit).get_xlabel()
    'eruptions'
    """
    obs, _, _ = values_of(fit, data)
    made = {n: f for n, f in fit.model.observed_families(obs).items() if isinstance(f, families.Normal)}
    if not made:
        raise EngineError(f"fit_ellipses draws Normal families, and {type(fit.model).__name__} observes none")
    name, family = next(iter(made.items()))
    obs, _, columns = values_of(fit, data, name)
    order = list(range(family.batch)) if order is None else list(order)
    r = responsibilities(fit, obs, family.batch)[:, order]
    draw = _line if family.n_features == 1 else _plane
    ax = new_axes(ax)
    draw(ax, fit, family, array(obs.with_gaps(name)), r, order, dims)
    chosen = (0,) if family.n_features == 1 else dims
    ax.set_xlabel(columns[chosen[0]])
    ax.set_ylabel("density" if len(chosen) == 1 else columns[chosen[1]])
    return ax


def responsibilities(fit: Any, obs: Any, size: int) -> np.ndarray:
    """p(z = k | x_i) [n, K] of the one finite latent; everything in one component where there is none."""
    try:
        r = fit.responsibilities(raw(obs))
    except EngineError:
        return np.ones((len(obs), size)) / size
    if isinstance(r, dict):
        r = next((value for value in r.values() if value.shape[1] == size), next(iter(r.values())))
    return array(r)


def raw(obs: Any) -> dict[str, Any]:
    """Values by name with their NaN back, so that a model in another precision reads them again."""
    return {n: v.masked_fill(obs.missing[n], torch.nan) if n in obs.missing else v for n, v in obs.values.items()}


def moments(fit: Any, family: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean [K, d] and covariance [K, d, d] of a Normal family at these parameters."""
    with torch.no_grad(), fit.model.bind(values):
        d = family.distribution(torch.arange(family.batch))
        cov = d.covariance_matrix if hasattr(d, "covariance_matrix") else torch.diag_embed(d.variance)
        return array(d.mean), array(cov)


def ghosts(fit: Any) -> list[Any]:
    """Evenly spaced draws of a fit that has many."""
    if fit.is_point:
        return []
    return [fit.draw(s) for s in fit.spaced(min(GHOSTS, fit.num_draws))]


def _plane(
    ax: Axes, fit: Any, family: Any, x: np.ndarray, r: np.ndarray, order: list[int], dims: tuple[int, int]
) -> None:
    i, j = dims
    ax.scatter(x[:, i], x[:, j], c=blend(r), s=12, alpha=0.75, linewidths=0, rasterized=len(x) > BIG)
    pick = np.ix_([i, j], [i, j])
    for values in ghosts(fit):
        loc, cov = moments(fit, family, values)
        for k, own in enumerate(order):
            _ellipse(ax, loc[own][[i, j]], cov[own][pick], 2.0, color(k), 0.5, 0.35)
    loc, cov = moments(fit, family, fit.parameters)
    for k, own in enumerate(order):
        for sd, width in ((1.0, 2.0), (2.0, 1.2)):
            _ellipse(ax, loc[own][[i, j]], cov[own][pick], sd, color(k), width, 1.0)
        ax.plot(*loc[own][[i, j]], marker="+", color=color(k), markersize=9, markeredgewidth=2)
    ax.autoscale_view()


def _ellipse(ax: Axes, loc: np.ndarray, cov: np.ndarray, sd: float, edge: str, width: float, alpha: float) -> None:
    variance, axes = np.linalg.eigh(cov)
    length = 2 * sd * np.sqrt(np.clip(variance, 0, None))
    angle = float(np.degrees(np.arctan2(axes[1, 1], axes[0, 1])))
    ax.add_patch(
        Ellipse((loc[0], loc[1]), length[1], length[0], angle=angle, fill=False, ec=edge, lw=width, alpha=alpha)
    )


def _line(
    ax: Axes, fit: Any, family: Any, x: np.ndarray, r: np.ndarray, order: list[int], dims: tuple[int, int]
) -> None:
    column = x.reshape(-1)
    column = column[np.isfinite(column)]
    ax.hist(column, bins="auto", density=True, color=GREY, alpha=0.35)
    loc, cov = (m.reshape(-1) for m in moments(fit, family, fit.parameters))
    grid = np.linspace(*_reach(column, loc, np.sqrt(cov)), 300)
    for values in ghosts(fit):
        ax.plot(grid, densities(fit, family, values, grid, r, order).sum(0), color=GREY, lw=0.5, alpha=0.35)
    density = densities(fit, family, fit.parameters, grid, r, order)
    for k in range(len(order)):
        ax.plot(grid, density[k], color=color(k), lw=2)
    ax.plot(grid, density.sum(0), color=GREY, lw=1.5, ls="--")


def _reach(column: np.ndarray, loc: np.ndarray, sd: np.ndarray) -> tuple[float, float]:
    """From where to where densities are drawn: three sds of each component, a quarter of the data's range at most."""
    low, high = column.min(), column.max()
    most = (high - low) / 4
    return max(low - most, min(low, (loc - 3 * sd).min())), min(high + most, max(high, (loc + 3 * sd).max()))


def densities(fit: Any, family: Any, values: Any, grid: np.ndarray, r: np.ndarray, order: list[int]) -> np.ndarray:
    """pi_k N(grid; mu_k, sigma_k), [K, grid]; pi from a Categorical family, else the mean responsibilities."""
    loc, cov = (m[order].reshape(-1, 1) for m in moments(fit, family, values))
    names = [f"{path}.probs" for path, f in fit.model.families().items() if isinstance(f, families.Categorical)]
    found = [array(values[n]) for n in names if n in values and tuple(values[n].shape) == (family.batch,)]
    share = found[0][order] if found else r.mean(0)
    return share[:, None] * np.exp(-0.5 * (grid - loc) ** 2 / cov) / np.sqrt(2 * np.pi * cov)
