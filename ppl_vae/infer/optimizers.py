"""Optimisers and schedules as values: factories of torch's own, and functions of the epoch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Linear", "OptimizerFactory", "TorchFactory", "adam", "linear", "sgd"]

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class TorchFactory:
    """Parameters to a torch optimiser, with its options written down so that a Fit can report them."""

    kind: type[torch.optim.Optimizer]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimiser over these parameters."""
        return self.kind(parameters, **dict(self.options))

    def __str__(self) -> str:
        return f"{self.kind.__name__}({', '.join(f'{k}={v}' for k, v in self.options)})"


def adam(lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> TorchFactory:
    """torch.optim.Adam, in its fused form.

    Examples
    --------
    >>> print(adam(1e-2))
    Adam(lr=0.01, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    """
    options = (("lr", lr), ("betas", betas), ("weight_decay", weight_decay), ("fused", True))
    return TorchFactory(torch.optim.Adam, options)


def sgd(lr: float, momentum: float = 0.0) -> TorchFactory:
    """torch.optim.SGD.

    Examples
    --------
    >>> print(sgd(0.1))
    SGD(lr=0.1, momentum=0.0)
    """
    return TorchFactory(torch.optim.SGD, (("lr", lr), ("momentum", momentum)))


@dataclass(frozen=True)
class Linear:
    """A number that moves evenly from start to end over the first epochs, and stays."""

    start: float
    end: float
    epochs: float

    def __call__(self, epoch: float) -> float:
        """The value at an epoch, fractions allowed."""
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)


def linear(start: float, end: float, epochs: float) -> Linear:
    """Schedule for beta: KL warm-up.

    Parameters
    ----------
    start, end : float
        First and last value.
    epochs : float
        Length of the way.

    Examples
    --------
    >>> warm_up = linear(0, 1, epochs=10)
    >>> warm_up(5), warm_up(20)
    (0.5, 1.0)
    """
    return Linear(start, end, epochs)
