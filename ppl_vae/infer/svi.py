"""Stochastic variational inference: gradient ascent on the evidence lower bound (000 (39)-(41), 004 s.6)."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ppl_vae.alone import alone, unvalidated
from ppl_vae.declare import LatentVariableModel
from ppl_vae.declare.pair import check_program
from ppl_vae.errors import DataError, EngineError, check_seed, check_whole
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.averaging import Averaging
from ppl_vae.infer.batches import Batches, data_dtype, example, held, index_needed, make_batches, size_needed
from ppl_vae.infer.callbacks import Callback, Callbacks, Run, checked
from ppl_vae.infer.checkpoint import Checkpoint
from ppl_vae.infer.held_out import HeldOut
from ppl_vae.infer.identity import described
from ppl_vae.infer.initial import begins_at_data, initial_values
from ppl_vae.infer.loop import History, Loop
from ppl_vae.infer.optimizers import OptimizerFactory, adam, build
from ppl_vae.infer.parallel import threads
from ppl_vae.infer.parts import unseen
from ppl_vae.infer.precision import PRECISIONS
from ppl_vae.infer.processes import LostError, Share, joined
from ppl_vae.infer.random_state import own_random
from ppl_vae.infer.rising import fallen, idle, rising
from ppl_vae.infer.schedules import weighed, within
from ppl_vae.infer.settled import settled
from ppl_vae.infer.starts import initialise, start_alike, trained_copy
from ppl_vae.infer.step import Step, choose
from ppl_vae.infer.tracing import MODES, Traced
from ppl_vae.infer.turns import Alternate, Lagging
from ppl_vae.objectives import Objective, elbo
from ppl_vae.progress import progress
from ppl_vae.relabel import relabel

__all__ = ["SVI"]


@dataclass(frozen=True)
class SVI:
    """Maximise the bound over the model's parameters and those of q together.

    Finite latents are summed out exactly, shared latents get an automatic guide, a continuous latent without a
    posterior gets parameters for every datum. The reported bound is always the true one, whatever is optimised.

    Parameters
    ----------
    epochs : int
        Passes over the data.
    batch_size : int, optional
        Data per step; None takes all.
    optimizer : callable
        Parameters to a torch optimiser: `adam(lr)`, `sgd(lr)`, or your own.
    objective : Objective
        `elbo()`, `elbo(num_particles, kl="analytic")`, `iwae(num_particles)`, `infovae(...)`, `tc_elbo(...)`.
    guide : str or callable
        q of the shared latents: "normal", "lowrank", "multivariate", "delta", or a Pyro autoguide class.
    beta : float or callable
        Weight of the KL term, or a function of the epoch such as `linear(0, 1, epochs=10)`.
    validation : data, optional
        Held-out data whose bound is recorded every epoch; an IterableDataset comes in batches of `batch_size`.
    patience : int, optional
        Epochs without a better held-out bound before stopping; the best state is kept.
    start : "auto", None, mapping or Fit
        Where shared latents and family parameters start; "auto" runs a short EM where EM applies. Where every
        parameter has a prior and shared latents are declared by hand, "auto" then searches for a first mean-field q on
        2,000 data at most, whose standard deviations become the units of q: neither a vague prior nor the units of a
        parameter decide how many epochs it takes.
    checkpoint : path or Checkpoints, optional
        Where the state is written, and from where the same call goes on; `checkpoints` says how often.
    callbacks : sequence of Callback
        What is told of every step, and may stop the fit.
    compile : {"auto", "inductor", "trace", "off"}
        The step as a graph compiled by inductor, as a plain graph, or run through Python each time; "auto" chooses by
        the size of the model and the number of steps.
    accumulate : int
        Pieces into which a batch is cut, one gradient after the other, to save memory.
    precision : {"full", "bf16"}
        "bf16": the networks' matrix products in bfloat16.
    alternate : Alternate or Lagging, optional
        q and the model in turns: `alternate(q=5, model=1)`, `lagging()`; None moves them together.
    average : float
        The last part of the steps over which the parameters of q of the shared latents are averaged: about an optimum
        a constant learning rate keeps them moving. 0 keeps the last step's.
    num_draws : int
        Draws of the shared latents kept in the Fit.
    seed : int
        Seed of shuffling, noise and starts.
    progress : bool
        Show progress.

    Raises
    ------
    EngineError
        For an unknown guide, patience without validation data, or an objective for another number of data.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> x = pv.data.faithful().values
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.SVI(epochs=20, optimizer=pv.adam(1e-2), num_draws=50, progress=False).fit(gmm, x)
    >>> fit.draws["components.loc"].shape
    torch.Size([1, 50, 2, 2])
    """

    epochs: int
    batch_size: int | None = None
    optimizer: OptimizerFactory = field(default_factory=adam)
    objective: Objective = field(default_factory=elbo)
    guide: str | Callable[..., Any] = "normal"
    beta: float | Callable[[float], float] = 1.0
    validation: Any = None
    patience: int | None = None
    start: Any = "auto"
    checkpoint: Any = None
    callbacks: Sequence[Callback] = ()
    compile: str = "auto"
    accumulate: int = 1
    precision: str = "full"
    alternate: Alternate | Lagging | None = None
    average: float = 1 / 3
    num_draws: int = 1000
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "callbacks", checked(self.callbacks))
        check_whole("SVI", epochs=self.epochs, accumulate=self.accumulate, num_draws=self.num_draws)
        if self.batch_size is not None:
            check_whole("SVI", batch_size=self.batch_size)
        if self.patience is not None:
            check_whole("SVI", patience=self.patience)
        object.__setattr__(self, "seed", check_seed(self.seed))
        within(self.beta, self.epochs - 1, lambda beta: beta >= 0, "SVI: beta must be a number that is not negative")
        if self.patience is not None and self.validation is None:
            raise EngineError("SVI: patience needs validation data to watch; pass validation=")
        if not isinstance(self.alternate, Alternate | Lagging | None):
            raise EngineError(
                f"SVI: alternate takes pv.alternate(q=..., model=...) or pv.lagging(), got {self.alternate!r}"
            )
        if not isinstance(self.average, int | float) or not 0 <= self.average <= 1:
            raise EngineError(f"SVI: average is a part of the steps, between 0 and 1; got {self.average!r}")
        if self.compile not in ("auto", *MODES):
            raise EngineError(f"SVI: compile must be auto, {', '.join(MODES)}; got {self.compile!r}")
        if self.precision not in PRECISIONS:
            raise EngineError(f"SVI: precision must be {' or '.join(PRECISIONS)}; got {self.precision!r}")

    def fit(self, model: Any, data: Any, weights: Any = None) -> Fit:
        """Fit a copy of the model.

        Parameters
        ----------
        model : LatentVariableModel or (model, guide)
            A declaration, which is not changed, or an ordinary Pyro pair.
        data : Tensor, array, data frame, mapping, DataLoader, Dataset, Stream or iterable of batches
            Observed values, n rows; for a Pyro pair its argument, or a tuple of arguments.
        weights : Tensor, optional
            [n], non-negative: datum i counts w_i times.

        Returns
        -------
        Fit
            `trace["bound"]` is the bound of each epoch in nats per datum, the shared latents' part included.
        """
        if isinstance(model, tuple):
            from ppl_vae.infer.pairs import fit_pair

            if weights is not None:
                raise EngineError("a Pyro pair has no weights of its data: scale its sites, or declare the model")
            program, guide = model
            return fit_pair(self, program, guide, data)
        if not isinstance(model, LatentVariableModel):
            check_program(model)
            raise EngineError("SVI of an ordinary Pyro program needs its guide: fit((model, guide), data)")
        if not hasattr(self.objective, "is_bound"):
            raise EngineError(
                f"SVI: objective of a declared model is one such as pv.elbo() or pv.iwae(8), called; got "
                f"{self.objective!r}"
            )
        begin = time.perf_counter()
        fitted = trained_copy(model)
        fitted = fitted.to(data_dtype(example(data), fitted.like.dtype))
        with alone(), joined(fitted.like.device) as share, ExitStack() as stack:
            fitted = fitted.to(share.place(fitted.like.device))
            stack.enter_context(own_random(self.seed, [fitted.like.device]))
            stack.enter_context(unvalidated())
            batches = make_batches(fitted, data, weights, self.batch_size, self.seed, share)
            start_alike(fitted, share)
            identity = fitted._identity()
            self._prepare(fitted, batches, self.progress and share.leads)
            start_alike(fitted, share)
            products = batches.batch_size * sum(p.numel() for p in fitted.parameters())
            stack.enter_context(threads(1 if products < SMALL else torch.get_num_threads()))
            history, status, mode = self._train(fitted, identity, batches, share)
            fitted.eval().requires_grad_(False)
            draws, stats = self._draw(fitted)
        if fitted.shared_laws() and draws and next(iter(draws.values())).shape[1] == 1:
            fitted.fix({name: value[0, 0] for name, value in draws.items()})
        fit = Fit(
            model=fitted,
            engine="SVI",
            draws=draws,
            trace=history.tensors(),
            bound="ELBO, nats per datum",
            status=status,
            seconds=time.perf_counter() - begin,
            seed=self.seed,
            settings={**self._settings(), **weighed(self.objective, self.beta, len(history.bound)), "compile": mode},
            data=batches.first if held(batches) else None,
            weights=batches.weights if held(batches) else None,
            sample_stats=stats,
        )
        return relabel(fit)

    def _settings(self) -> dict[str, Any]:
        names = ("epochs", "batch_size", "patience", "accumulate", "precision", "average", "num_draws", "seed")
        spoken = {k: str(getattr(self, k)) for k in ("optimizer", "objective", "guide", "beta", "alternate")}
        return {**{k: getattr(self, k) for k in names}, **spoken}

    def _prepare(self, model: LatentVariableModel, batches: Batches, show: bool) -> None:
        """Start values, the guide of the shared latents, parameters of each datum."""
        obs, weights = batches.sample() if begins_at_data(model) else (batches.first, batches.weights)
        if weights is not None and not bool(weights.any()):  # as a first block may have it
            weights = None
        if held(batches):
            unseen(model, obs)
        model.know(obs.columns)
        model.adapt(obs, weights)
        start = initial_values(self.start, model, obs, weights, self.seed)
        laws = model.shared_laws()
        if start:
            model.fix({name: value for name, value in start.items() if name not in laws})
        own = None if start is None else {name: start[name] for name in laws}
        first = None
        if isinstance(self.start, str):
            first = settled(model, obs, weights, own, self.seed, self._total(model, batches), show)
        if first is not None:
            own = {name: value.to(model.like) for name, value in first.values.items()}
        if laws:
            model.use_guide(self.guide, own, None if first is None else first.units())
        with model.numeric():
            model.allocate(obs, batches.size or len(obs))
            if own or not laws:  # without values a vague prior of theta would tell the latents' units
                with model.aside(seed=self.seed), model.bind(own or {}):
                    model.measure(obs)
            if first is not None:
                first.place(model)
        if model.local_posteriors and not batches.indexed:
            raise DataError(index_needed(batches, ", ".join(model.local_posteriors)))
        initialise(model, obs)
        if not model.training:  # as a Fit's model; else each module is as its owner left it
            model.train()

    def _train(
        self, model: LatentVariableModel, identity: dict[str, Any], batches: Batches, share: Share
    ) -> tuple[History, Status, str]:
        climbed = self._climbed(model, batches)
        began = [p.detach().clone() for p in climbed.dense]
        optimizer = build(self.optimizer, climbed.dense or [torch.zeros(1, device=model.like.device)])
        if climbed.sparse:
            climbed.rows_optimizer = optimizer.follow(climbed.sparse)
        steps = None if batches.steps is None else self.epochs * batches.steps
        count = sum(p.numel() for p in climbed.dense)
        step = Step(climbed, optimizer, choose(self.compile, count, batches.batch_size, steps), self.accumulate, share)
        turns = None if self.alternate is None else self.alternate.turns(climbed, batches, share)
        held_out = self._held_out(model)
        run = Run("SVI", model, steps, batches.steps, self._settings(), share=share)
        with (
            Checkpoint(self.checkpoint, share) as checkpoint,
            progress("SVI", steps or self.epochs, self.progress and share.leads) as update,
            model.numeric(),
        ):
            state = self._opened(checkpoint, self._header(model, identity, batches, held_out), model, share)
            run.first = 0 if state is None else state["steps"]
            hooks = Callbacks(self.callbacks, run)
            loop = Loop(
                model, step, batches, optimizer, self.epochs, self.beta, held_out, self.patience, checkpoint, hooks,
                update, self.seed, turns, self._averaging(model),
            )  # fmt: skip
            with hooks:
                try:
                    history, status = loop.run(state)
                except LostError as error:
                    advice = checkpoint.advice(f"step {checkpoint.last_step}")
                    raise EngineError(f"SVI stopped after {loop.steps} steps: {error}; {advice}") from error
                notes = [*status.notes, *self._remarks(status, model, batches, history)]
                notes += idle(climbed.names, climbed.dense, began) if status.code == "finished" else []
                hooks.status = replace(status, notes=tuple(notes))
        return history, hooks.status, step.mode

    def _remarks(self, status: Status, model: LatentVariableModel, batches: Batches, history: History) -> list[str]:
        """A posterior of shared latents is an answer only once q has come to rest, and a maximum once it is reached."""
        notes = unseen(model, batches.first) if held(batches) else []
        if status.code != "finished":
            return notes
        note = rising(history.bound, self._total(model, batches) if model.shared_laws() else None)
        if self.beta == 1 and self.objective.is_bound:  # others need not climb the bound
            note = note or fallen(history.bound)
        return [*notes, note] if note else notes

    def _averaging(self, model: LatentVariableModel) -> Averaging | None:
        parameters = [] if model.shared_guide is None else list(model.shared_guide.parameters())
        return Averaging(parameters, self.average) if parameters and self.average else None

    def _climbed(self, model: LatentVariableModel, batches: Batches) -> ModelObjective:
        annealed = self.beta != 1.0 or not self.objective.is_bound
        self._check_size(batches)
        climbed = ModelObjective(model, self.objective, self._total(model, batches), annealed, self.precision)
        if not climbed.dense and not climbed.sparse:
            raise EngineError(f"{type(model).__name__} has no parameter and no shared latent: there is nothing to fit")
        return climbed

    def _opened(self, checkpoint: Checkpoint, header: dict[str, Any], model: LatentVariableModel, share: Share) -> Any:
        """The state to go on from, None at the start; every process must have made the same call on the same data."""
        share.agree("the data", header["data"])
        share.agree("the call", header)
        state = checkpoint.opened(header, model.like.device)
        if share.world > 1 and state is None:
            torch.manual_seed(self.seed + 1_000_003 * share.rank)  # each process has noise of its own
        return state

    def _check_size(self, batches: Batches) -> None:
        """The number of data that an objective was given is that of these data, or their weight, where it is known."""
        size = getattr(self.objective, "size", None)
        known = [n for n in (batches.size, batches.total) if n is not None]
        if size is not None and known and min(abs(size - n) / n for n in known) > SIZE_ERROR:
            raise EngineError(
                f"SVI: the objective was made for size={size:g} data in the whole set, and {known[-1]:g} were given to "
                f"fit: pass size={known[-1]:g}"
            )

    def _total(self, model: LatentVariableModel, batches: Batches) -> float:
        """Weight of all data, of which shared latents count their share."""
        if not model.shared_laws():
            return 1.0
        total = batches.total
        if total is None:
            raise DataError(size_needed(batches))
        return total

    def _held_out(self, model: LatentVariableModel) -> HeldOut | None:
        if self.validation is None:
            return None
        size = self.batch_size if isinstance(self.validation, IterableDataset) else None
        return HeldOut(model, make_batches(model, self.validation, None, size, shuffle=False), self.seed)

    def _header(
        self, model: LatentVariableModel, identity: dict[str, Any], batches: Batches, held_out: HeldOut | None
    ) -> dict[str, Any]:
        shapes = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        own = {name: described(getattr(self, name)) for name in HEADER}
        validation = None if held_out is None else held_out.batches.fingerprint()
        return {
            "engine": "SVI",
            "model": {"class": type(model).__name__, **identity},
            "parameters": shapes,
            "data": batches.fingerprint(),
            "validation": validation,
            **own,
        }

    def _draw(self, model: LatentVariableModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws of the shared latents from their q, [1, num_draws, *event], with log q and the log prior of each."""
        if not model.shared_laws():
            return {}, {}

        names = list(model.shared_laws())

        def one() -> tuple[Tensor, ...]:
            values, log_q = model.draw_shared()
            return torch.as_tensor(log_q), model.log_prior(values), *(values[name] for name in names)

        count = 1 if model.guide_is_point() else self.num_draws
        draw = Traced(one, choose("off" if self.compile == "off" else "auto", 0, 0, count))
        with torch.no_grad(), model.numeric():
            log_q, log_prior, *values = (
                torch.stack(each)[None] for each in zip(*[draw() for _ in range(count)], strict=True)
            )
        return dict(zip(names, values, strict=True)), {"log_q": log_q, "log_prior": log_prior}


SIZE_ERROR = 0.1
"""Part of the number of data by which an objective's `size` may be off: so many nats its estimates of q(z) then are."""
SMALL = 1_000_000
"""Products of a step, at most, that are not worth a second thread."""
HEADER = (
    "epochs", "batch_size", "optimizer", "objective", "guide", "beta", "patience", "start", "compile", "accumulate",
    "precision", "seed", "alternate", "average",
)  # fmt: skip
"""Settings that a resumed run must share."""
