"""How a declaration runs: values in scope, nodes called with their parents, factors of log p and log q."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import ImproperUniform, TorchDistribution
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae.declare.nodes import Node, Penalty, Posterior, Term
from ppl_vae.declare.observations import Observations, check_order, observe
from ppl_vae.declare.order import entangled, looked_at
from ppl_vae.declare.shared import Law, SharedLatents
from ppl_vae.declare.tiling import tiled
from ppl_vae.errors import DataError, DeclarationError, EngineError
from ppl_vae.families.supports import log_density
from ppl_vae.missing import Incomplete, Known
from ppl_vae.objectives import Sites

__all__ = ["Placed", "Program", "Scope", "enumerate_values"]


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


class Program(SharedLatents):
    """The direct run of a declared model: its nodes called with values, without Pyro's handlers."""

    # Calling nodes.

    def _node_law(self, node: Node) -> Law:
        def law(values: Mapping[str, Tensor]) -> TorchDistribution:
            d = self._call(node, {p: Placed(values[p], None) for p in node.parents})
            if d.batch_shape:
                raise DeclarationError(
                    f"shared latent {node.name!r} has batch shape {tuple(d.batch_shape)}; it is one draw for the whole "
                    f"data set, so all its dimensions are event dimensions: add .to_event({len(d.batch_shape)})"
                )
            if d.support.is_discrete:
                raise DeclarationError(
                    f"shared latent {node.name!r} ~ {_name(d)} is discrete, and engines move or sample what is shared "
                    "along gradients: make it a latent of each datum, which is summed out, or fit a model for each of "
                    "its values and compare them"
                )
            if isinstance(d, ImproperUniform):
                raise DeclarationError(
                    f"shared latent {node.name!r} ~ ImproperUniform cannot be drawn, and p(X) would have no scale: "
                    "take a proper law that is wide, such as Normal(0, 100)"
                )
            try:
                biject_to(d.support)
            except NotImplementedError as error:
                raise DeclarationError(
                    f"shared latent {node.name!r} ~ {_name(d)}: engines move what is shared in unconstrained "
                    f"coordinates, and none are known for its support ({error}); take a law on another set, such as "
                    "LKJCholesky and scales for a covariance"
                ) from error
            return d

        return law

    def observe(self, data: Any) -> Observations:
        """Read data for this model: named tensors in the model's dtype, NaN noted as missing."""
        if isinstance(data, Observations):
            return data
        graph = self._graph
        observed = [node.name for node in graph.of_kind("observed")]
        if not observed:
            raise DeclarationError(f"{type(self).__name__} declares no observed node; decorate one with @observed")
        latents = [node.name for node in graph.of_kind("latent")]
        obs = observe(data, observed, graph.inputs, latents).to(self.like)
        check_order(self._columns, obs.columns)
        return obs

    def scope(self, obs: Observations) -> Scope:
        """The values that nodes can be called with: data, inputs and shared latents."""
        scope = {name: Placed(value, value.dim() - 1) for name, value in obs.drawn().values.items()}
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

    def _arguments(self, item: Term, names: Sequence[str], scope: Mapping[str, Placed]) -> dict[str, Tensor]:
        """Values of these parents of a term, of one batch shape where theirs differ."""
        for name in names:
            if name not in scope:
                raise DeclarationError(
                    f"{type(self).__name__}.{item.name}: argument {name!r} has no value yet; a posterior may depend on "
                    f"observed nodes, inputs and latents with a posterior of their own: declare one with "
                    f"@{name}.posterior"
                )
        parents = {name: scope[name] for name in names}
        shapes = {p.batch_shape for p in parents.values() if p.event_dim is not None}
        if len(shapes) <= 1:
            return {name: p.value for name, p in parents.items()}
        batch = torch.broadcast_shapes(*shapes)
        return {name: p.value if p.event_dim is None else p.expand(batch) for name, p in parents.items()}

    def _call(self, item: Node | Posterior, scope: Mapping[str, Placed]) -> TorchDistribution:
        arguments = self._arguments(item, item.parents, scope)
        try:
            d = item.function(self, *arguments.values())
        except Exception as error:
            _add_place(error, f"{type(self).__name__}.{item.name}", arguments)
            raise
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
        """What training climbs: the factors of `bound_sites`, and the penalties at the same draw."""
        sites, scope = self._factors(obs, index)
        for name, penalty in self._graph.penalties.items():
            sites.penalties[name] = expected(sites, self._penalty(penalty, scope, sites))
        return sites

    def bound_sites(self, obs: Observations, index: Tensor | None = None) -> Sites:
        """Factors of log p and log q at one draw from the posterior, finite latents enumerated, without penalties.

        What is asked of a model is asked of these: a penalty may need a q of what the data give.
        """
        return self._factors(obs, index)[0]

    def _factors(self, obs: Observations, index: Tensor | None) -> tuple[Sites, Scope]:
        sites = Sites({}, {}, sampled=entangled(self._graph), looked_at=looked_at(self._graph))
        scope = self.scope(obs)
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
                self.require_finite(node.name, d)
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
            observed = node.kind == "observed"
            log_p = self.restrict(node.name, value, obs, log_density(d, value) if observed else d.log_prob(value))
            if observed and obs.weights is not None:
                # A datum that does not count may be impossible, and 0 * -inf is not 0.
                log_p = torch.where(obs.weights > 0, log_p, 0.0)
            sites.p[node.name], sites.log_p[node.name] = d, log_p
        return sites, scope

    def _penalty(self, penalty: Penalty, scope: Scope, sites: Sites) -> Tensor:
        """A penalty at every value of the finite latents, [*enumerated, n] up to broadcasting."""
        laws = {q.name: sites.q.get(name) for name, q in self._graph.posteriors.items()}
        found: dict[str, Any] = self._arguments(penalty, [p for p in penalty.parents if p not in laws], scope)
        found |= {name: laws[name] for name in penalty.parents if name in laws}
        absent = [name for name, q in found.items() if q is None]
        if absent:
            raise DataError(
                f"{type(self).__name__}.{penalty.name} needs {absent[0]}, and the data give the latent it is of: it "
                f"has no posterior"
            )
        value = penalty.function(self, *[found[name] for name in penalty.parents])
        whole = sites.joint().shape
        fits = isinstance(value, Tensor) and value.dim() > 0 and value.shape[-1] == whole[-1]
        if not fits or torch.broadcast_shapes(value.shape, whole) != whole:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise DeclarationError(
                f"{type(self).__name__}.{penalty.name}: a penalty is one number for each datum, shape "
                f"({whole[-1]},) here{f' or {tuple(whole)}' if len(whole) > 1 else ''}; it returned {what}"
            )
        return value

    @property
    def penalties(self) -> tuple[str, ...]:
        """Names of the terms that only SVI's training objective has."""
        return tuple(self._graph.penalties)

    def refuse_penalties(self, engine: str) -> None:
        """Say that an engine has no training objective from which a penalty could be subtracted.

        Raises
        ------
        EngineError
            If the model declares one.
        """
        if self.penalties:
            raise EngineError(
                f"{engine}: the penalty {self.penalties[0]!r} of {type(self).__name__} is a term of SVI's training "
                f"objective only; fit by SVI, or declare the model without it"
            )

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
            q = self._declared(self._graph.posteriors[node.name], scope, obs)
        elif node.name in self.local_posteriors:
            q = self.local_posteriors[node.name](torch.arange(n, device=self.like.device) if index is None else index)
        else:
            return None
        q = q if q.batch_shape else q.expand([n])
        q = q.weigh(obs.weights) if obs.weights is not None and hasattr(q, "weigh") else q
        return Known(q, obs.values[node.name], ~obs.missing[node.name]) if self.partly_observed(node.name, obs) else q

    def _declared(self, posterior: Posterior, scope: Scope, obs: Observations) -> TorchDistribution:
        """A declared posterior, run once for all copies of a datum where it looks at nothing that is drawn."""
        if obs.once is not None and posterior.name not in self._untiled:
            given = self.scope(obs.once)
            if given.keys() >= set(posterior.parents):
                q, n = self._call(posterior, given), len(obs.once)
                whole = tiled(q, len(obs) // n) if q.batch_shape == (n,) else None
                if whole is not None:
                    return whole
                self._untiled.add(posterior.name)
        return self._call(posterior, scope)

    def require_finite(self, name: str, d: TorchDistribution) -> None:
        """Refuse the law of a latent without a posterior that does not have finitely many values."""
        if not d.has_enumerate_support:
            raise EngineError(
                f"latent {name!r} ~ {_name(d)} cannot be enumerated and has no posterior; declare one with "
                f"@{name}.posterior{_otherwise(d)}"
            )

    def restrict(self, name: str, value: Tensor, obs: Observations, log: Tensor) -> Tensor:
        """Rule out the other values of a latent where it is observed."""
        if not self.partly_observed(name, obs):
            return log
        possible = torch.where(obs.missing[name], True, value == obs.values[name])
        return torch.where(possible, log, -torch.inf)


def _otherwise(d: TorchDistribution) -> str:
    """What else there is for a latent that is not finite."""
    if not d.support.is_discrete:
        return ", or fit by SVI, which then gives every datum its own"
    if d.event_shape:
        return ", or declare its entries as latents of their own, which are summed out"
    return ", or take a Categorical over as many values as matter, which is summed out"


def _add_place(error: Exception, where: str, arguments: Mapping[str, Tensor]) -> None:
    """Tell in a note in which node the user's own code failed, and what it was given there."""
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in arguments.items() if isinstance(value, Tensor))
    note = (
        f"in {where}{shapes and f', called with {shapes}'}; a few rows are tried first, so sizes of data do not count"
    )
    if "only integer tensors of a single element" in str(error):
        note += "; networks in a list cannot be indexed by a latent of many data: call all, and choose by torch.where"
    if not any(said.startswith("in ") for said in getattr(error, "__notes__", ())):
        error.add_note(note)


def expected(sites: Sites, value: Tensor) -> Tensor:
    """Expectation of [*enumerated, n] under p(z | x) of the latents summed out and under q of the enumerated, [n]."""
    dims = [d for d in sites.summed.values() if -d <= value.dim()]
    if dims:
        joint = sites.joint()
        share = (joint - sites.marginal(joint)).exp()
        value = (share * value).sum([d for d in sites.summed.values() if -d <= joint.dim()], keepdim=True)
    return sites.expect(value)


def enumerate_values(d: TorchDistribution, dim: int) -> Tensor:
    """Every value of a finite distribution along dimension `dim` of the batch."""
    support = d.enumerate_support(expand=False)
    return support.reshape(len(support), *[1] * (-dim - 1), *d.event_shape)


def _name(d: TorchDistribution) -> str:
    inner = getattr(d, "base_dist", d)
    return type(inner).__name__
