"""EM step by step: components and responsibilities at its iterations, as a figure that a slider moves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes

from ppl_vae import families
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.plots.mixture import densities, moments, raw
from ppl_vae.plots.style import GREY, array, blend, color, values_of
from ppl_vae.report.figures import new_figure, points, svg

__all__ = ["Steps", "em_steps"]

FRAMES = 40
"""Iterations that can be chosen: the first ones, then ever fewer."""
SHOWN = 500
"""Data drawn."""
GRID = 120
"""Points of a density's curve."""


@dataclass
class Steps:
    """Two figures, drawn at the last iteration, and what changes in them at each one.

    Attributes
    ----------
    data, bound : Markup
        The data with the components; the bound by iteration.
    frames : list of dict
        "shapes": a path for each component, "fills": a colour of three digits for each datum, "dot": a place on the
        bound's curve, "said": a sentence.
    flat : bool
        Whether the data have one feature, so that components are curves and not ellipses.
    columns : tuple of str
        Features drawn.
    """

    data: Markup
    bound: Markup
    frames: list[dict[str, Any]] = field(default_factory=list)
    flat: bool = False
    columns: tuple[str, ...] = ()


def em_steps(fit: Fit, data: Any, order: Sequence[int] | None = None) -> Steps | None:
    """Draw how EM got to its answer; None for a fit without a history, or whose components are not normal.

    Parameters
    ----------
    fit : Fit
        Of EM.
    data : Observations
        What to draw.
    order : sequence of int, optional
        Component `order[k]` takes colour k.
    """
    if len(fit.history) < 2 or len(fit.history["iteration"]) < 2:
        return None
    obs = fit.model.check(raw(data))
    made = {n: f for n, f in fit.model.observed_families(obs).items() if isinstance(f, families.Normal)}
    if not made:
        return None
    name, family = next(iter(made.items()))
    chosen = frames(len(fit.history["iteration"]))
    values = [{n: v[int(i)] for n, v in fit.history.items() if n != "iteration"} for i in chosen]
    few = obs.rows(obs.spaced(SHOWN))
    try:
        shares = [_responsibilities(fit, few, v, family.batch) for v in values]
    except EngineError:
        return None
    order = list(range(family.batch)) if order is None else list(order)
    _, _, columns = values_of(fit, raw(data), name)
    x = array(few.with_gaps(name)).reshape(len(few), -1)
    scene = (_Line if x.shape[1] == 1 else _Plane)(fit, family, x, values, [r[:, order] for r in shares], order)
    picture = scene.draw(columns)
    at = fit.history["iteration"][chosen].tolist()
    curve, dots = _bound(fit, at)
    says = [_said(fit, i) for i in at]
    parts = zip(scene.shapes, scene.fills, dots, says, strict=True)
    found = [{"shapes": s, "fills": f, "dot": d, "said": said} for s, f, d, said in parts]
    return Steps(picture, curve, found, x.shape[1] == 1, tuple(columns[:2]))


def frames(count: int, most: int = FRAMES) -> np.ndarray:
    """Which of `count` iterations are shown: all, or some with growing distances.

    Examples
    --------
    >>> frames(3).tolist(), frames(1000, 5).tolist()
    ([0, 1, 2], [0, 5, 31, 177, 999])
    """
    if count <= most:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, most).round().astype(int) - 1)


def _responsibilities(fit: Fit, obs: Any, values: Any, size: int) -> np.ndarray:
    with torch.no_grad(), fit.model.bind(values):
        r = fit.model.responsibilities(obs)
    if isinstance(r, dict) or r.shape[1] != size:
        raise EngineError("the components of the normal family are not the one finite latent's")
    return array(r)


def _said(fit: Fit, iteration: int) -> str:
    bound = fit.trace["bound"]
    start = (
        f"Iteration {iteration} of {len(bound) - 1}: {fit.bound.replace('theta', 'θ')} = {bound[iteration]:.4f} nats"
    )
    return start + (f", {bound[iteration] - bound[iteration - 1]:.3g} more than before." if iteration else ".")


def _bound(fit: Fit, at: list[int]) -> tuple[Markup, list[list[float]]]:
    """The bound by iteration, and the places of the chosen iterations on it."""
    bound = array(fit.trace["bound"])
    ax = new_figure(3.9, 3.1).add_subplot()
    ax.plot(np.arange(len(bound)), bound, color=GREY, lw=1.5, marker="." if len(bound) < FRAMES else None)
    ax.margins(0.06)
    ax.set_xlabel("iteration")
    ax.set_ylabel(f"{fit.bound.replace('theta', 'θ')}, nats")
    dots: list[list[float]] = []

    def over() -> Markup:
        dots.extend(points(ax, np.array(at), bound[at]).round(1).tolist())
        return Markup('<circle class="pv-dot" cx="{}" cy="{}" r="5" fill="{}"/>').format(*dots[-1], color(0))

    return svg(
        ax.figure, f"{fit.bound} at each of {len(bound)} iterations, from {bound[0]:.2f} to {bound[-1]:.2f}", over
    ), dots


class _Scene:
    """The data and the components at each frame."""

    dims = 2

    def __init__(self, fit: Fit, family: Any, x: np.ndarray, values: Any, shares: Any, order: list[int]) -> None:
        self.fit, self.family, self.x, self.values, self.shares, self.order = fit, family, x, values, shares, order
        seen = np.isfinite(x[:, : self.dims]).all(1)
        self.x, self.shares = x[seen], [r[seen] for r in shares]
        self.fills = ["".join(map(_short, blend(r))) for r in self.shares]
        self.shapes: list[list[str]] = []

    def draw(self, columns: Sequence[str]) -> Markup:
        """The figure at the last frame."""
        ax = new_figure(3.9, 3.1).add_subplot()
        self.prepare(ax)
        ax.set_xlabel(columns[0])
        ax.set_ylabel(columns[1] if self.dims == 2 else "density")
        alt = f"Data and components of {self.fit.engine} at its last iteration, with those it began from"
        return svg(ax.figure, alt, lambda: self.over(ax))

    def prepare(self, ax: Axes) -> None:
        """Give the Axes its limits and what stands still."""
        raise NotImplementedError

    def place(self, ax: Axes) -> np.ndarray:
        """Where the data are."""
        raise NotImplementedError

    def shape(self, ax: Axes, values: Any, share: np.ndarray) -> list[str]:
        """A path for each component."""
        raise NotImplementedError

    def still(self, ax: Axes) -> Markup:
        """What tells of all frames at once."""
        return Markup("")

    def over(self, ax: Axes) -> Markup:
        """Data, components, and where they came from."""
        self.shapes = [self.shape(ax, v, r) for v, r in zip(self.values, self.shares, strict=True)]
        last = self.fills[-1]
        dot, path = Markup('<circle cx="{}" cy="{}" r="1.9" fill="#{}"/>'), Markup('<path d="{}" stroke="{}"/>')
        dots = (dot.format(*p, last[3 * i : 3 * i + 3]) for i, p in enumerate(self.place(ax).round(1).tolist()))
        first = (path.format(d, color(k)) for k, d in enumerate(self.shapes[0]))
        now = (path.format(d, color(k)) for k, d in enumerate(self.shapes[-1]))
        groups = Markup(
            '<clipPath id="pv-steps-clip"><rect x="{}" y="{}" width="{}" height="{}"/></clipPath>'
            '<g clip-path="url(#pv-steps-clip)"><g class="pv-data" fill-opacity="0.8">{}</g>'
            '<g fill="none" stroke-width="0.8" stroke-dasharray="3 2" opacity="0.7">{}</g>{}'
            '<g class="pv-shapes" fill="none" stroke-width="1.8">{}</g></g>'
        )
        return groups.format(
            *_box(ax), Markup("").join(dots), Markup("").join(first), self.still(ax), Markup("").join(now)
        )


class _Plane(_Scene):
    """Two features: points, and ellipses at 1 and 2 standard deviations."""

    def prepare(self, ax: Axes) -> None:
        low, high = self.x[:, :2].min(0), self.x[:, :2].max(0)
        room = 0.12 * (high - low) + 1e-9
        ax.set_xlim(low[0] - room[0], high[0] + room[0])
        ax.set_ylim(low[1] - room[1], high[1] + room[1])

    def place(self, ax: Axes) -> np.ndarray:
        return points(ax, self.x[:, 0], self.x[:, 1])

    def shape(self, ax: Axes, values: Any, share: np.ndarray) -> list[str]:
        loc, cov = moments(self.fit, self.family, values)
        return [_ellipses(ax, loc[k, :2], cov[k, :2, :2]) for k in self.order]

    def still(self, ax: Axes) -> Markup:
        means = np.stack([moments(self.fit, self.family, v)[0][self.order, :2] for v in self.values], 1)
        line = Markup('<polyline points="{}" stroke="{}"/>')
        ways = (
            line.format(" ".join(f"{a:.1f},{b:.1f}" for a, b in points(ax, way[:, 0], way[:, 1])), color(k))
            for k, way in enumerate(means)
        )
        return Markup('<g fill="none" stroke-width="1.2">{}</g>').format(Markup("").join(ways))


class _Line(_Scene):
    """One feature: a histogram, and each component's share of the density."""

    dims = 1

    def prepare(self, ax: Axes) -> None:
        ax.hist(self.x[:, 0], bins="auto", density=True, color=GREY, alpha=0.35)
        room = 0.08 * np.ptp(self.x[:, 0]) + 1e-9
        self.grid = np.linspace(self.x[:, 0].min() - room, self.x[:, 0].max() + room, GRID)
        every = zip(self.values, self.shares, strict=True)
        self.curves = [densities(self.fit, self.family, v, self.grid, r, self.order) for v, r in every]
        highest = max(ax.get_ylim()[1], 1.05 * self.curves[-1].max())
        ax.set_xlim(self.grid[0], self.grid[-1])
        ax.set_ylim(-0.06 * highest, highest)
        ax.set_yticks([t for t in ax.get_yticks() if 0 <= t <= highest])

    def place(self, ax: Axes) -> np.ndarray:
        low = np.full(len(self.x), 0.5 * ax.get_ylim()[0])
        return points(ax, self.x[:, 0], low)

    def shape(self, ax: Axes, values: Any, share: np.ndarray) -> list[str]:
        at = next(i for i, v in enumerate(self.values) if v is values)
        top = ax.get_ylim()[1]
        return [
            "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points(ax, self.grid, np.minimum(curve, top)))
            for curve in self.curves[at]
        ]


def _box(ax: Axes) -> list[float]:
    """Left, top, width and height of the Axes."""
    low, high = points(ax, np.array(ax.get_xlim()), np.array(ax.get_ylim())).round(1).tolist()
    return [low[0], high[1], high[0] - low[0], low[1] - high[1]]


def _ellipses(ax: Axes, loc: np.ndarray, cov: np.ndarray) -> str:
    """The path of the ellipses at 1 and 2 standard deviations."""
    corner = points(ax, *np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).T)
    stretch = (corner[1:] - corner[0]).T
    variance, axes = np.linalg.eigh(stretch @ cov @ stretch.T)
    radius = np.sqrt(np.clip(variance, 0, None))[::-1]
    angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
    center = points(ax, loc[0], loc[1])
    return " ".join(_ellipse(center, axes[:, 1], sd * radius, float(angle)) for sd in (1.0, 2.0))


def _ellipse(center: np.ndarray, along: np.ndarray, radius: np.ndarray, angle: float) -> str:
    begin, end = center - radius[0] * along, center + radius[0] * along
    arc = f"A{radius[0]:.1f} {radius[1]:.1f} {angle:.1f} 0 1"
    return f"M{begin[0]:.1f} {begin[1]:.1f}{arc} {end[0]:.1f} {end[1]:.1f}{arc} {begin[0]:.1f} {begin[1]:.1f}Z"


def _short(rgb: Sequence[float]) -> str:
    """A colour in three hexadecimal digits.

    Examples
    --------
    >>> _short((1.0, 8 / 15, 0.0))
    'f80'
    """
    return "".join(f"{round(15 * float(c)):x}" for c in rgb)
