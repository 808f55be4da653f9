"""What a declared model is before any data: its nodes, the numbers it computes in, and its shared latents."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, ClassVar, Self

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoLaplaceApproximation, init_to_value
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.nn.parameter import is_lazy

from ppl_vae.alone import alone, forked_rng, full_precision
from ppl_vae.declare.counted import Counted, Units
from ppl_vae.declare.guides import GUIDES
from ppl_vae.declare.identity import buffers, held, settings, sources
from ppl_vae.declare.nodes import Graph, Node, collect, inherit
from ppl_vae.errors import DataError, DeclarationError, EngineError
from ppl_vae.families import Family
from ppl_vae.objectives.tracing import is_point

__all__ = ["Law", "SharedLatents"]

Law = Callable[[Mapping[str, Tensor]], TorchDistribution]


class SharedLatents(PyroModule):
    """Nodes of a class, dtype and device, and the latents outside the data plate with their guide."""

    _graph: ClassVar[Graph] = Graph()
    _reserved: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._graph = collect(cls, inherit(cls.__mro__[1:]), cls._reserved)

    def __init__(self) -> None:
        super().__init__()
        self._bound: dict[str, Tensor] = {}
        # What a model without a single number of its own computes in, so that .double() reaches it too.
        self.register_buffer("_blank", torch.empty(0), persistent=False)
        self.local_posteriors = nn.ModuleDict()
        self.shared_units = nn.ModuleDict()
        self.shared_guide: PyroModule | None = None
        self.guide_name: str | None = None
        self._columns: Mapping[str, tuple[str, ...]] = {}
        # Posteriors whose laws cannot be tiled: they are run on every copy of the data.
        self._untiled: set[str] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith(("_pyro", "__")) and "_pyro_name" not in vars(self):
            raise DeclarationError(
                f"{type(self).__name__}.__init__ sets {name!r} too early: make super().__init__() its first line"
            )
        if name in self._graph.nodes or name in self._graph.inputs or name in self._graph.penalties:
            raise DeclarationError(
                f"{type(self).__name__}: the attribute {name!r} would hide the node {name!r}; give one another name"
            )
        if name in self._reserved and callable(getattr(type(self), name)):
            raise DeclarationError(
                f"{type(self).__name__}: the attribute {name!r} would hide the method {name!r} of every model; give it "
                f"another name"
            )
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A model is not a function; the error says what to call."""
        raise EngineError(
            f"{type(self).__name__} is not called itself: model(data) and guide(data) are its Pyro programs, "
            f"engine.fit(model, data) fits it"
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the model conditions on."""
        return self._graph.inputs

    @property
    def inputs_of_draws(self) -> tuple[str, ...]:
        """Those of the inputs that draws of the nodes depend on, not a posterior or a penalty alone."""
        parents = {parent for node in self._graph.nodes.values() for parent in node.parents}
        return tuple(name for name in self._graph.inputs if name in parents)

    # Numbers.

    @property
    def like(self) -> Tensor:
        """An empty tensor with the dtype and device that the nodes compute in."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point() and tensor is not self._blank and not is_lazy(tensor):
                return tensor.new_empty(0)
        return self._blank.new_empty(0)

    @contextmanager
    def numeric(self) -> Iterator[None]:
        """Nodes compute in the dtype and on the device of the parameters, whatever is automatic around it."""
        with ExitStack() as stack:
            stack.enter_context(alone())
            like, before = self.like, torch.get_default_dtype()
            stack.enter_context(full_precision(like.device.type))
            if like.device.type != "cpu":
                stack.enter_context(like.device)
            torch.set_default_dtype(like.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    @contextmanager
    def aside(self, seed: int | None = None) -> Iterator[None]:
        """What is drawn within the block counts nowhere else; with a seed it is the same each time."""
        device = self.like.device
        with forked_rng([device] if device.type == "cuda" else []):
            if seed is not None:
                torch.manual_seed(seed)
            yield

    @contextmanager
    def buffers_kept(self) -> Iterator[None]:
        """Buffers that networks change within the block, as running statistics, are put back after it."""
        before = [(b, b.clone()) for b in self.buffers() if not is_lazy(b)]
        try:
            yield
        finally:
            for b, value in before:
                if not torch.equal(b, value):
                    b.copy_(value)

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Batch normalisation and its like stand still within the block, and go on afterwards where they did before."""
        before = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, training in before.items():
                module.training = training

    def know(self, columns: Mapping[str, tuple[str, ...]]) -> None:
        """Names of the data's columns, by node: data with others in these places are refused from now on."""
        self._columns = {**self._columns, **columns}

    def unfitted(self) -> Self:
        """A copy to be fitted to data of whatever columns."""
        lazy = next((name for name, buffer in self.named_buffers() if is_lazy(buffer)), None)
        if lazy is not None:
            raise EngineError(
                f"{lazy} belongs to a lazy module, whose buffers cannot be copied before it has seen data: run the "
                "model once, model.eval().elbo(data[:4]), then model.train()"
            )
        copy = deepcopy(self)
        copy._columns = {}
        return copy

    # Shared latents: parameters with a prior, and latents declared shared.

    def families(self) -> dict[str, Family]:
        """The families that the model owns, by path."""
        return {path: m for path, m in self.named_modules() if isinstance(m, Family)}

    def family_defaults(self) -> dict[str, Tensor]:
        """Starting values of every family parameter, by name."""
        return {f"{path}.{k}": v for path, f in self.families().items() for k, v in f.defaults().items()}

    def shared_laws(self) -> dict[str, Law]:
        """p(theta): the law of every shared latent given those before it."""
        laws: dict[str, Law] = {}
        for path, family in self.families().items():
            if family.prior is not None:
                for parameter in family.constraints:
                    laws[f"{path}.{parameter}"] = _family_law(path, family, parameter)
        for node in self._graph.of_kind("latent", shared=True):
            laws[node.name] = self._node_law(node)
        return laws

    def shared_by_hand(self) -> list[str]:
        """The shared latents that no family owns."""
        return [node.name for node in self._graph.of_kind("latent", shared=True)]

    def free_parameters(self) -> dict[str, nn.Parameter]:
        """Networks' and other parameters that no family owns, by name."""
        owned = {id(p) for family in self.families().values() for p in family.parameters()}
        return {name: p for name, p in self.named_parameters() if id(p) not in owned}

    def frozen_parameters(self) -> list[str]:
        """Those of `free_parameters` that their owner froze by `requires_grad_(False)`; an engine freezes all."""
        of_fits = (module for module in self.modules() if getattr(module, "_of_fit", False))
        moved = {id(p) for module in of_fits for p in module.parameters(recurse=False)}
        return [name for name, p in self.free_parameters().items() if not p.requires_grad and id(p) not in moved]

    def _identity(self) -> dict[str, Any]:
        """What the model is beside what training moves, in JSON: its modules' settings, code and values that stay."""
        return {"settings": settings(self), "code": sources(self), "held": held(self), "buffers": buffers(self)}

    def count_free(self) -> int:
        """Number of free scalars: K - 1 of K weights, d (d + 1) / 2 of a covariance; none of what has a prior."""
        frozen = self.frozen_parameters()
        found = sum(p.numel() for name, p in self.free_parameters().items() if name not in frozen)
        for family in self.families().values():
            for name, value in {} if family.prior is not None else family.values().items():
                found += biject_to(family.parameter_constraint(name)).inverse_shape(value.shape).numel()
        return found

    def _node_law(self, node: Node) -> Law:
        raise NotImplementedError

    def log_prior(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(theta) of drawn shared latents, total, in nats."""
        total = self.like.new_zeros(())
        for name, law in self.shared_laws().items():
            total = total + law(values).log_prob(values[name])
        return total

    @contextmanager
    def bind(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let `values` stand for shared latents and family parameters, named as in a Fit, within the block."""
        families = self.families()
        before = self._bound
        with ExitStack() as stack:
            for path, own in _by_family(values, families).items():
                stack.enter_context(families[path].bind(own))
            self.__dict__["_bound"] = {**before, **{k: v for k, v in values.items() if k in self._graph.nodes}}
            try:
                yield
            finally:
                self.__dict__["_bound"] = before

    @contextmanager
    def unbound(self) -> Iterator[None]:
        """Within the block shared latents declared by hand have no values."""
        before = self._bound
        self.__dict__["_bound"] = {}
        try:
            yield
        finally:
            self.__dict__["_bound"] = before

    def fix(self, values: Mapping[str, Tensor]) -> None:
        """Give shared latents and family parameters these values: answers use them, and EM's `frozen` keeps them.

        Raises
        ------
        DataError
            If a name is neither a shared latent nor a family's parameter.
        """
        families = self.families()
        owned = _by_family(values, families)
        by_hand = {name: value for name, value in values.items() if name in self.shared_by_hand()}
        known = [*(f"{path}.{name}" for path, family in families.items() for name in family.constraints)]
        for name in values:
            if name not in known and name not in by_hand:
                raise DataError(f"fix got {name!r}; the model has {', '.join([*known, *self.shared_by_hand()])}")
        for path, own in owned.items():
            families[path].fix(own)
        self.__dict__["_bound"] = {**self._bound, **by_hand}

    def fixed(self) -> dict[str, Tensor]:
        """The values that `fix` gave, by name."""
        found = dict(self._bound)
        for path, family in self.families().items():
            found |= {f"{path}.{name}": getattr(family, name).detach() for name in family.fixed}
        return found

    def draw_shared(self) -> tuple[dict[str, Tensor], Tensor]:
        """One draw of the shared latents from their guide, and its log q, total."""
        laws = self.shared_laws()
        if not laws:
            return {}, self.like.new_zeros(())
        # Pyro's automatic guides write into its global store; theirs is thrown away, the parameters are the module's.
        with pyro.get_param_store().scope():
            trace = poutine.trace(self._shared_guide()).get_trace()
        trace.compute_log_prob()
        log_q = sum(site["log_prob"].sum() for site in trace.nodes.values() if site["type"] == "sample")
        return {name: trace.nodes[name]["value"] for name in laws}, log_q

    def _shared_guide(self) -> PyroModule:
        if self.shared_guide is None:
            self.use_guide("normal")
        return self.shared_guide

    def use_guide(
        self,
        guide: str | Callable[..., Any],
        start: Mapping[str, Tensor] | None = None,
        units: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Give the shared latents an automatic guide: a name of GUIDES, or a callable that makes one from a model.

        Parameters
        ----------
        guide : str or callable
            A name of GUIDES, or what makes a guide from a program.
        start : mapping, optional
            Values of all shared latents.
        units : mapping, optional
            Center and unit of latents declared by hand, in unconstrained coordinates: what the guide counts in.
        """
        if isinstance(guide, str) and guide not in GUIDES:
            raise EngineError(f"guide must be one of {', '.join(GUIDES)} or a callable; got {guide!r}")
        make = GUIDES[guide] if isinstance(guide, str) else guide
        # Guides made by name start where they are told; a callable makes its own choice.
        options = {"init_loc_fn": init_to_value(values=dict(start))} if start and isinstance(guide, str) else {}
        self.guide_name = guide if isinstance(guide, str) else "custom"
        self._count(units or {})
        self.shared_guide = make(self.shared_program, **options)
        # The first call makes the parameters and draws numbers for it, which must not shift later ones.
        with self.aside(), pyro.get_param_store().scope(), self.numeric(), poutine.block():
            self.shared_guide()
        if isinstance(self.shared_guide, AutoLaplaceApproximation):
            raise EngineError(
                "AutoLaplaceApproximation is a point until its laplace_approximation() is called, which no fit does: "
                'take guide="multivariate", or guide="delta" for the mode'
            )

    def guide_is_point(self) -> bool:
        """Whether the guide of the shared latents has nothing to draw."""
        with torch.no_grad(), self.aside(), pyro.get_param_store().scope(), self.numeric(), poutine.block():
            return is_point(poutine.trace(self.shared_guide).get_trace())

    def _count(self, units: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Units of the shared latents declared by hand, 0 and 1 where none are given."""
        values, by_hand = self.family_defaults(), self.shared_by_hand()
        with self.aside(), torch.no_grad(), self.numeric():
            for name, law in self.shared_laws().items():
                d = law(values)
                values.setdefault(name, d.sample())
                if name in by_hand:
                    shape = biject_to(d.support).inverse_shape(d.shape())
                    center, unit = units.get(name, (torch.zeros(shape), torch.ones(shape)))
                    self.shared_units[name] = Units(center.to(self.like), unit.to(self.like))

    def _counted(self, name: str, law: TorchDistribution) -> TorchDistribution:
        if name not in self.shared_units:
            return law
        units = self.shared_units[name]
        assert isinstance(units, Units)
        return Counted(law, units)

    def shared_program(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The part of the Pyro model before the data plate."""
        values: dict[str, Tensor] = {}
        for name, law in self.shared_laws().items():
            values[name] = pyro.sample(name, self._counted(name, law(values)))
        return values


def _family_law(path: str, family: Family, parameter: str) -> Law:
    def law(values: Mapping[str, Tensor]) -> TorchDistribution:
        own = {name: values[f"{path}.{name}"] for name in family.constraints if f"{path}.{name}" in values}
        return family.site(parameter, own)

    return law


def _by_family(values: Mapping[str, Tensor], families: Mapping[str, Family]) -> dict[str, dict[str, Tensor]]:
    own: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        path, _, parameter = name.rpartition(".")
        if path in families:
            own.setdefault(path, {})[parameter] = value
    return own
