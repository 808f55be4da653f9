"""The declared model: what it can be asked once its shared latents have values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.declare.answers import (
    class_probabilities,
    completed,
    expected_of,
    finite_posterior,
    log_weights,
    reconstructed,
)
from ppl_vae.declare.checks import check, check_inputs
from ppl_vae.declare.local import local_q
from ppl_vae.declare.nodes import Term
from ppl_vae.declare.observations import Observations, observe
from ppl_vae.declare.of_draws import Asked, OfDraws, one_or_all
from ppl_vae.declare.order import drawn_before
from ppl_vae.declare.program import Placed, Scope
from ppl_vae.declare.unamortised import badly_covered, unamortised
from ppl_vae.errors import DataError, EngineError, check_count, check_particles
from ppl_vae.evidence import Evidence, exact, importance
from ppl_vae.objectives import Elbo
from ppl_vae.over_classes import OverClasses
from ppl_vae.progress import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LatentVariableModel", "NodeInfo"]

ROWS_AT_ONCE = 1 << 16
"""Rows times particles held in memory at once."""


@dataclass(frozen=True)
class NodeInfo:
    """One node of a model's graph, for drawings and reports."""

    name: str
    kind: str
    parents: tuple[str, ...]
    shared: bool
    law: str


class LatentVariableModel(OfDraws):
    """Base class of declared models: nodes are methods that return distributions, their arguments are their parents.

    `model` and `guide` are ordinary Pyro programs; the engines EM, SVI and NUTS fit a copy. A model without priors
    is complete as it stands. One whose parameters are shared latents answers questions about data only through a
    Fit, which has their draws.

    Raises
    ------
    DeclarationError
        At class creation: an unknown parent, a cycle, a name of the base class, a posterior for an observed node.
        At first use: a missing event dimension.

    Examples
    --------
    >>> import torch, ppl_vae as pv, pyro.distributions as dist
    >>> class PoissonMixture(pv.LatentVariableModel):
    ...     def __init__(self, n_components):
    ...         super().__init__()
    ...         self.mixing = pv.families.Categorical(n_components)
    ...         self.counts = pv.families.Poisson(batch=n_components)
    ...     @pv.latent
    ...     def z(self):
    ...         return self.mixing()
    ...     @pv.observed
    ...     def x(self, z):
    ...         return self.counts(z)
    >>> model = PoissonMixture(2)
    >>> model.log_prob(torch.tensor([0.0, 1.0])).tolist()  # both components start at rate 1
    [-1.0, -1.0]
    """

    def check(self, data: Any, index: Tensor | None = None) -> Observations:
        """Read data and check them against the nodes: shapes, support, missing entries.

        `index` [n] has the rows' numbers in the data set of which these are a part, for messages.
        """
        obs = self.observe(data)
        with self.numeric():
            laws, fixed = self.trial(obs)
            return check(type(self).__name__, self._graph, laws, obs, index, fixed)

    def observe(self, data: Any) -> Observations:
        """Read data for this model: named tensors in its dtype, NaN noted as missing, [n] of one feature as [n, 1]."""
        return self._reshaped(super().observe(data))

    def _reshaped(self, obs: Observations) -> Observations:
        """[n] data of a node with one feature as [n, 1], and a table of one column for a node of numbers as [n]."""
        single = [name for name, columns in obs.columns.items() if len(columns) == 1 and obs.values[name].dim() == 2]
        univariate = any(getattr(family, "n_features", None) == 1 for family in self.families().values())
        flat = [name for name, v in obs.values.items() if univariate and isinstance(v, Tensor) and v.dim() == 1]
        if not flat and not single:
            return obs
        events = {name: law.event_shape for name, law in self.prototypes(obs).items()}
        wide = {name for name in flat if events.get(name) == (1,)}
        narrow = {name for name in single if events.get(name) == ()}

        def reshaped(tensors: Mapping[str, Any]) -> dict[str, Any]:
            widened = {name: value[:, None] if name in wide else value for name, value in tensors.items()}
            return {name: value[:, 0] if name in narrow else value for name, value in widened.items()}

        columns = {name: own for name, own in obs.columns.items() if name not in narrow}
        return Observations(reshaped(obs.values), reshaped(obs.missing), columns)

    def adapt(self, data: Any, weights: Tensor | None = None) -> None:
        """Let every family take from data what depends on its scale: weak priors, variance floors."""
        obs = self.check(data)
        for name, family in self.observed_families(obs).items():
            family.adapt([(obs.with_gaps(name), weights, *self.covariates(name, obs))])

    def observed_families(self, obs: Observations) -> dict[str, Any]:
        """The family that makes each observed node, where one does."""
        laws = self.prototypes(obs)
        return {n: d.origin[0] for n, d in laws.items() if n in obs.values and hasattr(d, "origin")}

    def covariates(self, name: str, obs: Observations) -> tuple[Tensor, ...]:
        """What an observed node passes to its family beside an index, [n, ...] each."""
        if not set(obs.values) & set(self._graph.nodes[name].parents):
            return ()
        scope = self.scope(obs)
        for node in self.local_nodes():
            if node.name not in scope:
                scope[node.name] = Placed(torch.zeros(len(obs), dtype=torch.long, device=self.like.device), 0)
        with self.buffers_kept():
            return self.law(name, scope).origin[2]

    # Values per datum.

    def log_joint(self, data: Any, **latents: Tensor) -> Tensor:
        """Log p(x_i, z_i) at given latents, [n] nats.

        Parameters
        ----------
        data : Tensor or mapping
            Observed values.
        **latents : Tensor
            A value [n, *event] for every latent.

        Raises
        ------
        DataError
            If a latent has no value, or one of another shape.
        """
        obs = self.check(data)
        wanted = [n.name for n in self.local_nodes() if n.kind == "latent" and n.name not in self.scope(obs)]
        if set(wanted) != set(latents):
            raise DataError(f"log_joint needs a value for {wanted}, got {sorted(latents)}")
        for name, law in self.prototypes(obs).items():
            due = (len(obs), *law.event_shape)
            if name in latents and tuple(latents[name].shape) != due:
                raise DataError(f"log_joint: {name!r} is due as {list(due)}, got {list(latents[name].shape)}")
        with self.numeric():
            scope = self.scope(obs)
            # A latent's event dimensions are those beyond the datum's.
            scope.update({name: Placed(value, value.dim() - 1) for name, value in latents.items()})
            total: Any = 0.0
            for node in self.local_nodes():
                total = total + self.distribution(node.name, scope, obs).log_prob(scope[node.name].value)
            return total

    def elbo(self, data: Any, num_particles: int = 1) -> Tensor:
        """Evidence lower bound L_i = E_q[log p(x_i, z) - log q(z | x_i)], [n] nats (000 (25), (28))."""
        objective = Elbo(num_particles)
        with torch.no_grad():
            return self._by_rows(data, num_particles, lambda obs, i: objective(self.sites(obs, i)))

    def evidence(self, data: Any, num_particles: int = 100) -> Evidence:
        """Log p(x_i): exact when every latent is finite, else by importance weights from q.

        Parameters
        ----------
        data : Tensor or mapping
            Observed values, n rows.
        num_particles : int
            Draws of q per datum, where the latents are continuous.
        """
        needs_draws = bool(self.draws_latents(self.check(data)))
        count = num_particles if needs_draws else 1
        with torch.no_grad():
            log_w = self._by_rows(data, count, lambda obs, i: self.log_weights(obs, count, i), dim=1)
        return importance(log_w) if needs_draws else exact(log_w[0])

    def log_weights(self, obs: Observations, count: int, index: Tensor | None = None) -> Tensor:
        """Log p(x_i, z_s) - log q(z_s | x_i) with every finite latent summed out, [count, n]."""
        return log_weights(self.sites(obs, index), count)

    def log_prob(self, data: Any, num_particles: int = 100) -> Tensor:
        """Log p(x_i), [n] nats; `evidence` also says how it was found and how far to trust it."""
        return self.evidence(data, num_particles).value

    def responsibilities(self, data: Any, num_particles: int = 100) -> Tensor | dict[str, Tensor]:
        """p(z = k | x_i) of the finite latents: [n, K], or a dictionary by name when there are several (000 (11)).

        Exact where all latents are finite. Beside continuous ones it is q(z = k | x_i) of a latent that has a declared
        posterior, and of the others an estimate by importance weights.

        Parameters
        ----------
        data : Tensor or mapping
            Observed values, n rows.
        num_particles : int
            Draws of q per datum, where the other latents are continuous.

        Raises
        ------
        EngineError
            If no latent is finite.
        """
        check_particles(num_particles)
        obs = self.check(data)
        finite = self.finite_latents(obs)
        if not finite:
            raise EngineError(f"{type(self).__name__} has no finite latent to infer: use posterior(x)")
        drawn, before = set(self.draws_latents(obs)), drawn_before(self._graph)

        def probabilities(name: str) -> Tensor:
            count = num_particles if before.get(name, drawn) & drawn else 1
            return self._by_rows(obs, count, lambda o, i: class_probabilities(self.sites(o, i), name, count))

        with torch.no_grad():
            found = {name: probabilities(name) for name in finite}
        return next(iter(found.values())) if len(found) == 1 else found

    def posterior(self, data: Any) -> TorchDistribution | dict[str, TorchDistribution]:
        """q(z | x_i) of each latent: a distribution, or a dictionary when there are several, batch shape [n].

        Finite latents have their `responsibilities`. A q that depends on such a one is a mixture over its values.
        """
        obs = self.check(data)
        with torch.no_grad(), self.numeric(), local_q(self, obs):
            sites = self.sites(obs)
            drawn = {name: sites.q[name] for name in sites.drawn}
            by_class = any(len(q.batch_shape) > 1 for q in drawn.values())
            shares = finite_posterior(sites) if by_class else torch.ones(())
            found = {name: OverClasses(q, shares) if len(q.batch_shape) > 1 else q for name, q in drawn.items()}
        if sites.summed or sites.enumerated:
            r = self.responsibilities(obs)
            by_name = r if isinstance(r, dict) else {next(iter({**sites.enumerated, **sites.summed})): r}
            found |= {name: dist.Categorical(probs=p) for name, p in by_name.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    def reconstruct(self, data: Any, num_particles: int = 100) -> Tensor | dict[str, Tensor]:
        """E[x | z], mean over draws of z from the posterior of each datum, [n, *event] (004 s.4.1).

        Of a categorical node it is the probabilities of its values, [n, *event, C].

        Raises
        ------
        EngineError
            Where x has no mean.
        """
        obs = self.check(data)
        return one_or_all(self._of_observed(obs, num_particles, self._observed_names(), reconstructed))

    def impute(self, data: Any, num_particles: int = 100) -> Tensor | dict[str, Tensor]:
        """The data with E[x_missing | x_seen] in place of what is missing (NaN), [n, *event].

        Every seen entry of a datum tells of its missing ones: by the posterior of the latents, and within a component
        by the correlations of a multivariate normal or Student-t. A missing category is the most probable one.

        Raises
        ------
        EngineError
            Where a missing value has no mean.

        Examples
        --------
        >>> import ppl_vae as pv
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.1], [3.0, 5.9], [2.5, 5.0]])
        >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 2), x)
        >>> fit.impute(torch.tensor([[1.5, torch.nan]])).round(decimals=1).tolist()
        [[1.5, 3.0]]
        """
        obs = self.check(data)
        return self.completed(obs, self.expected_values(obs, num_particles))

    def expected_values(self, obs: Observations, num_particles: int = 100) -> dict[str, Tensor]:
        """E[x | x_seen] of each observed node with gaps, [n, numbers]: probabilities in place of categories."""
        return self._of_observed(obs, num_particles, self._gappy(obs), expected_of)

    def _of_observed(self, obs: Observations, particles: int, names: list[str], answer: Asked) -> dict[str, Tensor]:
        """An answer about these observed nodes, by rows of the data."""
        count = particles if self.draws_latents(obs) else 1

        def rows(name: str) -> Tensor:
            return self._by_rows(obs, count, lambda o, i: answer(self.sites(o, i), name, count, o.values[name]))

        with torch.no_grad():
            found, bad = {name: rows(name) for name in names}, badly_covered(self, obs, count)
        if len(bad):
            with unamortised(self):
                better = self._of_observed(obs.rows(bad), particles, names, answer)
            for name in names:
                found[name][bad] = better[name]
        return found

    def completed(self, obs: Observations, expected: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The data with these values of `expected_values` where they are missing."""
        laws, found = self.prototypes(obs), {name: obs.values[name] for name in self._observed_names()}
        for name, mean in expected.items():
            found[name] = completed(laws[name], name, mean, obs.values[name], obs.missing[name])
        return one_or_all(found)

    def sample(self, n: int, **inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """N new data from p(z) p(x | z) (004 s.4.2): a tensor, or a dictionary when several nodes are observed."""
        drawn = self.sample_joint(n, **inputs)
        return one_or_all({name: drawn[name] for name in self._observed_names()})

    def given_inputs(self, n: int, inputs: Mapping[str, Any]) -> Observations:
        """What the n data to be drawn are given, [n, ...] each, checked."""
        check_count(n)
        names = self._graph.inputs
        absent, unknown = [name for name in names if name not in inputs], [name for name in inputs if name not in names]
        if absent:
            raise DataError(f"sample needs the input {absent[0]!r}, [n, ...]")
        if unknown:
            raise DataError(f"sample got {unknown[0]!r}; the inputs of this model: {', '.join(names) or 'none'}")
        if not inputs:
            return Observations({})
        obs = observe(inputs, [], names, []).to(self.like)
        if len(obs) != n:
            raise DataError(f"sample got n={n} and inputs of {len(obs)} rows; one row of inputs per datum is expected")
        check_inputs(names, obs)
        return obs

    def sample_joint(self, n: int, **inputs: Tensor) -> dict[str, Tensor]:
        """N draws of every local node, by name."""
        obs = self.given_inputs(n, inputs)
        with torch.no_grad(), self.numeric():
            scope: Scope = self.scope(obs)
            for node in self.local_nodes():
                d = self.distribution(node.name, scope, obs)
                scope[node.name] = Placed(d.sample() if d.batch_shape else d.sample((n,)), d.event_dim)
            return {node.name: scope[node.name].value for node in self.local_nodes()}

    def finite_latents(self, obs: Observations) -> list[str]:
        """Latents that are summed out for some datum at least."""
        laws = self.prototypes(obs)
        finite = [n.name for n in self.local_nodes() if n.kind == "latent" and laws[n.name].has_enumerate_support]
        return [name for name in finite if name not in obs.values or name in obs.missing]

    def class_probabilities(self, obs: Observations, finite: list[str]) -> dict[str, Tensor]:
        """p(z = k | x_i) of these finite latents by name, [n, K] each, where no other latent is to be drawn."""
        sites = self.sites(obs)
        return {name: class_probabilities(sites, name, 1) for name in finite}

    def draws_latents(self, obs: Observations) -> list[str]:
        """Latents that are neither given nor summed out exactly, so need draws from a q."""
        laws = self.prototypes(obs)
        latents = [node.name for node in self.local_nodes() if node.kind == "latent"]
        return [n for n in latents if n not in obs.values and not laws[n].has_enumerate_support]

    def draws_without_posterior(self, obs: Observations) -> list[str]:
        """Those of `draws_latents` that have no declared posterior."""
        return [name for name in self.draws_latents(obs) if name not in self._graph.posteriors]

    # What the model is.

    def graph(self) -> dict[str, NodeInfo]:
        """The nodes by name, parents before children, shared latents of families included."""
        found: dict[str, NodeInfo] = {}
        for path, family in self.families().items():
            if family.prior is not None:
                for name in family.constraints:
                    law = type(family.prior).__name__
                    found[f"{path}.{name}"] = NodeInfo(f"{path}.{name}", "latent", (), True, law)
        for name in self._graph.inputs:
            found[name] = NodeInfo(name, "input", (), False, "given")
        for node in self._graph.nodes.values():
            found[node.name] = NodeInfo(node.name, node.kind, node.parents, node.shared, _formula(node))
        return found

    def render(self, ax: "Axes | None" = None) -> Any:
        """Draw the model: by pyro.render_model where graphviz and its dot program are installed, else by matplotlib.

        Parameters
        ----------
        ax : Axes, optional
            Draw here, with matplotlib.
        """
        from ppl_vae.plots import render

        return render(self, ax)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}"]
        for node in self.graph().values():
            head = f"{node.name} | {', '.join(node.parents)}" if node.parents else node.name
            lines.append(f"  {head:<28} {node.kind}{', shared' if node.shared else ''}  {node.law}")
        for term in self._graph.penalties.values():
            lines.append(f"  {f'{term.name} | ' + ', '.join(term.parents):<28} penalty  {_formula(term)}")
        return "\n".join([*lines, f"  {self.count_free()} free parameters"])

    def _repr_html_(self) -> str:
        from ppl_vae.report import model_html

        return model_html(self)

    # Rows at a time.

    def _by_rows(
        self, data: Any, particles: int, function: Callable[[Observations, Tensor | None], Tensor], dim: int = 0
    ) -> Tensor:
        """Apply a function of repeated rows to bounded chunks of the data, and put the answers together."""
        check_particles(particles)
        obs = self.check(data)
        at_once = max(1, ROWS_AT_ONCE // particles)
        parts = []
        with progress("data", len(obs), len(obs) > at_once) as update:
            for start in range(0, len(obs), at_once):
                rows = obs.rows(torch.arange(start, min(start + at_once, len(obs)), device=self.like.device))
                with self.numeric(), local_q(self, rows):
                    index = torch.arange(len(rows), device=self.like.device).repeat(particles)
                    parts.append(function(rows.repeat(particles), index if self.local_posteriors else None))
                update(start + len(rows), "")
        return torch.cat(parts, dim)


def _formula(node: Term) -> str:
    doc = (node.__doc__ or "").strip().splitlines()
    return doc[0].removesuffix(".") if doc else ""


LatentVariableModel._reserved = frozenset(dir(LatentVariableModel))
