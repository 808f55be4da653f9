"""One run of EM from given values: iterate, repair, judge."""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae.alone import unvalidated
from ppl_vae.families import Sums
from ppl_vae.fit import Status
from ppl_vae.infer.assignment import ASSIGNMENTS, Assign, alike, soft
from ppl_vae.infer.blame import culprit
from ppl_vae.infer.candidates import Candidates
from ppl_vae.infer.expectation import Expectation, Plan, Replace, summed
from ppl_vae.infer.history import History
from ppl_vae.infer.interrupts import INTERRUPTED
from ppl_vae.infer.mstep import Posterior, Values, each_chunk
from ppl_vae.infer.online import Online
from ppl_vae.infer.parts import Held, Parts
from ppl_vae.infer.repair import first_rows, fit_badly, given_away, in_random_order
from ppl_vae.infer.squarem import ACCELERATIONS
from ppl_vae.infer.vanishing import at_an_edge, vanishing
from ppl_vae.progress import Update

if TYPE_CHECKING:
    from ppl_vae.infer.runs import Starts

__all__ = ["Climb", "Run"]

UNTOLD = (
    "every datum has the same responsibilities: the components do not differ, or one has all the data; try other "
    "starts, n_init=10"
)
ADVICE = 'it would fit so few as well anywhere: take prior="weak", or fewer components'
REPAIRS = 3
"""Repairs allowed in one run before a component is given up and reported."""
STATE = ("values", "iteration", "e_steps", "segment", "repairs")
"""What of a run a checkpoint keeps as it is."""


@dataclass
class Run:
    """One run from one start: its last values, those of the module's free parameters beside them, and its trace."""

    values: Values
    free: list[Tensor] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    e_steps: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    history: History = field(default_factory=History)
    status: Status = field(default_factory=lambda: Status("max_iter", ""))

    def state(self) -> dict[str, Any]:
        """For a checkpoint: later iterations leave it as it is."""
        names = ("free", "bound", "objective", "e_steps", "segments", "seconds")
        lists = {name: list(getattr(self, name)) for name in names}
        return {"values": self.values, **lists, "history": self.history.state(), "status": asdict(self.status)}

    def add(self, bound: float, objective: float, e_steps: int, segment: int, seconds: float) -> None:
        """One more iteration, at the values as they are."""
        self.history.add(len(self.bound), self.values)
        self.bound.append(bound)
        self.objective.append(objective)
        self.e_steps.append(e_steps)
        self.segments.append(segment)
        self.seconds.append(seconds)

    @property
    def end(self) -> float:
        """The last objective."""
        return self.objective[-1] if self.objective else -math.inf

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Run":
        """The run of a state."""
        status = state["status"]
        ended = Status(status["code"], status["message"], tuple(status["notes"]))
        return cls(**{**state, "history": History(state.get("history")), "status": ended})


class Climb:
    """One run of EM from given values."""

    def __init__(self, owner: "Starts", values: Values, few: Any) -> None:
        self.em, self.model, self.parts, self.num_threads = owner.em, owner.model, owner.parts, owner.num_threads
        self.owner, self.maximizer, self.values, self.few = owner, owner.maximizer, values, few
        self.total = self.parts.total()
        self.iteration, self.e_steps, self.segment, self.repairs = 0, 0, 0, 0
        self.notes: list[str] = self.parts.remarks()
        self.plan: Plan | None = None
        self.update: Update = lambda done, text: None
        self.said = "first E-step"
        self.begun = -1
        self.has_prior = self.em.estimate == "map" and bool(self.model.shared_laws())
        self.unit = "iterations" if self.em.batch_size is None else "epochs"
        # Drawn posteriors never come to rest: such a run ends as planned.
        self.unended = (
            Status("finished", f"{self.em.max_iter} {self.unit}")
            if self.em.assignment == "stochastic"
            else Status("max_iter", f"{self.em.max_iter} {self.unit} did not reach tol {self.em.tol:g}")
        )
        self.record = Run(values, owner.free(), status=self.unended)
        self.acceleration = ACCELERATIONS[self.em.accelerate](self.model, values, self.em.frozen)
        self.online = None if self.em.batch_size is None else Online(self, self.em.batch_size)
        self.candidates = Candidates(self.model, self.parts, self.num_threads)

    def state(self) -> dict[str, Any]:
        """What the next iteration needs, for a checkpoint."""
        own = {name: getattr(self, name) for name in STATE}
        steps = {"acceleration": self.acceleration.state(), "online": self.online and self.online.state()}
        steps |= {"candidates": self.candidates.state()}
        return {**own, **steps, "notes": list(self.notes), "free": self.owner.free(), "record": self.record.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        for name in STATE:
            setattr(self, name, state[name])
        self.candidates.restore(state["candidates"])
        self.acceleration.restore(state["acceleration"])
        if self.online is not None:
            self.online.restore(state["online"])
        self.notes, self.record = state["notes"], Run.restored(state["record"])
        self.record.status = self.unended
        self.owner.release(state["free"])

    def temperature(self, iteration: int) -> float:
        """T of an iteration."""
        T = self.em.temperature
        return float(T(iteration) if callable(T) else T)

    def _blame(self, values: Values) -> str:
        """The node of the first data that has no density at these values, in words."""
        with self.model.bind(values), torch.no_grad(), self.model.numeric(), unvalidated():
            node = culprit(self.model.sites(self.few))
        return f": {node}" if node else ""

    def cooling(self, iteration: int) -> bool:
        """Whether a schedule will still change the temperature."""
        return self.temperature(iteration) != self.temperature(self.em.max_iter)

    def assign(self, iteration: int, draw: int | None = None) -> Assign:
        """What an iteration puts in the place of q(z); `draw` is the number of its random draw, the iteration's own."""
        make, draw = ASSIGNMENTS[self.em.assignment], iteration if draw is None else draw
        return make(self.em.seed, draw, self.temperature(iteration), self.cooling(iteration))

    def expect(
        self, values: Values, assign: Assign, instead: Replace | None = None, batch: Parts | None = None
    ) -> tuple[Expectation, Plan]:
        """The E-step over all data, or over a batch of them."""
        parts = self.parts if batch is None else batch
        with self.model.bind(values), torch.no_grad():
            plan = self.plan = self.plan or Plan(self.model, self.few)
            plan.refresh()

            def every() -> Expectation:
                return summed(plan, parts, self.num_threads, assign, instead, self._begun)

            exact = assign is soft and instead is None and batch is None
            e = self.candidates.expect(plan, values, every) if exact else every()
        self.e_steps += batch is None
        return e, plan

    def _begun(self, number: int) -> None:
        """Show how far a pass over the data has come."""
        self.update(self.iteration, f"{self.said}, block {number} of {self.parts.num_blocks or 'this pass'}")

    def run(self, update: Update) -> Run:
        """Iterate until nothing is gained."""
        em, run, self.update = self.em, self.record, update
        begin = time.perf_counter() - (run.seconds[-1] if run.seconds else 0.0)
        for iteration in range(self.iteration, em.max_iter):
            self.iteration, values = iteration + 1, self.values
            self._begin()
            try:
                e, plan = self.expect(values, self.assign(iteration))
            except torch.linalg.LinAlgError:  # an extrapolated covariance may be singular to rounding
                if not self.acceleration.rejects(-math.inf):
                    raise
                self._go_back()
                continue
            prior = self.model.log_prior(values) if self.has_prior else 0.0
            bound, objective = float(e.log_prob + prior), float(e.objective + prior)
            if self.acceleration.rejects(objective):
                self._go_back()
                continue
            if not self.acceleration.leapt:
                if not math.isfinite(objective):
                    why = f"the log-likelihood became {objective} at iteration {iteration}{self._blame(values)}"
                    run.status = Status("failed", why)
                    break
                run.values, run.free = values, self.owner.free()
                run.add(bound, objective, self.e_steps, self.segment, time.perf_counter() - begin)
                self.said = f"log-likelihood {bound / self.total:.4f} per datum, {self.e_steps} passes"
                update(iteration, self.said)
                stopped = self._end(values, bound, objective)
                if self._converged(run, iteration):
                    run.status = Status("converged", f"gain below {em.tol:g} per datum after {iteration} {self.unit}")
                run.status = stopped or run.status
                if run.status != self.unended:
                    break
            self._advance(plan.finish(e), objective, iteration)
            interrupted = self.owner.checkpoint.interrupted
            self.owner.keep(self, now=interrupted)
            if interrupted:
                advice = self.owner.checkpoint.advice(f"{self.unit[:-1]} {self.iteration}")
                run.status = Status(
                    INTERRUPTED, f"Ctrl-C after {self.iteration} {self.unit}; {advice}", tuple(self.notes)
                )
                return run
        run.values = self.parts.share.same(run.values)
        return self._judged(run)

    # A step of the callbacks is an iteration that is recorded; points that are tried on the way to it belong to it.

    def _begin(self) -> None:
        """Tell the callbacks of the iteration to come."""
        step = self.owner.steps + len(self.record.bound)
        if step != self.begun:
            self.begun = step
            self.owner.hooks.begin(step)

    def _end(self, values: Values, bound: float, objective: float) -> Status | None:
        """Tell the callbacks of the iteration just recorded; how the fit ends if they end it."""
        hooks = self.owner.hooks
        if not hooks:
            return None
        each = {"bound": bound / self.total, "objective": objective / self.total}
        metrics = {**each, "e_steps": self.e_steps, "start": len(self.owner.found)}
        with self.model.bind(values):
            hooks.end(self.begun, metrics)
        return hooks.stopped

    def _go_back(self) -> None:
        """Leave an extrapolated point, and what gradient steps have made of the networks since the last record."""
        self.values = self.acceleration.fallback
        self.owner.release(self.record.free)

    def _advance(self, sums: dict[str, Sums], objective: float, iteration: int) -> None:
        """The M-step, or an epoch of them, then what repairs and acceleration make of it."""
        if self.online is None:
            with torch.no_grad():
                values = self.maximizer.closed_forms(sums, self.values)
            step = self.maximizer.gradient_step
            values, passes = step(self.parts, values, self.values, self.assign(iteration))
            self.e_steps += passes
        else:
            sums, values = self.online.epoch(sums, self.values, iteration)
        values, repaired = self._repaired(sums, values, iteration)
        if repaired or self.cooling(iteration):
            self.segment += 1
            self.acceleration.restart()
        if repaired and self.online is not None:
            self.online.restart()
        self.values = self.acceleration.propose(values, objective)

    def _converged(self, run: Run, iteration: int) -> bool:
        if self.cooling(iteration) or self.em.assignment == "stochastic" or self.acceleration.trial:
            return False
        if self.online is not None:
            return self.online.settled(run.objective)
        if len(run.objective) < 2 or run.segments[-1] != run.segments[-2]:
            return False
        gain = (run.objective[-1] - run.objective[-2]) / self.total
        return gain <= self.em.tol * max(1.0, abs(run.objective[-1]) / self.total)

    def _judged(self, run: Run) -> Run:
        """The run with a status that says whether its end is a maximum at all."""
        e, plan = self.expect(run.values, self.assign(self.iteration))
        with torch.no_grad():
            sums = plan.finish(e)
            bad = self.maximizer.degenerate(sums, run.values)
            few = [member for member in self.maximizer.collapsed(sums) if member[:2] not in bad]
        status = run.status
        if bad:
            names = ", ".join(f"{path}[{k}] (on {sums[path]['count'][k].item():.3g} of the data)" for path, k in bad)
            why = "too few data, or data without spread in some direction, to be estimated: the likelihood has no bound"
            status = Status("degenerate", f"{names}: {why}, or there are no data; use fewer components or a prior")
        elif self.has_prior and (zero := vanishing(self.model, run.values)):
            status = Status(
                "degenerate",
                f"{', '.join(zero)} went to zero, where the density of what depends on it has no bound: the mode of a "
                f"hierarchy is not where its posterior is; fit by SVI or NUTS, or hold it, frozen=({zero[0]!r},)",
            )
        elif self.has_prior and (edge := at_an_edge(self.model, run.values)):
            status = Status(
                "degenerate",
                f"{', '.join(edge)} went to an edge of the prior, whose density has no bound there: there is no mode; "
                "take a prior with one, such as Beta(1, 1), or fit by SVI or NUTS",
            )
        notes = [f"{path}[{k}] has collapsed onto {count:.3g} of the data; {ADVICE}" for path, k, count in few]
        notes += [UNTOLD] if self._alike(run.values, e) else []
        run.status = Status(status.code, status.message, (*self.notes, *notes))
        return run

    def _alike(self, values: Values, e: Expectation) -> bool:
        """Whether some data have the responsibilities that all data have together."""
        if len(self.few) < 2:
            return False
        r = Posterior(self.model, values, moving=())
        (few,) = (r(chunk).flatten(0, -2) for chunk in each_chunk(Held(self.model, self.few, None)))
        return alike(torch.cat([few, (e.table / self.total).reshape(-1, 1)], 1))

    def _repaired(self, sums: Any, values: Values, iteration: int) -> tuple[Values, bool]:
        """New values with each lost component restarted, as long as repairs are left."""
        with torch.no_grad():
            bad = self.maximizer.degenerate(sums, values)
            if not bad or self.repairs >= REPAIRS:
                return values, False
            with self.model.bind(values):
                plan = Plan(self.model, self.few)
                sizes, lost = list(plan.sizes.values()), sorted({k for _, k in bad})
                if len(sizes) != 1 or lost[-1] >= sizes[0] or len(lost) == sizes[0]:
                    self.repairs = REPAIRS
                    return values, False
                weight = self._weight_for(len(lost), sizes[0])
                key = in_random_order(self.em.seed, iteration) if self.repairs else fit_badly(plan)
                found = first_rows(self.parts, key, weight * len(lost))
            self.e_steps += 1
            e, plan = self.expect(values, self.assign(iteration), given_away(found, lost, sizes[0], weight))
            fresh = self.maximizer.closed_forms(plan.finish(e), values)
        self.notes += [f"iteration {iteration}: {path}[{k}] had lost its data and was restarted" for path, k in bad]
        self.repairs += 1
        return fresh, True

    def _weight_for(self, lost: int, K: int) -> float:
        """Of the data that one of several lost components begins with: enough for a covariance, if there are."""
        width = sum(value[0].numel() for value in self.few.values.values())
        return min(self.total / (lost + 1), max(2.0 * width + 2, self.total / (5 * K)))
