"""What the order of the guide's draws means for closed forms."""

from ppl_vae.declare.nodes import Graph

__all__ = ["entangled"]


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
