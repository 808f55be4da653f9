"""The runs of one fit by EM: where each begins, which is kept, and what of them a checkpoint holds."""

import logging
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.identity import fingerprint
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.assignment import alike
from ppl_vae.infer.callbacks import STOPPED, Callbacks
from ppl_vae.infer.callbacks import Run as Told
from ppl_vae.infer.checkpoint import Checkpoint
from ppl_vae.infer.climb import Climb, Run
from ppl_vae.infer.expectation import Plan, added
from ppl_vae.infer.interrupts import INTERRUPTED
from ppl_vae.infer.mstep import Maximizer, Posterior, Values, each_chunk
from ppl_vae.infer.parts import Chunk, Held, Parts
from ppl_vae.infer.processes import LostError
from ppl_vae.infer.starts import are_responsibilities, first_responsibilities, given_values, take_networks
from ppl_vae.progress import Update, progress

if TYPE_CHECKING:
    from ppl_vae.infer.em import EM

__all__ = ["Starts"]

logger = logging.getLogger("ppl_vae")

SAMPLE = 20_000
"""Rows that a start is looked for in; larger data are sampled."""
RANK = {"failed": 0, "degenerate": 1}
"""Ends that any other is better than, the worst one first."""
SEEDS = "k-means++"
"""Start of what was not given."""


class Starts:
    """The runs of one fit: its model and data, and where each run begins."""

    def __init__(
        self, em: "EM", model: LatentVariableModel, parts: Parts, num_threads: int, checkpoint: Checkpoint
    ) -> None:
        self.em, self.model, self.parts, self.num_threads, self.checkpoint = em, model, parts, num_threads, checkpoint
        self.identity = model._identity()  # before anything has moved it
        self.maximizer = Maximizer(model, em.estimate, em.frozen)
        self.defaults = self._defaults()
        self.held: tuple[str, ...] | None = None
        self.found: list[Run] = []
        self.hooks, self.ended = Callbacks(), False
        self.begin, self.earlier = time.perf_counter(), 0.0
        unknown = [
            name for name in em.frozen if name not in self.defaults and name not in dict(model.named_parameters())
        ]
        if unknown:
            raise EngineError(f"EM: frozen names {unknown[0]!r}; the model has {', '.join(self.defaults)}")

    @cached_property
    def sample(self) -> tuple[Observations, Tensor]:
        """Rows that starts are looked for in, and their weights: of a stream, one pass for all of them."""
        return self.parts.sample(SAMPLE, self.em.seed)

    @property
    def steps(self) -> int:
        """Iterations of the runs that have ended."""
        return sum(len(run.bound) for run in self.found)

    @property
    def best(self) -> Run:
        """The run with the best end, not a degenerate one where there is another, and of those none that failed."""
        return max(self.found, key=lambda run: (RANK.get(run.status.code, len(RANK)), run.end))

    @property
    def status(self) -> Status:
        """How the fit ended: as the run that was ended from outside, else as the best one."""
        early = (run.status for run in self.found if run.status.code in (INTERRUPTED, STOPPED))
        return next(early, self.best.status)

    def runs(self) -> list[Run]:
        """Every run, in order; those of the checkpoint are not made again."""
        em, share = self.em, self.parts.share
        take_networks(em.start, self.model)
        given = self._given()
        count = 1 if given is not None or are_responsibilities(em.start) else em.n_init
        few, origin = self.sample[0].rows(slice(0, 4)), self.free()
        climb = self._opened(few)
        with (
            progress("EM", count * em.max_iter, em.progress and share.leads) as update,
            Callbacks(em.callbacks, self._about(count, climb)) as self.hooks,
        ):
            for number in range(len(self.found), 0 if self.ended else count):
                if climb is None:
                    self.release(origin)
                    climb = em._climb(self, share.same(self._first(number) if given is None else given), few)
                self.found.append(self._run(climb, _after(number * em.max_iter, update)))
                if self.found[-1].status.code == INTERRUPTED:  # the checkpoint holds the run as it was
                    logger.warning("EM was %s", self.found[-1].status)
                    break
                climb, self.ended = None, self.hooks.stopped is not None
                self.keep(now=True)
                if self.ended:
                    break
            self.hooks.status = self.status
        return self.found

    def _about(self, count: int, climb: Climb | None) -> Told:
        """What callbacks are told."""
        em, first = self.em, self.steps + (0 if climb is None else len(climb.record.bound))
        return Told("EM", self.model, count * em.max_iter, settings=em._settings(), first=first, share=self.parts.share)

    def _run(self, climb: Climb, update: Update) -> Run:
        self.iteration = climb.iteration
        try:
            return climb.run(update)
        except LostError as error:
            where = f"iteration {self.iteration} of start {len(self.found) + 1}"
            raise EngineError(f"EM stopped in {where}: {error}; {self.checkpoint.advice(where)}") from error

    # The checkpoint.

    def _opened(self, few: Any) -> Climb | None:
        """The run that was interrupted, if there is one, after what was found before it."""
        if self.parts.share.world == 1 and self.checkpoint.plan is None:
            return None
        parts, header = self.parts, self.em._header(self.model, self.identity, self.parts)
        parts.share.agree("the call", header)
        parts.share.agree("the data", fingerprint(few.values))
        data = "" if self.checkpoint.plan is None else parts.fingerprint()
        state = self.checkpoint.opened({**header, "data": data}, self.model.like.device)
        if state is None:
            return None
        torch.set_rng_state(state["random"].cpu())
        self.found, self.earlier = [Run.restored(run) for run in state["found"]], state["seconds"]
        self.ended = state["ended"]
        if state["climb"] is None:
            return None
        climb = self.em._climb(self, state["climb"]["values"], few)
        climb.restore(state["climb"])
        return climb

    def keep(self, climb: Climb | None = None, now: bool = False) -> None:
        """Keep what was found, and the state of the run that goes on."""
        self.iteration = 0 if climb is None else climb.iteration
        if self.checkpoint.writes:
            state = {
                "found": [run.state() for run in self.found],
                "climb": None if climb is None else climb.state(),
                "ended": self.ended,
                "random": torch.get_rng_state(),
                "seconds": self.earlier + time.perf_counter() - self.begin,
            }
            self.checkpoint.keep(state, now, step=len(self.found) * self.em.max_iter + self.iteration)

    def free(self) -> list[Tensor]:
        """Copies of the module's parameters that no family owns."""
        return [parameter.detach().clone() for parameter in self.maximizer.free[0]]

    def release(self, free: list[Tensor]) -> None:
        """Give those parameters the values of such copies."""
        with torch.no_grad():
            for parameter, value in zip(self.maximizer.free[0], free, strict=True):
                parameter.copy_(value)

    def _defaults(self) -> Values:
        """Values without data, what the model was given of those that are frozen."""
        own = {name: value for name, value in self.model.fixed().items() if name in self.em.frozen}
        values = self.model.family_defaults()
        values |= {name: own[name].to(values[name]) for name in own if name in values}
        for name, law in self.model.shared_laws().items():
            if name not in values:
                values[name] = own[name].to(self.model.like) if name in own else _center(law(values))
        return values

    def _given(self) -> Values | None:
        """Values that every run begins at, or None where each finds its own.

        Components that do not differ in what was given would never part: then the rest is found under it.
        """
        start, given = self.em.start, given_values(self.em.start, self.model, self.defaults)
        if given is None or isinstance(start, Fit) or set(start) >= set(given):
            return given
        if not self._alike(given, Held(self.model, *self.sample)):
            return given
        self.defaults, self.held = given, tuple(start)
        return None

    def _first(self, number: int) -> Values:
        """Parameters to begin with: the M-step of the start's responsibilities."""
        start, model = self.em.start if self.held is None else SEEDS, self.model
        maximizer = replace(self.maximizer, frozen=(*self.em.frozen, *(self.held or ())))
        with model.bind(self.defaults), torch.no_grad():
            whole = are_responsibilities(start)
            obs, weights = self.parts.sample(self.parts.n, self.em.seed) if whole else self.sample
            plan = Plan(model, obs)
            r = first_responsibilities(start, model, obs, weights, plan.sizes, self.em.seed + number)
            held = Held(model, obs, weights)
            e = added(plan.expect(chunk, instead=lambda chunk, _: _of(r, chunk)) for chunk in each_chunk(held))
            values = maximizer.closed_forms(plan.finish(e), self.defaults)
        # The first run leaves parameters of the module where whoever declared it put them, if there components differ.
        kept = not self.maximizer.free[0] or not (number or are_responsibilities(start) or self._alike(values, held))
        free = [] if kept else self.maximizer.free[0]
        return maximizer.raised(held, values, lambda chunk: _of(r, chunk), free)[0]

    def _alike(self, values: Values, held: Held) -> bool:
        """Whether these data all have the same responsibilities."""
        r = Posterior(self.model, values, moving=())
        return alike(torch.cat([r(chunk).flatten(0, -2) for chunk in each_chunk(held)], 1))


def _of(r: Tensor, chunk: Chunk) -> Tensor:
    """The responsibilities [*enumerated, n] of one chunk."""
    return r[..., chunk.start : chunk.start + len(chunk.obs)]


def _after(done: int, update: Update) -> Update:
    """The progress of one start after `done` iterations of earlier ones."""
    return lambda i, text: update(done + i, text)


def _center(d: Any) -> Tensor:
    """A central value of a law: its mean where finite, else a draw."""
    try:
        mean = d.mean
    except NotImplementedError:
        return d.sample()
    return mean if bool(torch.isfinite(mean).all()) else d.sample()
