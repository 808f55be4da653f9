"""Images, and the plane of a latent space."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from ppl_vae.alone import seeded_rng
from ppl_vae.errors import DataError, EngineError
from ppl_vae.plots.decoded import inputs_of, means_at, repeated, shown_node
from ppl_vae.plots.style import BIG, array, color, new_axes, values_of

__all__ = ["images", "latent_space", "prior_samples", "reconstructions"]

Shape = Sequence[int]


def images(values: Any, shape: Shape, ax: Axes | None = None, columns: int = 8) -> Axes:
    """Images side by side, row by row.

    Parameters
    ----------
    values : Tensor or array
        [n, pixels].
    shape : sequence of int
        (height, width) or (channels, height, width); 1 or 3 channels.
    ax : Axes, optional
        Where to draw.
    columns : int
        Images in a row.

    Raises
    ------
    DataError
        If the pixels do not make images of this shape.

    Examples
    --------
    >>> import torch
    >>> images(torch.zeros(3, 12), (3, 4), columns=2).images[0].get_array().shape
    (7, 9)
    """
    picture = mosaic(array(values), shape, columns)
    ax = new_axes(ax, (columns * 0.62, max(1.0, picture.shape[0] / picture.shape[1] * columns * 0.62)))
    finite = picture[np.isfinite(picture)]
    unit = bool(finite.size) and finite.min() >= 0 and finite.max() <= 1
    low, high = (0.0, 1.0) if unit else (None, None)
    ax.imshow(picture, cmap="gray", interpolation="nearest", vmin=low, vmax=high)
    ax.set_axis_off()
    return ax


def mosaic(values: np.ndarray, shape: Shape, columns: int) -> np.ndarray:
    """One picture [height, width(, 3)] of images [n, pixels], with gaps of NaN (grey images) or white."""
    c, h, w = (1, *shape) if len(shape) == 2 else tuple(shape)
    if c not in (1, 3) or values.size != len(values) * c * h * w:
        raise DataError(
            f"images of shape {tuple(shape)} need [n, {c * h * w}] pixels with 1 or 3 channels; got {values.shape}"
        )
    columns = min(columns, len(values))
    rows = -(-len(values) // columns)
    gap = max(1, h // 14)
    blank = np.nan if c == 1 else 1.0
    picture = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), blank)
    for i, image in enumerate(values.reshape(-1, c, h, w)):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        picture[top : top + h, left : left + w] = image.transpose(1, 2, 0)
    return picture[..., 0] if c == 1 else np.clip(picture, 0, 1)


def reconstructions(fit: Any, data: Any, shape: Shape, ax: Axes | None = None, columns: int = 10) -> Axes:
    """Show the first data above their reconstructions E[x | z], z drawn from q(z | x).

    Parameters
    ----------
    fit : Fit
        Of a model of images.
    data : Tensor
        [n, pixels]; the first `columns` are shown.
    shape : sequence of int
        (height, width) or (channels, height, width).
    ax : Axes, optional
        Where to draw.
    columns : int
        How many.
    """
    obs, name, _ = values_of(fit, data)
    few = obs.rows(torch.arange(min(columns, len(obs))))
    rebuilt = fit.reconstruct(few.values, num_particles=10)
    rebuilt = rebuilt[name] if isinstance(rebuilt, dict) else rebuilt
    pixels = np.concatenate([array(v).reshape(len(few), -1) for v in (few.values[name], rebuilt)])
    ax = images(pixels, shape, ax, len(few))
    ax.set_title("above: data, below: reconstruction", fontsize="medium")
    return ax


def prior_samples(
    fit: Any,
    shape: Shape,
    ax: Axes | None = None,
    count: int = 40,
    columns: int = 10,
    inputs: Mapping[str, Any] | None = None,
) -> Axes:
    """E[x | z] for z drawn from the prior p(z).

    Parameters
    ----------
    fit : Fit
        Of a model of images with one observed node.
    shape : sequence of int
        (height, width) or (channels, height, width).
    ax : Axes, optional
        Where to draw.
    count, columns : int
        How many images, and how many in a row.
    inputs : mapping, optional
        Of a conditional model, its inputs by name, [m, ...], one row for each image; fewer are taken in turn. Data of
        the model will do, of which only the inputs are read.

    Raises
    ------
    EngineError
        If the model is conditional, and an input is not there.
    """
    given = repeated(inputs_of(fit.model, inputs), count)
    with seeded_rng(fit.seed), torch.no_grad():
        return images(_means(fit, count, given).reshape(count, -1), shape, ax, columns)


def _means(fit: Any, count: int, given: Mapping[str, Any]) -> np.ndarray:
    """E[x | z] at ancestral draws, or the draws themselves where the law has no mean."""
    drawn = fit.model.sample_joint(count, **given)
    name = shown_node(fit.model)
    try:
        return means_at(fit, {n: v for n, v in drawn.items() if n != name}, given)
    except EngineError:
        return array(drawn[name])


def latent_space(fit: Any, data: Any, labels: Any = None, ax: Axes | None = None) -> Axes:
    """Posterior means E[z | x] of data in the plane, coloured by label.

    More than two units are seen along the two principal directions of the means; the axes then say so.

    Parameters
    ----------
    fit : Fit
        Of a model with one continuous latent vector.
    data : Tensor, array or mapping
        n rows.
    labels : Tensor or array, optional
        [n] integers; each class has its number at its median.
    ax : Axes, optional
        Where to draw.

    Raises
    ------
    EngineError
        If no latent is continuous.
    """
    mean = _posterior_mean(fit, data)
    names = [f"E[z{j} | x]" for j in range(mean.shape[1])]
    if mean.shape[1] > 2:
        mean, share = principal(mean)
        names = [
            f"{which} principal direction of E[z | x] ({s:.0%})"
            for which, s in zip(("first", "second"), share, strict=True)
        ]
    plane = mean if mean.shape[1] == 2 else np.column_stack([mean[:, 0], np.zeros(len(mean))])
    ax = new_axes(ax, (5.5, 5.0))
    given = np.zeros(len(plane), dtype=int) if labels is None else array(labels).astype(int)
    shades = [color(int(k)) for k in given]
    ax.scatter(plane[:, 0], plane[:, 1], c=shades, s=9, alpha=0.7, linewidths=0, rasterized=len(plane) > BIG)
    for k in [] if labels is None else np.unique(given):
        x, y = np.median(plane[given == k], 0)
        box = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": color(int(k)), "lw": 1.5}
        ax.text(x, y, str(k), ha="center", va="center", color="#111111", fontweight="bold", bbox=box)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1] if len(names) > 1 else "")
    return ax


def _posterior_mean(fit: Any, data: Any) -> np.ndarray:
    q = fit.posterior(data)
    found = [d for d in (q.values() if isinstance(q, dict) else [q]) if not d.has_enumerate_support]
    if not found:
        raise EngineError(
            f"latent_space needs a continuous latent, {type(fit.model).__name__} has none; see responsibilities"
        )
    mean = array(found[0].mean)
    return mean.reshape(len(mean), -1)


def principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [n, 2] along the two directions of largest variance, and their shares of it.

    Examples
    --------
    >>> import numpy as np
    >>> principal(np.diag([3.0, 2.0, 1.0]))[1].round(2).tolist()
    [0.75, 0.25]
    """
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return u[:, :2] * s[:2], s[:2] ** 2 / max(float((s**2).sum()), 1e-300)
