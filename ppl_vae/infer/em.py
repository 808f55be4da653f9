"""Expectation maximisation, by hand: exact responsibilities, closed-form updates (000 s.1, 004 s.7)."""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import DataError, EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.expectation import (
    Chunk,
    chunks,
    expectation,
    expected_log_joint,
    finite_sizes,
    posteriors,
)
from ppl_vae.infer.progress import progress
from ppl_vae.infer.starts import first_responsibilities, given_values
from ppl_vae.infer.weights import check_weights

__all__ = ["EM"]

Values = dict[str, Tensor]

REPAIRS = 3
"""Repairs allowed in one run before a component is given up and reported."""


@dataclass
class _Run:
    """One run from one start."""

    values: Values
    objective: list[float]
    segments: list[int]
    seconds: list[float]
    status: Status


@dataclass(frozen=True)
class EM:
    """Expectation maximisation for models whose latents of each datum are finite.

    E-step: r_i(z) = p(z | x_i, theta) (000 (8)). M-step: theta = argmax sum_i E_r[log p(x_i, z | theta)] + log p(theta)
    (000 (9)): closed form for what a family owns, gradient steps that must raise it for the rest (generalised EM).

    Parameters
    ----------
    n_init : int
        Number of starts; the best end is kept.
    tol : float
        Stop when an iteration gains less than tol * max(1, |L|) nats per datum, L the objective per datum.
    max_iter : int
        Iterations of each start.
    start : str, mapping, Tensor or Fit
        "k-means++", "random", parameters by name, responsibilities [n, K], or another fit.
    estimate : {"map", "ml"}
        "map" adds the log prior where the model has priors; "ml" ignores priors.
    seed : int
        Seed of the starts.
    progress : bool
        Show progress.

    Raises
    ------
    EngineError
        If a latent is not finite.
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
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.estimate not in ("map", "ml"):
            raise EngineError(f'EM: estimate must be "map" or "ml", got {self.estimate!r}')
        if self.n_init < 1 or self.max_iter < 1 or self.tol < 0:
            raise EngineError(f"EM: n_init and max_iter must be at least 1 and tol at least 0, got {self}")

    def fit(self, model: Any, data: Any, weights: Any = None) -> Fit:
        """Fit a copy of the model.

        Parameters
        ----------
        model : LatentVariableModel or callable
            The declaration, which is not changed, or an ordinary Pyro model with finite latents.
        data : Tensor, array, data frame or mapping
            Observed values, n rows.
        weights : Tensor, optional
            [n], non-negative: datum i counts w_i times.

        Returns
        -------
        Fit
            `trace["bound"]` is log p(X | theta), plus log p(theta) for MAP, in total nats at every iteration.
        """
        if not isinstance(model, LatentVariableModel):
            from ppl_vae.infer.pairs import maximize_pair

            return maximize_pair(self, model[0] if isinstance(model, tuple) else model, data)
        begin = time.perf_counter()
        fitted = deepcopy(model).double()
        obs = fitted.check(data)
        if obs.missing:
            name = next(iter(obs.missing))
            raise DataError(
                f"{name!r} has {int(obs.missing[name].sum())} NaN, which EM's closed forms do not integrate out; "
                f"drop those rows, or fit by SVI or NUTS"
            )
        w = check_weights(weights, len(obs)).to(fitted.like)
        fitted.adapt(obs, w)
        with torch.random.fork_rng([]), pyro.validation_enabled(False), fitted.numeric():
            torch.manual_seed(self.seed)
            runs = self._runs(fitted, obs, w)
        best = max(runs, key=lambda run: (run.status.code != "degenerate", run.objective[-1]))
        shared = fitted.shared_laws()
        fitted.fix(best.values)
        return Fit(
            model=fitted.requires_grad_(False),
            engine="EM",
            draws={name: best.values[name][None, None] for name in shared},
            trace={
                "bound": torch.tensor(best.objective, dtype=torch.float64),
                "segment": torch.tensor(best.segments),
                "seconds": torch.tensor(best.seconds, dtype=torch.float64),
                "starts": torch.tensor([run.objective[-1] for run in runs], dtype=torch.float64),
            },
            bound="log p(X | theta) + log p(theta)" if shared and self.estimate == "map" else "log p(X | theta)",
            status=best.status,
            seconds=time.perf_counter() - begin,
            seed=self.seed,
            settings=self._settings(),
            data=obs,
            weights=None if weights is None else w,
        )

    def _settings(self) -> dict[str, Any]:
        start = self.start if isinstance(self.start, str) else type(self.start).__name__
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "start": start}

    def _runs(self, model: LatentVariableModel, obs: Observations, w: Tensor) -> list[_Run]:
        values = self._defaults(model)
        with model.bind(values), torch.no_grad():
            first = Chunk(obs.rows(torch.arange(1)), w[:1], 0)
            sizes = finite_sizes(model, first)
            parts = chunks(model, obs, w, torch.Size(sizes.values()).numel())
        given = given_values(self.start, values)
        starts = 1 if given is not None or isinstance(self.start, Tensor) else self.n_init
        runs = []
        with progress("EM", starts * self.max_iter, self.progress) as update:
            for number in range(starts):
                own = given
                if own is None:
                    r = first_responsibilities(self.start, model, obs, w, sizes, self.seed + number)
                    with model.bind(values), torch.no_grad():
                        sums = expectation(model, parts, _taken_from(r)).sums
                    own = {**values, **self._maximize(model, sums)}
                runs.append(self._run(model, parts, own, number, update))
        return runs

    def _defaults(self, model: LatentVariableModel) -> Values:
        values = model.family_defaults()
        for name, law in model.shared_laws().items():
            if name not in values:
                values[name] = _center(law(values))
        return values

    def _run(self, model: LatentVariableModel, parts: list[Chunk], values: Values, number: int, update: Any) -> _Run:
        begin = time.perf_counter()
        total = sum(float(c.weights.sum()) for c in parts)
        run = _Run(values, [], [], [], Status("max_iter", f"{self.max_iter} iterations did not reach tol {self.tol:g}"))
        notes: list[str] = []
        repairs, segment = 0, 0
        for iteration in range(self.max_iter):
            with model.bind(values), torch.no_grad():
                e = expectation(model, parts)
            objective = self._objective(model, parts, e.log_prob, values)
            if not torch.isfinite(objective):
                run.status = Status("failed", f"the log-likelihood became {objective.item()} at iteration {iteration}")
                break
            run.values = values
            run.objective.append(objective.item())
            run.segments.append(segment)
            run.seconds.append(time.perf_counter() - begin)
            update(number * self.max_iter + iteration, f"log-likelihood {objective.item() / total:.4f} per datum")
            if self._converged(run, total):
                run.status = Status("converged", f"gain below {self.tol:g} per datum after {iteration} iterations")
                break
            with torch.no_grad():
                values = {**values, **self._maximize(model, e.sums)}
            values = self._gradient_step(model, parts, values)
            bad = self._degenerate(model, e.sums, values)
            if bad and repairs < REPAIRS:
                repaired = self._repair(model, parts, values, bad, e.log_prob, repairs)
                if repaired is None:
                    repairs = REPAIRS
                    continue
                notes += [f"iteration {iteration}: {name} had lost its data and was restarted" for name in bad]
                values, repairs, segment = {**values, **repaired}, repairs + 1, segment + 1
        with torch.no_grad(), model.bind(run.values):
            sums = expectation(model, parts).sums
        bad = self._degenerate(model, sums, run.values)
        if bad:
            message = "too few data to be estimated: its likelihood has no bound, or it is empty"
            run.status = Status("degenerate", f"{', '.join(bad)} has {message}; use fewer components or a prior")
        run.status = Status(run.status.code, run.status.message, tuple(notes))
        return run

    def _objective(self, model: LatentVariableModel, parts: list[Chunk], log_prob: Tensor, values: Values) -> Tensor:
        weights = torch.cat([c.weights for c in parts])
        objective = (weights * log_prob).sum()
        return objective + model.log_prior(values) if self.estimate == "map" else objective

    def _converged(self, run: _Run, total: float) -> bool:
        if len(run.objective) < 2 or run.segments[-1] != run.segments[-2]:
            return False
        gain = (run.objective[-1] - run.objective[-2]) / total
        return gain <= self.tol * max(1.0, abs(run.objective[-1]) / total)

    def _maximize(self, model: LatentVariableModel, sums: Mapping[str, Any]) -> Values:
        families = model.families()
        return {
            f"{path}.{name}": value
            for path, own in sums.items()
            for name, value in families[path].maximize(own, self.estimate).items()
        }

    def _degenerate(self, model: LatentVariableModel, sums: Mapping[str, Any], values: Values) -> list[str]:
        families = model.families()
        names = []
        for path, own in sums.items():
            family = families[path]
            mine = {name: values[f"{path}.{name}"] for name in family.constraints}
            names += [f"{path}[{k}]" for k in family.degenerate(own, mine).nonzero().flatten().tolist()]
        return names

    def _repair(
        self,
        model: LatentVariableModel,
        parts: list[Chunk],
        values: Values,
        bad: list[str],
        log_prob: Tensor,
        turn: int,
    ) -> Values | None:
        """Give each lost component the data that the others explain worst, then maximise again."""
        with model.bind(values), torch.no_grad():
            sizes = list(finite_sizes(model, parts[0]).values())
            lost = sorted({int(name[name.index("[") + 1 : -1]) for name in bad})
            if len(sizes) != 1 or lost[-1] >= sizes[0] or len(lost) == sizes[0]:
                return None
            n = len(log_prob)
            share = min(n, max(2 * _width(parts[0].obs) + 2, n // (5 * sizes[0])))
            order = log_prob.argsort() if turn == 0 else torch.randperm(n)
            owner = torch.full((n,), -1)
            for j, k in enumerate(lost):
                owner[order[j * share : (j + 1) * share]] = k

            def replaced(chunk: Chunk, r: Tensor) -> Tensor:
                mine = owner[chunk.start : chunk.start + len(chunk.obs)]
                kept = torch.where(mine >= 0, 0.0, r)
                return kept + torch.nn.functional.one_hot(mine.clamp_min(0), sizes[0]).to(r).T * (mine >= 0)

            return self._maximize(model, expectation(model, parts, replaced).sums)

    # Generalised EM: what no family owns takes gradient steps that must raise Q.

    def _gradient_step(self, model: LatentVariableModel, parts: list[Chunk], values: Values) -> Values:
        owned = {id(p) for family in model.families().values() for p in family.parameters()}
        free = [p for p in model.parameters() if id(p) not in owned and p.requires_grad]
        laws = model.shared_laws()
        by_hand = [name for name in laws if not any(name.startswith(f"{path}.") for path in model.families())]
        if not free and not by_hand:
            return values
        maps = {name: biject_to(laws[name](values).support) for name in by_hand}
        raw = {name: maps[name].inv(values[name]).detach().requires_grad_() for name in by_hand}
        with model.bind(values), torch.no_grad():
            r = posteriors(model, parts)

        def assembled() -> Values:
            return {**values, **{name: maps[name](u) for name, u in raw.items()}}

        def q_value() -> Tensor:
            now = assembled()
            with model.bind(now):
                q = sum(expected_log_joint(model, parts, r), torch.zeros(()))
            return q + model.log_prior(now) if self.estimate == "map" else q

        variables = [*free, *raw.values()]
        before, kept = q_value().item(), [v.detach().clone() for v in variables]
        optimizer = torch.optim.LBFGS(variables, max_iter=10, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -q_value()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            if not q_value().item() >= before:
                for variable, value in zip(variables, kept, strict=True):
                    variable.copy_(value)
            return {name: value.detach() for name, value in assembled().items()}


def _taken_from(r: Tensor) -> Callable[[Chunk, Tensor], Tensor]:
    """Responsibilities [*enumerated, n] as the function of a chunk that the E-step asks."""
    return lambda chunk, _: r[..., chunk.start : chunk.start + len(chunk.obs)]


def _width(obs: Observations) -> int:
    return sum(value[0].numel() for value in obs.values.values())


def _center(d: Any) -> Tensor:
    """A central value of a law: its mean where finite, else a draw."""
    try:
        mean = d.mean
    except NotImplementedError:
        return d.sample()
    return mean if bool(torch.isfinite(mean).all()) else d.sample()
