"""The only epoch loop: batches, steps, a held-out bound, callbacks, checkpoints."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.fit import Status
from ppl_vae.infer.averaging import Averaging
from ppl_vae.infer.batches import Batch, Batches
from ppl_vae.infer.callbacks import Callbacks
from ppl_vae.infer.checkpoint import Checkpoint
from ppl_vae.infer.held_out import HeldOut
from ppl_vae.infer.interrupts import INTERRUPTED
from ppl_vae.infer.random_state import random_state, restore_random_state
from ppl_vae.infer.step import NO_FACTOR, Step, StepResult
from ppl_vae.infer.stepper import Stepper
from ppl_vae.infer.turns import Turns
from ppl_vae.progress import Update

__all__ = ["History", "Loop"]

logger = logging.getLogger("ppl_vae")

RESTORED = ("failed", "stopped early")
"""Codes of ends at which an earlier state of the parameters is kept."""
LOOK = 100
"""Steps between two looks at numbers that a GPU computes, and between two copies of parameters known to be good."""


@dataclass
class History:
    """One row per epoch."""

    bound: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    penalties: dict[str, list[float]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Every column, [epochs]; that of held-out data only if there were any."""
        columns = {"bound": self.bound, "objective": self.objective, "seconds": self.seconds}
        columns |= {"validation": self.validation} if self.validation else {}
        columns |= {f"penalty: {name}": column for name, column in self.penalties.items()}
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}


@dataclass
class Loop:
    """Epochs of minibatch steps, from the start or from a checkpoint's state.

    Attributes
    ----------
    module : Module
        What is trained; its best state is restored when patience runs out.
    step : Step
        One step on a batch.
    batches : Batches
        The data.
    optimizer : Stepper
        Whose state goes with the parameters.
    epochs : int
        Passes over the data.
    beta : float or callable
        Weight of the KL term, or a function of the epoch, fractions allowed.
    held_out : HeldOut, optional
        Its bound is recorded at the end of each epoch.
    patience : int, optional
        Epochs without a better held-out bound before the end.
    turns : Turns, optional
        Whose turn a step is, where not all parameters move at each.
    averaging : Averaging, optional
        Whose means take the place of its parameters at the end, unless an earlier state is restored then.
    """

    module: nn.Module
    step: Step
    batches: Batches
    optimizer: Stepper
    epochs: int
    beta: float | Callable[[float], float] = 1.0
    held_out: HeldOut | None = None
    patience: int | None = None
    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint(None))
    callbacks: Callbacks = field(default_factory=Callbacks)
    update: Update = lambda done, text: None
    seed: int = 0
    turns: Turns | None = None
    averaging: Averaging | None = None

    def __post_init__(self) -> None:
        self.history, self.text = History(), ""
        self.notes: list[str] = []
        self.ended: Status | None = None
        self.epoch, self.number, self.steps, self.elapsed = 0, 0, 0, 0.0
        self.place = "the start"
        self.sums = self._zeros()
        self.best_epoch = -1
        self.best_state: dict[str, Tensor] | None = None
        self.share, self.begin = self.step.share, time.perf_counter()

    def _zeros(self) -> Tensor:
        device = self.step.dense[0].device if self.step.dense else None
        return torch.zeros(3 + len(self.step.climbed.penalties), dtype=torch.float64, device=device)

    def run(self, state: Any = None) -> tuple[History, Status]:
        """Train until the epochs are over, patience is, a callback or Ctrl-C says so, or a number is not finite."""
        if state is not None:
            self._restore(state)
        status = self.ended
        if status is None:
            self.begin = time.perf_counter()
            self.good = self.steps, self._copied()  # finite or not: there is nothing before it
            while status is None and self.epoch < self.epochs:
                status = self._one_epoch() or self._close()
            status = status or Status("finished", f"{self.epochs} epochs")
            if status.code != "failed" and not self._remember():  # by the last steps, that no other step followed
                status = self._spoiled()
            self.ended = status
            self.checkpoint.keep(self._state(), now=True, step=self.steps)
        if self.averaging is not None and status.code not in RESTORED:
            self.averaging.apply()
        if status.code == INTERRUPTED and self.share.leads:
            logger.warning("SVI was %s", status)
        return self.history, Status(status.code, status.message, (*status.notes, *self.notes))

    def _one_epoch(self) -> Status | None:
        check = self._checked_step()
        for batch in self.batches.epoch(self.epoch, self.number):
            if self.steps == check:
                self._verify(batch)
            status = self._one_step(batch)
            if status is not None:
                return status
        return None

    def _reached(self) -> float:
        """Epochs so far, with the part of this one where its number of batches is known."""
        return self.epoch + (self.number / self.batches.steps if self.batches.steps else 0)

    def _beta(self) -> float:
        return float(self.beta(self._reached()) if callable(self.beta) else self.beta)

    def _one_step(self, batch: Batch) -> Status | None:
        before = torch.get_rng_state()  # so that a step that fails can be looked at again
        beta, self.place = self._beta(), f"epoch {self.epoch}, batch {self.number}"
        if self.callbacks:
            self.callbacks.begin(self.steps)
        moving = None if self.turns is None else self.turns.moving(self.steps, self.epoch)
        result = self.step(batch, beta, (self.checkpoint.due(self.steps + 1), self.checkpoint.interrupted), moving)
        if not result.moved:
            return self._refused(batch, before, result)
        self.sums += torch.stack([result.bound, result.objective, result.weight, *result.penalties.values()])
        self.steps, self.number = self.steps + 1, self.number + 1
        if self.turns is not None:
            self.turns.seen(result)
        if self.averaging is not None:
            self.averaging.seen(self._reached() / self.epochs)
        if self.steps % LOOK == 0 and not self._remember():
            return self._spoiled()
        self.update(self.steps, self.text)
        stopped = bool(self.callbacks) and self.callbacks.end(self.steps - 1, self._metrics(result, beta))
        due, pressed = result.signals
        if due or pressed:
            self.checkpoint.keep(self._state(), now=True, step=self.steps)
        if pressed:
            return Status(INTERRUPTED, f"Ctrl-C after {self.place}; {self.checkpoint.advice(f'step {self.steps}')}")
        return self.callbacks.stopped if stopped else None

    def _metrics(self, result: StepResult, beta: float) -> dict[str, Tensor | float]:
        """What callbacks are told of a step; the held-out bound is that of the last epoch that has ended."""
        held_out = {"validation": self.history.validation[-1]} if self.history.validation else {}
        return {**result.metrics(), "beta": beta, **held_out}

    def _close(self) -> Status | None:
        """End an epoch: record it, look at held-out data, let the learning rate change."""
        bound, objective, _, *penalties = (self.sums / self.sums[2]).tolist()
        for name, value in zip(self.step.climbed.penalties, penalties, strict=True):
            self.history.penalties.setdefault(name, []).append(value)
        self.history.bound.append(bound)
        self.history.objective.append(objective)
        self.history.seconds.append(self.elapsed + time.perf_counter() - self.begin)
        self.text = f"bound {bound:.4f} nats per datum"
        if not math.isfinite(bound + objective):
            return self._spoiled()
        self._share_statistics()
        note = "" if self.turns is None else self.turns.close(self.epoch)
        self.notes += [note] if note else []
        better = self._look()
        self.optimizer.end_of_epoch((self.history.validation or self.history.bound)[-1])
        self.epoch, self.number, self.sums = self.epoch + 1, 0, self._zeros()
        if self.held_out is not None:
            score = self.history.validation[-1]
            if better and self.checkpoint.plan is not None:
                state = self._state()
                self.checkpoint.keep(lambda: state, score=score, step=self.steps)  # written when a step is due
        return self._out_of_patience()

    def _share_statistics(self) -> None:
        """Running statistics, of which every process has its own, become those of the first one."""
        own = [] if self.share.world == 1 else list(self.module.buffers())
        for buffer, first in zip(own, self.share.same(own) if own else (), strict=True):
            buffer.copy_(first)

    def _look(self) -> bool:
        if self.held_out is None:
            return False
        values = self.held_out.look()
        self.history.validation.append(values.mean().item())
        self.text += f", held out {self.history.validation[-1]:.4f}"
        better = self.held_out.better(values)
        if better:
            self.best_epoch = self.epoch
            if self.patience is not None:
                self.best_state = self._copied()
        return better

    def _out_of_patience(self) -> Status | None:
        if self.patience is None or self.best_state is None or self.epoch - 1 - self.best_epoch < self.patience:
            return None
        self.module.load_state_dict(self.best_state)
        note = f"no better held-out bound in {self.patience} epochs; the state of epoch {self.best_epoch} is kept"
        return Status("stopped early", note)

    # A graph against the function it was made from.

    def _checked_step(self) -> int:
        """The step at which the graph is compared: one of each epoch, of `LOOK` steps if it is shorter, or of all."""
        total = self.epochs * self.batches.steps if self.batches.steps else LOOK
        span = int(max(min(LOOK, total), self.batches.steps or 1))  # torch takes no whole number of NumPy's for a seed
        block = self.steps // span
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + block)
        first = min(1, span - 1)  # at the step that was traced the two agree
        return block * span + int(torch.randint(first, span, (1,), generator=generator))

    def _verify(self, batch: Batch) -> None:
        difference = self.step.check(batch, self._beta())
        if difference:
            self.notes.append(
                f"at step {self.steps} the traced graph differed from the model by {difference:.1e}: something that is "
                "not a tensor changes between steps; from there on the model ran eagerly"
            )

    # Numbers that are not finite.

    def _remember(self) -> bool:
        """Copy the parameters if they, and the sums so far, are finite."""
        finite = bool(self.sums.isfinite().all()) and self._finite()
        if finite:
            self.good = self.steps, self._copied()
        return finite

    def _finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.module.parameters())

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def _refused(self, batch: Batch, before: Tensor, result: StepResult) -> Status:
        """The end by a step that was not taken."""
        torch.set_rng_state(before)
        node = self.step.climbed.blame(batch)
        kept = "the parameters before that step are kept"
        if node == NO_FACTOR or not self._finite():
            kept = self._put_back()
        at = f"step {self.steps}: {self.place}{node and f', at {node}'}"
        return Status("failed", f"{result.wrong} at {at}; {kept}")

    def _spoiled(self) -> Status:
        """The end by numbers of which nobody knows at which step since the last look they became not finite."""
        since, last = self.good[0], self.steps - 1
        at = f"step {last}" if since >= last else f"one of the steps {since} to {last}"
        what, kept = "the bound", "the parameters after that step are kept"
        if not self._finite():
            what, kept = "the parameters", self._put_back()
        return Status("failed", f"{what} became not finite at {at}, by {self.place}; {kept}")

    def _put_back(self) -> str:
        """Return to the last parameters known to be finite, and say so."""
        step, state = self.good
        self.module.load_state_dict(state)
        return f"the parameters after step {step} are kept"

    # Checkpoints.

    def _state(self) -> dict[str, Any]:
        if self.checkpoint.plan is None:
            return {}
        module = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        return {
            "epochs": self.epochs, "epoch": self.epoch, "number": self.number, "steps": self.steps,
            "sums": self.sums.clone(),
            "history": asdict(self.history),
            "elapsed": self.elapsed + time.perf_counter() - self.begin,
            "module": module, "mode": self.step.mode, "notes": list(self.notes),
            "optimizer": self.optimizer.state_dict(),
            "held_out": None if self.held_out is None else self.held_out.state(),
            "best": {"epoch": self.best_epoch, "state": self.best_state},
            "turns": None if self.turns is None else self.turns.state(),
            "averaging": None if self.averaging is None else self.averaging.state(),
            "ended": None if self.ended is None or self.ended.code == INTERRUPTED else asdict(self.ended),
            "random": random_state(), "generators": self.share.stacked(torch.get_rng_state()),
        }  # fmt: skip

    def _restore(self, state: Any) -> None:
        self.epoch, self.number, self.steps = state["epoch"], state["number"], state["steps"]
        self.sums, self.elapsed, self.notes = state["sums"].to(self.sums), state["elapsed"], list(state["notes"])
        self.history = History(**state["history"])
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.held_out is not None:
            self.held_out.restore(state["held_out"])
        self.best_epoch, self.best_state = state["best"]["epoch"], state["best"]["state"]
        if self.turns is not None:
            self.turns.restore(state["turns"])
        longer = self.epochs > state["epochs"]
        if self.averaging is not None and not longer:  # of a longer training the last part is another one
            self.averaging.restore(state["averaging"])
        if state["ended"] is not None and not (longer and state["ended"]["code"] == "finished"):
            self.ended = Status(**state["ended"])
        if state["mode"] == "off":
            self.step.run_eagerly()
        restore_random_state(state["random"])
        if self.share.rank < len(state["generators"]):
            torch.set_rng_state(state["generators"][self.share.rank].cpu().clone())  # a view would not do
        else:  # more processes than there were: a new one has noise of its own
            torch.manual_seed(self.seed + 1_000_003 * self.share.rank + self.steps)
