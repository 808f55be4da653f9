"""The latent plane of a model with two units: what is decoded at each of its places, as pictures to choose from."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.image import imsave

from ppl_vae import plots
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.plots.decoded import inputs_of, means_at, repeated
from ppl_vae.plots.latent import plane_latent
from ppl_vae.plots.style import array
from ppl_vae.report.figures import new_figure, points, svg

__all__ = ["SIDE", "Plane", "latent_plane"]

SIDE = 15
"""Places along each unit."""


@dataclass
class Plane:
    """The posterior means in the plane, and the decodings of a grid over the same plane.

    Attributes
    ----------
    means : Markup
        The figure; its Axes end where the grid ends.
    pictures : str
        The decodings side by side, first unit from left to right, second from below to above; a data address.
    units : list of list of float
        Values of each unit at the places, [2][SIDE].
    box : list of float
        Left, top, width and height of the grid in the figure's user space.
    """

    means: Markup
    pictures: str
    units: list[list[float]]
    box: list[float]


def latent_plane(fit: Fit, data: Any, shape: tuple[int, int, int], labels: Any = None) -> Plane | None:
    """Decode a grid over the plane of two latent units, at the inputs of the first datum; None for another model.

    Parameters
    ----------
    fit : Fit
        Of a model of images with one continuous latent below them.
    data : Tensor or mapping
        n images, with the inputs of a conditional model, whose posterior means say how far the grid reaches.
    shape : (int, int, int)
        Channels, height and width of an image.
    labels : Tensor, optional
        [n] classes.
    """
    if not fit.is_point:
        return None
    given = repeated(inputs_of(fit.model, fit.model.check(data).values), 1)
    try:
        name = plane_latent(fit.model, given)
    except EngineError:
        return None
    found = fit.posterior(data)
    q = found[name] if isinstance(found, dict) else found
    mean = array(q.mean)
    low, high = np.quantile(mean, [0.005, 0.995], axis=0)
    units = [np.linspace(low[j], high[j], SIDE) for j in range(2)]
    across, up = np.meshgrid(units[0], units[1][::-1])
    z = torch.as_tensor(np.stack([across, up], -1).reshape(-1, 2), dtype=q.mean.dtype)
    try:
        pixels = means_at(fit, {name: z}, repeated(given, len(z))).reshape(len(z), -1)
    except EngineError:
        return None
    means, box = _means(fit, data, labels, units)
    return Plane(means, _sprite(pixels, shape), [u.round(3).tolist() for u in units], box)


def _means(fit: Fit, data: Any, labels: Any, units: list[np.ndarray]) -> tuple[Markup, list[float]]:
    ax = plots.latent_space(fit, data, labels, new_figure(4.2, 4.0).add_subplot())
    half = [(u[-1] - u[0]) / (2 * (SIDE - 1)) for u in units]
    ax.set_xlim(units[0][0] - half[0], units[0][-1] + half[0])
    ax.set_ylim(units[1][0] - half[1], units[1][-1] + half[1])
    for text in ax.texts:
        text.set_clip_on(True)
    box: list[float] = []

    def over() -> Markup:
        corners = points(ax, np.array(ax.get_xlim()), np.array(ax.get_ylim()))
        box.extend([corners[0, 0], corners[1, 1], *np.abs(corners[1] - corners[0])])
        return Markup(
            '<rect class="pv-cell" fill="none" stroke="currentColor" stroke-width="1.5" visibility="hidden"/>'
        )

    picture = svg(ax.figure, "Posterior means of held-out data in the plane of the two latent units", over)
    return picture, [round(v, 2) for v in box]


def _sprite(pixels: np.ndarray, shape: tuple[int, int, int]) -> str:
    """All pictures in one, as a PNG in a data address."""
    channels, height, width = shape
    grid = pixels.reshape(SIDE, SIDE, channels, height, width).transpose(0, 3, 1, 4, 2)
    whole = np.clip(grid.reshape(SIDE * height, SIDE * width, channels), 0, 1)
    buffer = io.BytesIO()
    picture = whole[..., 0] if channels == 1 else whole
    nothing: Any = {"Software": None}  # matplotlib's own name and version would make two equal pages differ
    imsave(buffer, picture, format="png", cmap="gray", vmin=0, vmax=1, metadata=nothing)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
