"""From templates to text and to a file that is either whole or not there."""

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ppl_vae import plots
from ppl_vae.records import write_bytes
from ppl_vae.report.figures import drawing, new_figure, svg

__all__ = ["drawn_model", "render", "write"]


def render(template: str, **values: Any) -> str:
    """Fill a template of the package; every value is escaped unless it is markup."""
    loader = PackageLoader("ppl_vae", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def drawn_model(model: Any) -> Markup:
    """Draw a model's graph as inline SVG, by matplotlib, so that a page looks the same everywhere."""
    with drawing():
        nodes = model.graph()
        shared = sum(node.shared for node in nodes.values())
        ax = new_figure(4.2 if shared else 2.2, max(2.4, 0.62 * shared)).add_subplot()
        plots.render(model, ax)
        said = "; ".join(f"{c} depends on {p}" for p, c in plots.graph.edges(model)) or "no edges"
        return svg(ax.figure, f"Graph of {type(model).__name__}: {', '.join(nodes)}; {said}")


def write(path: str | os.PathLike[str], text: str) -> Path:
    """Write a file so that readers see the old one or the new one, never half of it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "a.html"), "<p>").read_text()
    '<p>'
    """
    return write_bytes(Path(path), text.encode())
