"""Expectation maximisation, by hand: exact responsibilities, closed-form updates (000 s.1, 004 s.7)."""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.assignment import ASSIGNMENTS
from ppl_vae.infer.callbacks import STOPPED, Callback, Callbacks, checked
from ppl_vae.infer.callbacks import Run as Told
from ppl_vae.infer.checkpoint import Checkpoint, Checkpoints
from ppl_vae.infer.climb import Climb, Run
from ppl_vae.infer.expectation import Plan, Replace, added
from ppl_vae.infer.identity import described, fingerprint
from ppl_vae.infer.interrupts import INTERRUPTED
from ppl_vae.infer.mstep import Maximizer, Values, each_chunk
from ppl_vae.infer.parallel import threads
from ppl_vae.infer.parts import Held, Parts, make_parts
from ppl_vae.infer.processes import LostError, joined
from ppl_vae.infer.progress import Update, progress
from ppl_vae.infer.squarem import ACCELERATIONS
from ppl_vae.infer.starts import first_responsibilities, given_values, take_networks

__all__ = ["EM"]

logger = logging.getLogger("ppl_vae")

SAMPLE = 20_000
"""Rows that a start is looked for in; larger data are sampled."""

FOR_DECLARED = (
    *("start", "assignment", "temperature", "batch_size", "accelerate"),
    *("frozen", "checkpoint", "callbacks", "n_init"),
)
"""Settings that an ordinary Pyro model cannot have."""


@dataclass(frozen=True)
class EM:
    """Expectation maximisation for models whose latents of each datum are finite.

    E-step: r_i(z) = p(z | x_i, theta) (000 (8)). M-step: theta = argmax sum_i E_r[log p(x_i, z | theta)] + log p(theta)
    (000 (9)): closed form for what a family owns, gradient steps that must raise it for the rest (generalised EM).
    Missing entries (NaN) are integrated out.

    Parameters
    ----------
    n_init : int
        Number of starts; the best end is kept.
    tol : float
        Stop when an iteration gains less than tol * max(1, |L|) nats per datum, L the objective per datum.
    max_iter : int
        Iterations of each start, those refused by `accelerate` included; with `batch_size`, epochs.
    start : str, mapping, Tensor or Fit
        "k-means++", "random", parameters by name, responsibilities [n, K], or another fit.
    estimate : {"map", "ml"}
        "map" adds the log prior where the model has priors; "ml" ignores priors.
    assignment : {"soft", "hard", "stochastic"}
        The E-step: the posterior, its most probable value (k-means is one case), or one draw from it.
    temperature : float or callable
        T of a tempered posterior, proportional to p(x, z)^(1/T), or T as a function of the iteration, such as
        `pv.linear(5.0, 1.0, 20)`: deterministic annealing. A run goes on until T is that of iteration `max_iter`.
    batch_size : int, optional
        Rows of a batch of online EM, which takes an M-step after each; None: all data.
    decay : float
        Step t of online EM forgets (t + 10)^-decay of the sums; above 0.5, at most 1.
    accelerate : {None, "squarem"}
        Extrapolate after every two iterations, where that does not lower the objective.
    frozen : sequence of str
        Parameters that keep their starting values, such as "components.covariance".
    checkpoint : path or Checkpoints, optional
        A folder where the state is kept, or `pv.checkpoints(...)`; the same call goes on from there, and a finished fit
        is returned as it is. With it, Ctrl-C ends the fit after an iteration, with the status "interrupted".
    callbacks : sequence of Callback
        Told of every iteration; one of them may end the fit.
    seed : int
        Seed of the starts.
    progress : bool
        Show progress.

    Raises
    ------
    EngineError
        If a latent is not finite, or the checkpoint is that of another call.
    DataError
        If data, weights or start do not fit the model.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> x = pv.data.faithful().values
    >>> fit = pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    >>> round(fit.log_prob(x).sum().item(), 3)
    -1130.264
    """

    n_init: int = 1
    tol: float = 1e-8
    max_iter: int = 1000
    start: Any = "k-means++"
    estimate: str = "map"
    assignment: str = "soft"
    temperature: float | Callable[[int], float] = 1.0
    batch_size: int | None = None
    decay: float = 0.6
    accelerate: str | None = None
    frozen: tuple[str, ...] = ()
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None
    callbacks: Sequence[Callback] = ()
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "callbacks", checked(self.callbacks))
        if self.estimate not in ("map", "ml"):
            raise EngineError(f'EM: estimate must be "map" or "ml", got {self.estimate!r}')
        if self.assignment not in ASSIGNMENTS:
            raise EngineError(f"EM: assignment must be one of {', '.join(ASSIGNMENTS)}, got {self.assignment!r}")
        if self.n_init < 1 or self.max_iter < 1 or self.tol < 0:
            raise EngineError(f"EM: n_init and max_iter must be at least 1 and tol at least 0, got {self}")
        self._check_steps()
        object.__setattr__(self, "frozen", (self.frozen,) if isinstance(self.frozen, str) else tuple(self.frozen))

    def _check_steps(self) -> None:
        if self.assignment != "soft" and self.temperature != 1:
            raise EngineError(f"EM: temperature is for soft assignments, {self.assignment} ones have none")
        if not callable(self.temperature) and not self.temperature > 0:
            raise EngineError(f"EM: temperature must be positive, got {self.temperature}")
        if self.accelerate not in ACCELERATIONS:
            raise EngineError(f'EM: accelerate must be None or "squarem", got {self.accelerate!r}')
        if self.accelerate is not None and (self.assignment != "soft" or self.batch_size is not None):
            raise EngineError('EM: accelerate needs assignment="soft" and batch_size=None')
        if self.batch_size is not None and self.batch_size < 1:
            raise EngineError(f"EM: batch_size must be at least 1, got {self.batch_size}")
        if not 0.5 < self.decay <= 1:
            raise EngineError(f"EM: decay must be above 0.5 and at most 1 for online EM to converge, got {self.decay}")

    def _check_pair(self, weights: Any) -> None:
        """Refuse what a Pyro model's generalised EM does not do."""
        kept = {f.name: f.default for f in fields(EM) if f.name in FOR_DECLARED}
        given = [name for name, default in kept.items() if getattr(self, name) != default]
        given += ["weights"] if weights is not None else []
        if given:
            raise EngineError(f"EM has {', '.join(given)} for declared models only; declare it, or leave that out")

    def fit(self, model: Any, data: Any, weights: Any = None) -> Fit:
        """Fit a copy of the model.

        Parameters
        ----------
        model : LatentVariableModel or callable
            The declaration, which is not changed, or an ordinary Pyro model with finite latents.
        data : Tensor, array, data frame, mapping or Stream
            Observed values, n rows; `pv.data.stream(...)` for data that do not fit in memory.
        weights : Tensor, optional
            [n], non-negative: datum i counts w_i times.

        Returns
        -------
        Fit
            `trace["bound"]` is log p(X | theta), plus log p(theta) for MAP, in total nats at every iteration, and
            `trace["objective"]` what was climbed: the same for exact posteriors, the annealed free energy for tempered
            ones, the classification likelihood for hard ones. Within a `trace["segment"]`, between repairs and at one
            temperature, the objective never falls, unless posteriors were drawn or data taken in batches.
            `trace["e_steps"]` counts the passes over the data.
        """
        if not isinstance(model, LatentVariableModel):
            from ppl_vae.infer.pairs import maximize_pair

            self._check_pair(weights)
            return maximize_pair(self, model[0] if isinstance(model, tuple) else model, data)
        begin = time.perf_counter()
        fitted = deepcopy(model).double()
        with (
            threads(1) as num_threads,
            torch.random.fork_rng([]),
            pyro.validation_enabled(False),
            fitted.numeric(),
            joined(fitted.like.device) as share,
        ):
            torch.manual_seed(self.seed)
            fitted.to(share.place(fitted.like.device))
            parts = make_parts(fitted, data, weights, share)
            with Checkpoint(self.checkpoint, share) as checkpoint:
                starts = Starts(self, fitted, parts, num_threads, checkpoint)
                runs = starts.runs()
        best = starts.best
        shared = fitted.shared_laws()
        fitted.fix(best.values)
        starts.release(best.free)
        return Fit(
            model=fitted.requires_grad_(False),
            engine="EM",
            draws={name: best.values[name][None, None] for name in shared},
            trace={
                "bound": torch.tensor(best.bound, dtype=torch.float64),
                "objective": torch.tensor(best.objective, dtype=torch.float64),
                "e_steps": torch.tensor(best.e_steps),
                "segment": torch.tensor(best.segments),
                "seconds": torch.tensor(best.seconds, dtype=torch.float64),
                "starts": torch.tensor([run.end for run in runs], dtype=torch.float64),
            },
            bound="log p(X | theta) + log p(theta)" if shared and self.estimate == "map" else "log p(X | theta)",
            status=starts.status,
            seconds=starts.earlier + time.perf_counter() - begin,
            seed=self.seed,
            settings=self._settings(),
            data=parts.obs if isinstance(parts, Held) else None,
            weights=parts.weights if isinstance(parts, Held) else None,
        )

    def _climb(self, owner: "Starts", values: Values, few: Any) -> Climb:
        """One run; an engine that stops by another rule gives its own."""
        return Climb(owner, values, few)

    def _settings(self) -> dict[str, Any]:
        start = self.start if isinstance(self.start, str) else type(self.start).__name__
        temperature = self.temperature if isinstance(self.temperature, int | float) else repr(self.temperature)
        callbacks = [type(one).__name__ for one in self.callbacks]
        spoken = {"start": start, "temperature": temperature, "callbacks": callbacks}
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, **spoken}

    def _header(self, model: LatentVariableModel, parts: Parts) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on, and in every process."""
        shapes = {name: list(value.shape) for name, value in {**model.family_defaults(), **model.state_dict()}.items()}
        settings = [f.name for f in fields(self) if f.name not in ("progress", "checkpoint", "callbacks")]
        return {
            "engine": type(self).__name__,
            "settings": {name: described(getattr(self, name)) for name in settings},
            "model": {"declaration": repr(model), "shapes": shapes},
            "rows": parts.n,
        }


class Starts:
    """The runs of one fit: its model and data, and where each run begins."""

    def __init__(
        self, em: EM, model: LatentVariableModel, parts: Parts, num_threads: int, checkpoint: Checkpoint
    ) -> None:
        self.em, self.model, self.parts, self.num_threads, self.checkpoint = em, model, parts, num_threads, checkpoint
        self.maximizer = Maximizer(model, em.estimate, em.frozen)
        self.defaults = self._defaults()
        self.found: list[Run] = []
        self.hooks, self.ended = Callbacks(), False
        self.begin, self.earlier = time.perf_counter(), 0.0
        unknown = [
            name for name in em.frozen if name not in self.defaults and name not in dict(model.named_parameters())
        ]
        if unknown:
            raise EngineError(f"EM: frozen names {unknown[0]!r}; the model has {', '.join(self.defaults)}")

    @property
    def steps(self) -> int:
        """Iterations of the runs that have ended."""
        return sum(len(run.bound) for run in self.found)

    @property
    def best(self) -> Run:
        """The run with the best end, not a degenerate one where there is another."""
        return max(self.found, key=lambda run: (run.status.code != "degenerate", run.end))

    @property
    def status(self) -> Status:
        """How the fit ended: as the run that was ended from outside, else as the best one."""
        early = (run.status for run in self.found if run.status.code in (INTERRUPTED, STOPPED))
        return next(early, self.best.status)

    def runs(self) -> list[Run]:
        """Every run, in order; those of the checkpoint are not made again."""
        em, share = self.em, self.parts.share
        given = given_values(em.start, self.defaults)
        take_networks(em.start, self.model)
        count = 1 if given is not None or isinstance(em.start, Tensor) else em.n_init
        few, _ = self.parts.sample(SAMPLE, em.seed)
        few, origin = few.rows(slice(0, 4)), self.free()
        climb = self._opened(few)
        first = self.steps + (0 if climb is None else len(climb.record.bound))
        about = Told("EM", self.model, count * em.max_iter, settings=em._settings(), first=first, share=share)
        with (
            progress("EM", count * em.max_iter, em.progress and share.leads) as update,
            Callbacks(em.callbacks, about) as self.hooks,
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
        parts, header = self.parts, self.em._header(self.model, self.parts)
        parts.share.agree("the call", json.dumps(header))
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
        values = self.model.family_defaults()
        for name, law in self.model.shared_laws().items():
            if name not in values:
                values[name] = _center(law(values))
        return values

    def _first(self, number: int) -> Values:
        """Parameters to begin with: the M-step of the start's responsibilities."""
        start, model = self.em.start, self.model
        with model.bind(self.defaults), torch.no_grad():
            rows = self.parts.n if isinstance(start, Tensor) else SAMPLE
            obs, weights = self.parts.sample(rows, self.em.seed)
            plan = Plan(model, obs)
            r = first_responsibilities(start, model, obs, weights, plan.sizes, self.em.seed + number)
            held = Held(model, obs, weights)
            e = added(plan.expect(chunk, instead=_taken_from(r)) for chunk in each_chunk(held))
            return self.maximizer.closed_forms(plan.finish(e), self.defaults)


def _taken_from(r: Tensor) -> Replace:
    """Responsibilities [*enumerated, n] as the function of a chunk that the E-step asks."""
    return lambda chunk, _: r[..., chunk.start : chunk.start + len(chunk.obs)]


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
