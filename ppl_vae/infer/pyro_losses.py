"""Pyro's losses as functions of parameters and tensors, written so that a tracer can follow them."""

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro.infer
import pyro.infer.traceenum_elbo
import torch
from pyro.infer.util import Dice
from torch import Tensor
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_innermost_proxy_mode,
    get_proxy_slot,
)
from torch.overrides import TorchFunctionMode

from ppl_vae.errors import EngineError

__all__ = ["Following", "loss_at", "own_copy"]

PLAIN = {
    pyro.infer.JitTrace_ELBO: pyro.infer.Trace_ELBO,
    pyro.infer.JitTraceEnum_ELBO: pyro.infer.TraceEnum_ELBO,
    pyro.infer.JitTraceGraph_ELBO: pyro.infer.TraceGraph_ELBO,
    pyro.infer.JitTraceMeanField_ELBO: pyro.infer.TraceMeanField_ELBO,
}
"""Pyro's losses with a tracer of their own, and the same losses without."""

DIFFERENTIABLE = (pyro.infer.Trace_ELBO.loss_and_grads, pyro.infer.TraceEnum_ELBO.loss_and_grads)
"""What `loss_and_grads` is where it takes the gradient of `differentiable_loss`."""

READS = (
    Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__format__
)  # fmt: skip
"""Ways in which Python learns the value of a tensor."""


class Following(TorchFunctionMode):
    """Within the block a program that meets a parameter computes with the tensor given in its place.

    Wherever the parameter is kept, in Pyro's store, in a module or in a variable of the program: the operation that
    takes it is handed the other tensor. While a tracer runs, values that cannot change from step to step may be read.

    Parameters
    ----------
    given : iterable of (Tensor, Tensor)
        Parameters, each with the tensor that stands for it.
    """

    def __init__(self, given: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.given = {id(parameter): tensor for parameter, tensor in given}
        self.met: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation on what stands for its arguments."""
        here: list[int] = []
        args = [self._stand_in(a, here) for a in args]
        kwargs = {name: self._stand_in(value, here) for name, value in (kwargs or {}).items()}
        if get_innermost_proxy_mode() is not None:
            caller = sys._getframe(1)
            if func in READS:
                return _read(func, args, caller)
            if func is Tensor.masked_select and caller.f_code is Dice.compute_expectation.__code__:
                # A sum over the terms of positive probability: zeros for the others keep the shape known.
                return torch.where(args[1], args[0], 0.0)
        result = func(*args, **kwargs)
        if here and any(isinstance(r, Tensor) for r in (result if isinstance(result, list | tuple) else [result])):
            self.met.update(here)  # and not where only its shape, say, was asked for
        return result

    def _stand_in(self, value: Any, here: list[int]) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self.given:
                return value
            here.append(id(value))
            return self.given[id(value)]
        if type(value) in (list, tuple):
            return type(value)([self._stand_in(v, here) for v in value])
        return value


def _read(func: Callable[..., Any], args: Sequence[Any], caller: Any) -> Any:
    """The value where it is the same at every step; for Pyro, which only reports it, the tensor itself."""
    where = str(caller.f_globals.get("__name__"))
    # What TraceEnum_ELBO reads as a float are scales, to see that they are one.
    if _constant(args[0]) or (func is Tensor.__float__ and where == pyro.infer.traceenum_elbo.__name__):
        with disable_proxy_modes_tracing():
            return func(*args)
    if func is Tensor.item and where.startswith("pyro."):
        return args[0].detach()
    # A distribution made while arguments were checked goes on checking.
    return True if where == torch.distributions.distribution.__name__ else func(*args)


def _constant(tensor: Tensor) -> bool:
    """Whether a tensor is computed without inputs and without random numbers."""
    mode = get_innermost_proxy_mode()
    assert mode is not None
    slot = get_proxy_slot(tensor, mode.tracer, None)
    if slot is None:
        return False
    waiting, seen = [slot.proxy.node], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        if node.target is not torch.ops.aten.lift_fresh_copy.default:
            waiting.extend(node.all_input_nodes)
    return True


def own_copy(loss: pyro.infer.ELBO) -> pyro.infer.ELBO:
    """A copy that may be changed, as Pyro's losses change themselves when they run, without a tracer of its own."""
    own = copy.copy(loss)
    own.__class__ = PLAIN.get(type(loss), type(loss))
    return own


def loss_at(
    loss: pyro.infer.ELBO,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    given: Sequence[tuple[Tensor, Tensor]],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    used: Iterable[Tensor] = (),
) -> Tensor:
    """Pyro's loss at given values of its parameters, total, in nats, with the gradient that `pyro.infer.SVI` follows.

    Parameters
    ----------
    loss : pyro.infer.ELBO
        Any; one that only takes gradients itself is run with its own backward pass.
    given : sequence of (Tensor, Tensor)
        Parameters and other tensors that the programs keep, each with the value that stands for it.
    used : iterable of Tensor
        Parameters that the loss is known to depend on.

    Raises
    ------
    EngineError
        If one of these is used where no operation of torch shows it, as inside a TorchScript module.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> loc = torch.tensor(0.5, requires_grad=True)
    >>> model = lambda: pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(2.0))
    >>> at = torch.tensor(1.0, requires_grad=True)
    >>> value = loss_at(pyro.infer.Trace_ELBO(), model, lambda: None, [(loc, at)])
    >>> round(value.item(), 4), torch.autograd.grad(value, at)[0].item()
    (1.4189, -1.0)
    """
    if type(loss).loss_and_grads in DIFFERENTIABLE:
        with Following(given) as following:
            value: Tensor = loss.differentiable_loss(model, guide, *args, **(kwargs or {}))
    else:
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for _, tensor in given]
        with Following(zip([parameter for parameter, _ in given], leaves, strict=True)) as following:
            found = loss.loss_and_grads(model, guide, *args, **(kwargs or {}))
        value = torch.as_tensor(sum(found) if isinstance(found, tuple) else found).detach()
        for (_, tensor), leaf in zip(given, leaves, strict=True):
            if leaf.grad is not None:  # zero, with that gradient
                value = value + ((tensor - tensor.detach()) * leaf.grad).sum()
    if any(id(parameter) not in following.met for parameter in used):
        raise EngineError(
            "a parameter is used where no operation of torch shows it, as inside a TorchScript module; "
            "pass the module itself, or train this pair with pyro.infer.SVI"
        )
    return value
