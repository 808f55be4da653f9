"""An ordinary Pyro model and guide, asked the questions that a declared model answers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.declare.answers import log_classes, log_weights
from ppl_vae.declare.around import around_kept, values_kept
from ppl_vae.errors import EngineError
from ppl_vae.evidence import Evidence, exact, importance
from ppl_vae.objectives import Elbo, Sites, trace_sites

__all__ = ["Arguments", "Met", "PyroPair", "check_program"]


class Arguments(tuple):
    """Positional arguments of a Pyro program; the first tensor says how many data there are."""

    def __new__(cls, data: Any) -> "Arguments":
        """A tuple of arguments as it is, anything else as the only one."""
        return super().__new__(cls, data if isinstance(data, tuple) else (data,))

    def count(self) -> int:  # type: ignore[override]
        """Number of rows of the first tensor."""
        return next((len(a) for a in self if isinstance(a, Tensor) and a.dim()), 1)


class Met(Messenger):
    """Within the block, the unconstrained parameters that programs meet, each as it was at first, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        self.parameters.setdefault(msg["name"], msg["value"].unconstrained())


class PyroPair:
    """(model, guide) with parameters of its own, kept apart from Pyro's global store.

    Parameters
    ----------
    model, guide : callable
        Ordinary Pyro programs of the same arguments. Modules that they close over are used in place.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> value = PyroPair(model, guide).elbo(torch.zeros(1))  # q is the posterior: the bound is log N(0; 0, 2)
    >>> round(value.item(), 4)
    -1.2655
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any] | None = None) -> None:
        check_program(model)
        self.program, self.guide = model, guide or _nothing
        self.store: dict[str, dict[str, Any]] = {"params": {}, "constraints": {}}
        self.statistics: list[Tensor] = []
        self.reached: set[int] = set()
        self.started: set[str] = set()
        self._bound: dict[str, Tensor] = {}

    @contextmanager
    def parameters_in_place(self) -> Iterator[None]:
        """Within the block Pyro's store holds this pair's parameters, and only those."""
        with pyro.get_param_store().scope(self.store) as state:
            yield
        self.store = state

    @property
    def values(self) -> dict[str, Tensor]:
        """Constrained parameters by name."""
        with self.parameters_in_place():
            return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    def free(self) -> list[Tensor]:
        """Unconstrained parameters, for an optimiser: of `pyro.param`, `pyro.module` and of PyroModules.

        One that has several names, as where both programs register a network, comes once.
        """
        return list({id(p): p for p in self.store["params"].values() if p.requires_grad}.values())

    def first_run(self, run: Callable[[], Any], given: Iterable[Any] = ()) -> tuple[list[Tensor], list[Tensor]]:
        """Run the programs once with their gradient, which makes the parameters.

        Gives the parameters that it reached, and the tensors beside these and the arguments `given` that the programs
        compute with or change, as batch normalisation its statistics; what changed is put back.
        """
        before = [(p, p.grad) for p in self.free()]
        for p, _ in before:
            p.grad = None
        with around_kept(given) as around, Met() as met, self.parameters_in_place():
            run()
        with torch.no_grad():
            for name, first in met.parameters.items():  # a loss may have written another one: a decaying average
                self.store["params"][name].copy_(first)
        self.start_from_store()
        reached = [p for p in self.free() if p.grad is not None]
        for p, gradient in [*((p, None) for p in reached), *before]:
            p.grad = gradient
        own = {id(p) for p in self.store["params"].values()}
        taken = {id(t): t for t in [*around.taken, *around.changed] if id(t) not in own}
        kept = {id(t): t for t in [*self.statistics, *around.buffers, *around.changed]}
        self.statistics = list(kept.values())
        return reached, list(taken.values())

    def start_from_store(self) -> None:
        """Give new parameters the values of the same names in Pyro's store, as Pyro does; the store stays as it is.

        Raises
        ------
        EngineError
            If one there has another shape.
        """
        outer = pyro.get_param_store().get_state()
        for name in self.store["params"].keys() - self.started:
            own, value = self.store["params"][name], outer["params"].get(name)
            self.started.add(name)
            if value is None:
                continue
            if value.shape != own.shape:
                raise EngineError(
                    f"Pyro's parameter store has {name} of shape {tuple(value.shape)}, these programs make it of "
                    f"{tuple(own.shape)}: pyro.clear_param_store() where that is of another model"
                )
            with torch.no_grad():
                own.copy_(value)
            self.store["constraints"][name] = outer["constraints"][name]

    def statistics_kept(self) -> AbstractContextManager[None]:
        """Within the block programs may run, and change what they change at a step: it is put back."""
        return values_kept(self.statistics)

    def forget(self, names: Iterable[str]) -> None:
        """Take these parameters out of the store."""
        for name in names:
            for column in self.store.values():
                column.pop(name, None)

    def parameters(self) -> list[Tensor]:
        """Unconstrained parameters, as of a module."""
        return self.free()

    def sites(self, data: Any) -> Sites:
        """Factors at one draw of the guide, scales removed, masks kept."""
        with self.parameters_in_place():
            model = poutine.condition(self.program, self._bound) if self._bound else self.program
            guide = poutine.block(self.guide, hide=list(self._bound)) if self._bound else self.guide
            return trace_sites(model, guide, Arguments(data), given=self._bound)

    bound_sites = sites
    """A pair has no penalties."""

    def elbo(self, data: Any, num_particles: int = 1) -> Tensor:
        """The bound of each datum, [n] nats, mean over draws of the guide."""
        with torch.no_grad():
            return torch.stack([Elbo()(self.sites(data)) for _ in range(num_particles)]).mean(0)

    def evidence(self, data: Any, num_particles: int = 100) -> Evidence:
        """Log p(x_i): exact when the guide has nothing to draw for a datum, else by importance weights."""
        with torch.no_grad():
            if self.draws_latents(data):
                return importance(self.all_log_weights(data, num_particles))
            return exact(self.all_log_weights(data, 1)[0])

    def all_log_weights(self, data: Any, count: int) -> Tensor:
        """Log p(x_i, z_s) - log q(z_s), [count, n]."""
        return torch.cat([log_weights(self.sites(data), 1) for _ in range(count)])

    log_weights = all_log_weights
    """One run of a program is of one draw."""

    def badly_covered(self, data: Any, count: int) -> Tensor:
        """None of the data: a guide is taken as it is."""
        return torch.zeros(0, dtype=torch.long)

    def log_prob(self, data: Any, num_particles: int = 100) -> Tensor:
        """Log p(x_i), [n] nats."""
        return self.evidence(data, num_particles).value

    def responsibilities(self, data: Any, num_particles: int = 100) -> Tensor:
        """p(z = k | x_i) of the one finite latent, [n, K]; see LatentVariableModel.responsibilities."""
        with torch.no_grad():
            sites = self.sites(data)
            finite = {**sites.enumerated, **sites.summed}
            if len(finite) != 1:
                raise EngineError(f"responsibilities need one enumerated site, this pair has {list(finite) or 'none'}")
            more = num_particles - 1 if sites.drawn else 0
            each = [sites, *(self.sites(data) for _ in range(more))]
            each_draw = torch.cat([log_classes(one, next(iter(finite)), 1) for one in each])
        return torch.softmax(torch.logsumexp(each_draw, 0), -1)

    def posterior(self, data: Any) -> Any:
        """Distributions of the guide's sites for each datum."""
        sites = self.sites(data)
        return next(iter(sites.q.values())) if len(sites.q) == 1 else sites.q

    def finite_latents(self, data: Any) -> list[str]:
        """Latents whose probabilities can be had for many draws at once: none, a program runs for one."""
        return []

    def draws_latents(self, data: Any) -> list[str]:
        """Latents of each datum that the guide draws."""
        return self.sites(data).drawn

    def draws_without_posterior(self, data: Any) -> list[str]:
        """Latents of each datum that the guide leaves out: none, it draws them all."""
        return []

    # What a Fit asks of any model.

    def check(self, data: Any) -> Arguments:
        """The arguments, as they are."""
        return data if isinstance(data, Arguments) else Arguments(data)

    @contextmanager
    def numeric(self) -> Iterator[None]:
        """A Pyro program makes its constants as it does."""
        yield

    def families(self) -> dict[str, Any]:
        """A Pyro program owns no family."""
        return {}

    def shared_laws(self) -> dict[str, Any]:
        """Laws of shared latents are known to the program only."""
        return {}

    @contextmanager
    def bind(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let `values` stand for shared sites within the block."""
        before, self._bound = self._bound, {**self._bound, **values}
        try:
            yield
        finally:
            self._bound = before

    def fix(self, values: Mapping[str, Tensor]) -> None:
        """Give shared sites these values for good."""
        self._bound = {**self._bound, **values}

    def to(self, dtype: torch.dtype) -> "PyroPair":
        """A program decides its own dtype."""
        return self

    @property
    def like(self) -> Tensor:
        """An empty tensor of the parameters' dtype."""
        return next((p.new_empty(0) for p in self.store["params"].values()), torch.empty(0))

    guide_name: str | None = None
    local_size: int | None = None

    def rebuild(self, guide: str | None, local: int | None, shapes: Any) -> None:
        """Parameters come with the state; nothing is to be made anew."""

    def state_dict(self) -> dict[str, Tensor]:
        """Unconstrained parameters by name, then what steps change beside them, and modules' floating buffers."""
        parameters = {name: p.detach() for name, p in self.store["params"].items()}
        return parameters | {f"buffer {i}": b.detach() for i, b in enumerate(self.statistics)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take such a state; the pair must have run once, so that constraints and buffers are known."""
        with torch.no_grad():
            for name, own in self.state_dict().items():
                own.copy_(state[name])


def check_program(model: Any) -> None:
    """Refuse what is neither a declaration nor a Pyro program."""
    if isinstance(model, type):
        raise EngineError(f"a model is an object of its class: pass {model.__name__}(...) instead of the class itself")
    if not callable(model):
        raise EngineError(
            f"a model is a declaration or an ordinary Pyro program, got {type(model).__name__}; the order is "
            "engine.fit(model, data)"
        )


def _nothing(*args: Any, **kwargs: Any) -> None:
    """The guide of a model that has nothing to draw."""
