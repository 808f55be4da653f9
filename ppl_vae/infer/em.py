"""Expectation maximisation, by hand: exact responsibilities, closed-form updates (000 s.1, 004 s.7)."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch

from ppl_vae.alone import seeded_rng, unvalidated
from ppl_vae.coordinates import held
from ppl_vae.declare import LatentVariableModel
from ppl_vae.declare.pair import check_program
from ppl_vae.errors import EngineError, check_seed, check_whole
from ppl_vae.fit import Fit
from ppl_vae.infer.assignment import ASSIGNMENTS
from ppl_vae.infer.callbacks import Callback, checked
from ppl_vae.infer.checkpoint import Checkpoint, Checkpoints
from ppl_vae.infer.climb import Climb
from ppl_vae.infer.identity import described
from ppl_vae.infer.mstep import Values
from ppl_vae.infer.parallel import threads
from ppl_vae.infer.parts import Held, Parts, make_parts
from ppl_vae.infer.processes import joined
from ppl_vae.infer.runs import Starts
from ppl_vae.infer.schedules import within
from ppl_vae.infer.squarem import ACCELERATIONS
from ppl_vae.infer.starts import trained_copy

__all__ = ["EM"]

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
        Number of starts; the best end is kept. A model's own parameters (`nn.Parameter`, networks) start where they
        are in the first run, unless all components are alike there, and in the others at the M-step of the start.
    tol : float
        Stop when an iteration gains less than tol * max(1, |L|) nats per datum, L the objective per datum.
    max_iter : int
        Iterations of each start, those refused by `accelerate` included; with `batch_size`, epochs.
    start : str, mapping, Tensor or Fit
        "k-means++", "random", parameters by name, responsibilities [n, K], or another fit. Where some parameters are
        named and all components are alike in them, the others are found by k-means++ under these.
        Responsibilities, of whatever kind, are followed by one M-step: families and latents declared by hand move;
        other parameters of the module stay where they are, unless the responsibilities were given.
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
        Parameters that keep their starting values, such as "components.covariance": those of `start`, or those that
        `model.fix({...})` gave.
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
        If a setting is out of range, a latent is not finite, or the checkpoint is that of another call.
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
        if not isinstance(self.n_init, Integral):
            raise EngineError(
                f"EM: n_init is a number of starts, got a {type(self.n_init).__name__}; EM().fit(model, data) fits one"
            )
        object.__setattr__(self, "callbacks", checked(self.callbacks))
        if self.estimate not in ("map", "ml"):
            raise EngineError(f'EM: estimate must be "map" or "ml", got {self.estimate!r}')
        if self.assignment not in ASSIGNMENTS:
            raise EngineError(f"EM: assignment must be one of {', '.join(ASSIGNMENTS)}, got {self.assignment!r}")
        check_whole("EM", n_init=self.n_init, max_iter=self.max_iter)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not (isinstance(self.tol, Real) and self.tol >= 0):
            raise EngineError(f"EM: tol must be a number, at least 0; got {self.tol!r}")
        self._check_steps()
        object.__setattr__(self, "frozen", (self.frozen,) if isinstance(self.frozen, str) else tuple(self.frozen))

    def _check_steps(self) -> None:
        if self.assignment != "soft" and self.temperature != 1:
            raise EngineError(f"EM: temperature is for soft assignments, {self.assignment} ones have none")
        within(self.temperature, self.max_iter, lambda T: T > 0, "EM: temperature must be a positive number")
        if self.accelerate not in ACCELERATIONS:
            raise EngineError(f'EM: accelerate must be None or "squarem", got {self.accelerate!r}')
        if self.accelerate is not None and (self.assignment != "soft" or self.batch_size is not None):
            raise EngineError('EM: accelerate needs assignment="soft" and batch_size=None')
        if self.batch_size is not None:
            check_whole("EM", batch_size=self.batch_size)
        if not (isinstance(self.decay, Real) and 0.5 < self.decay <= 1):
            raise EngineError(f"EM: for online EM to converge decay is above 0.5 and at most 1; got {self.decay!r}")

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
            `trace["e_steps"]` counts the passes over the data up to then: one for each E-step, for each evaluation
            of the expected log joint by the gradient steps of an M-step, and for a look for rows to restart from.
        """
        if not isinstance(model, LatentVariableModel):
            from ppl_vae.infer.pairs import maximize_pair

            program = model[0] if isinstance(model, tuple) else model
            check_program(program)
            self._check_pair(weights)
            return maximize_pair(self, program, data)
        begin = time.perf_counter()
        model.refuse_penalties("EM")
        fitted = trained_copy(model).double()
        settings = {**self._settings(), "frozen": held(fitted, self.frozen)}
        with (
            seeded_rng(self.seed),
            threads(1) as num_threads,
            unvalidated(),
            fitted.numeric(),
            joined(fitted.like.device) as share,
        ):
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
            settings=settings,
            history=best.history.tensors(),
            data=parts.obs if isinstance(parts, Held) else None,
            weights=parts.weights if isinstance(parts, Held) else None,
        )

    def _climb(self, owner: "Starts", values: Values, few: Any) -> Climb:
        """One run; an engine that stops by another rule gives its own."""
        return Climb(owner, values, few)

    def _settings(self) -> dict[str, Any]:
        start = self.start if isinstance(self.start, str) else type(self.start).__name__
        temperature = self.temperature if isinstance(self.temperature, int | float) else repr(self.temperature)
        callbacks = [one.called for one in self.callbacks]
        spoken = {"start": start, "temperature": temperature, "callbacks": callbacks}
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, **spoken}

    def _header(self, model: LatentVariableModel, identity: dict[str, Any], parts: Parts) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on, and in every process."""
        shapes = {name: list(value.shape) for name, value in {**model.family_defaults(), **model.state_dict()}.items()}
        settings = [f.name for f in fields(self) if f.name not in ("progress", "checkpoint", "callbacks")]
        return {
            "engine": type(self).__name__,
            "settings": {name: described(getattr(self, name)) for name in settings},
            "model": {"declaration": repr(model), "shapes": shapes, **identity},
            "rows": parts.n,
        }
