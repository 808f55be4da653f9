"""Checkpoints: an engine's state between two steps, in files from which the same call goes on."""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from ppl_vae.errors import EngineError, check_whole
from ppl_vae.infer.interrupts import Interrupt, interrupts
from ppl_vae.infer.processes import Share
from ppl_vae.infer.step_files import StepFiles, Written
from ppl_vae.records import unpacked

__all__ = ["Checkpoint", "Checkpoints", "checkpoints"]

PART = 0.05
"""Of a fit's time that goes into writing at most, where the clock says when to write."""


@dataclass(frozen=True)
class Checkpoints:
    """Where an engine keeps its state and how often; made by `checkpoints`, which tells what each field means."""

    folder: str | os.PathLike[str]
    steps: int | None = None
    seconds: float | None = 5.0
    keep: int = 2
    best: bool = True
    recover: bool = False

    def __post_init__(self) -> None:
        folder = Path(self.folder)
        if folder.suffix == ".safetensors" or folder.is_file():
            raise EngineError(
                f"a checkpoint is a folder that holds several files, got the file {folder}; name a folder, such as "
                f"{folder.with_name(f'{folder.stem}-checkpoint')}"
            )
        check_whole("checkpoints", keep=self.keep)
        if self.steps is not None:
            check_whole("checkpoints", steps=self.steps)
        if self.seconds is not None and not self.seconds > 0:
            raise EngineError(f"checkpoints: seconds must be above 0, or None; got {self.seconds!r}")


def checkpoints(
    folder: str | os.PathLike[str],
    steps: int | None = None,
    seconds: float | None = 5.0,
    keep: int = 2,
    best: bool = True,
    recover: bool = False,
) -> Checkpoints:
    """Where an engine keeps its state, and how often: the value of `checkpoint=`, for which a path stands for defaults.

    The same call goes on from the last state and ends with the same bits. A state is written after the first step, when
    `steps` or `seconds` have passed since the last one, at the end, and at Ctrl-C. A file is complete and on the disk
    before it takes its name, so that a crash while writing loses nothing.

    Parameters
    ----------
    folder : path
        Where the files step-000000000120.safetensors, ... and best.safetensors are; one folder for one fit.
    steps : int, optional
        Write after so many steps: EM iterations or SVI steps.
    seconds : float, optional
        Write after so many seconds, but so seldom that it takes at most a twentieth of the time. None: by `steps` only.
    keep : int
        Files kept, the last ones.
    best : bool
        Keep the state with the best held-out bound too, where there is one.
    recover : bool
        Go on from the file before when the last one is damaged, with a warning; otherwise that is an error.

    Raises
    ------
    EngineError
        If `folder` is a file, or a number is out of range.

    Examples
    --------
    >>> import tempfile, ppl_vae as pv
    >>> x = pv.data.faithful().values
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     em = pv.EM(checkpoint=pv.checkpoints(folder, steps=10, keep=1), progress=False)
    ...     fit = em.fit(pv.models.GaussianMixture(2, 2), x)
    ...     len(list(Path(folder).iterdir()))
    1
    """
    return Checkpoints(folder, steps, seconds, keep, best, recover)


class Checkpoint:
    """The files that hold an engine's last states: trees of numbers, strings and tensors.

    A state waits until it is due. What waits when the block is left by an exception is written then. Within the block
    the first Ctrl-C sets `interrupted`, so that the engine can end between two steps.

    Parameters
    ----------
    where : Checkpoints or path, optional
        None: nothing is written or read.
    share : Share
        Every process reads the files, the first one writes them.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Checkpoint(folder) as checkpoint:
    ...         checkpoint.opened({"seed": 0})
    ...         checkpoint.keep({"x": torch.ones(2)}, step=3, now=True)
    ...     Checkpoint(folder).opened({"seed": 0})
    {'x': tensor([1., 1.])}
    """

    def __init__(self, where: Checkpoints | str | os.PathLike[str] | None, share: Share = Share()) -> None:  # noqa: B008
        if not isinstance(where, Checkpoints | str | os.PathLike | None):
            raise EngineError(f"checkpoint= takes a folder, or pv.checkpoints(folder, ...); got {where!r}")
        self.plan = Checkpoints(where) if isinstance(where, str | os.PathLike) else where
        self.files = None if self.plan is None else StepFiles(Path(self.plan.folder))
        self.share = share
        self.header: dict[str, Any] = {}
        self.step, self.last_step, self.best_score = 0, 0, -float("inf")
        self.waiting: tuple[int, float, Any] | None = None
        self.better: Written | None = None
        self.last_time, self.cost = -float("inf"), 0.0
        self.interrupt, self.signals = Interrupt(), ExitStack()

    @property
    def writes(self) -> bool:
        """Whether this process has files to write."""
        return self.plan is not None and self.share.leads

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C asks the engine to end now; only where there are files, and in one process."""
        return self.interrupt.hear()

    def opened(self, header: Mapping[str, Any], device: torch.device | None = None) -> Any:
        """The last state, its tensors on `device`, None where there is none yet; its header must be this one.

        Raises
        ------
        DataError
            If the last file was cut short or edited or is something else, and `recover` was not asked for.
        EngineError
            If another call wrote it: the message says what differs.
        """
        self.header = json.loads(json.dumps(header))
        if self.plan is None or self.files is None:
            return None
        if self.share.leads:
            self.files.tidy()
        found = self.files.newest(self.plan.recover)
        record = {} if found is None else found.record
        self.share.agree(f"the checkpoint in {self.files.folder}", record)
        if found is None:
            return None
        last = found.checked(self.header)
        if self.share.leads:
            found.set_aside()
        self.step, self.last_step, self.best_score = last.step, last.step, last.best
        return unpacked(last.state, last.tensors, device)

    def best(self, device: torch.device | None = None) -> Any:
        """The state with the best score, None where there is none; it may be of a step after the one resumed from."""
        if self.files is None:
            return None
        self._write_best()
        found = self.files.best()
        if found is None:
            return None
        best = found.checked(self.header)
        return unpacked(best.state, best.tensors, device)

    def keep(
        self,
        state: Any | Callable[[], Any],
        now: bool = False,
        score: float | None = None,
        step: int | None = None,
    ) -> None:
        """Take the state after a step; write it when it is time, or `now`.

        Parameters
        ----------
        state : tree or callable
            A tree must not be changed afterwards: it is also written when an exception ends the fit. A function that
            makes a tree is called at once, and only if the tree is written, which may hold live tensors then.
        now : bool
            Write in any case.
        score : float, optional
            Larger is better; the state with the best score is kept in a file of its own.
        step : int, optional
            Number of the step, never smaller than the last; one more than the last by default.
        """
        if self.plan is None or not self.writes:
            return
        self.step = self.step + 1 if step is None else step
        made = state if callable(state) else lambda: state
        if score is not None and self.plan.best and score > self.best_score:
            self.best_score = score
            self.better = Written.of(self.step, score, made()).copied()
        self.waiting = None if callable(state) else (self.step, self.best_score, state)
        if now or self.due(self.step):
            self._write(Written.of(self.step, self.best_score, made()))

    def due(self, step: int) -> bool:
        """Whether `keep` after this step would write; never in a process that does not."""
        if self.plan is None or not self.writes:
            return False
        if self.plan.steps is not None and step - self.last_step >= self.plan.steps:
            return True
        passed = time.monotonic() - self.last_time
        return self.plan.seconds is not None and passed >= max(self.plan.seconds, self.cost / PART)

    def _write(self, state: Written) -> None:
        assert self.plan is not None
        assert self.files is not None
        begin = time.monotonic()
        # The best first: whoever goes on from this step relies on the best known by then.
        self._write_best()
        self.files.write_step(self.header, state, self.plan.keep)
        self.waiting, self.last_step, self.last_time = None, state.step, time.monotonic()
        self.cost = self.last_time - begin

    def _write_best(self) -> None:
        if self.better is not None and self.files is not None:
            self.files.write_best(self.header, self.better)
            self.better = None

    def advice(self, kept: str) -> str:
        """How to go on after an interruption; `kept` says of when the last state is, which the first process writes."""
        if self.files is None:
            return "run the same command again; with a checkpoint it would go on where it was"
        at = f" at {kept}" if self.writes else ""
        return f"run the same command again: it resumes from {self.files.folder}{at}"

    def __enter__(self) -> Self:
        self.interrupt = self.signals.enter_context(interrupts(self.plan is not None and self.share.world == 1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self.signals:
            self.interrupt.heard |= kind is not None
            if kind is not None and self.waiting is not None:
                self._write(Written.of(*self.waiting))
            self._write_best()
