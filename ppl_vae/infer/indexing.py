"""Operations of a graph that put numbers where they already are: picking 0, ..., n - 1, and gradients of slices."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vae.infer.folding import constant, is_all, written

__all__ = ["direct"]

aten = torch.ops.aten

ADDED = aten.add.Tensor


def direct(graph: GraphModule) -> None:
    """Take out indices that are 0, ..., n - 1, and lay the gradients of slices side by side in place of adding them.

    The numbers stay the same, but for the sign of a zero.

    For graphs that change nothing in place.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> every = torch.arange(2)
    >>> graph = make_fx(lambda x: x[every].exp())(torch.zeros(2))
    >>> direct(graph)
    >>> [node.name for node in graph.graph.nodes if node.op == "call_function"]
    ['reshape_default', 'exp']
    """
    own_memory = written(graph)
    for node in list(graph.graph.nodes):
        if node in own_memory:
            continue
        if node.target is aten.index.Tensor and _in_order(node.args[1], _shape(node.args[0])):
            _replace(graph, node, aten.reshape.default, (node.args[0], list(_shape(node))))
        elif node.target is aten.index_put.default and _puts_all(node):
            _replace(graph, node, aten.reshape.default, (node.args[2], list(_shape(node))))
    for node in reversed(list(graph.graph.nodes)):
        if node.op == "call_function" and node.users:
            _side_by_side(graph, node)
    graph.graph.eliminate_dead_code()


def _shape(node: Any) -> torch.Size:
    known = constant(node)
    value = node.meta["val"] if known is None else known
    return value.shape


def _replace(graph: GraphModule, node: Node, target: Any, args: tuple[Any, ...]) -> None:
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(target, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def _in_order(indices: Any, shape: torch.Size) -> bool:
    """Whether indices of a tensor of this shape are of one dimension, and 0, ..., n - 1 in it."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        return False
    ((dim, index),) = given
    value = constant(index)
    if value is None or value.dtype != torch.long or value.numel() != shape[dim]:
        return False
    return torch.equal(value.flatten(), torch.arange(shape[dim], device=value.device))


def _puts_all(node: Node) -> bool:
    """Whether a tensor is put into zeros, each number of it into its own place."""
    zeros, indices, value, *_ = node.args
    shape = _shape(node)
    return is_all(zeros, 0.0) and _in_order(indices, shape) and _shape(value).numel() == shape.numel()


def _side_by_side(graph: GraphModule, node: Node) -> None:
    """A sum of gradients of slices that do not overlap, as one concatenation."""
    slices = _slices(node)
    partial = len(node.users) == 1 and _slices(next(iter(node.users)))
    if len(slices) < 2 or partial:
        return
    spans = sorted(((_span(own), own) for own in slices), key=lambda pair: pair[0])
    sizes: list[int]
    dim: int
    sizes, dim = (slices[0].args[1], slices[0].args[2])  # type: ignore[assignment]
    one_tensor = all((own.args[1], own.args[2]) == (sizes, dim) for own in slices)
    if not one_tensor or any(end > begin for ((_, end), _), ((begin, _), _) in pairwise(spans)):
        return
    parts: list[Any] = []
    at = 0
    for (begin, end), own in spans:
        parts += [_zeros(graph, node, sizes, dim, begin - at)] if begin > at else []
        parts.append(own.args[0])
        at = end
    parts += [_zeros(graph, node, sizes, dim, sizes[dim] - at)] if sizes[dim] > at else []
    _replace(graph, node, aten.cat.default, (parts, dim))


def _span(node: Node) -> tuple[int, int]:
    """Where the gradient of a slice begins and ends."""
    given: tuple[Any, ...] = node.args
    _, sizes, dim, start, end, _ = given
    begin, end, _ = slice(start, end).indices(sizes[dim])
    return begin, end


def _zeros(graph: GraphModule, node: Node, sizes: list[int], dim: int, length: int) -> Node:
    """Zeros like a node's value, but for one size."""
    like: Tensor = node.meta["val"]
    shape = [length if at == dim % len(sizes) else size for at, size in enumerate(sizes)]
    with graph.graph.inserting_before(node):
        zeros = graph.graph.call_function(aten.zeros.default, (shape,), {"dtype": like.dtype, "device": like.device})
    zeros.meta["val"] = like.new_zeros(shape)
    return zeros


def _slices(node: Node) -> list[Node]:
    """The gradients of slices, of step 1, that a node adds up; none if it adds up anything else."""
    if node.target is aten.slice_backward.default and node.args[5] == 1:
        return [node]
    if node.target is not ADDED or len(node.args) != 2 or node.kwargs:
        return []
    found: list[Node] = []
    for argument in node.args:
        own = _slices(argument) if isinstance(argument, Node) and len(argument.users) == 1 else []
        if not own:
            return []
        found += own
    return found
