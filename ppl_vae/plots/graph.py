"""The drawing of a model: circles for variables, shaded when observed, a plate round what each datum has."""

import inspect
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from ppl_vae.alone import forked_rng
from ppl_vae.declare.nodes import Node
from ppl_vae.errors import DataError, DeclarationError, EngineError
from ppl_vae.plots.style import GREY, new_axes

__all__ = ["Layout", "edges", "layout", "render"]

RADIUS = 0.3
STEP_X, STEP_Y = 1.5, 1.15
SHORT = 3
"""Longest name that is written inside its circle."""


def render(model: Any, ax: Axes | None = None) -> Any:
    """Draw a model: by pyro.render_model where graphviz and its dot program are installed, else by matplotlib.

    Parameters
    ----------
    model : LatentVariableModel
        What to draw.
    ax : Axes, optional
        Draw here, with matplotlib.

    Returns
    -------
    Axes or graphviz.Digraph
        The drawing.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> from matplotlib.figure import Figure
    >>> ax = render(pv.models.GaussianMixture(2, 2), Figure().add_subplot())
    >>> sorted(t.get_text() for t in ax.texts)
    ['every datum', 'x', 'z']
    """
    if ax is None and find_spec("graphviz") is not None and shutil.which("dot"):
        try:
            return _by_pyro(model)
        except (DataError, DeclarationError, EngineError):
            pass  # Pyro's drawing needs a run of the model, which this one does not give without data.
    return _by_matplotlib(model, ax)


def _by_pyro(model: Any) -> Any:
    with forked_rng(), torch.no_grad():
        observed = [n.name for n in model.local_nodes() if n.kind == "observed"]
        drawn = model.sample_joint(2)
        data = {name: drawn[name] for name in observed}
        return pyro.render_model(model.model, model_args=(data,))


def edges(model: Any) -> list[tuple[str, str]]:
    """(parent, child) pairs of model.graph(), with those from the parameters of a family to the node that calls it."""
    nodes = model.graph()
    found = [(parent, node.name) for node in nodes.values() for parent in node.parents]
    for name in nodes:
        node = inspect.getattr_static(type(model), name, None)
        if not isinstance(node, Node):
            continue
        used = set(node.function.__code__.co_names)
        for other, info in nodes.items():
            path = other.split(".")[:-1]
            if info.shared and path and used.issuperset(path):
                found.append((other, name))
    return found


@dataclass(frozen=True)
class Layout:
    """Where each node is, and the corners (left, bottom, right, top) of the plate, if there is one."""

    places: dict[str, tuple[float, float]]
    plate: tuple[float, float, float, float] | None


def layout(model: Any) -> Layout:
    """Local nodes in layers from parents to children, shared ones in a column on their left.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> layout(pv.models.GaussianMixture(2, 2)).places["x"][1] < layout(pv.models.GaussianMixture(2, 2)).places["z"][1]
    True
    """
    nodes, arrows = model.graph(), edges(model)
    local = [n for n, info in nodes.items() if not info.shared]
    depth: dict[str, int] = {}
    for name in local:
        depth[name] = 1 + max((depth[p] for p, c in arrows if c == name and p in depth), default=-1)
    layers = [[n for n in local if depth[n] == level] for level in range(max(depth.values(), default=-1) + 1)]
    places = {
        n: ((i - (len(layer) - 1) / 2) * STEP_X, -STEP_Y * level)
        for level, layer in enumerate(layers)
        for i, n in enumerate(layer)
    }
    plate = _plate(nodes, places)
    shared = [n for n, info in nodes.items() if info.shared]
    child = {n: min((depth.get(c, 0) for p, c in arrows if p == n), default=0) for n in shared}
    shared.sort(key=lambda n: child[n])
    middle = -STEP_Y * (len(layers) - 1) / 2
    left = (plate[0] if plate else 0.0) - 1.2
    for i, n in enumerate(shared):
        places[n] = (left, middle + ((len(shared) - 1) / 2 - i) * 0.85)
    return Layout(places, plate)


def _plate(nodes: Any, places: dict[str, tuple[float, float]]) -> tuple[float, float, float, float] | None:
    if not places:
        return None
    xs, ys = zip(*places.values(), strict=True)
    room = max(0.09 * len(n) if len(n) > SHORT else 0.0 for n in places)
    return min(xs) - 0.55, min(ys) - 0.75, max(xs) + 0.55 + room, max(ys) + 0.5


def _by_matplotlib(model: Any, ax: Axes | None) -> Axes:
    nodes, plan = model.graph(), layout(model)
    reach = [x - 0.5 - (0.11 * len(n) if nodes[n].shared else 0.0) for n, (x, _) in plan.places.items()]
    left = min(*reach, plan.plate[0] - 0.1 if plan.plate else 0.0)
    right = max(plan.plate[2] if plan.plate else 0.5, *(x + 0.5 for x, _ in plan.places.values())) + 0.1
    heights = [y for _, y in plan.places.values()]
    low, high = min(*heights, plan.plate[1] + 0.4 if plan.plate else 0.0) - 0.5, max(heights) + 0.6
    ax = new_axes(ax, (0.85 * (right - left), 0.85 * (high - low)))
    if plan.plate:
        x0, y0, x1, y1 = plan.plate
        box = FancyBboxPatch((x0, y0), x1 - x0, y1 - y0, boxstyle="round,pad=0,rounding_size=0.08", fill=False, ec=GREY)
        ax.add_patch(box)
        ax.text(x1 - 0.08, y0 + 0.06, "every datum", ha="right", va="bottom", fontsize="small", color=GREY)
    for parent, child in edges(model):
        _arrow(ax, plan.places[parent], plan.places[child])
    for name, info in nodes.items():
        _node(ax, info, plan.places[name])
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _node(ax: Axes, info: Any, place: tuple[float, float]) -> None:
    x, y = place
    ink = ax.xaxis.label.get_color()
    if info.kind == "input":
        ax.add_patch(Rectangle((x - 0.22, y - 0.22), 0.44, 0.44, fc=GREY, ec=ink, alpha=0.5))
    else:
        shade = {"fc": GREY, "alpha": 0.45} if info.kind == "observed" else {"fill": False}
        ax.add_patch(Circle(place, RADIUS, ec="none", **shade))
        ax.add_patch(Circle(place, RADIUS, fill=False, ec=ink, lw=1.3))
    inside = len(info.name) <= SHORT
    side = -1 if info.shared else 1
    where = (x, y) if inside else (x + side * (RADIUS + 0.1), y)
    ax.text(*where, info.name, ha="center" if inside else ("right" if info.shared else "left"), va="center", color=ink)


def _arrow(ax: Axes, a: tuple[float, float], b: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = a, b
    length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    start = (x0 + ux * RADIUS, y0 + uy * RADIUS)
    end = (x1 - ux * (RADIUS + 0.03), y1 - uy * (RADIUS + 0.03))
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=GREY, lw=1.3, shrinkA=0, shrinkB=0)
    )
