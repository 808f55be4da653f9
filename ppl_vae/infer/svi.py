"""Stochastic variational inference: gradient ascent on the evidence lower bound (000 (39)-(41), 004 s.6)."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import DataError, EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer.initial import initial_values
from ppl_vae.infer.loop import StepResult, train
from ppl_vae.infer.optimizers import OptimizerFactory, adam
from ppl_vae.infer.progress import progress
from ppl_vae.infer.weights import check_weights
from ppl_vae.objectives import Elbo, Objective, elbo

__all__ = ["SVI", "svi_step"]


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
        `elbo()`, `elbo(num_particles, kl="analytic")`, `iwae(num_particles)`.
    guide : str or callable
        q of the shared latents: "normal", "lowrank", "multivariate", "delta", or a Pyro autoguide class.
    beta : float or callable
        Weight of the KL term, or a function of the epoch such as `linear(0, 1, epochs=10)`.
    validation : data, optional
        Held-out data whose bound is recorded every epoch.
    patience : int, optional
        Epochs without a better held-out bound before stopping; the best state is kept.
    start : "auto", None, mapping or Fit
        Where shared latents and family parameters start; "auto" runs a short EM where EM applies.
    num_draws : int
        Draws of the shared latents kept in the Fit.
    seed : int
        Seed of shuffling, noise and starts.
    progress : bool
        Show progress.

    Raises
    ------
    EngineError
        For an unknown guide, or patience without validation data.

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
    num_draws: int = 1000
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise EngineError(f"SVI: epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if self.patience is not None and self.validation is None:
            raise EngineError("SVI: patience needs validation data to watch; pass validation=")

    def fit(self, model: Any, data: Any, weights: Any = None) -> Fit:
        """Fit a copy of the model.

        Parameters
        ----------
        model : LatentVariableModel or (model, guide)
            A declaration, which is not changed, or an ordinary Pyro pair.
        data : Tensor, array, data frame or mapping
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

            program, guide = model
            return fit_pair(self, program, guide, data)
        begin = time.perf_counter()
        fitted = deepcopy(model).requires_grad_(True)
        fitted = fitted.to(data_dtype(data, fitted.like.dtype))
        obs = fitted.check(data)
        w = check_weights(weights, len(obs)).to(fitted.like)
        devices = [fitted.like.device] if fitted.like.device.type == "cuda" else []
        with torch.random.fork_rng(devices), pyro.validation_enabled(False):
            torch.manual_seed(self.seed)
            self._prepare(fitted, obs, w if weights is not None else None)
            history, status = self._train(fitted, obs, w)
            fitted.eval().requires_grad_(False)
            draws, stats = self._draw(fitted)
        if fitted.shared_laws() and draws and next(iter(draws.values())).shape[1] == 1:
            fitted.fix({name: value[0, 0] for name, value in draws.items()})
        return Fit(
            model=fitted,
            engine="SVI",
            draws=draws,
            trace=history.tensors(),
            bound="ELBO, nats per datum",
            status=status,
            seconds=time.perf_counter() - begin,
            seed=self.seed,
            settings=self._settings(),
            data=obs,
            weights=None if weights is None else w,
            sample_stats=stats,
        )

    def _settings(self) -> dict[str, Any]:
        names = ("epochs", "batch_size", "patience", "num_draws", "seed")
        spoken = {k: str(getattr(self, k)) for k in ("optimizer", "objective", "guide", "beta")}
        return {**{k: getattr(self, k) for k in names}, **spoken}

    def _prepare(self, model: LatentVariableModel, obs: Observations, weights: Tensor | None) -> None:
        model.adapt(obs, weights)
        start = initial_values(self.start, model, obs, weights, self.seed)
        laws = model.shared_laws()
        if start:
            model.fix({name: value for name, value in start.items() if name not in laws})
        if laws:
            own = None if start is None else {name: start[name] for name in laws}
            model.use_guide(self.guide, own)
        with model.numeric():
            model.allocate(obs, len(obs))
        model.train()

    def _train(self, model: LatentVariableModel, obs: Observations, w: Tensor) -> tuple[Any, Any]:
        dense, sparse = split_parameters(model)
        if not dense and not sparse:
            raise EngineError(f"{type(model).__name__} has no parameter and no shared latent: there is nothing to fit")
        optimizers = [self.optimizer(dense)] if dense else []
        if sparse:
            like = optimizers[0] if dense else self.optimizer([torch.zeros(1)])
            optimizers.append(torch.optim.SparseAdam(sparse, lr=like.param_groups[0]["lr"]))
        total = w.sum()
        objective, size = self.objective, len(obs)

        def step(rows: Tensor, epoch: float) -> StepResult:
            beta = self.beta(epoch) if callable(self.beta) else self.beta
            # Repairing a NaN is impossible, so the step is taken only when everything is finite.
            return _step(model, optimizers, objective, obs.rows(rows), rows, w[rows], total, beta)

        validate = None
        if self.validation is not None:
            held_out = model.check(self.validation)
            validate = lambda: self._validate(model, held_out)  # noqa: E731
        generator = torch.Generator().manual_seed(self.seed)
        with progress("SVI", self.epochs, self.progress) as update, model.numeric():
            return train(
                model,
                step,
                validate,
                size=size,
                batch_size=min(self.batch_size or size, size),
                epochs=self.epochs,
                patience=self.patience,
                generator=generator,
                update=update,
            )

    def _validate(self, model: LatentVariableModel, obs: Observations) -> float:
        devices = [model.like.device] if model.like.device.type == "cuda" else []
        # The same noise every epoch, so that epochs can be compared.
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self.seed)
            model.eval()
            values, _ = model.draw_shared()
            with model.bind(values):
                bound = model.elbo(obs).mean().item()
            model.train()
        return bound

    def _draw(self, model: LatentVariableModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if not model.shared_laws():
            return {}, {}
        count = 1 if model.guide_name == "delta" else self.num_draws
        with torch.no_grad(), model.numeric():
            drawn = [model.draw_shared() for _ in range(count)]
            log_prior = torch.stack([model.log_prior(values) for values, _ in drawn])
        draws = {name: torch.stack([values[name] for values, _ in drawn])[None] for name in drawn[0][0]}
        log_q = torch.stack([torch.as_tensor(log_q) for _, log_q in drawn])
        return draws, {"log_q": log_q[None], "log_prior": log_prior[None]}


def data_dtype(data: Any, default: torch.dtype) -> torch.dtype:
    """Dtype of the first floating tensor or array in the data; data frames and tables are float64."""
    values = data.values() if isinstance(data, dict) else [data]
    for value in values:
        dtype: Any = getattr(getattr(value, "probabilities", value), "dtype", None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return dtype
        if getattr(dtype, "kind", None) == "f":
            return torch.float32 if dtype.itemsize <= 4 else torch.float64
        if dtype is None and not isinstance(value, list | tuple):
            return torch.float64
    return default


def split_parameters(model: LatentVariableModel) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters moved at every step, and those with one row per datum, moved only where the batch is."""
    sparse: list[Tensor] = [p for p in model.local_posteriors.parameters() if p.requires_grad]
    rows = {id(p) for p in sparse}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in rows], sparse


def _step(
    model: LatentVariableModel,
    optimizers: list[torch.optim.Optimizer],
    objective: Objective,
    batch: Observations,
    index: Tensor,
    w: Tensor,
    total: Tensor,
    beta: float,
) -> StepResult:
    """One step on -(n/m) sum_i w_i L_i - beta (log p(theta) - log q(theta)), per datum (000 (39))."""
    particles = objective.num_particles
    values, log_q = model.draw_shared()
    with model.bind(values):
        sites = model.sites(batch.repeat(particles), index.repeat(particles) if model.local_posteriors else None)
        shared = model.log_prior(values) - log_q
        share = w.sum() / total
        value = (w * objective(sites, beta)).sum() + share * beta * shared
        bound = value if beta == 1.0 and isinstance(objective, Elbo) else _bound(sites, particles, w) + share * shared
    loss = -value / w.sum()
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    if bool(torch.isfinite(loss)):
        for optimizer in optimizers:
            optimizer.step()
    return StepResult(bound.detach(), value.detach(), w.sum())


def _bound(sites: Any, particles: int, w: Tensor) -> Tensor:
    with torch.no_grad():
        return (w * Elbo(particles)(sites)).sum()


def svi_step(
    model: LatentVariableModel,
    optimizer: torch.optim.Optimizer,
    size: int | None = None,
    objective: Objective | None = None,
) -> Callable[..., Tensor]:
    """A function of a batch that takes one step on the given model, for a loop of one's own.

    Parameters
    ----------
    model : LatentVariableModel
        Trained in place.
    optimizer : torch.optim.Optimizer
        Over `model.parameters()`.
    size : int, optional
        Number of data in the whole set, required when the model has shared latents.
    objective : Objective, optional
        `elbo()` by default.

    Returns
    -------
    callable
        (batch, beta=1.0) to the bound of the batch, nats per datum.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> vae = pv.models.VAE(pv.nets.mlp_encoder(4, 8, 1), pv.nets.mlp_decoder(1, 8, 4))
    >>> step = pv.svi_step(vae, torch.optim.Adam(vae.parameters()))
    >>> step(torch.zeros(16, 4)).shape
    torch.Size([])
    """
    chosen = objective or elbo()
    if model.shared_laws():
        if size is None:
            raise EngineError("svi_step: shared latents have a share of each batch: pass size=, the number of data")
        if model.shared_guide is None:
            raise EngineError("svi_step: shared latents need a q: call model.use_guide(...) before the optimizer")

    def step(batch: Any, beta: float = 1.0) -> Tensor:
        obs = model.observe(batch)
        if model.local_posteriors:
            raise DataError("svi_step has no rows of the data set to give a per-datum q; use SVI(...).fit")
        w = torch.ones(len(obs), dtype=model.like.dtype, device=model.like.device)
        total = w.new_tensor(float(size or len(obs)))
        with model.numeric():
            result = _step(model, [optimizer], chosen, obs, torch.arange(len(obs)), w, total, beta)
        if not bool(torch.isfinite(result.objective)):
            raise EngineError(f"the objective became {result.objective.item()}; the parameters were not moved")
        return result.bound / result.weight

    return step
