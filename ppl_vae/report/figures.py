"""matplotlib figures as SVG inside a page: their ink follows the page's, light or dark."""

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

__all__ = ["INK", "drawing", "new_figure", "points", "svg"]

INK = "#262626"
"""Stands for the page's text colour while a figure is drawn."""
RC = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "svg.fonttype": "none",
    "svg.hashsalt": "ppl_vae",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.0,
    "figure.dpi": 100.0,
    "savefig.dpi": 144.0,
}
NOTHING = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def drawing() -> Iterator[None]:
    """Figures made within are drawn for a page; matplotlib's settings are as before afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches that pyplot does not know."""
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure | SubFigure, alt: str, over: Callable[[], Markup] | None = None) -> Markup:
    """Render a figure as an inline SVG element with a description; the same figure gives the same text.

    Parameters
    ----------
    figure : Figure
        Drawn within `drawing()`.
    alt : str
        What is to be seen, for those who cannot see it.
    over : callable, optional
        Gives elements to lay over the figure, once its Axes have their places (see `points`).

    Examples
    --------
    >>> with drawing():
    ...     figure = new_figure(1, 1)
    ...     element = svg(figure, "nothing")
    >>> str(element).startswith("<svg")
    True
    """
    assert isinstance(figure, Figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NOTHING)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for pattern in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>", r'\s+xmlns(?::\w+)?="[^"]*"'):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=").replace(INK, "currentColor").replace("#000000", "currentColor")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    width = re.search(r'width="([\d.]+)pt"', text)
    size = f' style="width:{float(width[1]):.0f}pt"' if width else ""
    text = text[text.index(">") + 1 :]
    head = Markup('<svg class="pv-svg" role="img" aria-label="{}" {}{}>').format(alt, Markup(view[0]), Markup(size))
    body = _own_ids(text[: text.rindex("</svg>")])
    return head + Markup(body) + (over() if over is not None else Markup("")) + Markup("</svg>")


def points(ax: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where data are in a figure's SVG: coordinates [..., 2] of its user space; for `over`, linear axes only."""
    width, height = ax.figure.get_size_inches() * 72  # type: ignore[union-attr]
    place, (left, right), (low, high) = ax.get_position(), ax.get_xlim(), ax.get_ylim()
    across = place.x0 + place.width * (np.asarray(x) - left) / (right - left)
    up = place.y0 + place.height * (np.asarray(y) - low) / (high - low)
    return np.stack([across * width, (1 - up) * height], -1)


def _own_ids(text: str) -> str:
    """Make identifiers unique on a page that holds several figures."""
    mark = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{mark}-', text)
    text = text.replace("url(#", f"url(#{mark}-")
    return re.sub(r'href="#', f'href="#{mark}-', text)
