"""A model's equations as text: p of every node, q of every latent that declares one."""

import ast
import inspect
import textwrap
from typing import Any

from ppl_vae.declare.nodes import Node, Posterior

__all__ = ["equations", "posteriors"]


def equations(model: Any) -> list[tuple[str, str]]:
    """(left, right) of each equation, parents before children.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> equations(pv.models.GaussianMixture(2, 2))
    [('p(z)', 'Categorical(pi)'), ('p(x | z)', 'Normal(mu_z, Sigma_z)')]
    """
    found = []
    for name, info in model.graph().items():
        if info.kind == "input":
            continue
        node = inspect.getattr_static(type(model), name, None)
        law = _law(node) if isinstance(node, Node) else info.law.rstrip(".").removesuffix("Prior")
        found.append((f"p({_given(name, info.parents)})", law))
    for name, q in posteriors(model).items():
        found.append((f"q({_given(name, q.parents)})", _law(q)))
    return found


def posteriors(model: Any) -> dict[str, Posterior]:
    """Declared posteriors by the name of their latent; a subclass's replaces its parent's."""
    found: dict[str, Posterior] = {}
    for cls in reversed(type(model).__mro__):
        found |= {value.node.name: value for value in vars(cls).values() if isinstance(value, Posterior)}
    return found


def _given(name: str, parents: tuple[str, ...]) -> str:
    return f"{name} | {', '.join(parents)}" if parents else name


def _law(item: Node | Posterior) -> str:
    """The first line of the docstring; without one, what the method returns, as it is written."""
    doc = (item.__doc__ or "").strip()
    if doc:
        return doc.splitlines()[0].rstrip(".")
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(item.function)))
    except (OSError, TypeError, SyntaxError):
        return "…"
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    return ast.unparse(values[-1]) if values else "…"
