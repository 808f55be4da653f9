"""NUTS on ordinary Pyro models: their log density on one flat vector, finite sites summed out by Pyro."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_uniform, init_to_value
from pyro.infer.mcmc.util import TraceEinsumEvaluator, initialize_model
from torch import Tensor

from ppl_vae.alone import forked_rng, seeded_rng, unvalidated
from ppl_vae.declare.pair import Arguments, PyroPair
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer.layout import Layout
from ppl_vae.infer.target import JITTER
from ppl_vae.objectives import max_plate_nesting

if TYPE_CHECKING:
    from ppl_vae.infer.nuts import NUTS

__all__ = ["PairPotential", "sample_pair"]


class PairPotential:
    """log p(X, theta) + log|d theta / d u| of a Pyro model at theta = T(u), finite sites summed out exactly.

    Parameters
    ----------
    model : callable
        A Pyro program without free parameters.
    args : Arguments
        Its arguments; tensors among them are inputs of the density, the others are fixed.
    start : mapping, optional
        Values of sites to start from; the others are drawn as Pyro draws them, uniformly in (-2, 2) of u.
    """

    def __init__(self, model: Callable[..., Any], args: Arguments, start: Mapping[str, Tensor] | None = None) -> None:
        self.args = args
        self.data = tuple(a for a in args if isinstance(a, Tensor))
        nesting = max_plate_nesting(model, _nothing, args)
        enumerated = pyro.infer.config_enumerate(model)
        self.program = poutine.enum(enumerated, first_available_dim=-1 - nesting)
        strategy = init_to_value(values=dict(start), fallback=init_to_uniform) if start else init_to_uniform
        try:
            params, _, transforms, trace = initialize_model(
                enumerated, args, max_plate_nesting=nesting, init_strategy=strategy
            )
        except (NotImplementedError, ValueError) as error:
            said = str(error).partition("\n")[0]  # the rest is a table of shapes
            raise EngineError(f"NUTS cannot start on this Pyro model: {said}{_gaps(args)}") from error
        finite = any(
            site["infer"].get("_enumerate_dim") is not None for site in trace.nodes.values() if "infer" in site
        )
        self.evaluator = TraceEinsumEvaluator(trace, finite, nesting)
        self.layout = Layout()
        for name in params:
            self.layout.add(name, trace.nodes[name]["value"].detach(), trace.nodes[name]["fn"].support)
        self.start = self.layout.unconstrain({name: transforms[name].inv(value) for name, value in params.items()})

    def log_density(self, u: Tensor, *data: Tensor) -> Tensor:
        """Log p(X, theta) + log|d theta / d u|, total nats."""
        given = iter(data or self.data)
        args = [next(given) if isinstance(a, Tensor) else a for a in self.args]
        values, log_jacobian = self.layout.constrain(u)
        trace = poutine.trace(poutine.condition(self.program, values)).get_trace(*args)
        return self.evaluator.log_prob(trace) + log_jacobian


def sample_pair(engine: "NUTS", model: Any, data: Any, weights: Any = None) -> Fit:
    """NUTS of a Pyro model, as of a declared one."""
    if weights is not None:
        raise EngineError("NUTS: weights= is for declared models; a Pyro model weighs its data itself")
    model = model[0] if isinstance(model, tuple) else model
    begin, args = time.perf_counter(), Arguments(data)
    pair = PyroPair(model)
    _refuse_parameters(model, args)
    with seeded_rng(engine.seed), unvalidated(), pyro.get_param_store().scope():
        start = _values(engine.start)
        potentials = [PairPotential(model, args, start) for _ in range(1 if start else engine.num_chains)]
        if not potentials[0].layout.size:
            raise EngineError("this Pyro model has nothing to sample: no continuous site without data")
        centers = torch.stack([p.start for p in potentials]).expand(engine.num_chains, -1)
        chains, how = engine.sample(pair, potentials[0], centers + JITTER * torch.randn_like(centers))
        draws = potentials[0].layout.draws(chains.u)
    return replace(engine.record(pair, draws, chains, how), seconds=time.perf_counter() - begin, data=args)


def _values(start: Any) -> dict[str, Tensor] | None:
    """Values by site of `NUTS(start=...)`; EM and k-means++ say nothing of a program's own sites."""
    if start is None or isinstance(start, str):
        return None
    return dict(start.parameters if isinstance(start, Fit) else start)


def _refuse_parameters(model: Callable[..., Any], args: Arguments) -> None:
    with pyro.get_param_store().scope(), forked_rng():
        poutine.trace(model).get_trace(*args)
        names = sorted(pyro.get_param_store())
    if names:
        raise EngineError(f"NUTS samples what has a prior, and this Pyro model has free parameters: {', '.join(names)}")


def _gaps(args: Arguments) -> str:
    """What to do about NaN in the data, if there are any."""
    if not any(isinstance(a, Tensor) and bool(a.isnan().any()) for a in args):
        return ""
    return (
        "; the data have NaN, of which a Pyro program knows nothing: leave them out by poutine.mask, or declare the "
        "model, which integrates them out"
    )


def _nothing(*args: Any) -> None:
    """The guide of a model that is only traced."""
