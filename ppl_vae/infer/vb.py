"""Variational Bayes EM: conjugate posteriors of the parameters, updated in closed form (T5)."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ppl_vae.alone import seeded_rng, unvalidated
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import EngineError, check_seed, check_whole
from ppl_vae.families import Sums
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.expectation import Plan, Replace, added, summed
from ppl_vae.infer.expected import ExpectedPlan, Posteriors, factors, priors, refuse, refuse_laws
from ppl_vae.infer.initial import initial_values
from ppl_vae.infer.parallel import threads
from ppl_vae.infer.parts import Held, Parts, make_parts
from ppl_vae.infer.processes import joined
from ppl_vae.infer.starts import are_responsibilities, first_responsibilities, given_values
from ppl_vae.progress import Update, progress
from ppl_vae.relabel import relabel

__all__ = ["VB"]

SAMPLE = 20_000
"""Rows that a start is looked for in; larger data are sampled."""


@dataclass(frozen=True)
class VB:
    """Variational Bayes EM for models whose parameters all have conjugate priors.

    q(theta) q(z) maximises the bound on log p(X)

        sum_i w_i log sum_z exp E_q(theta)[log p(x_i, z | theta)] - KL(q(theta) || p(theta))

    by turns: q(z_i) proportional to exp E_q(theta)[log p(x_i, z | theta)], and q(theta) the conjugate posterior of the
    expected sufficient statistics (Bishop 2006, 10.2). Every step is in closed form, and the bound never falls.

    Parameters
    ----------
    n_init : int
        Number of starts; the one with the highest bound is kept.
    tol : float
        Stop when an iteration gains less than tol * max(1, |L|) nats per datum, L the bound per datum.
    max_iter : int
        Iterations of each start.
    start : str, mapping, Tensor or Fit
        "k-means++", "random", parameters by name, of which a short EM finds those left out, responsibilities [n, K], or
        another fit.
    num_draws : int
        Draws of q(theta) kept in the Fit.
    seed : int
        Seed of the starts and the draws.
    progress : bool
        Show progress.

    Raises
    ------
    EngineError
        If a setting is out of range, a parameter has no prior, or one that is not conjugate, or a latent of a datum is
        not finite.
    DataError
        If data, weights or start do not fit the model.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> x = pv.data.faithful().values
    >>> fit = pv.VB(n_init=3, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), x)
    >>> round(fit.trace["bound"][-1].item(), 3)
    -1168.908
    >>> fit.draws["components.loc"].shape
    torch.Size([1, 1000, 2, 2])
    """

    n_init: int = 1
    tol: float = 1e-8
    max_iter: int = 1000
    start: Any = "k-means++"
    num_draws: int = 1000
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_whole("VB", n_init=self.n_init, max_iter=self.max_iter, num_draws=self.num_draws)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not (isinstance(self.tol, Real) and self.tol >= 0):
            raise EngineError(f"VB: tol must be a number, at least 0; got {self.tol!r}")

    def fit(self, model: Any, data: Any, weights: Any = None) -> Fit:
        """Fit a copy of the model.

        Parameters
        ----------
        model : LatentVariableModel
            The declaration, which is not changed.
        data : Tensor, array, data frame, mapping or Stream
            Observed values, n rows; `pv.data.stream(...)` for data that do not fit in memory.
        weights : Tensor, optional
            [n], non-negative: datum i counts w_i times.

        Returns
        -------
        Fit
            `trace["bound"]` bounds log p(X), in total nats at every iteration; `draws` are of q(theta), and `q` is
            q(theta) itself, one posterior for each family by path.
        """
        if not isinstance(model, LatentVariableModel):
            raise EngineError(f"VB takes a declared model, whose families it can read; got {type(model).__name__}")
        begin = time.perf_counter()
        model.refuse_penalties("VB")
        fitted = model.unfitted().double()
        with (
            seeded_rng(self.seed),
            threads(1) as num_threads,
            torch.no_grad(),
            unvalidated(),
            fitted.numeric(),
            joined(fitted.like.device) as share,
        ):
            fitted.to(share.place(fitted.like.device))
            refuse(fitted)
            parts = make_parts(fitted, data, weights, share)
            runs = _Runs(self, fitted, parts, num_threads).all()
            best = max(runs, key=lambda run: (run.status.code != "failed", run.bound[-1] if run.bound else -torch.inf))
            torch.manual_seed(self.seed)
            draws, stats = _draws(best.q, priors(fitted), self.num_draws)
        fit = Fit(
            model=fitted.requires_grad_(False),
            engine="VB",
            draws=draws,
            trace={
                "bound": torch.tensor(best.bound, dtype=torch.float64),
                "seconds": torch.tensor(best.seconds, dtype=torch.float64),
                "starts": torch.tensor([run.bound[-1] for run in runs if run.bound], dtype=torch.float64),
            },
            bound="bound on log p(X)",
            status=best.status,
            seconds=time.perf_counter() - begin,
            seed=self.seed,
            settings={
                **{f.name: getattr(self, f.name) for f in fields(self)},
                "start": self.start if isinstance(self.start, str) else type(self.start).__name__,
            },
            data=parts.obs if isinstance(parts, Held) else None,
            weights=parts.weights if isinstance(parts, Held) else None,
            sample_stats=stats,
            q=best.q,
        )
        return relabel(fit)

    def _left_off(self, model: LatentVariableModel) -> Posteriors | None:
        """q(theta) that the start ended with, where it is known; an engine that has it elsewhere gives its own."""
        if not isinstance(self.start, Fit) or not self.start.q:
            return None
        return {path: self.start.q[path].of(family) for path, family in factors(model).items()}

    def _settled(self, bounds: list[float], total: float) -> bool:
        """Whether the last iteration gained too little to go on; an engine that ends by another rule gives its own."""
        return len(bounds) > 1 and bounds[-1] - bounds[-2] <= self.tol * max(total, abs(bounds[-1]))


def _draws(q: Posteriors, prior: Posteriors, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws of q(theta), [1, count, *event], with their log q and log prior, [1, count] total nats."""
    drawn = {path: own.sample(count) for path, own in q.items()}
    log_q = sum(q[path].log_prob(values) for path, values in drawn.items())
    log_prior = sum(prior[path].log_prob(values) for path, values in drawn.items())
    draws = {f"{path}.{name}": value[None] for path, values in drawn.items() for name, value in values.items()}
    return draws, {"log_q": torch.as_tensor(log_q)[None], "log_prior": torch.as_tensor(log_prior)[None]}


@dataclass
class Run:
    """One run from one start."""

    q: Posteriors
    bound: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    status: Status = field(default_factory=lambda: Status("max_iter", ""))


class _Runs:
    """The runs of one fit."""

    def __init__(self, vb: VB, model: LatentVariableModel, parts: Parts, num_threads: int) -> None:
        self.vb, self.model, self.parts, self.num_threads = vb, model, parts, num_threads
        self.prior, self.total = priors(model), parts.total()
        self.sample, self.weights = parts.sample(SAMPLE, vb.seed)
        self.few = self.sample.rows(slice(0, 4))
        self.plan: ExpectedPlan | None = None
        refuse_laws(model, parts, self.few)

    def all(self) -> list[Run]:
        """Every run, in order."""
        vb, given = self.vb, self._given()
        count = 1 if given or are_responsibilities(vb.start) else vb.n_init
        with progress("VB", count * vb.max_iter, vb.progress and self.parts.share.leads) as update:
            runs = []
            for number in range(count):
                q = given or self.first(number)
                runs.append(self.climb(q, later(update, number * vb.max_iter)))
            return runs

    # Where a run begins.

    def _given(self) -> Posteriors | None:
        """Where the only run begins; None where each finds its own place."""
        if isinstance(self.vb.start, Mapping):
            values = initial_values(self.vb.start, self.model, self.sample, self.weights, self.vb.seed)
        else:
            values = given_values(self.vb.start, self.model, self.model.family_defaults())
        # What is hidden of the data depends on all of q(theta), not on its middle alone.
        return self.vb._left_off(self.model) or (None if values is None else self.first_from(values))

    def first_from(self, values: Mapping[str, Tensor]) -> Posteriors:
        """The posterior given the responsibilities at these parameters."""
        with self.model.bind(values):
            plan = Plan(self.model, self.few)
            return self.updated(plan.finish(summed(plan, self.parts, self.num_threads)))

    def first(self, number: int) -> Posteriors:
        """The posterior given a start's responsibilities."""
        vb = self.vb
        given = are_responsibilities(vb.start)
        obs, weights = self.parts.sample(self.parts.n, vb.seed) if given else (self.sample, self.weights)
        with self.model.bind(self.model.family_defaults()):
            plan = Plan(self.model, self.few)
            r = first_responsibilities(vb.start, self.model, obs, weights, plan.sizes, vb.seed + number)
            e = added(plan.expect(chunk, instead=taken_from(r)) for chunk in self.parts.cut(obs, weights, 0))
            return self.updated(plan.finish(e))

    # The two steps.

    def updated(self, sums: Mapping[str, Sums]) -> Posteriors:
        """The M-step: q(theta) given the expected statistics; a family that no datum reached keeps its prior."""
        return {path: own.updated(sums[path]) if path in sums else own for path, own in self.prior.items()}

    def expect(self, q: Posteriors) -> tuple[float, Posteriors]:
        """The E-step: the bound under q(theta), and the q(theta) that the next M-step makes of it."""
        centers = {f"{path}.{name}": value for path, own in q.items() for name, value in own.center().items()}
        with self.model.bind(centers):
            plan = self.plan = self.plan or ExpectedPlan(self.model, self.few, q)
            plan.q = q
            plan.refresh()
            e = summed(plan, self.parts, self.num_threads)
            bound = e.objective - sum(own.divergence(self.prior[path]) for path, own in q.items())
            return bound.item(), self.updated(plan.finish(e))

    def climb(self, q: Posteriors, update: Update) -> Run:
        """Iterate until nothing is gained."""
        vb, begin = self.vb, time.perf_counter()
        run = Run(q, status=Status("max_iter", f"{vb.max_iter} iterations did not reach tol {vb.tol:g}"))
        for iteration in range(vb.max_iter):
            bound, following = self.expect(q)
            if not math.isfinite(bound):
                run.status = Status("failed", f"the bound became {bound} at iteration {iteration}")
                break
            run.q = q
            run.bound.append(bound)
            run.seconds.append(time.perf_counter() - begin)
            update(iteration, f"bound {bound / self.total:.4f} per datum")
            if vb._settled(run.bound, self.total):
                run.status = Status("converged", f"gain below {vb.tol:g} per datum after {iteration} iterations")
                break
            q = following
        run.status = replace(run.status, notes=tuple(self.parts.remarks()))
        return run


def taken_from(r: Tensor) -> Replace:
    """Responsibilities [*enumerated, n] as the function of a chunk that the E-step asks."""
    return lambda chunk, _: r[..., chunk.start : chunk.start + len(chunk.obs)]


def later(update: Update, done: int) -> Update:
    """The progress of a run after others that took `done` iterations at most."""
    return lambda i, text: update(done + i, text)
