"""The engines on ordinary Pyro programs: Pyro's own losses and kernels, this package's records."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyro
import pyro.infer
import torch
from torch import Tensor

from ppl_vae.declare.pair import Arguments, PyroPair
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.loop import StepResult, train
from ppl_vae.infer.progress import progress
from ppl_vae.objectives import max_plate_nesting, trace_sites

if TYPE_CHECKING:
    from ppl_vae.infer.em import EM
    from ppl_vae.infer.svi import SVI

__all__ = ["fit_pair", "maximize_pair"]


def fit_pair(engine: "SVI", model: Callable[..., Any], guide: Callable[..., Any], data: Any) -> Fit:
    """SVI of a Pyro pair with the Pyro loss that its sites ask for; one epoch is one step on the arguments."""
    begin = time.perf_counter()
    pair, args = PyroPair(model, guide), Arguments(data)
    with torch.random.fork_rng([]):
        torch.manual_seed(engine.seed)
        with pair.parameters_in_place():
            loss = pyro_loss(engine, model, guide, args)
            loss.differentiable_loss(model, guide, *args)  # the first run makes the parameters
        optimizer = engine.optimizer(pair.free())
        n = args.count()

        def step(rows: Tensor, epoch: float) -> StepResult:
            with pair.parameters_in_place():
                optimizer.zero_grad()
                value = loss.differentiable_loss(model, guide, *args)
                value.backward()
            if bool(torch.isfinite(value)):
                optimizer.step()
            return StepResult(-value.detach(), -value.detach(), torch.tensor(float(n)))

        with progress("SVI", engine.epochs, engine.progress) as update:
            history, status = train(
                torch.nn.Module(), step, None, size=n, batch_size=n, epochs=engine.epochs, patience=None,
                generator=torch.Generator(), update=update,
            )  # fmt: skip
        draws = _shared_draws(pair, args, engine.num_draws)
    return Fit(
        model=pair, engine="SVI", draws=draws, trace=history.tensors(), bound="ELBO, nats per datum", status=status,
        seconds=time.perf_counter() - begin, seed=engine.seed, settings=engine._settings(), data=args,
    )  # fmt: skip


def pyro_loss(engine: "SVI", model: Callable[..., Any], guide: Callable[..., Any], args: Arguments) -> pyro.infer.ELBO:
    """TraceEnum_ELBO where something is enumerated, TraceMeanField_ELBO for an analytic KL, else Trace_ELBO."""
    if isinstance(engine.objective, pyro.infer.ELBO):
        return engine.objective
    if engine.beta != 1.0 or engine.batch_size is not None or engine.validation is not None:
        raise EngineError("a Pyro pair is fitted whole: beta, batch_size and validation are for declared models")
    particles, kl = engine.objective.num_particles, getattr(engine.objective, "kl", None)
    if kl is None:
        raise EngineError(f"a Pyro pair is fitted by its ELBO; {engine.objective} is for declared models")
    nesting = max_plate_nesting(model, guide, args)
    with pyro.poutine.block():
        guide_trace = pyro.poutine.trace(guide).get_trace(*args)
        trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(*args)
    marked = [s for t in (trace, guide_trace) for s in t.nodes.values() if s.get("infer", {}).get("enumerate")]
    enum = pyro.infer.TraceEnum_ELBO
    kinds: dict[tuple[bool, str], type] = {(True, "sampled"): enum, (True, "analytic"): enum}
    kinds |= {(False, "sampled"): pyro.infer.Trace_ELBO, (False, "analytic"): pyro.infer.TraceMeanField_ELBO}
    return kinds[bool(marked), kl](num_particles=particles, max_plate_nesting=nesting)


def _shared_draws(pair: PyroPair, args: Arguments, count: int) -> dict[str, Tensor]:
    """Draws of the guide's sites outside every plate, [1, count, *event]."""
    drawn: dict[str, list[Tensor]] = {}
    with torch.no_grad(), pair.parameters_in_place():
        trace = pyro.poutine.trace(pair.guide).get_trace(*args)
        names = [
            name
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["infer"].get("is_auxiliary")
            and not pyro.poutine.util.site_is_subsample(site)
            and not any(frame.vectorized for frame in site["cond_indep_stack"])
        ]  # fmt: skip
        if not names:
            return {}
        for _ in range(count):
            trace = pyro.poutine.trace(pair.guide).get_trace(*args)
            for name in names:
                drawn.setdefault(name, []).append(trace.nodes[name]["value"])
    return {name: torch.stack(values)[None] for name, values in drawn.items()}


def maximize_pair(engine: "EM", model: Callable[..., Any], data: Any) -> Fit:
    """Generalised EM of a Pyro model with finite latents: exact responsibilities, then gradient steps that raise Q."""
    begin = time.perf_counter()
    pair, args = PyroPair(pyro.infer.config_enumerate(model)), Arguments(data)
    bounds: list[float] = []
    status = Status("max_iter", f"{engine.max_iter} iterations did not reach tol {engine.tol:g}")
    n = args.count()
    with torch.random.fork_rng([]), progress("EM", engine.max_iter, engine.progress) as update:
        torch.manual_seed(engine.seed)
        drawn = pair.draws_latents(args)
        for iteration in range(engine.max_iter):
            with torch.no_grad():
                sites = pair.sites(args)
                if drawn or not sites.summed:
                    raise EngineError(f"EM needs finite latents, enumerated; this model has {drawn or 'none'}")
                joint = sites.joint()
                evidence = torch.logsumexp(joint.flatten(0, -2), 0)
                r = (joint - evidence).exp()
                bounds.append((evidence.sum() + sites.shared_log_p).item())
            update(iteration, f"log-likelihood {bounds[-1] / n:.4f} per datum")
            gain = (bounds[-1] - bounds[-2]) / n if len(bounds) > 1 else float("inf")
            if gain <= engine.tol * max(1.0, abs(bounds[-1]) / n):
                status = Status("converged", f"gain below {engine.tol:g} per datum after {iteration} iterations")
                break
            _raise_q(pair, args, r)
    return Fit(
        model=pair, engine="EM", draws={}, trace={"bound": torch.tensor(bounds, dtype=torch.float64)},
        bound="log p(X | theta)", status=status, seconds=time.perf_counter() - begin, seed=engine.seed,
        settings=engine._settings(), data=args,
    )  # fmt: skip


def _raise_q(pair: PyroPair, args: Arguments, r: Tensor) -> None:
    """LBFGS on Q(theta) = sum_i E_r[log p(x_i, z)]: its line search takes only steps that raise it."""
    with pair.parameters_in_place():
        optimizer = torch.optim.LBFGS(pair.free(), max_iter=10, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            sites = trace_sites(pair.program, pair.guide, args)
            loss = -(r * sites.joint()).sum() - sites.shared_log_p
            loss.backward()
            return loss

        optimizer.step(closure)
