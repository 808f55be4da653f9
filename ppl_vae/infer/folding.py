"""What a graph computes from nothing but constants is computed once."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

__all__ = ["bake", "constant", "fold_constants", "is_all", "written"]

aten = torch.ops.aten

LARGEST = 1 << 16
"""Numbers in a constant that is kept, or looked into."""
ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
SHAPED = {
    aten.ones_like.default, aten.zeros_like.default, aten.full_like.default,
    aten.new_ones.default, aten.new_zeros.default, aten.new_full.default,
}  # fmt: skip
"""Operations for which of their first argument only shape, dtype and device count."""
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


def fold_constants(graph: GraphModule) -> None:
    """Replace whatever depends on no input's values by its value, and constant masks by the positions that they mean.

    Masks are what keeps inductor from compiling: how many entries they choose is not in their shape.
    """
    own_memory = written(graph)
    values: dict[Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(graph, node.target)
        elif node.op == "call_function" and node not in own_memory and _constant(node, values):
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n] if n in values else _any(n))
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for node in values:
        if node.op == "call_function" and values[node] is None:  # a check of constants, which they passed
            graph.graph.erase_node(node)
    for node in values:
        kept = any(user not in values for user in node.users)
        if node.op == "call_function" and kept and isinstance(values[node], Tensor):
            bake(graph, node, f"_folded_{node.name}", values[node].detach().clone())
    for node in list(graph.graph.nodes):
        if node.target in INDEXED:
            _positions(graph, node)
    graph.graph.eliminate_dead_code()


def _constant(node: Node, values: dict[Node, Any]) -> bool:
    schema, tags = getattr(node.target, "_schema", None), getattr(node.target, "tags", ())
    if schema is not None and (schema.is_mutable or torch.Tag.nondeterministic_seeded in tags):
        return False
    value = node.meta.get("val")
    small = not isinstance(value, Tensor) or value.numel() <= LARGEST
    sources = node.all_input_nodes[1:] if node.target in SHAPED else node.all_input_nodes
    return small and all(source in values for source in sources)


def _any(node: Node) -> Tensor:
    """A tensor of a node's shape, dtype and device."""
    like: Tensor = node.meta["val"]
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def written(graph: GraphModule) -> set[Node]:
    """Nodes whose memory an operation in place, or who gets the outputs, changes, and what they are views of.

    These are made anew each time.
    """
    found = set(graph.graph.output_node().all_input_nodes)
    for node in reversed(graph.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None and node in found:  # one of several results
            found.update(node.all_input_nodes)
        for argument, source in zip(schema.arguments if schema else (), node.args, strict=False):
            alias = argument.alias_info
            if isinstance(source, Node) and alias is not None and (alias.is_write or node in found):
                found.add(source)
    return found


def bake(graph: GraphModule, node: Node, name: str, value: Tensor) -> None:
    """Let a constant of this name take the place of a node."""
    graph.register_buffer(name, value, persistent=False)
    with graph.graph.inserting_before(node):
        baked = graph.graph.get_attr(name)
    baked.meta = dict(node.meta)
    node.replace_all_uses_with(baked)


def constant(node: Any) -> Tensor | None:
    """The tensor that an argument is, if it is a constant of its graph."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = getattr(node.graph.owning_module, str(node.target), None)
    return value if isinstance(value, Tensor) else None


def is_all(value: Any, number: float) -> bool:
    """Whether an argument is this number, or a tensor of nothing else."""
    if not isinstance(value, Node):
        return bool(value == number)
    known = constant(value)
    if known is None:
        return number == 0.0 and value.target in ZEROS
    return known.numel() <= LARGEST and bool((known == number).all())


def _positions(graph: GraphModule, node: Node) -> None:
    """x[mask] as x[i, j] for a mask that is a constant."""
    indices: list[Any] = []
    for index in node.args[1]:  # type: ignore[union-attr]
        value = constant(index)
        if value is not None and value.dtype == torch.bool:
            for axis, positions in enumerate(value.nonzero().unbind(-1)):
                name = f"_folded_{node.name}_{len(indices)}_{axis}"
                graph.register_buffer(name, positions.clone(), persistent=False)
                with graph.graph.inserting_before(node):
                    indices.append(graph.graph.get_attr(name))
        else:
            indices.append(index)
    node.args = (node.args[0], indices, *node.args[2:])
