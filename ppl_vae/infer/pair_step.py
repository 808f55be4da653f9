"""Gradient steps on a Pyro pair: its loss as something to climb, and one traced step for a loop of one's own."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyro.infer
import pyro.optim
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_innermost_proxy_mode
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_vae.alone import forked_rng, unvalidated
from ppl_vae.declare.pair import Met, PyroPair
from ppl_vae.errors import EngineError
from ppl_vae.infer.processes import Share
from ppl_vae.infer.pyro_losses import loss_at, own_copy
from ppl_vae.infer.step import CHECK, NO_FACTOR, Frozen, Names, Pieces, Step, choose
from ppl_vae.infer.stepper import Stepper, stepper
from ppl_vae.infer.tracing import UntraceableError

__all__ = ["PairObjective", "PairStep"]

MOST = 8
"""Values of the arguments that are not tensors, each with a graph of its own; further ones run eagerly."""


class PairObjective:
    """Minus a Pyro loss, as a function of the pair's parameters and of the tensors among its arguments.

    Parameters
    ----------
    pair : PyroPair
        Ordinary Pyro programs.
    loss : pyro.infer.ELBO
        Any Pyro loss; it changes itself as it does in Pyro.
    args, kwargs : sequence, mapping
        Arguments of the programs. Tensors in them may change from step to step, everything else stays.
    weight : float
        What the total is divided by for the optimiser.
    look : bool
        Run the programs once, which makes their parameters, and shows which of them these arguments use, and which
        tensors from around the programs. Without it the steps are to be eager ones.

    Attributes
    ----------
    dense : list of Tensor
        Unconstrained parameters.

    Raises
    ------
    EngineError
        If the programs have no parameter.
    """

    num_rows = 0
    penalties: tuple[str, ...] = ()

    def __init__(
        self,
        pair: PyroPair,
        loss: pyro.infer.ELBO,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        weight: float = 1.0,
        look: bool = True,
    ) -> None:
        self.pair, self.loss = pair, loss
        self.leaves, self.spec = tree_flatten((tuple(args), dict(kwargs or {})))
        self.reached: list[Tensor] = []
        self.met: set[int] = set()
        self.around: list[Tensor] = []
        if look:
            self._look(args, kwargs or {})
        self.dense, self.frozen = pair.free(), Frozen(pair.store["params"].items())
        called = {id(p): name for name, p in pair.store["params"].items()}
        self.names: list[str] = [called[id(p)] for p in self.dense]
        self.row_names: list[str] = []
        if not self.dense:
            raise EngineError("this Pyro pair has no parameter: there is nothing to fit")
        self.weight = torch.tensor(weight, dtype=self.dense[0].dtype, device=self.dense[0].device)

    def _look(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Run the programs once, for what they have and use with these arguments."""
        pair = self.pair
        # What a loss remembers of a step, it remembers of the first one.
        loss = own_copy(self.loss) if pair.store["params"] else self.loss
        run = partial(loss.loss_and_grads, pair.program, pair.guide, *args, **kwargs)
        self.reached, self.around = pair.first_run(run, tree_flatten((args, kwargs))[0])

    def _arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = iter(tensors)
        found: Any = tree_unflatten([next(given) if isinstance(a, Tensor) else a for a in self.leaves], self.spec)
        return found

    def pieces(self, batch: Sequence[Tensor], beta: float = 1.0, count: int = 1) -> list[Pieces]:
        """The tensors of a step; what one datum is only the programs know, so there is but one piece."""
        if count != 1:
            raise EngineError(f"the arguments of a Pyro pair cannot be cut into accumulate={count} pieces")
        self.frozen.check()
        return [Pieces((), [*batch, *[t.detach() for t in self.around]], self.weight)]

    def sums(self, leaves: Sequence[Tensor], rest: Sequence[Tensor], names: Names = ()) -> tuple[Tensor, Tensor]:
        """Minus the loss, total, in nats, at these parameters and tensor arguments; twice."""
        pair, first = self.pair, len(rest) - len(self.around)
        args, kwargs = self._arguments(rest[:first])
        given = list(zip([*self.dense, *self.around], [*leaves, *rest[first:]], strict=True))
        with Met() as met, pair.parameters_in_place():
            value = -loss_at(self.loss, pair.program, pair.guide, given, args, kwargs, self.reached)
            self._check_store()
        self.met = {id(pair.store["params"][name]) for name in met.parameters}
        return value, value.detach()

    def _check_store(self) -> None:
        before, now = self.pair.store["params"], dict(pyro.get_param_store().named_parameters())
        new = sorted(set(now) - set(before))
        if new:
            raise EngineError(f"the parameters {', '.join(new)} appeared after the first run; make them in every run")
        written = sorted(name for name, p in before.items() if now.get(name) is not p)
        if written and get_innermost_proxy_mode() is not None:
            raise UntraceableError(f"the program itself writes its parameters {', '.join(written)}")

    def completed(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """As in Pyro: what was reached by some step gets zeros from one that has it without a gradient."""
        reached, given = self.pair.reached, list(gradients)
        for i, (p, gradient) in enumerate(zip(self.dense, gradients, strict=True)):
            if gradient is not None:
                reached.add(id(p))
            elif id(p) in reached and id(p) in self.met:
                given[i] = torch.zeros_like(p)
        return given

    def move_rows(self, batch: Any, gradients: Sequence[Any], share: Share) -> None:
        """A pair has no rows that are moved with a batch."""

    def blame(self, batch: Sequence[Tensor]) -> str:
        """The first site whose log density is not finite; empty where all are."""
        try:
            return self._blame(batch)
        except torch.linalg.LinAlgError:
            return NO_FACTOR

    def _blame(self, batch: Sequence[Tensor]) -> str:
        args, kwargs = self._arguments(batch)
        pair = self.pair
        with torch.no_grad(), unvalidated(), pair.parameters_in_place():
            for traces in self.loss._get_traces(pair.program, pair.guide, args, kwargs):
                for trace in traces:
                    trace.compute_log_prob()
                    for name, site in trace.nodes.items():
                        if site["type"] == "sample" and bool((site["log_prob"] - site["log_prob"]).isnan().any()):
                            return f"site {name}"
        return ""


class PairStep:
    """One step of SVI on an ordinary Pyro pair, traced: what `pyro.infer.SVI(...).step` does, without Pyro's cost.

    Parameters
    ----------
    model, guide : callable
        Ordinary Pyro programs of the same arguments. Modules in them are trained in place.
    optimizer : callable, torch.optim.Optimizer or pyro.optim.PyroOptim
        A factory such as `adam(1e-3)`, an optimiser over all the parameters, or Pyro's wrapper of one.
    loss : pyro.infer.ELBO
        Any Pyro loss.
    compile : {"auto", "inductor", "trace", "off"}
        "auto" is the plain graph.

    Attributes
    ----------
    pair : PyroPair
        `pair.values` are the parameters; within `pair.parameters_in_place()` Pyro's store holds them.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0).expand([3]).to_event(1), obs=x)
    >>> step = PairStep(model, lambda x: None, lambda p: torch.optim.SGD(p, lr=0.1), pyro.infer.Trace_ELBO())
    >>> step(torch.ones(3)).item()  # 3 log N(1; 0, 1)
    -4.256815433502197
    >>> round(step.pair.values["loc"].item(), 4)  # its gradient was 3
    0.3
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optimizer: Any,
        loss: pyro.infer.ELBO,
        compile: str = "auto",  # noqa: A002
    ) -> None:
        self.pair, self.loss = PyroPair(model, guide), own_copy(loss)
        self.mode = choose(compile, 0, 0, None)
        self.optimizer: Any = optimizer
        self.steps: dict[Any, Step] = {}
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step on these arguments; the bound, minus Pyro's loss, total, in nats.

        Raises
        ------
        EngineError
            If the bound or its gradient is not finite: the parameters are not moved then.
        """
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [a.detach() for a in leaves if isinstance(a, Tensor)]
        step = self._step(leaves, spec, args, kwargs)
        self.count += 1
        if self.count % CHECK == 2:
            self._verify(step, tensors)
        result = step(tensors)
        if not result.moved:
            at = step.climbed.blame(tensors)
            raise EngineError(f"{result.wrong}{at and f' at {at}'}; the parameters were not moved")
        return result.bound

    def _step(self, leaves: list[Any], spec: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        """The step for these arguments: of those that are no tensors, each set of values has its own."""
        still = [a for a in leaves if not isinstance(a, Tensor)]
        key = (spec, tuple([Tensor if isinstance(a, Tensor) else (type(a), a) for a in leaves]))
        try:
            if key not in self.steps and len(self.steps) < MOST:
                self.steps[key] = self._made(args, kwargs, self.mode)
            found = self.steps.get(key)
        except TypeError:  # an array, say: its numbers may change unseen
            found = None
        if found is None:
            warnings.warn(
                f"arguments of the types {sorted({type(a).__name__ for a in still})} change between steps, or may "
                f"change unseen, and a graph holds them as they were: pass tensors; after {MOST} such changes, or "
                "where they cannot be compared, steps run eagerly",
                stacklevel=4,
            )
            return self._made(args, kwargs, "off", look=not self.pair.store["params"])
        return found

    def _made(self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: str, look: bool = True) -> Step:
        devices = sorted({a.device.index or 0 for a in tree_flatten(args)[0] if isinstance(a, Tensor) and a.is_cuda})
        before = set(self.pair.store["params"])
        with forked_rng(devices):  # so that noise starts where pyro.infer.SVI's does
            objective = PairObjective(self.pair, self.loss, args, kwargs, look=look)
        if not isinstance(self.optimizer, Stepper):
            self.optimizer = _stepper(self.optimizer, self.pair)
        elif new := sorted(set(self.pair.store["params"]) - before):
            self.pair.forget(new)
            raise EngineError(
                f"with these arguments the programs have parameters that they did not have before, {', '.join(new)}: "
                "make all parameters in every run, as one tensor that the argument indexes"
            )
        return Step(objective, self.optimizer, mode)

    def _verify(self, step: Step, tensors: list[Tensor]) -> None:
        with unvalidated(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered ")  # NaN or inf: the step itself says so
            difference = step.check(tensors)
        if difference:
            warnings.warn(
                f"the graph differed from the program by {difference:.1e}: something that is no argument changes "
                "between steps; from here on it runs eagerly",
                stacklevel=3,
            )


def _stepper(optimizer: Any, pair: PyroPair) -> Stepper:
    """The optimiser over the pair's parameters, from a factory, from Pyro's wrapper, or as it was given."""
    if isinstance(optimizer, pyro.optim.PyroOptim):
        return _from_pyro(optimizer, pair)
    if not isinstance(optimizer, torch.optim.Optimizer):
        return stepper(optimizer(pair.free()))
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in pair.store["params"].items() if id(p) not in own]
    if missing:
        raise EngineError(
            f"the optimiser does not have the parameters {', '.join(missing)}: pass a factory such as pv.adam(1e-3)"
        )
    return stepper(optimizer)


def _from_pyro(optimizer: pyro.optim.PyroOptim, pair: PyroPair) -> Stepper:
    """One optimiser of torch's in the place of Pyro's one for each parameter."""
    options = optimizer.pt_optim_args
    if isinstance(optimizer, pyro.optim.PyroLRScheduler) or optimizer.pt_clip_args or callable(options):
        raise EngineError(
            "of Pyro's optimisers those with one set of options are taken; for schedules and clipping pass "
            "pv.scheduled(...) or pv.clipped(...)"
        )
    return stepper(optimizer.pt_optim_constructor(pair.free(), **options))
