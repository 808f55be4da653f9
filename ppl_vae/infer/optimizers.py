"""Optimisers as values: factories of torch's own, with clipping and schedules of the learning rate around them."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.optim
import torch
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.infer.clipped_adam import ClippedAdam
from ppl_vae.infer.stepper import Stepper, stepper

__all__ = [
    "OptimizerFactory",
    "TorchFactory",
    "adam",
    "adamw",
    "build",
    "clipped",
    "clipped_adam",
    "normalized",
    "optimizer",
    "rmsprop",
    "scheduled",
    "sgd",
    "spoken",
]

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer | Stepper]


@dataclass(frozen=True, repr=False)
class TorchFactory:
    """Parameters to a torch optimiser, with its options written down so that a Fit can report them.

    Attributes
    ----------
    kind : callable
        The optimiser's class.
    options : tuple of (str, value)
        Its arguments.
    capturable : bool
        Whether on a GPU its learning rate and counts are tensors there, so that a CUDA graph can hold a step.
    """

    kind: Callable[..., torch.optim.Optimizer]
    options: tuple[tuple[str, Any], ...]
    capturable: bool = False

    def __call__(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimiser over these parameters."""
        given, options = list(parameters), dict(self.options)
        device = next((p.device for p in given if isinstance(p, Tensor) and p.is_cuda), None)
        if self.capturable and device is not None:
            options |= {"lr": torch.tensor(options["lr"], device=device), "capturable": True}
        return self.kind(given, **options)

    def __repr__(self) -> str:
        return f"{_name(self.kind)}({_written(self.options)})"


@dataclass(frozen=True, repr=False)
class Clipped:
    """A factory whose optimiser sees clipped gradients."""

    factory: OptimizerFactory
    by: str
    limit: float

    def __call__(self, parameters: Iterable[Tensor]) -> Stepper:
        """The optimiser over these parameters."""
        built = build(self.factory, parameters)
        built.clips.insert(0, partial(CLIPS[self.by], limit=self.limit))
        return built

    def __repr__(self) -> str:
        return f"clipped({spoken(self.factory)}, {self.by}={self.limit})"


def _clip_norm(parameters: list[Tensor], limit: float) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, limit)


def _clip_value(parameters: list[Tensor], limit: float) -> None:
    torch.nn.utils.clip_grad_value_(parameters, limit)


CLIPS: dict[str, Callable[..., None]] = {"norm": _clip_norm, "value": _clip_value}
"""How gradients are clipped, by name."""


@dataclass(frozen=True, repr=False)
class Normalized:
    """A factory whose optimiser sees each parameter's gradient at length one."""

    factory: OptimizerFactory

    def __call__(self, parameters: Iterable[Tensor]) -> Stepper:
        """The optimiser over these parameters."""
        built = build(self.factory, parameters)
        built.clips.insert(0, _normalize)
        return built

    def __repr__(self) -> str:
        return f"normalized({spoken(self.factory)})"


LEAST_NORM = 1e-7
"""Added to a gradient's norm before it divides, so that a gradient of zero stays zero."""


def _normalize(parameters: list[Tensor]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        norms = torch._foreach_norm(gradients)
        torch._foreach_add_(norms, LEAST_NORM)
        torch._foreach_div_(gradients, norms)


@dataclass(frozen=True, repr=False)
class Scheduled:
    """A factory whose optimiser has a schedule of its learning rate."""

    factory: OptimizerFactory
    kind: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]
    per: str

    def __call__(self, parameters: Iterable[Tensor]) -> Stepper:
        """The optimiser over these parameters."""
        built = build(self.factory, parameters)
        built.schedule(self.kind(built.optimizer, **dict(self.options)), self.per)
        return built

    def __repr__(self) -> str:
        options = _written((*self.options, ("per", self.per)))
        return f"scheduled({spoken(self.factory)}, {_name(self.kind)}, {options})"


def adam(lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> TorchFactory:
    """torch.optim.Adam, in its fused form.

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : (float, float)
        Decay of the moments.
    weight_decay : float
        Times the parameter, added to the gradient.

    Examples
    --------
    >>> print(adam(1e-2))
    Adam(lr=0.01, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    """
    options = (("lr", lr), ("betas", betas), ("weight_decay", weight_decay), ("fused", True))
    return TorchFactory(torch.optim.Adam, options, capturable=True)


def adamw(lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 1e-2) -> TorchFactory:
    """torch.optim.AdamW, in its fused form: decay beside the step, not inside the gradient.

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : (float, float)
        Decay of the moments.
    weight_decay : float
        Times `lr` and the parameter, subtracted from the parameter.

    Examples
    --------
    >>> print(adamw(1e-2))
    AdamW(lr=0.01, betas=(0.9, 0.999), weight_decay=0.01, fused=True)
    """
    options = (("lr", lr), ("betas", betas), ("weight_decay", weight_decay), ("fused", True))
    return TorchFactory(torch.optim.AdamW, options, capturable=True)


def sgd(lr: float, momentum: float = 0.0) -> TorchFactory:
    """torch.optim.SGD.

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        Share of the last step's direction that is added to the gradient.

    Examples
    --------
    >>> print(sgd(0.1))
    SGD(lr=0.1, momentum=0.0)
    """
    return TorchFactory(torch.optim.SGD, (("lr", lr), ("momentum", momentum)))


def rmsprop(lr: float = 1e-2, alpha: float = 0.99, momentum: float = 0.0) -> TorchFactory:
    """torch.optim.RMSprop.

    Parameters
    ----------
    lr : float
        Learning rate.
    alpha : float
        Decay of the mean square of the gradient.
    momentum : float
        Share of the last step's direction that is added to the scaled gradient.

    Examples
    --------
    >>> print(rmsprop(1e-3))
    RMSprop(lr=0.001, alpha=0.99, momentum=0.0)
    """
    return TorchFactory(torch.optim.RMSprop, (("lr", lr), ("alpha", alpha), ("momentum", momentum)))


def clipped_adam(
    lr: float = 1e-3,
    clip: float = 10.0,
    lrd: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> TorchFactory:
    """Pyro's ClippedAdam: Adam on gradients clipped element by element, its learning rate times `lrd` at every step.

    Parameters
    ----------
    lr : float
        Learning rate; the first step is taken with lr * lrd.
    clip : float
        Largest absolute value of a gradient's element.
    lrd : float
        Decay of a step; `final ** (1 / steps)` ends at `final * lr`.
    betas : (float, float)
        Decay of the moments.
    weight_decay : float
        Times the parameter, added to the clipped gradient.

    Raises
    ------
    EngineError
        If `clip` or `lrd` is not positive.

    Examples
    --------
    >>> print(clipped_adam(1e-2, lrd=0.999))
    ClippedAdam(lr=0.01, clip=10.0, lrd=0.999, betas=(0.9, 0.999), weight_decay=0.0)
    """
    if not (clip > 0 and lrd > 0):
        raise EngineError(f"clipped_adam: clip and lrd must be positive, got clip={clip} and lrd={lrd}")
    options = (("lr", lr), ("clip", clip), ("lrd", lrd), ("betas", betas), ("weight_decay", weight_decay))
    return TorchFactory(ClippedAdam, options, capturable=True)


def optimizer(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> TorchFactory:
    """Any optimiser of torch, as a factory.

    Parameters
    ----------
    kind : class
        An optimiser's class, or a function of parameters and options to an optimiser.
    **options
        Its arguments beside the parameters.

    Raises
    ------
    EngineError
        If `kind` does not take these options.

    Examples
    --------
    >>> print(optimizer(torch.optim.Adagrad, lr=0.1))
    Adagrad(lr=0.1)
    """
    if not callable(kind):
        raise EngineError(f"optimizer takes a class such as torch.optim.Adagrad and its options; got {kind!r}")
    try:
        inspect.signature(kind).bind([], **options)
    except TypeError as error:
        raise EngineError(f"optimizer: {_name(kind)} does not take these options: {error}") from error
    return TorchFactory(kind, tuple(options.items()))


def clipped(factory: OptimizerFactory, norm: float | None = None, value: float | None = None) -> Clipped:
    """Clip the gradient before every step, by its norm over all parameters or element by element.

    The gradient is that of minus the objective per datum. Parameters that single data have of their own, as in a q
    that is not amortised, are not clipped.

    Parameters
    ----------
    factory : callable
        What makes the optimiser.
    norm : float, optional
        Largest norm: longer gradients are scaled down to it.
    value : float, optional
        Largest absolute value of an element.

    Raises
    ------
    EngineError
        If not one of both is given, or it is not positive.

    Examples
    --------
    >>> print(clipped(sgd(0.1), norm=5.0))
    clipped(SGD(lr=0.1, momentum=0.0), norm=5.0)
    """
    given = {by: limit for by, limit in {"norm": norm, "value": value}.items() if limit is not None}
    if len(given) != 1 or not all(limit > 0 for limit in given.values()):
        raise EngineError(f"clipped takes a positive norm= or a positive value=, got norm={norm} and value={value}")
    return Clipped(factory, *given.popitem())


def normalized(factory: OptimizerFactory) -> Normalized:
    """Divide the gradient of each parameter, a weight matrix or a bias, by its norm before every step.

        g <- g / (|g| + 1e-7)

    With Adam below, every step of a tensor then counts as much in its moments as every other, however large gradients
    are early on. Parameters that single data have of their own, as in a q that is not amortised, are left as they are.

    Parameters
    ----------
    factory : callable
        What makes the optimiser.

    References
    ----------
    Yu, Huang, Lin, Salakhutdinov and Carbonell (2017). Block-normalized gradient method: an empirical study for
    training deep neural network. arXiv:1707.04822.

    Examples
    --------
    >>> print(normalized(sgd(0.1)))
    normalized(SGD(lr=0.1, momentum=0.0))
    """
    return Normalized(factory)


def scheduled(factory: OptimizerFactory, kind: Callable[..., Any], per: str = "epoch", **options: Any) -> Scheduled:
    """Give the learning rate one of torch's schedules.

    Parameters
    ----------
    factory : callable
        What makes the optimiser.
    kind : class
        A class of `torch.optim.lr_scheduler`, or a function of an optimizer and options to such a scheduler.
    per : {"epoch", "step"}
        After what the scheduler steps, which is the unit of options such as `T_max`.
    **options
        Its arguments beside the optimiser.

    Raises
    ------
    EngineError
        If `per` is something else. `ReduceLROnPlateau` must be given mode="max": it watches the held-out bound where
        there is one, else that of the epoch.

    Examples
    --------
    >>> print(scheduled(sgd(0.1), torch.optim.lr_scheduler.StepLR, step_size=30))
    scheduled(SGD(lr=0.1, momentum=0.0), StepLR, step_size=30, per=epoch)
    """
    if per not in ("epoch", "step"):
        raise EngineError(f'scheduled: per must be "epoch" or "step", got {per!r}')
    if not callable(kind):
        raise EngineError(f"scheduled takes a class of torch.optim.lr_scheduler and its options; got {kind!r}")
    return Scheduled(factory, kind, tuple(options.items()), per)


def build(factory: Any, parameters: Iterable[Tensor]) -> Stepper:
    """The optimiser that a factory makes over these parameters, with its clipping and schedules.

    Raises
    ------
    EngineError
        If it makes none, or is one already.
    """
    if isinstance(factory, torch.optim.Optimizer | Stepper | pyro.optim.PyroOptim) or not callable(factory):
        raise EngineError(
            "optimizer= takes a factory, parameters -> optimiser, because the engine fits a copy of the model: pass "
            f"pv.adam(1e-3), pv.clipped_adam(...) or pv.optimizer(torch.optim.Adagrad, lr=...); got {factory!r}"
        )
    return stepper(factory(parameters))


def spoken(factory: Any) -> str:
    """A factory in words that are the same in every process: what a Fit reports and a checkpoint compares.

    Examples
    --------
    >>> spoken(sgd(0.1)), spoken(torch.optim.Adam)
    ('SGD(lr=0.1, momentum=0.0)', 'Adam')
    """
    return repr(factory) if isinstance(factory, TorchFactory | Clipped | Normalized | Scheduled) else _name(factory)


def _name(kind: Any) -> str:
    return getattr(kind, "__qualname__", type(kind).__qualname__)


def _written(options: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name}={_name(value) if callable(value) else value}" for name, value in options)
