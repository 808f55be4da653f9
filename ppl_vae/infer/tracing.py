"""A function of tensors, run once under torch's tracer, becomes a graph of tensor operations without Pyro in it."""

import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pyro.util
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ppl_vae.alone import unvalidated
from ppl_vae.errors import DataError, DeclarationError, EngineError
from ppl_vae.infer.compiling import compiled, kept_generators
from ppl_vae.infer.folding import fold_constants
from ppl_vae.infer.lean import functional, lean, products, quick

__all__ = ["MODES", "Traced", "UntraceableError", "graph_of", "traceable"]

logger = logging.getLogger("ppl_vae")

Function = Callable[..., tuple[Any, ...]]
"""Of tensors, to tensors; None stands for one that does not exist, such as an unused parameter's gradient."""

MODES = ("off", "trace", "inductor")
"""Eager; a graph that Python runs; a graph that inductor compiles."""
MOST = 8
"""Graphs of one function, one for each set of shapes and arguments by name; beyond this number it runs eagerly."""
SMALL = 1e-3
"""Outputs whose numbers are below this part of the others' need not agree in all their digits."""
OURS = tuple(str(Path(file).parent) for file in (torch.__file__, pyro.__file__, Path(__file__).parent))


class UntraceableError(EngineError):
    """A function whose operations depend on the values of its tensors."""


def _by_python(graph: GraphModule, tensors: Sequence[Tensor]) -> Function:
    return quick(graph)


class Traced:
    """A function of tensors that runs as a graph: traced at the first call, and again for each new set of shapes.

    A graph holds tensor operations only: whatever Python computed while it was traced, numbers included, is baked in.
    Random draws come from torch's generator in the same order as in the function itself.

    Parameters
    ----------
    function : callable
        Tensors to a tuple of tensors. It takes its own gradients, if any.
    mode : {"off", "trace", "inductor"}
        Run the function itself, its graph, or its graph compiled by inductor.
    num_threads : int, optional
        Threads that compiled code uses, wherever it is called from; torch's number by default.
    run : callable
        How a graph is run that is not compiled, given tensors of the shapes it is for.

    Attributes
    ----------
    operations, numbers : int
        Of the last graph that was made, and of all results of these operations together.

    Examples
    --------
    >>> double = Traced(lambda x: (2 * x,))
    >>> double(torch.ones(2))
    (tensor([2., 2.]),)
    """

    def __init__(
        self,
        function: Function,
        mode: str = "trace",
        num_threads: int | None = None,
        run: Callable[[GraphModule, Sequence[Tensor]], Function] = _by_python,
    ) -> None:
        if mode not in MODES:
            raise EngineError(f"compile must be one of {', '.join(MODES)}; got {mode!r}")
        self.function, self.mode, self.num_threads, self.run = function, mode, num_threads, run
        self.operations = self.numbers = 0
        self.graphs: dict[tuple[Any, ...], Function] = {}

    def __call__(self, *tensors: Tensor, **still: Hashable) -> tuple[Any, ...]:
        """The function's outputs; arguments by name are no tensors, and other ones have another graph."""
        if self.mode == "off":
            return self.function(*tensors, **still)
        tensors = tuple([t if t.is_contiguous() else _dense(t) for t in tensors])
        laid = tuple([(t.shape, t.dtype, None if t.is_contiguous() else t.stride()) for t in tensors])
        key = laid, *still.values()
        graph = self.graphs.get(key)
        if graph is None:
            graph = self._made(key, tensors, still)
        with torch.no_grad():
            return tuple(graph(*tensors))

    def fixed(self, *tensors: Tensor) -> Function:
        """The same for tensors that are laid out as these are, which is not looked at again."""
        self(*tensors)
        if self.mode == "off" or len(self.graphs) != 1:
            return self
        (graph,) = self.graphs.values()
        return graph

    def _made(self, key: tuple[Any, ...], tensors: Sequence[Tensor], still: Mapping[str, Hashable]) -> Function:
        function = partial(self.function, **still)
        if len(self.graphs) == MOST:
            logger.warning("tensors of more than %d shapes: further ones run eagerly; keep to one shape", MOST)
        if len(self.graphs) >= MOST:
            return function
        try:
            graph: Any = products(graph_of(function, *tensors))
        except UntraceableError as error:
            warnings.warn(f"runs eagerly, step by step, since it cannot be traced: {error}", stacklevel=3)
            self.mode, graph = "off", function
        if self.mode != "off":
            sizes = [node.meta["val"].numel() for node in graph.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
            self.operations, self.numbers = len(sizes), sum(sizes)
        if self.mode == "inductor":
            graph = self._compiled(graph, tensors)
        if self.mode == "trace":
            graph = self.run(graph, tensors)
        self.graphs[key] = graph
        return graph

    def _compiled(self, graph: Any, tensors: Sequence[Tensor]) -> Function:
        try:
            return compiled(graph, tensors, self.num_threads or torch.get_num_threads())
        except Exception as error:  # no compiler, or one that fails
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"inductor cannot compile here; the plain graph is used ({reason})", stacklevel=4)
            self.mode = "trace"
            return graph

    def verify(self, *tensors: Tensor, **still: Hashable) -> float:
        """Largest difference between graph and function at these arguments, relative to the function's largest number.

        Both draw the same random numbers; the generators are left as they were.
        """
        # Running statistics, as those of batch normalisation, are changed in place.
        with kept_generators(tensors):
            expected = self.function(*[t.clone() for t in tensors], **still)
        with kept_generators(tensors):
            found = self(*[t.clone() for t in tensors], **still)
        numbers = [a.detach().double() for a in expected if a is not None and a.numel()]
        sizes = torch.tensor([a.nan_to_num().abs().max() for a in numbers])
        least = SMALL * (sizes.median().item() if len(sizes) else 0.0)
        return max((_difference(a, b, least) for a, b in zip(expected, found, strict=True)), default=0.0)


def _dense(tensor: Tensor) -> Tensor:
    """A part of a larger tensor by itself: a graph is made at strides that a copy has."""
    return tensor if tensor.stride() == torch.empty_like(tensor, device="meta").stride() else tensor.contiguous()


def _difference(expected: Tensor | None, found: Tensor | None, least: float) -> float:
    """Relative to the largest number, or to `least`: a gradient that is zero is rounding error."""
    if expected is None or found is None:
        return 0.0 if expected is found else float("inf")
    if not expected.numel():
        return 0.0
    a, b = expected.detach().double(), found.detach().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    a, b = a.nan_to_num(), b.nan_to_num()
    dtype = expected.dtype if expected.is_floating_point() else torch.float64
    least = max(least, torch.finfo(dtype).tiny ** 0.5)
    return ((a - b).abs().max() / a.abs().max().clamp_min(least)).item()


def graph_of(function: Function, *tensors: Tensor) -> GraphModule:
    """The graph of a function at these shapes.

    Raises
    ------
    UntraceableError
        Naming the line of the user's program whose value decides what is computed.

    Examples
    --------
    >>> graph_of(lambda x: (x + 1,), torch.zeros(2))(torch.ones(2))
    (tensor([2., 2.]),)
    """
    if torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled():
        raise UntraceableError("torch.autograd.set_detect_anomaly is on, which reads the values of gradients")
    try:
        # Shapes are noted down within one mode: a mode for every operation takes as long again as tracing.
        once = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
        with traceable(), _Unchecked(), kept_generators(tensors), once:
            graph = make_fx(function)(*[t.clone() for t in tensors])
    except (DataError, DeclarationError, EngineError):  # what is refused is refused of eager steps too
        raise
    except Exception as error:  # whatever a user's node does that a tracer cannot follow
        if torch.is_inference_mode_enabled():  # which eager steps cannot help
            raise
        raise UntraceableError(_where(error)) from error
    _write_dtypes(graph)
    functional(graph)
    fold_constants(graph)
    _refuse_open_shapes(graph)
    return lean(graph)


def _refuse_open_shapes(graph: GraphModule) -> None:
    """A mask that depends on values chooses another number of entries at each step; what follows has baked it in."""
    for node in graph.graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        indices = [n.meta["val"].dtype for n in node.all_input_nodes[1:] if isinstance(n.meta.get("val"), Tensor)]
        if node.target is not torch.ops.aten.index.Tensor or any(d in (torch.bool, torch.uint8) for d in indices):
            raise UntraceableError(
                f"how many entries {node.target} gives depends on the values of a mask; take torch.where instead"
            )


def _write_dtypes(graph: GraphModule) -> None:
    """Constants such as torch.ones(2) keep the dtype they were traced in, whatever the default is when they run.

    So does what becomes floating, such as the logarithm of a count.
    """
    for node in list(graph.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        makes = schema is not None and not node.all_input_nodes and any(a.name == "dtype" for a in schema.arguments)
        if makes and node.kwargs.get("dtype") is None:
            node.kwargs = {**node.kwargs, "dtype": node.meta["val"].dtype}
        elif schema is not None and node.kwargs.get("dtype") is None:
            _promote(graph, node)


def _promote(graph: GraphModule, node: Node) -> None:
    """Where an operation makes floating numbers of whole ones alone, let it have floating ones."""
    result = node.meta.get("val")
    inputs = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    if not isinstance(result, Tensor) or not result.is_floating_point() or not inputs:
        return
    if any(n.meta["val"].is_floating_point() for n in inputs):
        return
    chooses = node.target in WHERE
    with graph.graph.inserting_before(node):
        for given in inputs:
            if chooses and given is node.args[0]:
                continue
            cast = graph.graph.call_function(torch.ops.aten._to_copy.default, (given,), {"dtype": result.dtype})
            cast.meta["val"] = given.meta["val"].to(result.dtype)
            node.replace_input_with(given, cast)


WHERE = [getattr(torch.ops.aten.where, name) for name in torch.ops.aten.where.overloads()]


class _Unchecked(TorchFunctionMode):
    """Functions of torch that read values only to check them, without the check."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return UNCHECKED.get(func, func)(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 1:
        return torch.nn.functional.one_hot(tensor, num_classes)  # their number depends on the values
    return (tensor[..., None] == torch.arange(num_classes, device=tensor.device)).long()


UNCHECKED: dict[Any, Callable[..., Any]] = {torch.nn.functional.one_hot: _one_hot}


def _where(error: Exception) -> str:
    """The last line of the user's own program before the error, and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*OURS, "<"))]
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "get value out of a tracing tensor" in reason:
        reason = "what is computed depends on the value of a tensor"
    if not own:
        return reason
    return f'{reason}, in {own[-1].filename}, line {own[-1].lineno}: "{own[-1].line}"'


@contextmanager
def traceable() -> Iterator[None]:
    """Within the block Pyro neither reads values to check them nor branches on them, as under torch.jit.trace."""
    with ExitStack() as stack:
        stack.enter_context(unvalidated())
        stack.enter_context(_without_onednn())
        stack.enter_context(warnings.catch_warnings())
        # torch too, in part: it warns that loops over a tensor are unrolled.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # Pyro asks this in twenty places, and then takes the way that does not depend on values.
        stack.enter_context(_replaced(torch._C, "_get_tracing_state", lambda: True))
        stack.enter_context(_replaced(pyro.util, "torch_isnan", lambda x: False))
        stack.enter_context(_replaced(pyro.util, "torch_isinf", lambda x: False))
        read = pyro.infer.util.torch_item
        for name, module in list(sys.modules.items()):
            if name.startswith("pyro.infer") and getattr(module, "torch_item", None) is read:
                stack.enter_context(_replaced(module, "torch_item", _unread))
        yield


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Its LSTM cannot be run from a graph."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _unread(x: Any) -> Any:
    """The value as a tensor without gradient, where Pyro would read it."""
    return x.detach() if isinstance(x, Tensor) else x


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
