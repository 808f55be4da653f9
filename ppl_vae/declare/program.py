"""How a declaration runs: values in scope, nodes called with their parents, and the Pyro model and guide."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import init_to_value
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_vae.declare.guides import GUIDES
from ppl_vae.declare.local import LocalPosterior
from ppl_vae.declare.nodes import Graph, Node, Posterior, collect, inherit
from ppl_vae.declare.observations import Observations, observe
from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.families import Family
from ppl_vae.missing import Incomplete, Known
from ppl_vae.objectives import Sites

__all__ = ["Placed", "Program", "Scope", "enumerate_values"]

Law = Callable[[Mapping[str, Tensor]], TorchDistribution]


@dataclass(frozen=True)
class Placed:
    """A value with the number of its event dimensions; None for a shared value, which has no datum dimension."""

    value: Tensor
    event_dim: int | None

    @property
    def batch_shape(self) -> torch.Size:
        """Shape without the event, [*enumerated, n]."""
        return self.value.shape[: self.value.dim() - (self.event_dim or 0)]

    def expand(self, batch: torch.Size) -> Tensor:
        """The value with this batch shape."""
        return self.value.expand(batch + self.value.shape[len(self.batch_shape) :])


Scope = dict[str, Placed]


class Program(PyroModule):
    """The running half of a declared model; users subclass LatentVariableModel."""

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
        self.shared_guide: PyroModule | None = None
        self.guide_name: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._graph.nodes or name in self._graph.inputs:
            raise DeclarationError(
                f"{type(self).__name__}: the attribute {name!r} would hide the node {name!r}; give one another name"
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

    # Numbers.

    @property
    def like(self) -> Tensor:
        """An empty tensor with the dtype and device that the nodes compute in."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point() and tensor is not self._blank:
                return tensor.new_empty(0)
        return self._blank.new_empty(0)

    @contextmanager
    def numeric(self) -> Iterator[None]:
        """Nodes make their constants in the dtype and on the device of the parameters."""
        like, before = self.like, torch.get_default_dtype()
        with ExitStack() as stack:
            if like.device.type != "cpu":
                stack.enter_context(like.device)
            torch.set_default_dtype(like.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

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

    def _node_law(self, node: Node) -> Law:
        def law(values: Mapping[str, Tensor]) -> TorchDistribution:
            d = self._call(node, {p: Placed(values[p], None) for p in node.parents})
            if d.batch_shape:
                raise DeclarationError(
                    f"shared latent {node.name!r} has batch shape {tuple(d.batch_shape)}; it is one draw for the whole "
                    f"data set, so all its dimensions are event dimensions: add .to_event({len(d.batch_shape)})"
                )
            return d

        return law

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

    def fix(self, values: Mapping[str, Tensor]) -> None:
        """Give shared latents and family parameters these values for good."""
        families = self.families()
        for path, own in _by_family(values, families).items():
            families[path].fix(own)
        self.__dict__["_bound"] = {**self._bound, **{k: v for k, v in values.items() if k in self._graph.nodes}}

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

    def use_guide(self, guide: str | Callable[..., Any], start: Mapping[str, Tensor] | None = None) -> None:
        """Give the shared latents an automatic guide: a name of GUIDES, or a callable that makes one from a model."""
        if isinstance(guide, str) and guide not in GUIDES:
            raise EngineError(f"guide must be one of {', '.join(GUIDES)} or a callable; got {guide!r}")
        make = GUIDES[guide] if isinstance(guide, str) else guide
        # Guides made by name start where they are told; a callable makes its own choice.
        options = {"init_loc_fn": init_to_value(values=dict(start))} if start and isinstance(guide, str) else {}
        self.guide_name = guide if isinstance(guide, str) else "custom"
        self.shared_guide = make(self.shared_program, **options)
        devices = [self.like.device] if self.like.device.type == "cuda" else []
        # The first call makes the parameters and draws numbers for it, which must not shift later ones.
        with torch.random.fork_rng(devices), pyro.get_param_store().scope(), self.numeric(), poutine.block():
            self.shared_guide()

    def rebuild(self, guide: str | None, local: int | None, shapes: Mapping[str, list[int]]) -> None:
        """Make the guide and the per-datum posteriors anew from shapes alone, before a state is loaded."""
        if guide == "custom":
            raise EngineError(
                "the fit was made with a guide of your own, which no file can rebuild; name one of GUIDES"
            )
        if guide is not None:
            for family in self.families().values():
                if "adapted" in family._buffers:
                    family.adapted = torch.tensor(True)
            self.use_guide(guide)
        if local is not None:
            blank = {name: torch.zeros(2, *shape, dtype=self.like.dtype) for name, shape in shapes.items()}
            self.allocate(Observations(blank), local)

    @property
    def local_size(self) -> int | None:
        """Number of data that have a posterior of their own."""
        return next((q.size for q in self.local_posteriors.values() if isinstance(q, LocalPosterior)), None)

    def shared_program(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The part of the Pyro model before the data plate."""
        values: dict[str, Tensor] = {}
        for name, law in self.shared_laws().items():
            values[name] = pyro.sample(name, law(values))
        return values

    # Calling nodes.

    def observe(self, data: Any) -> Observations:
        """Read data for this model: named tensors in the model's dtype, NaN noted as missing."""
        if isinstance(data, Observations):
            return data
        graph = self._graph
        observed = [node.name for node in graph.of_kind("observed")]
        if not observed:
            raise DeclarationError(f"{type(self).__name__} declares no observed node; decorate one with @observed")
        latents = [node.name for node in graph.of_kind("latent")]
        return observe(data, observed, graph.inputs, latents).to(self.like)

    def scope(self, obs: Observations) -> Scope:
        """The values that nodes can be called with: data, inputs and shared latents."""
        scope = {name: Placed(value, value.dim() - 1) for name, value in obs.values.items()}
        for node in self._graph.of_kind("latent", shared=True):
            if node.name not in self._bound:
                raise EngineError(
                    f"{node.name!r} is a shared latent without a value; fit the model first: a Fit has its draws"
                )
            scope[node.name] = Placed(self._bound[node.name], None)
        # A latent that is partly observed is still to be inferred.
        return {name: placed for name, placed in scope.items() if not self.partly_observed(name, obs)}

    def partly_observed(self, name: str, obs: Observations) -> bool:
        """Whether a latent is observed for some data and not for others."""
        node = self._graph.nodes.get(name)
        return node is not None and node.kind == "latent" and name in obs.missing

    def _call(self, item: Node | Posterior, scope: Mapping[str, Placed]) -> TorchDistribution:
        for name in item.parents:
            if name not in scope:
                raise DeclarationError(
                    f"{type(self).__name__}.{item.name}: argument {name!r} has no value yet; a posterior may depend on "
                    f"observed nodes, inputs and latents with a posterior of their own: declare one with "
                    f"@{name}.posterior"
                )
        parents = [scope[name] for name in item.parents]
        shapes = {p.batch_shape for p in parents if p.event_dim is not None}
        if len(shapes) > 1:
            batch = torch.broadcast_shapes(*shapes)
            values = [p.value if p.event_dim is None else p.expand(batch) for p in parents]
        else:
            values = [p.value for p in parents]
        d = item.function(self, *values)
        if not isinstance(d, torch.distributions.Distribution):
            raise DeclarationError(
                f"node {item.name!r} returned {type(d).__name__}; a node returns a pyro.distributions object"
            )
        if not hasattr(d, "has_enumerate_support") or not hasattr(d, "to_event"):
            raise DeclarationError(
                f"node {item.name!r} returned a torch distribution; use pyro.distributions.{type(d).__name__}"
            )
        return d

    def law(self, name: str, scope: Mapping[str, Placed]) -> TorchDistribution:
        """Law of a node given its parents' values."""
        return self._call(self._graph.nodes[name], scope)

    def distribution(self, name: str, scope: Mapping[str, Placed], obs: Observations) -> TorchDistribution:
        """Law of a local node, its missing entries integrated out, told the rows' weights where it averages them."""
        d = self.law(name, scope)
        if obs.weights is not None and hasattr(d, "weigh"):
            d = d.weigh(obs.weights)
        if name in obs.missing and name in scope and not self.partly_observed(name, obs):
            return Incomplete(d, obs.missing[name])
        return d

    # The direct run: factors of log p and log q, without Pyro's handlers.

    def sites(self, obs: Observations, index: Tensor | None = None) -> Sites:
        """Factors of log p and log q at one draw from the posterior, finite latents enumerated."""
        scope, sites = self.scope(obs), Sites({}, {})
        for node in self._inferred(scope):
            q = self._posterior(node, scope, obs, index)
            if q is None:
                continue
            if q.has_enumerate_support:
                dim = sites.enumerated[node.name] = -2 - len(sites.enumerated)
                value = enumerate_values(q, dim)
            else:
                value = q.rsample() if q.has_rsample else q.sample()
            scope[node.name] = Placed(value, q.event_dim)
            sites.q[node.name], sites.values[node.name] = q, value
            sites.log_q[node.name] = q.log_prob(value)
        for node in self.local_nodes():
            d = self.distribution(node.name, scope, obs)
            if node.name not in scope:
                self._require_finite(node, d)
                dim = sites.summed[node.name] = -2 - len(sites.enumerated) - len(sites.summed)
                scope[node.name] = Placed(enumerate_values(d, dim), d.event_dim)
                sites.values[node.name] = scope[node.name].value
            elif d.has_enumerate_support and node.name in sites.q and node.name not in sites.enumerated:
                raise DeclarationError(
                    f"{type(self).__name__}: the posterior of {node.name!r} ~ {_name(d)} is "
                    f"{_name(sites.q[node.name])}, which cannot be enumerated; give a finite latent a finite one "
                    f"(a point mass is a Categorical with one probability 1)"
                )
            value = scope[node.name].value
            sites.p[node.name] = d
            sites.log_p[node.name] = self.restrict(node.name, value, obs, d.log_prob(value))
        return sites

    def local_nodes(self) -> list[Node]:
        """Nodes with a value per datum, parents before children."""
        return [node for node in self._graph.nodes.values() if not node.shared]

    def _inferred(self, scope: Scope) -> list[Node]:
        """Latents that need a q, in the guide's order."""
        declared = [self._graph.nodes[name] for name in self._graph.posteriors]
        others = [n for n in self.local_nodes() if n.kind == "latent" and n.name not in self._graph.posteriors]
        return [node for node in (*declared, *others) if node.name not in scope]

    def _posterior(self, node: Node, scope: Scope, obs: Observations, index: Tensor | None) -> TorchDistribution | None:
        n = len(obs)
        if node.name in self._graph.posteriors:
            q = self._call(self._graph.posteriors[node.name], scope)
        elif node.name in self.local_posteriors:
            q = self.local_posteriors[node.name](torch.arange(n, device=self.like.device) if index is None else index)
        else:
            return None
        q = q if q.batch_shape else q.expand([n])
        return Known(q, obs.values[node.name], ~obs.missing[node.name]) if self.partly_observed(node.name, obs) else q

    def _require_finite(self, node: Node, d: TorchDistribution) -> None:
        if not d.has_enumerate_support:
            raise EngineError(
                f"latent {node.name!r} ~ {_name(d)} cannot be enumerated and has no posterior; declare one with "
                f"@{node.name}.posterior, or fit by SVI, which then gives every datum its own"
            )

    def restrict(self, name: str, value: Tensor, obs: Observations, log: Tensor) -> Tensor:
        """Rule out the other values of a latent where it is observed."""
        if not self.partly_observed(name, obs):
            return log
        possible = torch.where(obs.missing[name], True, value == obs.values[name])
        return torch.where(possible, log, -torch.inf)

    # The Pyro programs.

    def model(self, data: Any = None, index: Tensor | None = None, size: int | None = None) -> dict[str, Tensor]:
        """The model as an ordinary Pyro program.

        Parameters
        ----------
        data : Tensor, mapping or None
            Observed values, [n, *event]; None draws them too, `size` of them.
        index : Tensor, optional
            Rows of the data set that these are.
        size : int, optional
            Number of data in the whole set; the minibatch is scaled by size / n (T12, 000 (39)).
        """
        obs = None if data is None else self.observe(data)
        with self._pyro_context, self.numeric():
            shared = self.shared_program()
            if shared:
                with self.bind(shared), self._plate(obs, index, size) as rows:
                    return {**shared, **self._generate(obs, len(rows))}
            with self._plate(obs, index, size) as rows:
                return self._generate(obs, len(rows))

    def _plate(self, obs: Observations | None, index: Tensor | None, size: int | None) -> pyro.plate:
        n = len(obs) if obs is not None else size
        if n is None:
            raise EngineError("model(None) draws new data: pass size=n to say how many")
        if index is None and size in (None, n):
            return pyro.plate("data", n, dim=-1)
        rows = torch.arange(n, device=self.like.device) if index is None else index
        return pyro.plate("data", n if size is None else size, subsample=rows, dim=-1)

    def _generate(self, obs: Observations | None, n: int) -> dict[str, Tensor]:
        obs = Observations({}) if obs is None else obs
        scope = self.scope(obs)
        for node in self.local_nodes():
            d = self.distribution(node.name, scope, obs)
            known = scope.get(node.name)
            finite = known is None and d.has_enumerate_support and node.name not in self._graph.posteriors
            infer = {"enumerate": "parallel"} if finite and node.kind == "latent" else {}
            value = pyro.sample(node.name, d, obs=known and known.value, infer=infer)
            scope[node.name] = Placed(value, d.event_dim)
            if self.partly_observed(node.name, obs):
                zero = torch.zeros_like(obs.missing[node.name], dtype=self.like.dtype)
                factor = self.restrict(node.name, value, obs, zero)
                pyro.factor(f"{node.name}_observed", factor)
        return {node.name: scope[node.name].value for node in self.local_nodes()}

    def guide(self, data: Any = None, index: Tensor | None = None, size: int | None = None) -> dict[str, Tensor]:
        """The posterior as an ordinary Pyro program, with the arguments of `model`."""
        obs = self.observe(data)
        with self._pyro_context, self.numeric():
            shared = dict(self._shared_guide()()) if self.shared_laws() else {}
            with self.bind(shared):
                if not self.local_posteriors and not torch._C._get_tracing_state():  # a run before made them
                    self.allocate(obs, size or len(obs))
                with self._plate(obs, index, size):
                    return {**shared, **self._infer(obs, index)}

    def _infer(self, obs: Observations, index: Tensor | None) -> dict[str, Tensor]:
        scope, values = self.scope(obs), {}
        for node in self._inferred(scope):
            q = self._posterior(node, scope, obs, index)
            if q is not None:
                infer = {"enumerate": "parallel"} if q.has_enumerate_support else {}
                values[node.name] = pyro.sample(node.name, q, infer=infer)
                scope[node.name] = Placed(values[node.name], q.event_dim)
        return values

    def allocate(self, obs: Observations, size: int) -> None:
        """Give every continuous latent without a posterior parameters for each of `size` data."""
        for name, d in self.prototypes(obs).items():
            node = self._graph.nodes[name]
            without = node.kind == "latent" and name not in self._graph.posteriors and name not in obs.values
            if without and not d.has_enumerate_support:
                if not d.has_rsample:
                    self._require_finite(node, d)
                q = LocalPosterior(size, d.event_shape, d.support)
                self.local_posteriors[name] = q.to(self.like)

    def prototypes(self, obs: Observations, rows: int = 4) -> dict[str, TorchDistribution]:
        """The distribution of every local node on the first rows, latents drawn from the prior."""
        few = obs.rows(torch.arange(min(rows, len(obs)), device=self.like.device))
        devices = [self.like.device] if self.like.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), self.numeric(), ExitStack() as stack:
            values: dict[str, Tensor] = {}
            for node in self._graph.of_kind("latent", shared=True):
                if node.name not in self._bound:
                    values[node.name] = self._node_law(node)(values | self._bound).sample()
            # A family with a prior has no value yet; any will do to see shapes.
            for path, family in self.families().items():
                if family.prior is not None and not set(family.constraints) <= set(family.__dict__):
                    values |= {f"{path}.{name}": value for name, value in family.defaults().items()}
            stack.enter_context(self.bind(values))
            scope, found = self.scope(few), {}
            for node in self.local_nodes():
                d = found[node.name] = self._call(node, scope)
                if node.name not in scope:
                    value = d.sample() if d.batch_shape else d.sample((len(few),))
                    scope[node.name] = Placed(value, d.event_dim)
                elif isinstance(d, dist.Categorical):
                    # Labels read from a file are floats; children index with them. The check refuses the impossible.
                    labels = scope[node.name].value.long().clamp(0, d.probs.shape[-1] - 1)
                    scope[node.name] = Placed(labels, 0)
            return found


def enumerate_values(d: TorchDistribution, dim: int) -> Tensor:
    """Every value of a finite distribution along dimension `dim` of the batch."""
    support = d.enumerate_support(expand=False)
    return support.reshape(len(support), *[1] * (-dim - 1), *d.event_shape)


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


def _name(d: TorchDistribution) -> str:
    inner = getattr(d, "base_dist", d)
    return type(inner).__name__
