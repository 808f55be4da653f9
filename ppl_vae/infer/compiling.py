"""A graph of tensor operations as code that inductor compiles, and keeps for the next time."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from ppl_vae.alone import forked_rng
from ppl_vae.infer.parallel import threads

__all__ = ["checks_apart", "compiled", "kept_generators", "with_checks"]

aten = torch.ops.aten


def compiled(graph: GraphModule, tensors: Sequence[Tensor], num_threads: int) -> Callable[..., tuple[Tensor, ...]]:
    """The graph as code for tensors of these shapes; inductor's cache on disk has it for the next process.

    Parameters
    ----------
    graph : GraphModule
        Tensors to a tuple of tensors.
    tensors : sequence of Tensor
        Arguments, of which only the shapes and dtypes count.
    num_threads : int
        Threads that the code uses, wherever it is called from.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # a third of a second, which importing need not wait for

    graph, checks = checks_apart(graph)
    # Inductor has random numbers of its own, and writes the number of threads into its code.
    # Without its trials of the compiler on every vector instruction set, 9 seconds: the processor knows its own.
    options = {"fallback_random": True, "cpp.threads": num_threads, "cpp.vec_isa_ok": True}
    # It caches graphs of a tracing context with shapes only.
    shapes = FakeTensorMode(shape_env=ShapeEnv(assume_static_by_default=True), allow_fallback_kernels=True)
    with threads(num_threads), torch.no_grad(), _quiet():
        with tracing(TracingContext(shapes)):
            code = torch._inductor.compile(graph, list(tensors), options=options)
        with kept_generators(tensors):  # compilation itself waits for the first call
            code(*[t.clone() for t in tensors])
    return with_checks(code, checks)


def with_checks(code: Callable[..., tuple[Tensor, ...]], checks: list[tuple[str, bool]]) -> Callable[..., Any]:
    """What a graph of `checks_apart` was made into, with its checks."""
    if not checks:
        return code
    count = len(checks)

    def checked(*tensors: Tensor) -> tuple[Tensor, ...]:
        found = code(*tensors)
        for info, (name, is_matrix) in zip(found[-count:], checks, strict=True):
            aten._linalg_check_errors.default(info, name, is_matrix=is_matrix)
        return tuple(found[:-count])

    return checked


def checks_apart(graph: GraphModule) -> tuple[GraphModule, list[tuple[str, bool]]]:
    """A graph without its checks of matrix factorisations; what they look at becomes further outputs.

    Inductor neither caches a graph that has checks nor moves anything past them.

    Returns
    -------
    GraphModule
        The graph itself, if it has none.
    list of tuple
        What each check is called and whether it is of a single matrix, in the order of the further outputs.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph, checks = checks_apart(make_fx(lambda x: (torch.linalg.cholesky(x),))(torch.eye(2)))
    >>> checks, len(graph(torch.eye(2)))
    ([('linalg.cholesky', True)], 2)
    """
    if not _checks(graph):
        return graph, []
    graph = deepcopy(graph)
    found, output = _checks(graph), graph.graph.output_node()
    output.args = ((*output.args[0], *[node.args[0] for node in found]),)  # type: ignore[misc]
    for node in found:
        graph.graph.erase_node(node)
    graph.recompile()
    return graph, [(node.args[1], node.kwargs["is_matrix"]) for node in found]  # type: ignore[misc]


def _checks(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.target is aten._linalg_check_errors.default]


@contextmanager
def _quiet() -> Iterator[None]:
    """Inductor's remarks on the machine and on its own insides are not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.getLogger("torch").level
        logging.getLogger("torch").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch").setLevel(level)


def kept_generators(tensors: Sequence[Tensor]) -> Any:
    """Within the block random numbers may be drawn; afterwards the generators stand where they stood."""
    return forked_rng(sorted({t.device.index or 0 for t in tensors if t.is_cuda}))
