"""The declared model: what it can be asked once its shared latents have values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae.declare.checks import check, check_inputs
from ppl_vae.declare.nodes import Term
from ppl_vae.declare.observations import Observations, observe
from ppl_vae.declare.of_data import OfData
from ppl_vae.declare.of_draws import one_or_all
from ppl_vae.declare.program import Placed, Scope
from ppl_vae.errors import DataError, DeclarationError, check_count
from ppl_vae.likelihoods.gaussian import Floored, likelihood_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LatentVariableModel", "NodeInfo"]


@dataclass(frozen=True)
class NodeInfo:
    """One node of a model's graph, for drawings and reports."""

    name: str
    kind: str
    parents: tuple[str, ...]
    shared: bool
    law: str


class LatentVariableModel(OfData):
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
            found = check(type(self).__name__, self._graph, laws, obs, index, fixed)
            self.try_posteriors(laws, found)
            return found

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
        """Let families and likelihoods take from data what depends on their scale: weak priors, floors of variances."""
        obs = self.check(data)
        for name, family in self.observed_families(obs).items():
            family.adapt([(obs.with_gaps(name), weights, *self.covariates(name, obs))])
        for likelihood, x in self.floored(obs).items():
            likelihood.adapt(x, weights)

    def floored(self, obs: Observations) -> dict[Floored, Tensor]:
        """Likelihoods with a floor in units of the data, and the data of all observed nodes that each makes.

        The data are [n, numbers], NaN where missing.
        """
        made = {name: likelihood_of(law) for name, law in self.prototypes(obs).items() if name in obs.values}
        drawn, found = obs.drawn(), dict[Floored, Tensor]()
        for likelihood in filter(None, made.values()):
            own = [drawn.with_gaps(name).flatten(1) for name, maker in made.items() if maker is likelihood]
            found[likelihood] = torch.cat(own, 1)
        return found

    def observed_families(self, obs: Observations) -> dict[str, Any]:
        """The family that makes each observed node, where one does."""
        laws = self.prototypes(obs)
        return {n: d.origin[0] for n, d in laws.items() if n in obs.values and hasattr(d, "origin")}

    def covariates(self, name: str, obs: Observations) -> tuple[Tensor, ...]:
        """What an observed node passes to its family beside an index, [n, ...] each.

        Raises
        ------
        DeclarationError
            If it depends on shared latents: a family keeps what it makes of it.
        """
        if not set(obs.values) & set(self._graph.nodes[name].parents):
            return ()
        by_hand = self.shared_by_hand()
        with self.buffers_kept(), self.aside(), self.unbound():
            found, *others = [self._covariates(name, obs) for _ in range(2 if by_hand else 1)]
        if any(not torch.equal(a, b) for other in others for a, b in zip(found, other, strict=True)):
            raise DeclarationError(
                f"{type(self).__name__}.{name} gives its family inputs that depend on {', '.join(by_hand)}; a family "
                "takes them from data alone: write the law with pyro.distributions"
            )
        return found

    def _covariates(self, name: str, obs: Observations) -> tuple[Tensor, ...]:
        """The same at values of the shared latents that are drawn anew."""
        with self.with_any_values():
            scope = self.scope(obs)
            for node in self.local_nodes():
                if node.name not in scope:
                    scope[node.name] = Placed(torch.zeros(len(obs), dtype=torch.long, device=self.like.device), 0)
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

    def sample(self, n: int, **inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """N new data from p(z) p(x | z) (004 s.4.2): a tensor, or a dictionary when several nodes are observed."""
        drawn = self.sample_joint(n, **inputs)
        return one_or_all({name: drawn[name] for name in self._observed_names()})

    def given_inputs(self, n: int, inputs: Mapping[str, Any]) -> Observations:
        """What the n data to be drawn are given, [n, ...] each, checked: the inputs that they depend on, or more."""
        check_count(n)
        names = self._graph.inputs
        absent = [name for name in self.inputs_of_draws if name not in inputs]
        unknown = [name for name in inputs if name not in names]
        if absent:
            raise DataError(f"sample needs the input {absent[0]!r}, [n, ...]")
        if unknown:
            raise DataError(f"sample got {unknown[0]!r}; the inputs of this model: {', '.join(names) or 'none'}")
        if not inputs:
            return Observations({})
        given = tuple(name for name in names if name in inputs)
        obs = observe(inputs, [], given, []).to(self.like)
        if len(obs) != n:
            raise DataError(f"sample got n={n} and inputs of {len(obs)} rows; one row of inputs per datum is expected")
        check_inputs(given, obs)
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


def _formula(node: Term) -> str:
    doc = (node.__doc__ or "").strip().splitlines()
    return doc[0].removesuffix(".") if doc else ""


LatentVariableModel._reserved = frozenset(dir(LatentVariableModel))
