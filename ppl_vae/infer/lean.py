"""A traced graph made faster: no operation that changes nothing, matrix products by oneDNN, calls the short way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vae.infer.folding import is_all, written
from ppl_vae.infer.indexing import direct

__all__ = ["functional", "lean", "products", "quick"]

aten = torch.ops.aten

SAME_MEMORY = {
    aten.alias.default, aten.detach.default, aten.view.default, aten.reshape.default, aten.expand.default
}  # fmt: skip
"""Operations that give another name to their argument where the shape stays."""
COPIES = {aten.lift_fresh_copy.default, aten._unsafe_view.default}
NEUTRAL: dict[Any, float] = {
    aten.add.Tensor: 0.0,
    aten.sub.Tensor: 0.0,
    aten.mul.Tensor: 1.0,
    aten.mul.Scalar: 1.0,
    aten.div.Tensor: 1.0,
    aten.div.Scalar: 1.0,
    aten.pow.Tensor_Scalar: 1.0,
}
"""What an operation leaves its first argument as it is with."""
COMMUTATIVE = {aten.add.Tensor, aten.mul.Tensor}

FUNCTIONS = (
    "abs", "acos", "add", "addmm", "all", "amax", "amin", "any", "argmax", "asin", "atan", "baddbmm", "bernoulli",
    "bmm", "cat", "clamp", "clamp_min", "cos", "cumsum", "diag_embed", "diagonal", "digamma", "div", "eq", "erf",
    "exp", "expm1", "flip", "gather", "ge", "gt", "index_select", "isfinite", "isnan", "le", "lgamma",
    "log", "log1p", "logical_and", "logical_not", "logsumexp", "lt", "masked_fill", "maximum", "mean", "minimum", "mm",
    "mul", "ne", "neg", "permute", "pow", "reciprocal", "relu", "rsqrt", "select", "sigmoid", "sign", "sin", "sqrt",
    "squeeze", "stack", "sub", "sum", "t", "tanh", "transpose", "tril", "triu", "unbind", "unsqueeze", "where",
)  # fmt: skip
"""Operations that torch itself offers under their name, with their arguments in their order."""
METHODS = ("expand", "view")


def functional(graph: GraphModule) -> None:
    """Let operations in place on a result that nothing uses later make a new tensor: such graphs can be made leaner.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(lambda x: x.exp().add_(1))(torch.zeros(2))
    >>> functional(graph)
    >>> [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    ['aten.exp.default', 'aten.add.Tensor']
    """
    place = {node: number for number, node in enumerate(graph.graph.nodes)}
    for node in _calls(graph):
        packet, first = getattr(node.target, "overloadpacket", None), node.args[0] if node.args else None
        if packet is None or not _mutates(node) or not isinstance(first, Node) or not _alike(node, first):
            continue
        if first.op != "call_function" or _shares(first):
            continue
        if any(place[user] > place[node] or (user is not node and _shares(user)) for user in first.users):
            continue
        same = getattr(aten, packet.__name__.removesuffix("_"), None) if packet.__name__.endswith("_") else None
        overload = getattr(same, node.target._overloadname, None)  # type: ignore[union-attr]
        if overload is not None and not overload._schema.is_mutable:
            node.target = overload


def _shares(node: Node) -> bool:
    """Whether a node's value may be in memory that another value has."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


def lean(graph: GraphModule) -> GraphModule:
    """Take out of a graph what leaves its argument as it is, and what is computed twice; the numbers stay the same.

    A graph that changes tensors in place, such as the running statistics of batch normalisation, only loses
    operations that give another name to the same memory.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(lambda x: x.view(3) * 1.0 + x.exp() + x.exp())(torch.zeros(3))
    >>> [node.name for node in lean(graph).graph.nodes if node.op == "call_function"]
    ['exp', 'add', 'add_1']
    """
    pure = not any(_mutates(node) for node in _calls(graph))
    if pure:
        direct(graph)
    own_memory = written(graph)
    for node in _calls(graph):
        free = pure and node not in own_memory
        if free:
            _simpler(node)
        same = _unchanged(node, free)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    if pure:
        _once(graph, own_memory)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def quick(graph: GraphModule) -> GraphModule:
    """Call torch's own functions in place of aten's overloads, which cost Python twice as much.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> quick(make_fx(lambda x: (x + 1).exp())(torch.zeros(2)))(torch.tensor([-1.0, -1.0]))
    tensor([1., 1.])
    """
    for node in _calls(graph):
        node.target = QUICK.get(getattr(node.target, "overloadpacket", None), node.target)
    graph.recompile()
    return graph


QUICK: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name): getattr(torch, name) for name in FUNCTIONS if hasattr(torch, name)},
    **{getattr(aten, name): getattr(Tensor, name) for name in METHODS},
    aten.softplus: torch.nn.functional.softplus,
}


LARGE = 1 << 22
"""Multiplications of a matrix product from which oneDNN's is faster: measured where torch's own takes no AVX-512."""


def products(graph: GraphModule) -> GraphModule:
    """Leave large float32 matrix products on a CPU with AVX-512 to oneDNN.

    torch leaves them to MKL, which takes AVX-512 on Intel's processors only; elsewhere oneDNN's take half the time. The
    numbers differ by rounding.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> x = torch.randn(256, 256)
    >>> graph = products(make_fx(lambda x: x @ x)(x))
    >>> torch.allclose(graph(x), x @ x, atol=1e-3)
    True
    """
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512":
        for node in _calls(graph):
            if node.target in PRODUCTS and _is_large(node):
                node.target = PRODUCTS[node.target]
    graph.recompile()
    return graph


# Operators of their own, which inductor calls as they are: it takes oneDNN's for constant matrices only.
_library = torch.library.Library("ppl_vae", "DEF")
_library.define("product(Tensor a, Tensor b) -> Tensor")
_library.define("product_and_bias(Tensor bias, Tensor a, Tensor b) -> Tensor")


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), None, "none", [], "")


def _product_and_bias(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # A bias whose numbers do not lie side by side is misread.
    return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias.contiguous(), "none", [], "")


_library.impl("product", _product, "CPU")
_library.impl("product_and_bias", _product_and_bias, "CPU")
_library.impl("product", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
_library.impl("product_and_bias", lambda bias, a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")

PRODUCTS: dict[Any, Any] = {
    aten.mm.default: torch.ops.ppl_vae.product.default,
    aten.addmm.default: torch.ops.ppl_vae.product_and_bias.default,
}


def _is_large(node: Node) -> bool:
    values: list[Any] = [argument.meta.get("val") for argument in node.args]  # type: ignore[union-attr]
    *bias, a, b = values
    if node.kwargs or any(value.dim() != 1 for value in bias):
        return False
    single = all(value.dtype == torch.float32 and value.device.type == "cpu" for value in values)
    return single and a.shape[0] * a.shape[1] * b.shape[1] >= LARGE


def _calls(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _unchanged(node: Node, free: bool) -> Node | None:
    """The argument that a node gives back as it is, if it does."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node):
        return None
    if node.target is aten.t.default and first.target is aten.t.default:
        return first.args[0]  # type: ignore[return-value]
    if node.target in SAME_MEMORY or (free and node.target in COPIES):
        return first if _alike(node, first) else None
    return _other_than_neutral(node, first) if free and node.target in NEUTRAL else None


def _other_than_neutral(node: Node, first: Node) -> Node | None:
    """The argument that is left as it is."""
    other, neutral = node.args[1], NEUTRAL[node.target]
    if _alike(node, first) and is_all(other, neutral):
        return first
    swapped = node.target in COMMUTATIVE and not node.kwargs and isinstance(other, Node) and _alike(node, other)
    return other if swapped and is_all(first, neutral) else None  # type: ignore[return-value]


def _simpler(node: Node) -> None:
    """Let a sum over dimensions of size 1 be another shape of the same numbers, and x + -y be x - y."""
    if node.target in (aten.sum.dim_IntList, aten.sum.default):
        value, result = node.args[0].meta.get("val"), node.meta["val"]  # type: ignore[union-attr]
        if value is not None and value.numel() and (value.numel(), value.dtype) == (result.numel(), result.dtype):
            node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], list(result.shape)), {}
    elif node.target is aten.add.Tensor and not node.kwargs:
        x, y = node.args
        if isinstance(y, Node) and y.target is aten.neg.default:
            node.target, node.args = aten.sub.Tensor, (x, y.args[0])
        elif isinstance(x, Node) and x.target is aten.neg.default and isinstance(y, Node):
            node.target, node.args = aten.sub.Tensor, (y, x.args[0])


def _alike(a: Node, b: Node) -> bool:
    """Whether two nodes' values have one shape and dtype."""
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, Tensor) and isinstance(y, Tensor) and (x.shape, x.dtype) == (y.shape, y.dtype)


def _once(graph: GraphModule, own_memory: set[Node]) -> None:
    """Compute what has the same operation and arguments once; random numbers are drawn anew each time."""
    seen: dict[Any, Node] = {}
    for node in _calls(graph):
        if _random(node) or node in own_memory:
            continue
        first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)
