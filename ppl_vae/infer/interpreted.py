"""A graph of tensor operations run by torch's own interpreter: no compiler, and a third of the time Python takes."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vae.infer.compiling import checks_apart, with_checks
from ppl_vae.infer.folding import bake, fold_constants
from ppl_vae.infer.lean import lean, quick

__all__ = ["at_data", "interpreted"]


def at_data(graph: GraphModule, tensors: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """`interpreted`, at the values that all tensors but the first have: what they alone decide is computed once.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> x, data = torch.ones(2), torch.arange(4.0)
    >>> at_data(make_fx(lambda x, data: (x * data.sum(),))(x, data), [x, data])(3 * x, data)
    (tensor([18., 18.]),)
    """
    graph = deepcopy(graph)
    _, *known = graph.graph.find_nodes(op="placeholder")
    for number, (node, value) in enumerate(zip(known, tensors[1:], strict=True)):
        bake(graph, node, f"_data_{number}", value)
        graph.graph.erase_node(node)
    fold_constants(graph)
    code = interpreted(lean(graph), tensors[:1])
    return lambda first, *data: code(first)


def interpreted(graph: GraphModule, tensors: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The graph, of tensors to tensors, for tensors of these shapes; its numbers are those of the graph, bit for bit.

    Other threads of Python run while it does.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> x = torch.ones(2)
    >>> interpreted(make_fx(lambda x: (2 * x, x.sum()))(x), [x])(x)
    (tensor([2., 2.]), tensor(2.))
    """
    # The interpreter leaves out what has no result, such as a check.
    own, checks = checks_apart(graph)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends other ways, all of which need a compiler
            code = torch.jit.trace(own, tuple(tensors), check_trace=False)
    except Exception:  # this torch has no interpreter for this Python, or not for these operations
        return quick(graph)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        try:
            return code(*tensors)
        except RuntimeError as error:
            if "linalg." in str(error):  # the interpreter's errors are of one type
                raise torch.linalg.LinAlgError(str(error)) from error
            raise

    return with_checks(run, checks)
