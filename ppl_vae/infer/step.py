"""One step of gradient ascent: a traced value and gradient, summed over pieces and processes, and an optimiser."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vae.alone import differentiable
from ppl_vae.errors import EngineError
from ppl_vae.infer.processes import Share
from ppl_vae.infer.tracing import Traced

__all__ = ["CHECK", "NO_FACTOR", "Climbed", "Frozen", "Names", "Pieces", "Step", "StepResult", "choose"]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Largest relative difference between a graph and its function that rounding may make."""
CHECK = 1000
"""Steps of a loop of one's own from one comparison of graph and function to the next."""


@dataclass(frozen=True)
class StepResult:
    """What one step saw: sums over its batch, in nats, and the weight they stand for.

    Attributes
    ----------
    wrong : str
        What was not finite, in words, so that the parameters were not moved; empty where they were.
    signals : sequence of float
        What the processes told each other with this step, summed.
    penalties : mapping
        By name, terms that the objective has and the bound has not, in nats.
    """

    bound: Tensor
    objective: Tensor
    weight: Tensor
    wrong: str = ""
    signals: Sequence[float] = ()
    penalties: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        """Whether the parameters were moved."""
        return not self.wrong

    def metrics(self) -> dict[str, Tensor]:
        """Bound, objective and penalties in nats per datum, not yet read from the device."""
        sums = {"bound": self.bound, "objective": self.objective}
        sums |= {f"penalty: {name}": value for name, value in self.penalties.items()}
        return {name: value / self.weight for name, value in sums.items()}


Names = tuple[tuple[str, ...], ...]
"""What the first tensors of a batch are: each set of names has a graph of its own."""


@dataclass(frozen=True)
class Pieces:
    """A batch as tensors: rows of per-datum parameters that are moved with it, the rest, its weight, and names."""

    rows: Sequence[Tensor]
    rest: Sequence[Tensor]
    weight: Tensor
    names: Names = ()


class Frozen:
    """What parameters are, as of now: a step moves those that wanted a gradient when it was made, in their dtype then.

    Parameters
    ----------
    named : iterable of (str, Tensor)
        The parameters.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self.named = [(name, p, p.requires_grad, p.dtype, p.device) for name, p in named]

    def check(self) -> None:
        """Refuse to go on where one was frozen, unfrozen, cast or moved since.

        Raises
        ------
        EngineError
            Naming it.
        """
        for name, parameter, wanted, dtype, device in self.named:
            if parameter.dtype != dtype or parameter.device != device:
                raise EngineError(
                    f"{name} was {dtype} on {device} when this step was made and is {parameter.dtype} on "
                    f"{parameter.device} now: make a new step by pv.svi_step(...), with a new optimiser"
                )
            if parameter.requires_grad != wanted:
                raise EngineError(
                    f"requires_grad of {name} was {wanted} when this step was made and is {not wanted} now: make a new "
                    "step by pv.svi_step(...); within SVI(...).fit parameters take turns by alternate="
                )


class Climbed(Protocol):
    """What a step climbs: the objective of a declared model, or a Pyro pair's ELBO.

    Attributes
    ----------
    dense : list of Tensor
        Parameters moved at every step.
    num_rows : int
        Tensors of per-datum parameters, of which a batch moves its rows.
    names, row_names : list of str
        What both are called.
    penalties : tuple of str
        Names of the terms that only the objective has.
    """

    dense: list[Tensor]
    num_rows: int
    names: list[str]
    row_names: list[str]
    penalties: tuple[str, ...]

    def pieces(self, batch: Any, beta: float, count: int) -> list[Pieces]:
        """A batch in `count` pieces of one shape."""
        ...

    def sums(self, leaves: Sequence[Tensor], rest: Sequence[Tensor], names: Names) -> tuple[Tensor, ...]:
        """The objective, the bound and each penalty summed over a piece, in nats, at these parameters and rows."""
        ...

    def completed(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """What the optimiser is given for each of `dense`; None leaves a parameter and its moments as they are."""
        ...

    def move_rows(self, batch: Any, gradients: Sequence[Any], share: Share) -> None:
        """One step of the per-datum parameters."""
        ...

    def blame(self, batch: Any) -> str:
        """The node that is not finite on this batch; empty where none is known."""
        ...


class Step:
    """Move parameters up the objective of a batch, per unit of weight (000 (39)).

    The gradient is traced into one graph at the first call. With several pieces or processes gradients are summed
    before the optimiser sees them, so that it takes the step of the whole batch.

    Parameters
    ----------
    climbed : Climbed
        What is maximised.
    optimizer : torch.optim.Optimizer, optional
        Over `climbed.dense`.
    mode : {"off", "trace", "inductor"}
        How the gradient is computed.
    accumulate : int
        Pieces that a batch is cut into, one after the other, where it does not fit in memory at once.
    share : Share
        Processes that each hold their part of the batch.
    """

    def __init__(
        self,
        climbed: Climbed,
        optimizer: Any,
        mode: str = "trace",
        accumulate: int = 1,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        self.climbed, self.optimizer, self.accumulate, self.share = climbed, optimizer, accumulate, share
        self.dense, self.tolerance = list(climbed.dense), 1.0
        self.traced = Traced(self._gradient, mode)

    @property
    def mode(self) -> str:
        """How the gradient is computed now."""
        return self.traced.mode

    def run_eagerly(self) -> None:
        """Use no graph from here on."""
        self.traced.mode = "off"

    def _gradient(self, *tensors: Tensor, names: Names) -> tuple[Tensor | None, ...]:
        """Objective, bound and penalties of a piece, and the gradient of minus the objective over the first tensor.

        None for parameters that the objective does not depend on: an optimiser leaves those where they are.
        """
        norm, (moved, rest) = tensors[0], self._split(tensors[1:])
        with differentiable():
            leaves = [t.detach().requires_grad_() for t in moved]
            value, *seen = self.climbed.sums(leaves, rest, names)
            norm = _or_one(norm)
            gradients = torch.autograd.grad(-value / norm, leaves, allow_unused=True)
        dense = len(self.dense)
        rows = _filled(gradients[dense:], leaves[dense:])
        return value.detach(), *[each.detach() for each in seen], *gradients[:dense], *rows

    def _split(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        count = len(self.dense) + self.climbed.num_rows
        return tensors[:count], tensors[count:]

    def __call__(
        self, batch: Any, beta: float = 1.0, signals: Sequence[float] = (), moving: Sequence[bool] | None = None
    ) -> StepResult:
        """One step; on a CPU, none where objective or gradient is not finite. `moving` is as in `move`."""
        try:
            result, gradients = self.gradient(batch, beta, signals)
        except torch.linalg.LinAlgError:  # a covariance without a Cholesky factor has no density
            if self.share.world > 1:
                raise
            nan = torch.tensor(torch.nan)
            terms = dict.fromkeys(self.climbed.penalties, nan)
            return StepResult(nan, nan, torch.ones(()), "the objective became nan", signals, terms)
        wrong = "" if result.objective.is_cuda else self._wrong(result.objective.item(), gradients)
        if wrong:
            return replace(result, wrong=wrong)
        self.move(batch, gradients, moving)
        return result

    def _wrong(self, objective: float, gradients: Sequence[Tensor | None]) -> str:
        """What is not finite, in words; empty where all is."""
        if not math.isfinite(objective):
            return f"the objective became {objective}"
        if all(map(_finite, gradients)):
            return ""
        names = [*self.climbed.names, *self.climbed.row_names]
        name = next(name for name, gradient in zip(names, gradients, strict=True) if not _finite(gradient))
        return f"the gradient of {name} became not finite"

    def gradient(
        self, batch: Any, beta: float = 1.0, signals: Sequence[float] = ()
    ) -> tuple[StepResult, Sequence[Tensor | None]]:
        """Sums over the batch of all processes, and the gradient of minus the objective per unit of weight."""
        parts = self.climbed.pieces(batch, beta, self.accumulate)
        names = self.climbed.penalties
        if len(parts) == 1 and self.share.world == 1:
            value, bound, *rest = self._call(parts[0], parts[0].weight)
            terms = dict(zip(names, rest, strict=False))
            return StepResult(bound, value, parts[0].weight, signals=signals, penalties=terms), rest[len(names) :]
        found = [self._call(part, torch.ones_like(part.weight)) for part in parts]
        reported = 2 + len(names)
        dense = reported + len(self.dense)
        used = [any(one[reported + i] is not None for one in found) for i in range(len(self.dense))]
        whole = [[*one[:reported], *_filled(one[reported:dense], self.dense)] for one in found]
        sums = [torch.stack(each).sum(0) for each in zip(*whole, strict=True)]
        rows = [torch.cat(each) for each in zip(*[one[dense:] for one in found], strict=True)]
        if self.share.world > 1:  # of rows, which each process has for itself, all hear that they are not finite
            sums[0] = sums[0] + sum(0 * row.sum() for row in rows)
        weight = torch.stack([part.weight for part in parts]).sum()
        heard = [weight.new_tensor(float(signal)) for signal in signals]
        summed = iter(self.share.add([weight, *heard, weight.new_tensor(used), *sums]))
        weight, heard, anywhere = next(summed), [next(summed) for _ in heard], next(summed).tolist()
        value, bound = next(summed), next(summed)
        terms = {name: next(summed) for name in names}
        gradients: Sequence[Any] = torch._foreach_div([*summed, *rows], _or_one(weight))
        gradients = [g if i >= len(used) or anywhere[i] else None for i, g in enumerate(gradients)]
        told = [float(signal) for signal in heard]
        return StepResult(bound, value, weight, signals=told, penalties=terms), gradients

    def _call(self, part: Pieces, norm: Tensor) -> tuple[Any, ...]:
        return self.traced(norm, *self.dense, *part.rows, *part.rest, names=part.names)

    def move(self, batch: Any, gradients: Sequence[Tensor | None], moving: Sequence[bool] | None = None) -> None:
        """The optimiser's step along these gradients, of the parameters and rows that are `moving`: all by default."""
        moving = moving or [True] * len(gradients)
        for parameter, gradient, own in zip(self.dense, self.climbed.completed(gradients), moving, strict=False):
            parameter.grad = gradient if own else None
        if self.optimizer is not None:
            self.optimizer.step()
        if len(gradients) > len(self.dense) and moving[-1]:
            self.climbed.move_rows(batch, gradients[len(self.dense) :], self.share)

    def check(self, batch: Any, beta: float = 1.0) -> float:
        """Compare the graph with its function; one that differs by more than rounding is not used any more.

        Returns the difference then, else 0.
        """
        if self.mode == "off":
            return 0.0
        try:
            difference = self.verify(batch, beta)
        except torch.linalg.LinAlgError:  # the step itself will say so
            return 0.0
        if difference <= self.tolerance * TOLERANCE.get(self.dense[0].dtype if self.dense else torch.float32, 0.1):
            return 0.0
        self.run_eagerly()
        return difference

    def verify(self, batch: Any, beta: float = 1.0) -> float:
        """Largest relative difference of the graph from the function it was made from, on this batch."""
        part = self.climbed.pieces(batch, beta, self.accumulate)[0]
        return self.traced.verify(part.weight, *self.dense, *part.rows, *part.rest, names=part.names)


def _finite(tensor: Tensor | None) -> bool:
    """Whether all numbers are: one sum tells in a tenth of the time, but where it overflows."""
    return tensor is None or math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def _filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with zeros in the place of None."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]


def _or_one(weight: Tensor) -> Tensor:
    """The weight of a batch, 1 where no datum of it counts: its gradient is zero, and not 0 / 0."""
    return torch.where(weight > 0, weight, 1.0)


NO_FACTOR = (
    "a covariance that is not positive definite in rounding: a component may sit on few data, or features be in units "
    "far from 1, which other units mend"
)
"""What to say where a density has failed."""
COMPILE_SECONDS = 40.0
"""What inductor takes, at most, to compile a step."""
SAVED = 0.2
"""Share of a step's time that compiling it saves."""
OPERATIONS = 2e10
"""Multiplications a second that a step reaches."""
OVERHEAD = 2e-3
"""Seconds of a step beside its arithmetic."""
TOO_FEW = 100
"""Steps for which even tracing is not worth its second or two."""


def choose(asked: str, parameters: int, batch_size: int, steps: int | None) -> str:
    """How to run: what was asked for, else what pays for a model of this size and so many steps.

    Examples
    --------
    >>> choose("auto", parameters=650_000, batch_size=128, steps=40_000), choose("auto", 1000, 100, 10)
    ('inductor', 'off')
    """
    if asked != "auto":
        return asked
    if steps is not None and steps < TOO_FEW:
        return "off"
    seconds = OVERHEAD + 3 * parameters * batch_size / OPERATIONS
    return "inductor" if steps is not None and SAVED * seconds * steps > COMPILE_SECONDS else "trace"
