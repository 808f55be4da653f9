"""What all figures share: an Axes to draw on, colours, and how data are read for drawing."""

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae.errors import NO_DATA

__all__ = ["BIG", "GREY", "PALETTE", "Shown", "array", "blend", "color", "new_axes", "values_of"]

PALETTE = ("#4477AA", "#EE6677", "#228833", "#B23A80", "#BF8900", "#379CB9", "#8C6BB1", "#B35806", "#7A8B00", "#9E6B5A")
"""After Paul Tol's bright scheme, each at least 3 to 1 in contrast with both white and black paper."""
GREY = "#808080"
BIG = 500
"""Points from which a cloud is drawn as pixels inside a vector figure."""


class Shown(Figure):
    """A figure that notebooks show as a picture; they know those of matplotlib only once pyplot is imported."""

    def _repr_png_(self) -> bytes:
        image = BytesIO()
        self.savefig(image, format="png", bbox_inches="tight")
        return image.getvalue()


def new_axes(ax: Axes | None, size: tuple[float, float] = (5.0, 4.0)) -> Axes:
    """Return the Axes given, or the only one of a new figure that pyplot does not know.

    Examples
    --------
    >>> new_axes(None, (3, 2)).figure.get_size_inches().tolist()
    [3.0, 2.0]
    """
    return Shown(figsize=size, layout="constrained").add_subplot() if ax is None else ax


def color(index: int) -> str:
    """Colour of component or fit number `index`; they repeat after ten."""
    return PALETTE[index % len(PALETTE)]


def blend(r: np.ndarray) -> np.ndarray:
    """Colours [n, 3] mixed in the proportions r [n, K].

    Examples
    --------
    >>> import numpy as np
    >>> bool(np.allclose(blend(np.array([[1.0, 0.0]])), to_rgb(PALETTE[0])))
    True
    """
    return np.clip(r @ np.array([to_rgb(color(k)) for k in range(r.shape[1])]), 0, 1)


def array(value: Any) -> np.ndarray:
    """Return the NumPy array of a tensor or array-like."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def values_of(fit: Any, data: Any, name: str | None = None) -> tuple[Any, str, tuple[str, ...]]:
    """Return checked data of a fit, the observed node to draw, and the names of its columns.

    Parameters
    ----------
    fit : Fit
        Whose model reads the data.
    data : optional
        Observed values; those of the fit by default.
    name : str, optional
        Observed node; the first by default.
    """
    if data is None and fit.data is None:
        raise ValueError(f"{NO_DATA}: pass data=")
    obs = fit.data if data is None else fit.model.check(data)
    name = name or next(n.name for n in fit.model.local_nodes() if n.kind == "observed")
    width = obs.values[name].shape[-1] if len(obs.values[name].shape) > 1 else 1
    known = obs.columns.get(name) or (fit.data.columns.get(name) if fit.data is not None else None)
    columns = known or tuple(f"{name}[{j}]" if width > 1 else name for j in range(width))
    return obs, name, tuple(columns)
