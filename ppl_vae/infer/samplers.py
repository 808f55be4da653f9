"""The samplers that drive a target: nutpie's and Pyro's."""

import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pyro.infer
import torch
from torch import Tensor

from ppl_vae.alone import lent
from ppl_vae.errors import EngineError
from ppl_vae.infer.parallel import threads
from ppl_vae.infer.target import JITTER, Target
from ppl_vae.infer.watch import Chains, Plan, Watch, complete
from ppl_vae.progress import Ration, progress

__all__ = ["SAMPLERS"]


# nutpie.


class _OutsideError(Exception):
    """A step went where a covariance is no longer positive definite in rounding: nutpie counts it a divergence."""

    is_recoverable = True


STATS = {
    "diverging": "diverging",
    "n_steps": "n_steps",
    "step_size": "step_size",
    "energy": "energy",
    "tree_depth": "depth",
    "acceptance_rate": "mean_tree_accept",
    "lp": "logp",
    "energy_error": "energy_error",
    "step_size_bar": "step_size_bar",
    "reached_max_treedepth": "maxdepth_reached",
}
"""Our names (ArviZ's) of nutpie's statistics."""


def sample_nutpie(target: Target, starts: Tensor, plan: Plan) -> Chains:
    """Chains by nutpie, as many at once as there are cores where that is quicker than one after the other."""
    with warnings.catch_warnings():
        # arviz 0.23, which nutpie imports, announces its successor once a day.
        warnings.filterwarnings("ignore", "(?s).*ArviZ is undergoing a major refactor.*", FutureWarning)
        import nutpie
    chains = len(starts)
    # Chains share the cores, not one chain's small kernels.
    with threads(1), progress("NUTS", chains * plan.length, plan.show) as update:
        watch = Watch(plan, chains, update)
        cores = _at_once(target, starts[0], min(chains, os.cpu_count() or 1))
        sampler = nutpie.sample(
            _nutpie_model(target, starts, watch),
            draws=plan.num_samples,
            tune=plan.warmup,
            chains=chains,
            cores=cores,
            seed=plan.seed,
            progress_bar=False,
            blocking=False,
            save_warmup=False,
        )
        try:
            trace = _wait(sampler, watch)
        except BaseException as error:  # nutpie's own is no Exception, and says nothing to a user
            if not watch.failures and "initialization points failed" not in str(error):
                raise
            if not watch.failures:
                raise EngineError(
                    "the log density or its gradient is not finite where a chain starts; pass start= with values where "
                    "both are, or give the parameters narrower priors"
                ) from error
            raise EngineError(f"the log density failed while it was sampled: {watch.failures[0]}") from error
    record, u = trace["sample_stats"], np.array(trace["posterior"]["u"].values)
    stats = {ours: torch.as_tensor(np.array(record[own].values)) for ours, own in STATS.items() if own in record}
    ended = plan.hooks.stopped
    return Chains(u, stats) if ended is None else complete(u, stats, ended)


TRIAL = 0.05
"""Seconds that a trial of one thread takes, about."""


def _at_once(target: Target, u: Tensor, most: int) -> int:
    """Threads for the chains: their Python takes turns, so that several only pay where torch's own work is longer.

    The draws are the same in any case.
    """
    if most == 1 or target.mode == "off":  # Pyro's handlers are global: an eager model has one thread
        return 1

    def calls(count: int) -> float:
        begin = time.perf_counter()
        with lent():
            for _ in range(count):
                target.value_and_gradient(u)
        return time.perf_counter() - begin

    with suppress(Exception), ThreadPoolExecutor(most, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        count = max(2, min(200, int(TRIAL / max(calls(2) / 2, 1e-6))))
        list(pool.map(calls, [1] * most))
        begin = time.perf_counter()
        list(pool.map(calls, [count] * most))
        if time.perf_counter() - begin < 0.9 * most * calls(count):
            return most
    return 1  # a density that fails does so again where that is told


def _nutpie_model(target: Target, starts: Tensor, watch: Watch) -> Any:
    from nutpie import compiled_pyfunc

    chains, size = starts.shape
    begun: list[int] = []
    known = threading.local()

    def make_logp() -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        def logp(u: np.ndarray) -> tuple[float, np.ndarray]:
            if not hasattr(known, "threads"):  # of every new thread OpenMP thinks that it has all cores
                torch.set_num_threads(1)
                known.threads = 1
            try:
                with lent():  # the fit waits for this thread of the sampler's
                    value, gradient = target.value_and_gradient(torch.from_numpy(u))
            except torch.linalg.LinAlgError as error:
                raise _OutsideError(str(error)) from error
            except Exception as error:
                watch.failures.append(error)
                raise
            return value.item(), gradient.numpy()

        return logp

    def make_expand(seed1: int, seed2: int, chain: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        begun.append(len(begun))
        number, made = begun[-1], iter(range(watch.total))  # nutpie calls every chain 0

        def expand(u: np.ndarray) -> dict[str, np.ndarray]:
            watch.note(number, next(made))
            return {"u": u}

        return expand

    def initial(chain_seed: int) -> np.ndarray:
        # Chains ask in any order, from threads: their own seeds say which start is whose.
        generator = np.random.default_rng(chain_seed)
        return starts[generator.integers(chains)].numpy() + JITTER * generator.normal(size=size)

    return compiled_pyfunc.from_pyfunc(
        size, make_logp, make_expand, [np.dtype("float64")], [(size,)], ["u"], make_initial_point_fn=initial
    )


LOOK = 2.0
"""Seconds between two counts of the divergences so far, at least."""


def _wait(sampler: Any, watch: Watch) -> Any:
    """The trace, when the sampler is done or was told to stop; an error, of a callback or Ctrl-C, ends its threads."""
    with warnings.catch_warnings():
        # arviz wonders at a table in which no chain has draws yet.
        warnings.filterwarnings("ignore", "More chains", UserWarning)
        try:
            return _trace(sampler, watch)
        except BaseException:
            with suppress(BaseException):  # a sampler that failed cannot be cancelled
                sampler.cancel()
            raise


def _trace(sampler: Any, watch: Watch) -> Any:
    said, looks = "draws of all chains", Ration(LOOK, LOOK)
    while True:
        try:
            trace = sampler.wait(timeout=0.1)
        except TimeoutError:
            if watch.plan.show and looks.due():
                with looks.spent():  # a copy of all draws so far
                    diverged = int(sampler.inspect()["sample_stats"]["diverging"].sum())
                said = f"draws of all chains, {diverged} diverged"
            if not watch.told(said):
                return sampler.abort()
        else:
            watch.told(said)
            return trace


# Pyro.


def sample_pyro(target: Target, starts: Tensor, plan: Plan) -> Chains:
    """Chains by Pyro's kernel, one after the other."""
    draws: list[np.ndarray] = []
    diverging: list[Tensor] = []
    with progress("NUTS", len(starts) * plan.length, plan.show) as update:
        watch = Watch(plan, len(starts), update)
        for chain, start in enumerate(starts):
            torch.manual_seed(plan.seed + chain)
            u, diverged = _pyro_chain(target, start, plan, watch, chain, sum(int(d.sum()) for d in diverging))
            draws.append(u)
            diverging.append(diverged)
            if plan.hooks.stopped is not None:
                break
    short = np.full((len(draws), plan.num_samples, starts.shape[1]), np.nan)
    flags = torch.zeros(short.shape[:2], dtype=torch.bool)
    for chain, (u, diverged) in enumerate(zip(draws, diverging, strict=True)):
        short[chain, : len(u)], flags[chain, : len(u)] = u, diverged[: len(u)]
    ended = plan.hooks.stopped
    stats = {"diverging": flags}
    return Chains(short, stats) if ended is None else complete(short, stats, ended)


class _EndedError(Exception):
    """A callback ended a chain of Pyro's."""


def _pyro_chain(
    target: Target, start: Tensor, plan: Plan, watch: Watch, chain: int, diverged: int
) -> tuple[np.ndarray, Tensor]:
    """Draws [draw, size], and which of them diverged."""
    kept: list[Tensor] = []
    kernel = pyro.infer.NUTS(potential_fn=_PyroPotential(target))

    def hook(_kernel: Any, params: dict[str, Tensor], stage: str, i: int) -> None:
        warming = stage.lower().startswith("warm")
        if not warming:
            kept.append(params["u"].detach().clone())
        watch.note(chain, i if warming else plan.warmup + i)
        if not watch.told(f"chain {chain + 1}, {stage.lower()}, {diverged + len(kernel._divergences)} diverged"):
            raise _EndedError

    mcmc = pyro.infer.MCMC(
        kernel, plan.num_samples, plan.warmup, initial_params={"u": start.clone()}, disable_progbar=True, hook_fn=hook
    )
    with suppress(_EndedError):
        mcmc.run()
    flags = torch.zeros(plan.num_samples, dtype=torch.bool)
    flags[[i for i in kernel._divergences if 0 <= i < plan.num_samples]] = True
    u = torch.stack(kept).numpy() if kept else np.empty((0, len(start)))
    return u, flags


class _PyroPotential:
    """Pyro asks for minus the log density and differentiates it: give it the traced gradient."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        return -_Given.apply(parameters["u"], self.target.value_and_gradient)


class _Given(torch.autograd.Function):
    """A scalar function whose gradient comes with its value."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, gradient = function(u.detach())
        ctx.save_for_backward(gradient)
        return value.double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


SAMPLERS: dict[str, Callable[[Target, Tensor, Plan], Chains]] = {"nutpie": sample_nutpie, "pyro": sample_pyro}
