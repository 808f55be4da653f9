"""One traced step at a time, for a loop of one's own."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_vae.alone import full_precision, unvalidated
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.checks import as_taken, check
from ppl_vae.errors import DataError, EngineError
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import Batch
from ppl_vae.infer.schedules import within
from ppl_vae.infer.step import CHECK, Step, choose
from ppl_vae.infer.stepper import stepper
from ppl_vae.objectives import Objective, elbo

__all__ = ["svi_step"]


def svi_step(
    model: Any,
    optimizer: Any,
    size: int | None = None,
    objective: Objective | None = None,
    compile: str = "auto",  # noqa: A002
    precision: str = "full",
) -> Callable[..., Tensor]:
    """A function of a batch that takes one step on the given model, for a loop of one's own.

    The step is traced at the first batch of each size; keep to one size.

    Parameters
    ----------
    model : LatentVariableModel or (model, guide)
        Trained in place.
    optimizer : torch.optim.Optimizer or callable
        Over `model.parameters()`, or a factory such as `adam(1e-3)`; for a Pyro pair also one of `pyro.optim`.
    size : int, optional
        Number of data in the whole set, required when the model has shared latents; a Pyro pair says it in its plate.
    objective : Objective, optional
        `elbo()` by default; for a Pyro pair any `pyro.infer.ELBO`.
    compile : {"auto", "inductor", "trace", "off"}
        As in `SVI`; "auto" is the plain graph.
    precision : {"full", "bf16"}
        As in `SVI`, for declared models; an autocast around the step changes nothing there, and a Pyro pair follows it.

    Returns
    -------
    callable
        (batch, beta=1.0) to the bound of the batch, nats per datum. For a Pyro pair it takes the arguments of the
        programs and returns the bound, minus Pyro's loss, in total nats.

    Raises
    ------
    EngineError
        If the model has shared latents and no size or guide, all its parameters are frozen, or the optimiser has none
        of them. From the step, if beta is negative, a parameter was frozen, unfrozen or cast since the step was made,
        or the objective or its gradient is not finite: the parameters are not moved then.
    DataError
        From the step, if the batch does not fit the model.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> vae = pv.models.VAE(pv.nets.mlp_encoder(4, 8, 1), pv.nets.mlp_decoder(1, 8, 4))
    >>> step = pv.svi_step(vae, torch.optim.Adam(vae.parameters()))
    >>> step(torch.zeros(16, 4)).shape
    torch.Size([])
    """
    if isinstance(model, tuple):
        from ppl_vae.infer.pairs import pair_step

        if size is not None:
            raise EngineError("svi_step: size= is for declared models; a Pyro pair says it in its plate")
        if precision != "full":
            raise EngineError("svi_step: precision= is for declared models")
        return pair_step(model, optimizer, objective, compile)
    if model.shared_laws():
        if size is None:
            raise EngineError("svi_step: shared latents have a share of each batch: pass size=, the number of data")
        if model.shared_guide is None:
            raise EngineError("svi_step: shared latents need a q: call model.use_guide(...) before the optimizer")
    return _OwnStep(model, optimizer, size, objective or elbo(), choose(compile, 0, 0, None), precision)


def _check_parameters(optimizer: Any, climbed: ModelObjective) -> None:
    model = climbed.model
    if not climbed.dense:
        frozen = any(True for _ in model.parameters())
        what = "all parameters are frozen: call model.requires_grad_(True)" if frozen else "it has no parameter"
        raise EngineError(f"svi_step: there is nothing to fit in this {type(model).__name__}; {what}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in moved for p in model.parameters()):
        raise EngineError(
            f"svi_step: the optimiser has none of the parameters of this {type(model).__name__}; make it over "
            "model.parameters() of the model that is passed, or pass a factory such as pv.adam(1e-3)"
        )


class _OwnStep:
    """Batches of a user's loop, given to a step made at the first of them."""

    def __init__(
        self,
        model: LatentVariableModel,
        optimizer: Any,
        size: int | None,
        objective: Objective,
        mode: str,
        precision: str,
    ) -> None:
        self.model = model
        self.climbed = ModelObjective(model, objective, float(size or 1), annealed=True, precision=precision)
        if self.climbed.sparse:
            raise DataError("svi_step has no rows of the data set to give a per-datum q; use SVI(...).fit")
        _check_parameters(optimizer, self.climbed)
        made = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(self.climbed.dense)
        self.step = Step(self.climbed, stepper(made), mode)
        self.ones: dict[int, Tensor] = {}
        self.kinds: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}
        self.count = 0

    def __call__(self, batch: Any, beta: float = 1.0) -> Tensor:
        """One step; the bound of the batch, nats per datum."""
        within(beta, 0, lambda beta: beta >= 0, "svi_step: beta must be a number that is not negative")
        beta = float(beta)
        obs = self._taken(self.model.observe(batch))
        n = len(obs)
        if n not in self.ones:
            self.ones[n] = torch.ones(n, dtype=self.model.like.dtype, device=self.model.like.device)
        own = Batch(obs, self.ones[n], None, n)
        if not self.count:
            self._adapt(obs)
        self.count += 1
        with unvalidated(), full_precision(own.weights.device.type):
            if self.count % CHECK == 2:
                self._check(own, beta)
            result = self.step(own, beta)
            at = "" if result.moved else self.climbed.blame(own)
        if not result.moved:
            raise EngineError(f"{result.wrong}{at and f' at {at}'}; the parameters were not moved")
        return result.bound / result.weight

    def _taken(self, obs: Observations) -> Observations:
        """Counts as numbers of the nodes' dtype and labels as whole ones, checked where they are not so already."""
        kinds = tuple(
            [(name, getattr(value, "dtype", None), name in obs.missing) for name, value in obs.values.items()]
        )
        if kinds in self.kinds:
            return self._checked(obs, self.kinds[kinds])
        laws, fixed = self.model.trial(obs)
        taken = all(as_taken(d, obs.values[n], n in obs.missing) for n, d in laws.items() if n in obs.values)
        self.kinds[kinds] = None if taken else (laws, fixed)
        found = self._checked(obs, self.kinds[kinds])
        self.model.try_posteriors(laws, found)
        return found

    def _checked(self, obs: Observations, against: tuple[Any, ...] | None) -> Observations:
        if against is None:
            return obs
        with self.model.numeric():
            return check(type(self.model).__name__, self.model._graph, against[0], obs, None, against[1])

    def _adapt(self, obs: Observations) -> None:
        """Units of the likelihoods' floors, but where a fit or a file has told them: there training goes on."""
        for likelihood, x in self.model.floored(obs).items():
            if likelihood.unit == 1:
                likelihood.adapt(x)

    def _check(self, batch: Batch, beta: float) -> None:
        difference = self.step.check(batch, beta)
        if difference:
            warnings.warn(
                f"the graph differed from the model by {difference:.1e}: something that is not a tensor changes "
                "between steps; from here on it runs eagerly",
                stacklevel=3,
            )
