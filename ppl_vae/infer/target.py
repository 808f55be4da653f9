"""A potential at its data as one fast function of u: eager, a graph, or compiled code."""

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vae.alone import differentiable
from ppl_vae.errors import EngineError
from ppl_vae.infer.interpreted import at_data, interpreted
from ppl_vae.infer.layout import Layout
from ppl_vae.infer.tracing import MODES, Traced

__all__ = ["COMPILE", "JITTER", "Density", "Target", "make_target", "make_traced", "with_gradient", "worth_compiling"]

COMPILE = ("auto", *MODES)
JITTER = 0.1
"""Standard deviation, in unconstrained coordinates, by which starts differ."""
LEAPFROGS = 7
"""Gradients of a draw, about: a tree of depth 3."""
SAVED, SAVED_BY_NUMBER = 4e-7, 3e-10
"""Seconds that inductor saves at every operation of a graph, and at every number that these have for results.

Beside two chains at once: what inductor makes keeps Python to itself more of the time than torch's interpreter does.
"""
COMPILE_SECONDS = 10.0


Run = Callable[[GraphModule, Sequence[Tensor]], Callable[..., tuple[Tensor, ...]]]
"""How a graph is run that is not compiled."""


class Density(Protocol):
    """What is sampled: its parameters as a vector u, and the log density with the data as arguments."""

    layout: Layout
    data: tuple[Tensor, ...]

    def log_density(self, u: Tensor, *data: Tensor) -> Tensor:
        """Of u, in nats, total."""
        ...


@dataclass(frozen=True)
class Target:
    """U [size], float64, to log density and gradient; `mode` as of Traced: only a graph may be called from threads."""

    value_and_gradient: Callable[[Tensor], tuple[Tensor, ...]]
    mode: str


def make_target(density: Density, at: Tensor, draws: int, mode: str) -> Target:
    """The density at its data, as fast as `mode` has it."""
    traced, data = make_traced(density, at, draws, mode, at_data), density.data
    graph = traced.fixed(at, *data)
    if traced.mode == "off":
        return Target(lambda u: graph(u, *data), traced.mode)

    def value_and_gradient(u: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():  # a fifth of a small operation's time is keeping books for autograd
            value, gradient = graph(u, *data)
        return value.clone(), gradient.clone()

    return Target(value_and_gradient, traced.mode)


def make_traced(density: Density, at: Tensor, draws: int, mode: str, run: Run = interpreted) -> Traced:
    """(u, *data) to log density and gradient; "auto" compiles where so many draws are worth the seconds it takes."""
    function = with_gradient(density.log_density)
    data = density.data
    traced = Traced(function, "trace" if mode == "auto" else mode, num_threads=1, run=run)
    _check_gradient(density.layout, at, traced(at, *data)[1])
    if mode == "auto" and traced.mode == "trace" and worth_compiling(traced, draws):
        traced = Traced(function, "inductor", num_threads=1)
        traced(at, *data)
    # Control flow that the tracer did not notice shows at another point.
    if traced.mode != "off" and not traced.verify(at + JITTER / 2, *data) < _tolerance(density):
        warnings.warn(
            "the model runs eagerly, since its graph is wrong elsewhere: control flow on values", stacklevel=2
        )
        traced.mode = "off"
    return traced


def _check_gradient(layout: Layout, at: Tensor, gradient: Tensor) -> None:
    if bool(gradient.isfinite().all()):
        return
    wrong = [site.name for site in layout.sites if not bool(gradient[site.start : site.stop].isfinite().all())]
    raise EngineError(
        f"the gradient of the log density by {', '.join(wrong)} is not finite where the chains start: some "
        "operation has none there, such as a Poisson law at rate 0 or a root at 0; keep its argument inside, such as "
        "torch.where(z == 1, rate, 1e-9) for rate * z, or pass start= with values where it has one"
    )


def with_gradient(log_density: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """(u, *data) to the log density and its gradient at u."""

    def value_and_gradient(u: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        with differentiable():
            u = u.detach().requires_grad_()
            value = log_density(u, *data)
            (gradient,) = torch.autograd.grad(value, u)
        return value.detach(), gradient

    return value_and_gradient


def worth_compiling(traced: Traced, draws: int) -> bool:
    """Whether a compiler is there and would save more than it takes; it depends on nothing that is measured."""
    seconds = SAVED * traced.operations + SAVED_BY_NUMBER * traced.numbers
    return draws * LEAPFROGS * seconds > COMPILE_SECONDS and any(map(shutil.which, ("g++", "clang++", "c++")))


def _tolerance(density: Density) -> float:
    dtypes = [site.dtype for site in density.layout.sites]
    return 1e3 * max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.75
