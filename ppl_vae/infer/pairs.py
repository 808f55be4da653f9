"""The engines on ordinary Pyro programs: Pyro's own losses and kernels, this package's records."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyro
import pyro.infer
import torch
from pyro.infer.autoguide import AutoDelta, init_to_sample
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vae.alone import alone, seeded_rng
from ppl_vae.declare.around import around_kept
from ppl_vae.declare.identity import fingerprint, portrait
from ppl_vae.declare.pair import Arguments, PyroPair
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.callbacks import Callbacks, Run
from ppl_vae.infer.checkpoint import Checkpoint
from ppl_vae.infer.identity import described
from ppl_vae.infer.loop import History, Loop
from ppl_vae.infer.optimizers import build
from ppl_vae.infer.pair_step import PairObjective, PairStep
from ppl_vae.infer.processes import Share, joined
from ppl_vae.infer.pyro_losses import own_copy
from ppl_vae.infer.random_state import own_random
from ppl_vae.infer.step import Step, choose
from ppl_vae.infer.stepper import Stepper
from ppl_vae.objectives import max_plate_nesting, trace_sites
from ppl_vae.objectives.tracing import data_plate, is_point
from ppl_vae.progress import progress

if TYPE_CHECKING:
    from ppl_vae.infer.em import EM
    from ppl_vae.infer.svi import SVI

__all__ = ["fit_pair", "maximize_pair", "pair_step"]


def fit_pair(engine: "SVI", model: Callable[..., Any], guide: Callable[..., Any], data: Any) -> Fit:
    """SVI of a Pyro pair with the Pyro loss that its sites ask for; one epoch is one step on the arguments.

    Several processes all do the same, and the first one writes.
    """
    begin = time.perf_counter()
    _refuse_settings(engine)
    pair, args = PyroPair(model, guide), Arguments(data)
    n, tensors = args.count(), [a for a in tree_leaves(tuple(args)) if isinstance(a, Tensor)]
    with alone(), joined(torch.device("cpu")) as share, own_random(engine.seed, {a.device for a in tensors}):
        with around_kept(), pair.parameters_in_place():
            loss = own_copy(pyro_loss(engine, model, guide, args))
        climbed = PairObjective(pair, loss, args, weight=float(n))
        optimizer = build(engine.optimizer, climbed.dense)
        count = sum(p.numel() for p in climbed.dense)
        step = Step(climbed, optimizer, choose(engine.compile, count, n, engine.epochs))
        history, status = _trained(engine, pair, step, optimizer, args, share)
        draws = _shared_draws(pair, args, engine.num_draws)
    return Fit(
        model=pair, engine="SVI", draws=draws, trace=history.tensors(), bound=f"{type(loss).__name__}, nats per datum",
        status=status, seconds=time.perf_counter() - begin, seed=engine.seed,
        settings={**engine._settings(), "compile": step.mode}, data=args,
    )  # fmt: skip


def _trained(
    engine: "SVI", pair: PyroPair, step: Step, optimizer: Stepper, args: Arguments, share: Share
) -> tuple[History, Status]:
    leaves = tree_leaves(tuple(args))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    run = Run("SVI", pair, engine.epochs, 1, engine._settings(), share=share)
    module, whole = cast(Any, pair), cast(Any, _Whole(tensors))  # what the loop asks of a module and of batches
    header = {
        "engine": "SVI", "model": portrait(pair.program), "guide": portrait(pair.guide),
        "data": fingerprint({str(i): t for i, t in enumerate(tensors)}),
        "arguments": [described(leaf) for leaf in leaves if not isinstance(leaf, Tensor)],
        "parameters": {name: list(value.shape) for name, value in pair.state_dict().items()},
        **{name: described(getattr(engine, name)) for name in ("epochs", "optimizer", "objective", "compile", "seed")},
    }  # fmt: skip
    with (
        Checkpoint(engine.checkpoint, share) as checkpoint,
        progress("SVI", engine.epochs, engine.progress and share.leads) as update,
    ):
        state = checkpoint.opened(header)
        run.first = 0 if state is None else state["steps"]
        hooks = Callbacks(engine.callbacks, run)
        loop = Loop(
            module, step, whole, optimizer, engine.epochs, checkpoint=checkpoint,
            callbacks=hooks, update=update, seed=engine.seed,
        )  # fmt: skip
        with hooks:
            history, status = loop.run(state)
            hooks.status = status
    return history, status


@dataclass(frozen=True)
class _Whole:
    """All arguments at every step."""

    tensors: list[Tensor]
    steps: int = 1

    def epoch(self, number: int, start: int = 0) -> Iterator[list[Tensor]]:
        """One batch."""
        return iter([self.tensors][start:])


WHOLE: dict[str, Any] = {
    "batch_size": None, "guide": "normal", "beta": 1.0, "validation": None, "patience": None, "start": "auto",
    "accumulate": 1, "precision": "full", "alternate": None, "average": 1 / 3,
}  # fmt: skip
"""Settings that only a declaration gives a meaning, at the values that do nothing."""


def _refuse_settings(engine: "SVI") -> None:
    given = [
        name for name, none in WHOLE.items() if getattr(engine, name) is not none and getattr(engine, name) != none
    ]
    if given:
        raise EngineError(f"a Pyro pair is fitted whole: {', '.join(given)} are for declared models")


def pair_step(
    pair: tuple[Callable[..., Any], Callable[..., Any]],
    optimizer: Any,
    objective: Any = None,
    compile: str = "auto",  # noqa: A002
) -> PairStep:
    """One traced step of SVI on (model, guide), for a loop of one's own; `PairStep` says what it takes.

    Raises
    ------
    EngineError
        If the objective is none of Pyro's.
    """
    model, guide = pair
    chosen = pyro.infer.Trace_ELBO() if objective is None else objective
    if not isinstance(chosen, pyro.infer.ELBO):
        raise EngineError(f"a step on a Pyro pair takes one of Pyro's losses, such as Trace_ELBO(); got {chosen!r}")
    return PairStep(model, guide, optimizer, chosen, compile)


def pyro_loss(engine: "SVI", model: Callable[..., Any], guide: Callable[..., Any], args: Arguments) -> pyro.infer.ELBO:
    """TraceEnum_ELBO where something is enumerated, TraceMeanField_ELBO for an analytic KL, else Trace_ELBO."""
    if isinstance(engine.objective, pyro.infer.ELBO):
        return engine.objective
    kl = getattr(engine.objective, "kl", None)
    if kl is None or not engine.objective.is_bound:
        raise EngineError(f"a Pyro pair is fitted by its ELBO; {engine.objective} is for declared models")
    nesting = max_plate_nesting(model, guide, args)
    with pyro.poutine.block():
        guide_trace = pyro.poutine.trace(guide).get_trace(*args)
        trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(*args)
    marked = [s for t in (trace, guide_trace) for s in t.nodes.values() if s.get("infer", {}).get("enumerate")]
    enum = pyro.infer.TraceEnum_ELBO
    kinds: dict[tuple[bool, str], type] = {(True, "sampled"): enum, (True, "analytic"): enum}
    kinds |= {(False, "sampled"): pyro.infer.Trace_ELBO, (False, "analytic"): pyro.infer.TraceMeanField_ELBO}
    return kinds[bool(marked), kl](num_particles=engine.objective.num_particles, max_plate_nesting=nesting)


def _shared_draws(pair: PyroPair, args: Arguments, count: int) -> dict[str, Tensor]:
    """Draws of the guide's sites that are not of single data, [1, count, *event]; one of a guide that is a point."""
    drawn: dict[str, list[Tensor]] = {}
    with torch.no_grad(), pair.statistics_kept(), pair.parameters_in_place():
        trace = pyro.poutine.trace(pair.guide).get_trace(*args)
        own = _whole_plates(pair.program, trace, args)
        sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
        names = [
            name
            for name, site in sites.items()
            if not site["infer"].get("is_auxiliary")
            and not pyro.poutine.util.site_is_subsample(site)
            and all(frame.name in own for frame in site["cond_indep_stack"] if frame.vectorized)
        ]
        if not names:
            return {}
        for _ in range(1 if is_point(trace) else count):
            trace = pyro.poutine.trace(pair.guide).get_trace(*args)
            for name in names:
                drawn.setdefault(name, []).append(trace.nodes[name]["value"].detach())
    return {name: torch.stack(values)[None] for name, values in drawn.items()}


def _whole_plates(program: Callable[..., Any], guide_trace: Any, args: Arguments) -> set[str]:
    """Names of the plates that are not of the data and are run whole, such as those of groups or components."""
    with pyro.poutine.block():
        trace = pyro.poutine.trace(pyro.poutine.replay(program, trace=guide_trace)).get_trace(*args)
    try:
        data = data_plate(pyro.poutine.util.prune_subsample_sites(trace))
    except EngineError:  # which plate is the data's is not known
        return set()
    frames = [frame for site in trace.nodes.values() for frame in site.get("cond_indep_stack", ())]
    return {frame.name for frame in frames if frame.name != data and frame.full_size in (None, frame.size)}


def maximize_pair(engine: "EM", model: Callable[..., Any], data: Any) -> Fit:
    """Generalised EM of a Pyro model with finite latents: exact responsibilities, then gradient steps that raise Q.

    Q is that of the mode where the model draws latents that are not of single data: log p(theta) is part of it.
    """
    begin = time.perf_counter()
    args = Arguments(data)
    bounds: list[float] = []
    status = Status("max_iter", f"{engine.max_iter} iterations did not reach tol {engine.tol:g}")
    n = args.count()
    with seeded_rng(engine.seed), progress("EM", engine.max_iter, engine.progress) as update:
        shared = _shared_latents(model, args)
        if shared and engine.estimate == "ml":
            raise EngineError(
                f'EM of a Pyro program has no estimate="ml": it draws {", ".join(shared)}; make them pyro.param, or '
                'take estimate="map"'
            )
        mode = AutoDelta(pyro.poutine.block(model, expose=shared), init_to_sample) if shared else None
        pair = PyroPair(pyro.infer.config_enumerate(model), mode)
        drawn = pair.draws_latents(args)
        pair.start_from_store()
        for iteration in range(engine.max_iter):
            with torch.no_grad():
                sites = pair.sites(args)
                if drawn or not sites.summed:
                    raise EngineError(f"EM needs finite latents, enumerated; this model has {drawn or 'none'}")
                joint = sites.joint()
                evidence = torch.logsumexp(joint.flatten(0, -2), 0)
                r = (joint - evidence).exp()
                bounds.append((evidence.sum() + sites.shared_log_p).item())
            if not math.isfinite(bounds[-1]):
                bad = evidence.isfinite().logical_not().nonzero().flatten()
                where = f": that of datum {bad[0]} is {evidence[bad[0]].item()}" if len(bad) else ""
                status = Status("failed", f"the log-likelihood became {bounds.pop()} at iteration {iteration}{where}")
                break
            update(iteration, f"log-likelihood {bounds[-1] / n:.4f} per datum")
            gain = (bounds[-1] - bounds[-2]) / n if len(bounds) > 1 else float("inf")
            if gain <= engine.tol * max(1.0, abs(bounds[-1]) / n):
                status = Status("converged", f"gain below {engine.tol:g} per datum after {iteration} iterations")
                break
            _raise_q(pair, args, r)
    return Fit(
        model=pair, engine="EM", draws=_shared_draws(pair, args, 1),
        trace={"bound": torch.tensor(bounds, dtype=torch.float64)},
        bound="log p(X | theta) + log p(theta)" if shared else "log p(X | theta)", status=status,
        seconds=time.perf_counter() - begin, seed=engine.seed, settings=engine._settings(), data=args,
    )  # fmt: skip


def _shared_latents(model: Callable[..., Any], args: Arguments) -> list[str]:
    """Latents that follow a gradient and are not of single data.

    Raises
    ------
    EngineError
        If the data are subsampled or scaled, or a finite latent is not of single data.
    """
    with pyro.poutine.block(), torch.no_grad(), pyro.get_param_store().scope():
        trace = pyro.poutine.util.prune_subsample_sites(pyro.poutine.trace(model).get_trace(*args))
    data, shared = data_plate(trace), []
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        own = [frame for frame in site["cond_indep_stack"] if frame.name == data]
        if any(frame.full_size not in (None, frame.size) for frame in own):
            raise EngineError(
                f"EM goes over all data at once, and the plate {data!r} takes {own[0].size} of {own[0].full_size}: "
                "leave out its subsample_size"
            )
        if not _is_one(site["scale"]):
            raise EngineError(f"EM of a Pyro program takes no poutine.scale, and {name!r} is scaled: declare the model")
        if not own and not site["is_observed"]:
            if site["fn"].has_enumerate_support:
                raise EngineError(
                    f"EM sums out the finite latents of each datum, and {name!r} is one for all data: fit a model for "
                    "each of its values and compare them"
                )
            shared.append(name)
    return shared


def _is_one(scale: Any) -> bool:
    return bool((torch.as_tensor(scale) == 1).all())


def _raise_q(pair: PyroPair, args: Arguments, r: Tensor) -> None:
    """LBFGS on Q(theta) = sum_i E_r[log p(x_i, z)]: its line search takes only steps that raise it."""
    with pair.parameters_in_place():
        optimizer = torch.optim.LBFGS(pair.free(), max_iter=10, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            sites = trace_sites(pair.program, pair.guide, args)
            # A value that the model rules out has responsibility 0, and 0 * -inf is not 0.
            loss = -torch.where(r > 0, r * sites.joint(), 0.0).sum() - sites.shared_log_p
            loss.backward()
            return loss

        optimizer.step(closure)
