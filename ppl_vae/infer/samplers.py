"""The samplers that drive a potential: nutpie's and Pyro's."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.infer
import torch
from torch import Tensor

from ppl_vae.infer.parallel import threads
from ppl_vae.infer.potential import with_gradient
from ppl_vae.infer.progress import progress
from ppl_vae.infer.tracing import Traced

__all__ = ["JITTER", "SAMPLERS", "Target", "make_target"]

Stats = dict[str, Tensor]

JITTER = 0.1
"""Standard deviation, in unconstrained coordinates, by which starts differ."""


@dataclass(frozen=True)
class Target:
    """What is sampled: u to log density and gradient, and whether that is a graph, which several threads may call."""

    value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]
    traced: bool


def make_target(potential: Any, starts: Tensor, mode: str) -> Target:
    """The potential at its data, traced where it can be, and checked at a second point."""
    traced = Traced(with_gradient(potential.log_density), "trace" if mode == "auto" else mode, num_threads=1)
    data = potential.data
    traced(starts[0], *data)
    if traced.mode != "off" and traced.verify(starts[-1] + JITTER / 2, *data) > 1e-8:
        warnings.warn(
            "the model runs eagerly, since its graph is wrong elsewhere: control flow on values", stacklevel=3
        )
        traced.mode = "off"
    return Target(lambda u: traced(u, *data), traced.mode != "off")


class _OutsideError(Exception):
    """A step went where a covariance is no longer positive definite in rounding: nutpie counts it a divergence."""

    is_recoverable = True


def sample_nutpie(
    target: Target, starts: Tensor, num_samples: int, warmup: int, seed: int, show: bool
) -> tuple[np.ndarray, Stats]:
    """Chains [chain, draw, size] by nutpie, as many at once as there are cores."""
    with warnings.catch_warnings():
        # arviz 0.23, which nutpie imports, announces its successor once a day.
        warnings.filterwarnings("ignore", "(?s).*ArviZ is undergoing a major refactor.*", FutureWarning)
        import nutpie
        from nutpie import compiled_pyfunc

    chains, size = starts.shape

    def make_logp() -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        def logp(u: np.ndarray) -> tuple[float, np.ndarray]:
            try:
                value, gradient = target.value_and_gradient(torch.from_numpy(u))
            except torch.linalg.LinAlgError as error:
                raise _OutsideError(str(error)) from error
            return value.item(), gradient.numpy()

        return logp

    drawn = [0] * chains

    def make_expand(seed1: int, seed2: int, chain: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        def expand(u: np.ndarray) -> dict[str, np.ndarray]:
            drawn[chain % chains] += 1
            return {"u": u}

        return expand

    def initial(chain_seed: int) -> np.ndarray:
        # Chains ask in any order, from threads: their own seeds say which start is whose.
        generator = np.random.default_rng(chain_seed)
        return starts[generator.integers(chains)].numpy() + JITTER * generator.normal(size=size)

    model = compiled_pyfunc.from_pyfunc(
        size, make_logp, make_expand, [np.dtype("float64")], [(size,)], ["u"], make_initial_point_fn=initial
    )
    cores = 1 if not target.traced else min(chains, os.cpu_count() or 1)
    # Chains share the cores, not one chain's small kernels.
    with threads(1), progress("NUTS", chains * (num_samples + warmup), show) as update:
        sampler = nutpie.sample(
            model,
            draws=num_samples,
            tune=warmup,
            chains=chains,
            cores=cores,
            seed=seed,
            progress_bar=False,
            blocking=False,
            save_warmup=False,
        )
        trace = _wait(sampler, lambda: update(sum(drawn), "draws of all chains"))
    record = trace["sample_stats"]
    names = {"diverging": "diverging", "n_steps": "n_steps", "step_size": "step_size", "energy": "energy",
             "tree_depth": "depth", "acceptance_rate": "mean_tree_accept"}  # fmt: skip
    stats = {ours: torch.as_tensor(np.array(record[own].values)) for ours, own in names.items() if own in record}
    return np.array(trace["posterior"]["u"].values), stats


def _wait(sampler: Any, update: Callable[[], None]) -> Any:
    try:
        while True:
            try:
                return sampler.wait(timeout=0.5)
            except TimeoutError:
                update()
    except KeyboardInterrupt:
        sampler.abort()
        raise


def sample_pyro(
    target: Target, starts: Tensor, num_samples: int, warmup: int, seed: int, show: bool
) -> tuple[np.ndarray, Stats]:
    """Chains [chain, draw, size] by Pyro's kernel, one after the other."""
    draws, stats = [], []
    total = len(starts) * (num_samples + warmup)
    with progress("NUTS", total, show) as update:
        for chain, start in enumerate(starts):
            torch.manual_seed(seed + chain)
            kernel = pyro.infer.NUTS(potential_fn=_PyroPotential(target))
            done = chain * (num_samples + warmup)

            def hook(_k: object, _p: object, stage: str, i: int, done: int = done, chain: int = chain) -> None:
                offset = i if stage.lower().startswith("warm") else warmup + i
                update(done + offset + 1, f"chain {chain + 1}, {stage}")

            mcmc = pyro.infer.MCMC(
                kernel, num_samples, warmup, initial_params={"u": start.clone()}, disable_progbar=True, hook_fn=hook
            )
            mcmc.run()
            draws.append(mcmc.get_samples()["u"].numpy())
            diverging = torch.zeros(num_samples, dtype=torch.bool)
            diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
            stats.append(diverging)
    return np.stack(draws), {"diverging": torch.stack(stats)}


class _PyroPotential:
    """Pyro asks for minus the log density and differentiates it: give it the traced gradient."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        return -_Traced.apply(parameters["u"], self.target.value_and_gradient)


class _Traced(torch.autograd.Function):
    """A scalar function whose gradient comes with its value."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, gradient = function(u.detach())
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


SAMPLERS: dict[str, Callable[..., tuple[np.ndarray, Stats]]] = {"nutpie": sample_nutpie, "pyro": sample_pyro}
