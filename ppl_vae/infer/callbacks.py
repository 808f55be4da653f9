"""Callbacks: what a user's program does during a fit, and may end it; the same for every engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.alone import forked_rng
from ppl_vae.errors import EngineError
from ppl_vae.fit import Status
from ppl_vae.infer.processes import Share

__all__ = ["STOPPED", "Callback", "Callbacks", "Metrics", "Run", "checked"]

STOPPED = "stopped by a callback"
"""The code of the status of a fit that a callback ended."""

Metrics = Mapping[str, Tensor | float]
"""What a step saw, by name. Tensors may be on a GPU that is still computing them: reading one waits for it."""


@dataclass
class Run:
    """What is being fitted, for callbacks.

    Attributes
    ----------
    engine : str
        "EM", "SVI" or "NUTS".
    model : LatentVariableModel
        The copy that is fitted; in the hooks of EM its families have the values of the step.
    total : int or None
        Steps planned: iterations of all starts for EM, batches for SVI, draws for NUTS. None: not known.
    steps_per_epoch : int or None
        SVI's steps in a pass over the data, where known.
    settings : dict
        Most of the engine's arguments.
    first : int
        The next step's number when the callbacks are set up: above 0 in a fit that goes on from a checkpoint.
    share : Share
        The process's place among those of the fit.
    """

    engine: str = ""
    model: Any = None
    total: int | None = None
    steps_per_epoch: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    first: int = 0
    share: Share = field(default_factory=Share)

    @property
    def leads(self) -> bool:
        """Whether this is the process that shows progress and writes files."""
        return self.share.leads

    def epoch_length(self, callback: str) -> int:
        """`steps_per_epoch` for a callback that cannot do without it; an EngineError where nobody knows."""
        if self.steps_per_epoch is None:
            raise EngineError(
                f"{callback}: these data do not say how many steps an epoch has; give a tensor, a Dataset, a list of "
                "batches, a DataLoader or a pv.data.stream"
            )
        return self.steps_per_epoch


class Callback:
    """Something to do during a fit: override any of the four hooks.

    A step is an EM iteration that is recorded, an SVI step, or a draw of NUTS; steps are numbered from 0. Of a draw of
    NUTS `begin` and `end` are both called when it has been made, since its chains run on by themselves. With several
    processes every one of them calls its hooks; what writes asks `run.leads`. An exception in a hook ends the fit with
    an EngineError that names the callback; `tear_down` is called even then. Random numbers drawn in a hook are not
    taken from the fit, which goes the same way with it and without.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> class UntilFlat(pv.Callback):
    ...     def set_up(self, run):
    ...         self.last = -float("inf")
    ...
    ...     def end(self, run, step, metrics):
    ...         gain, self.last = metrics["bound"] - self.last, metrics["bound"]
    ...         return gain < 1e-3
    ...
    >>> em = pv.EM(callbacks=[UntilFlat()], progress=False)
    >>> print(em.fit(pv.models.GaussianMixture(2, 2), pv.data.faithful()).status)
    stopped by a callback: UntilFlat ended the fit after step 4
    """

    @property
    def called(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def set_up(self, run: Run) -> None:
        """Before the first step."""

    def begin(self, run: Run, step: int) -> None:
        """Before a step."""

    def end(self, run: Run, step: int, metrics: Metrics) -> bool | None:
        """After a step; True ends the fit, which keeps what was reached."""

    def tear_down(self, run: Run, status: Status) -> None:
        """After the last step, or an error: `status` says how the fit ended."""


class Callbacks:
    """The callbacks of one fit, set up and torn down with a block.

    An engine calls `begin` and `end` with the same number for each step, and gives `status` before it leaves the block.

    Parameters
    ----------
    callbacks : sequence of Callback
        Called in this order; torn down in the reverse one.
    run : Run
        What they are told.

    Attributes
    ----------
    stopped : Status or None
        How the fit ended if one of them ended it.
    status : Status or None
        How the fit ended.
    """

    def __init__(self, callbacks: Sequence[Callback] = (), run: Run | None = None) -> None:
        self.callbacks, self.run = checked(callbacks), run or Run()
        self.begins = [one for one in self.callbacks if type(one).begin is not Callback.begin]
        self.ends = [one for one in self.callbacks if type(one).end is not Callback.end]
        self.ready: list[Callback] = []
        self.stopped: Status | None = None
        self.status: Status | None = None

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def __enter__(self) -> Self:
        try:
            for one in self.callbacks:
                self.ready.append(one)
                self._call(one, "set_up")
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def begin(self, step: int) -> None:
        """Before a step."""
        for one in self.begins:
            self._call(one, "begin", step)

    def end(self, step: int, metrics: Metrics) -> bool:
        """After a step; whether the fit is to end, in every process if in any."""
        if not self.ends:
            return False
        said = [one.called for one in self.ends if self._call(one, "end", step, metrics)]
        if self.run.share.world > 1 and self.run.share.sum(torch.tensor(float(bool(said)))) and not said:
            said = ["a callback of another process"]
        if said:
            self.stopped = Status(STOPPED, f"{' and '.join(said)} ended the fit after step {step}")
        return bool(said)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        status = self.status or Status("finished", "")
        if error is not None:
            code = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            status = Status(code, f"{type(error).__name__}: {error}".removesuffix(": "))
        failures = []
        while self.ready:
            try:
                self._call(self.ready.pop(), "tear_down", status)
            except EngineError as failure:
                failures.append(failure)
        if failures and error is None:
            raise failures[0]
        if error is not None:
            for one in failures:
                error.add_note(str(one))

    def _call(self, one: Callback, hook: str, *args: Any) -> bool:
        try:
            with forked_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
                return bool(getattr(one, hook)(self.run, *args))
        except Exception as error:
            at = f" at step {args[0]}" if args and isinstance(args[0], int) else ""
            raise EngineError(
                f"the callback {one.called} failed in {hook}{at}: {type(error).__name__}: {error}"
            ) from error


def checked(callbacks: Any) -> tuple[Callback, ...]:
    """A sequence of callbacks as a tuple.

    Raises
    ------
    EngineError
        If it is something else.
    """
    given = (callbacks,) if isinstance(callbacks, Callback | type) or not _is_sequence(callbacks) else tuple(callbacks)
    for one in given:
        if not isinstance(one, Callback):
            kind = f"the class {one.__name__}, not one of its objects" if isinstance(one, type) else repr(one)
            raise EngineError(f"callbacks= takes objects of classes derived from pv.Callback; got {kind}")
    return given


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
