"""NUTS on ordinary Pyro models: Pyro's kernel, this package's records."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyro
import pyro.infer
import torch
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value

from ppl_vae.declare.pair import Arguments, PyroPair
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.progress import progress

if TYPE_CHECKING:
    from ppl_vae.infer.nuts import NUTS

__all__ = ["sample_pair"]


def sample_pair(engine: "NUTS", model: Any, data: Any) -> Fit:
    """NUTS of a Pyro model by Pyro's kernel, finite sites enumerated, chains one after the other."""
    if isinstance(model, tuple):
        model = model[0]
    begin = time.perf_counter()
    args = Arguments(data)
    program = pyro.infer.config_enumerate(model)
    _refuse_parameters(model, args)
    chains, divergences = [], []
    total = engine.num_chains * (engine.num_samples + engine.warmup)
    start = dict(engine.start) if not isinstance(engine.start, str) and engine.start is not None else None
    with torch.random.fork_rng([]), progress("NUTS", total, engine.progress) as update, pyro.get_param_store().scope():
        for chain in range(engine.num_chains):
            torch.manual_seed(engine.seed + chain)
            kernel = pyro.infer.NUTS(InitMessenger(init_to_value(values=start))(program) if start else program)
            done = chain * (engine.num_samples + engine.warmup)

            def hook(_k: object, _p: object, stage: str, i: int, done: int = done, chain: int = chain) -> None:
                extra = 0 if stage.lower().startswith("warm") else engine.warmup
                update(done + extra + i + 1, f"chain {chain + 1}, {stage}")

            mcmc = pyro.infer.MCMC(kernel, engine.num_samples, engine.warmup, disable_progbar=True, hook_fn=hook)
            mcmc.run(*args)
            chains.append(mcmc.get_samples())
            diverging = torch.zeros(engine.num_samples, dtype=torch.bool)
            diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
            divergences.append(diverging)
    diverging = torch.stack(divergences)
    count = int(diverging.sum())
    notes = (f"{count} of {diverging.numel()} transitions diverged: do not trust the tails",) if count else ()
    settings = {k: getattr(engine, k) for k in ("num_samples", "warmup", "num_chains", "seed")}
    return Fit(
        model=PyroPair(model), engine="NUTS", trace={}, bound="none: draws from the posterior",
        draws={name: torch.stack([c[name] for c in chains]) for name in chains[0]},
        status=Status("finished", f"{engine.num_chains} chains of {engine.warmup} + {engine.num_samples}", notes),
        seconds=time.perf_counter() - begin, seed=engine.seed, settings={**settings, "sampler": "pyro"}, data=args,
        sample_stats={"diverging": diverging},
    )  # fmt: skip


def _refuse_parameters(model: Callable[..., Any], args: Arguments) -> None:
    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        model(*args)
        names = sorted(pyro.get_param_store())
    if names:
        raise EngineError(f"NUTS samples what has a prior, and this Pyro model has free parameters: {', '.join(names)}")
