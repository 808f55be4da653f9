"""A built optimiser: torch's, with the clipping before its steps and the schedules of its learning rate after them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_vae.errors import EngineError

__all__ = ["Stepper", "stepper"]

Clip = Callable[[list[Tensor]], Any]
"""Changes the gradients of parameters in place."""


class Stepper:
    """A torch optimiser and what belongs to its steps, with one state.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Over all parameters that move at every step.

    Attributes
    ----------
    clips : list of callable
        What changes the gradients before a step, in order.
    schedulers : list of (str, scheduler)
        Those of the learning rate, with "step" or "epoch".

    Raises
    ------
    EngineError
        If a step of this optimiser needs a closure.

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> one = Stepper(torch.optim.SGD([p], lr=0.5))
    >>> p.grad = torch.ones(2)
    >>> one.step()
    >>> p.tolist(), one.lr
    ([0.5, 0.5], 0.5)
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise EngineError(
                f"{type(optimizer).__name__} evaluates the objective several times a step, which a minibatch estimate "
                "does not allow; take one that needs the gradient alone, such as pv.adam(1e-3)"
            )
        self.optimizer = optimizer
        self.clips: list[Clip] = []
        self.schedulers: list[tuple[str, Any]] = []
        self.followers: list[torch.optim.SparseAdam] = []

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups of parameters, with their options."""
        return self.optimizer.param_groups

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group."""
        return float(self.param_groups[0]["lr"])

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold `move`: everything that changes between steps is in tensors."""
        return all(group.get("capturable", False) for group in self.param_groups)

    def schedule(self, scheduler: Any, per: str) -> None:
        """Let a scheduler of this optimiser step after every "step" or "epoch"."""
        missing = [name for name in ("step", "state_dict", "load_state_dict") if not hasattr(scheduler, name)]
        if missing:
            raise EngineError(f"scheduled: {type(scheduler).__name__} is no scheduler of torch, it has no {missing[0]}")
        if isinstance(scheduler, ReduceLROnPlateau) and (per, scheduler.mode) != ("epoch", "max"):
            raise EngineError('ReduceLROnPlateau watches the bound after every epoch: pass mode="max", and per="epoch"')
        self.schedulers.append((per, scheduler))

    def follow(self, rows: Iterable[Tensor]) -> torch.optim.SparseAdam:
        """SparseAdam over parameters of single data, at this learning rate as it is at each step; not clipped."""
        adam = torch.optim.SparseAdam(list(rows), lr=self.lr)

        def same_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = self.lr

        adam.register_step_pre_hook(same_rate)
        self.followers.append(adam)
        return adam

    # A step.

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Clip, move the parameters, let the schedules of steps go on."""
        self.move()
        self.end_of_step()

    def move(self) -> None:
        """Clip and move the parameters; the rest of a step is in `end_of_step`, where a CUDA graph holds this part."""
        if self.clips:
            parameters = [p for group in self.param_groups for p in group["params"]]
            for clip in self.clips:
                clip(parameters)
        self.optimizer.step()

    def end_of_step(self) -> None:
        """Let the schedules of steps go on."""
        for per, scheduler in self.schedulers:
            if per == "step":
                scheduler.step()

    def end_of_epoch(self, score: float | None = None) -> None:
        """Let the schedules of epochs go on; `score` (larger is better) is for those that watch one."""
        for per, scheduler in self.schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                if score is None:
                    raise EngineError("ReduceLROnPlateau needs the bound of the epoch: end_of_epoch(score)")
                scheduler.step(score)
            elif per == "epoch":
                scheduler.step()

    # The state.

    def state_dict(self) -> dict[str, Any]:
        """The state of optimiser, schedulers and followers; as torch's own, it holds the tensors that steps change."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for _, scheduler in self.schedulers],
            "followers": [adam.state_dict() for adam in self.followers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        for (_, scheduler), own in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(own)
        states = [state["optimizer"], *state["followers"]]
        for optimizer, own in zip([self.optimizer, *self.followers], states, strict=True):
            before = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(own)
            for group, lr in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = _in_the_place_of(lr, group["lr"])


def stepper(optimizer: Any) -> Stepper:
    """The built optimiser of what a factory returned, or of a user's own torch optimiser.

    Raises
    ------
    EngineError
        If it is none.
    """
    if isinstance(optimizer, Stepper):
        return optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return Stepper(optimizer)
    raise EngineError(f"expected an optimiser of torch.optim, got {type(optimizer).__name__}")


def _in_the_place_of(old: float | Tensor, new: float | Tensor) -> float | Tensor:
    """The new learning rate in the old one's form: a CUDA graph goes on reading the tensor that it was made with."""
    return old.copy_(torch.as_tensor(new)) if isinstance(old, Tensor) else float(new)
