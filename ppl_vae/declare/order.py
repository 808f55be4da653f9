"""What the guide's draws depend on: each other, and data."""

from ppl_vae.declare.nodes import Graph

__all__ = ["drawn_before", "entangled", "looked_at"]


def entangled(graph: Graph) -> frozenset[str]:
    """Latents whose prior depends on what the guide draws from them, such as z1 in q(z1 | x) q(z2 | z1), p(z1 | z2).

    E_q[log p(z1 | z2) - log q(z1 | x)] is then not the mean of -KL(q(z1 | x) || p(z1 | z2)) over z2 ~ q(z2 | z1): that
    z2 knows z1.

    Parameters
    ----------
    graph : Graph
        Nodes and posteriors of a declaration, in their order.

    Examples
    --------
    >>> entangled(Graph())
    frozenset()
    """
    before = drawn_before(graph)
    return frozenset(
        name for name in before if any(name in before.get(parent, ()) for parent in graph.nodes[name].parents)
    )


def drawn_before(graph: Graph) -> dict[str, set[str]]:
    """Latents on whose draws the declared posterior of each latent depends, directly or by others.

    Examples
    --------
    >>> drawn_before(Graph())
    {}
    """
    before: dict[str, set[str]] = {}
    for name, q in graph.posteriors.items():
        before[name] = {other for p in q.parents if p in before for other in (p, *before[p])}
    return before


def looked_at(graph: Graph) -> frozenset[str]:
    """Observed nodes that declared posteriors are computed from; without any, all, from which q's are searched for.

    Examples
    --------
    >>> looked_at(Graph())
    frozenset()
    """
    observed = frozenset(node.name for node in graph.of_kind("observed"))
    parents = {parent for q in graph.posteriors.values() for parent in q.parents}
    return observed & parents if graph.posteriors else observed
