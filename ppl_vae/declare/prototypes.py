"""Shapes before values: the laws of a declaration on a few rows, and what is made by their shapes."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.declare.checks import COPIES, TRIAL, all_bounds, check_batch, check_posterior, same_bounds
from ppl_vae.declare.local import LocalPosterior
from ppl_vae.declare.nodes import Node
from ppl_vae.declare.observations import Observations
from ppl_vae.declare.program import Placed, Program, Scope
from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.families.supports import law_of_entries

__all__ = ["Prototypes", "moves"]


class Prototypes(Program):
    """A declared model looked at before it is run."""

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

    def allocate(self, obs: Observations, size: int) -> None:
        """Give every continuous latent without a posterior parameters for each of `size` data."""
        for name, d in self.prototypes(obs).items():
            node = self._graph.nodes[name]
            without = node.kind == "latent" and name not in self._graph.posteriors and name not in obs.values
            if without and not d.has_enumerate_support:
                if not moves(d):
                    self.require_finite(node.name, d)
                q = LocalPosterior(size, d.event_shape, d.support)
                self.local_posteriors[name] = q.to(self.like)

    def measure(self, obs: Observations) -> None:
        """Let the posteriors of single data count in units of their priors, at the parameters as they stand."""
        laws = self.prototypes(obs)
        for name, q in self.local_posteriors.items():
            if isinstance(q, LocalPosterior):
                q.measure(laws[name])

    def shared_shapes(self) -> dict[str, torch.Size]:
        """The shape of every shared latent."""
        values: dict[str, Tensor] = {}
        with self.aside():
            for node in self._graph.of_kind("latent", shared=True):
                values[node.name] = self._node_law(node)(values).sample()
        for path, family in self.families().items():
            if family.prior is not None:
                values |= {f"{path}.{name}": value for name, value in family.defaults().items()}
        return {name: value.shape for name, value in values.items()}

    def prototypes(self, obs: Observations, rows: int = 4) -> dict[str, TorchDistribution]:
        """The distribution of every local node on the first rows, latents drawn from the prior."""
        return {node.name: d for node, _, d in self._tried(obs.rows(slice(0, rows)))}

    @contextmanager
    def _on_trial(self, seed: int | None = None) -> Iterator[None]:
        """Within the block nodes can be called for the shapes of what they return, and nothing is left of it."""
        with self.aside(seed), self.buffers_kept(), torch.no_grad(), self.numeric(), self.with_any_values():
            yield

    @contextmanager
    def with_any_values(self) -> Iterator[None]:
        """Within the block shared latents without a value have one, whichever: no shape depends on it."""
        values: dict[str, Tensor] = {}
        for node in self._graph.of_kind("latent", shared=True):
            if node.name not in self._bound:
                values[node.name] = self._node_law(node)(values | self._bound).sample()
        for path, family in self.families().items():
            if family.prior is not None and not set(family.constraints) <= set(family.__dict__):
                values |= {f"{path}.{name}": value for name, value in family.defaults().items()}
        with self.bind(values):
            yield

    def _tried(self, few: Observations) -> Generator[tuple[Node, Scope, TorchDistribution]]:
        """Every local node with what it is called with, and its distribution there."""
        with self._on_trial():
            scope = self.scope(few)
            for node in self.local_nodes():
                d = self._call(node, scope)
                yield node, scope, d
                if node.name not in scope:
                    value = d.sample() if d.batch_shape else d.sample((len(few),))
                    scope[node.name] = Placed(value, d.event_dim)
                elif isinstance(d, dist.Categorical):
                    # Labels read from a file are floats; children index with them. The check refuses the impossible.
                    labels = scope[node.name].value.long().clamp(0, d.probs.shape[-1] - 1)
                    scope[node.name] = Placed(labels, 0)

    def _check_rows(self, node: Node, scope: Scope, finite: list[str]) -> None:
        """Refuse a law that takes the values of an enumerated latent, which lie before the rows, for the rows."""
        if not finite:
            return
        # As many values as there are rows could not be told from them.
        values = {name: scope[name].expand(torch.Size((TRIAL + 1, TRIAL))) for name in finite}
        d = self._call(node, {**scope, **{name: Placed(v, scope[name].event_dim) for name, v in values.items()}})
        if d.batch_shape and d.batch_shape[-1] not in (1, TRIAL):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise DeclarationError(
                f"{type(self).__name__}.{node.name} was called with {shapes}, and its distribution has the batch shape "
                f"{list(d.batch_shape)}; the last dimension is of the data, and those before it are of the values that "
                f"are summed out: keep it, as table[z] does"
            )

    def trial(self, obs: Observations) -> tuple[dict[str, TorchDistribution], list[str]]:
        """The distribution of every local node on `TRIAL` rows of the data, and the nodes whose support is fixed.

        Raises
        ------
        DeclarationError
            If a law's batch is more than the data.
        """
        few = self._few(obs)
        laws: dict[str, TorchDistribution] = {}
        with closing(self._tried(few)) as tried:  # an error leaves its contexts at once
            for node, scope, d in tried:
                hidden = [p for p in node.parents if p in laws and (p not in few.values or p in few.missing)]
                self._check_rows(node, scope, [p for p in hidden if laws[p].has_enumerate_support])
                per_datum = any(p not in self._graph.nodes or not self._graph.nodes[p].shared for p in node.parents)
                check_batch(f"{type(self).__name__}.{node.name}", d, {1, TRIAL} if per_datum else {1})
                laws[node.name] = d
        return laws, self._fixed_supports(laws, few)

    def try_posteriors(self, laws: Mapping[str, TorchDistribution], obs: Observations) -> None:
        """Refuse a declared posterior that is no law of its latent's values, given checked data and the nodes' laws.

        Raises
        ------
        DeclarationError
            Naming the posterior, its latent and their shapes.
        """
        with self._on_trial(seed=0):
            few = self._few(obs)  # some sources draw their rows
            scope = self.scope(few)
            for name, d in laws.items():
                if name not in scope:
                    scope[name] = Placed(d.sample() if d.batch_shape else d.sample((TRIAL,)), d.event_dim)
            for name, posterior in self._graph.posteriors.items():
                hidden = name not in few.values or self.partly_observed(name, few)
                if hidden and scope.keys() >= set(posterior.parents):
                    q, where = self._call(posterior, scope), f"{type(self).__name__}.{posterior.name}"
                    # One that looks at no data may hold parameters for each of them.
                    check_batch(where, q, {1, TRIAL, len(obs)})
                    check_posterior(where, q, name, laws[name])

    def _few(self, obs: Observations) -> Observations:
        return obs.rows(torch.arange(TRIAL, device=self.like.device) % len(obs))

    def _fixed_supports(self, laws: Mapping[str, TorchDistribution], few: Observations) -> list[str]:
        """The nodes whose support is the same for all rows and latents: outside it no datum is possible."""
        hidden = {n.name for n in self._graph.of_kind("latent") if n.name not in few.values or n.name in few.missing}
        hidden |= {n.name for n in self._graph.of_kind("latent", shared=True)}
        depends = [
            name for name, law in laws.items() if hidden & set(self._graph.nodes[name].parents) and all_bounds(law)
        ]
        others: Mapping[str, TorchDistribution] = {}
        if depends:
            with self.aside(seed=0), self.unbound():
                others = self.prototypes(few.repeat(COPIES), COPIES * len(few))
        by_row = [n for n, law in laws.items() if set(self._graph.nodes[n].parents) & {*few.values} and all_bounds(law)]
        fixed = [name for name in laws if name not in depends or same_bounds(laws[name], others[name], COPIES)]
        return [name for name in fixed if name not in by_row]


def moves(d: TorchDistribution) -> bool:
    """Whether a latent of this law can follow a gradient; a mixture's can where its components' can."""
    d = law_of_entries(d)
    return d.has_rsample or (isinstance(d, dist.MixtureSameFamily) and d.component_distribution.has_rsample)
