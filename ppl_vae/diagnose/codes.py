"""The codes of data: q(z | x_i), the aggregate posterior q(z), and the prior, of any declared model.

All latents that are drawn count as one code z = (z_1, z_2, ...): several layers, or one vector, are the same here.
Finite latents that stand between them are summed out. Where none is drawn the finite ones that have a q are the code.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.alone import unvalidated
from ppl_vae.declare.observations import Observations
from ppl_vae.declare.program import Placed, Scope, enumerate_values
from ppl_vae.errors import EngineError
from ppl_vae.evidence import log_mean_exp
from ppl_vae.families.supports import law_of_entries
from ppl_vae.missing import Known

__all__ = ["Code", "Codes", "UndefinedError", "flat", "variance_seen"]

Code = dict[str, Tensor]
"""Values of the drawn latents by name, [m, *event] each."""
PAIRS_AT_ONCE = 1 << 18
"""Pairs of a code and a datum whose density is in memory at once, per unit."""
NOTHING = Observations({})
DRAWS = 64
"""Draws per datum for moments that have no closed form."""
ANY_LAW = (dist.Categorical, dist.OneHotCategorical, dist.Bernoulli)
"""Families that hold every law over their values."""


class UndefinedError(Exception):
    """A quantity does not exist for this model; the message says why."""


class Codes:
    """q(z | x_i) of n data, and p(z), for every latent that is drawn, or every finite one with a q if none is.

    Parameters
    ----------
    model : LatentVariableModel
        With values for its shared latents.
    obs : Observations
        n data of the model. Where it has no encoder, `local_q` has found their q.

    Attributes
    ----------
    names : list of str
        The latents of the code, in the guide's order.
    finite : bool
        Whether none is drawn, so that log p(x) is exact.
    q : dict of TorchDistribution
        Those q(z | x_i) that depend on nothing but data, batch shape [n].

    Raises
    ------
    EngineError
        If the model has no latent with a q.
    """

    def __init__(self, model: Any, obs: Observations) -> None:
        self.model, self.obs = model, obs
        self.n = len(obs)
        drawn = model.draws_latents(obs)
        self.finite = not drawn
        coded = drawn or [name for name in model.finite_latents(obs) if self._declared(name)]
        if not coded:
            raise EngineError(
                f"{type(model).__name__} has no latent that is drawn or has a q of its own: every latent is finite "
                f"and summed out exactly, so that its bound is tight; see responsibilities and compare"
            )
        with torch.no_grad(), model.numeric():
            self.amortised = not model.local_posteriors
            scope = model.scope(obs)
            # A finite latent without a q is summed out of the model, and the guide does not have it.
            self.nodes = [n for n in model._inferred(scope) if self._declared(n.name) or n.name in drawn]
            self.names = [node.name for node in self.nodes if node.name in coded]
            self.q = self._explicit(scope)

    def _explicit(self, scope: Scope) -> dict[str, TorchDistribution]:
        found = {}
        for node in self.nodes:
            parents = self.model._graph.posteriors[node.name].parents if self._declared(node.name) else ()
            if node.name in self.names and all(name in scope for name in parents):
                found[node.name] = self.model._posterior(node, scope, self.obs, None)
        return found

    def _declared(self, name: str) -> bool:
        return name in self.model._graph.posteriors

    def first(self, count: int) -> "Codes":
        """Those of the first data."""
        return Codes(self.model, self.obs.rows(slice(0, count)))

    @property
    def factorised(self) -> bool:
        """Whether the q of every latent depends on data alone."""
        return len(self.q) == len(self.names)

    @property
    def points(self) -> bool:
        """Whether every q is a point mass, such as a code of a codebook."""
        return self.factorised and all(isinstance(q, dist.Delta) for q in self.q.values())

    @property
    def any_law(self) -> bool:
        """Whether q may be any law over the values of the one finite latent, the exact posterior among them."""
        laws = [q.base if isinstance(q, Known) else q for q in self.q.values()]
        return self.finite and self.factorised and len(laws) == 1 and isinstance(laws[0], ANY_LAW)

    # Draws, [n, *event] or [m, *event].

    def draw(self) -> Code:
        """One code of every datum, z_i ~ q(z | x_i)."""
        with torch.no_grad(), self.model.numeric():
            scope = self.model.scope(self.obs)
            for node in self.nodes:
                q = self.q.get(node.name)
                if q is None:
                    q = self.model._posterior(node, scope, self.obs, None)
                scope[node.name] = Placed(q.sample(), q.event_dim)
            return {name: scope[name].value for name in self.names}

    def draw_prior(self, count: int, given: Observations = NOTHING) -> Code:
        """Codes of the prior, z ~ p(z), or p(z | inputs) where they are given, one for each row.

        Raises
        ------
        UndefinedError
            If the prior depends on what is not given.
        """
        with torch.no_grad(), self.model.numeric():
            scope = self.model.scope(given)
            for node in self._above(scope):
                d = self.model.distribution(node.name, scope, NOTHING)
                scope[node.name] = Placed(d.sample() if d.batch_shape else d.sample((count,)), d.event_dim)
            return {name: scope[name].value for name in self.names}

    # Densities, in nats, float64.

    def log_q(self, z: Code) -> Iterator[Tensor]:
        """Log q(z_s | x_i) for every pair, some rows s of [m, n] at a time."""
        return (self._pairs(part) for part in self._parts(z))

    def log_aggregate(self, z: Code) -> Tensor:
        """Log q(z_s) = log (1/n) sum_i q(z_s | x_i), [m]."""
        return torch.cat([log_mean_exp(pairs, 1) for pairs in self.log_q(z)])

    def log_prior(self, z: Code, given: Observations = NOTHING) -> Tensor:
        """Log p(z_s), or log p(z_s | inputs_s) where they are given, finite latents summed out, [m].

        Raises
        ------
        UndefinedError
            If the prior depends on what is not given.
        """
        with torch.no_grad(), self.model.numeric(), unvalidated():
            return self.prior(z, given).double()

    def prior(self, z: Code, given: Observations = NOTHING) -> Tensor:
        """Log p(z_s), or log p(z_s | inputs_s), in the model's own dtype and with its gradient, [m]."""
        scope = self.model.scope(given)
        nodes = self._above(scope)
        scope |= {name: Placed(value, value.dim() - 1) for name, value in z.items()}
        return self._total(nodes, scope, lambda node: self.model.distribution(node.name, scope, NOTHING))

    def _above(self, scope: Scope) -> list[Any]:
        """The latents of the code and what their prior depends on, parents first."""
        graph, wanted = self.model._graph, set(self.names)
        for node in reversed(self.model.local_nodes()):
            wanted |= {name for name in node.parents if node.name in wanted and name not in scope}
        unknown = sorted(name for name in wanted if name not in graph.nodes or graph.nodes[name].kind != "latent")
        if unknown:
            raise UndefinedError(f"the prior depends on {unknown[0]}, a value of each datum: there is no one p(z)")
        return [node for node in self.model.local_nodes() if node.name in wanted]

    def _total(self, nodes: list[Any], scope: Scope, law: Callable[[Any], Any]) -> Tensor:
        """Log density of the nodes' values in scope, those not in it finite and summed out, [m]."""
        total: Any = 0.0
        dims = 0
        for node in nodes:
            d = law(node)
            if node.name not in scope:
                dims += 1
                scope[node.name] = Placed(enumerate_values(d, -1 - dims), d.event_dim)
            total = total + d.log_prob(scope[node.name].value)
        return torch.logsumexp(total.flatten(0, -2), 0) if total.dim() > 1 else total

    def events(self) -> dict[str, torch.Size]:
        """Event shape of each latent of the code."""
        laws = self.model.prototypes(self.obs)
        return {name: laws[name].event_shape for name in self.names}

    def log_own(self, z: Code) -> Tensor:
        """Log q(z_i | x_i), [n]."""
        with torch.no_grad(), self.model.numeric(), unvalidated():
            return self._walk(self.obs, torch.arange(self.n, device=self.model.like.device), z).double()

    def _parts(self, z: Code) -> Iterator[Code]:
        """Codes in portions whose pairs with the data fit in memory."""
        count = len(next(iter(z.values())))
        at_once = max(1, PAIRS_AT_ONCE // self.n)
        for start in range(0, count, at_once):
            yield {name: value[start : start + at_once] for name, value in z.items()}

    def _pairs(self, z: Code) -> Tensor:
        with torch.no_grad(), self.model.numeric(), unvalidated():
            if self.factorised:
                return sum(q.log_prob(z[name].unsqueeze(1)) for name, q in self.q.items()).double()
            m = len(next(iter(z.values())))
            index = torch.arange(self.n, device=self.model.like.device)
            rows = self.obs.rows(index.repeat(m))
            own = {name: value.repeat_interleave(self.n, 0) for name, value in z.items()}
            return self._walk(rows, index.repeat(m), own).double().reshape(m, self.n)

    def _walk(self, rows: Observations, index: Tensor, z: Code) -> Tensor:
        """Log q(z_r | x_r) along the guide, finite latents summed out, [r]."""
        scope = self.model.scope(rows)
        scope |= {name: Placed(value, value.dim() - 1) for name, value in z.items()}
        return self._total(self.nodes, scope, lambda node: self.model._posterior(node, scope, rows, index))

    # Moments of q(z | x_i), each unit for itself, [n, units] in float64.

    def require_numbers(self) -> None:
        """Refuse codes whose values are names.

        Raises
        ------
        UndefinedError
            If a latent is the number of a category.
        """
        laws = self.model.prototypes(self.obs)
        named = [name for name in self.names if isinstance(law_of_entries(laws[name]), dist.Categorical)]
        if named:
            raise UndefinedError(f"{named[0]} is the number of a category, of which there is no mean and no distance")

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every unit under q(z | x_i); by draws where they have no closed form.

        Raises
        ------
        UndefinedError
            If a latent is the number of a category.
        """
        self.require_numbers()
        with torch.no_grad():
            try:
                if not self.factorised:
                    raise NotImplementedError
                mean = {name: q.mean for name, q in self.q.items()}
                variance = {name: q.variance for name, q in self.q.items()}
                return flat(mean), flat(variance)
            except NotImplementedError:
                draws = torch.stack([flat(self.draw()) for _ in range(DRAWS)])
                return draws.mean(0), draws.var(0)

    @property
    def exact_moments(self) -> bool:
        """Whether `moments` come without the noise of draws."""
        try:
            return self.factorised and all(q.mean is not None and q.variance is not None for q in self.q.values())
        except NotImplementedError:
            return False

    def units(self) -> list[str]:
        """Names of the units, z[0], z[1], ... of each latent."""
        found = []
        for name, event in self.events().items():
            count = event.numel()
            found += [name] if not event else [f"{name}[{j}]" for j in range(count)]
        return found


def flat(z: Code) -> Tensor:
    """Codes of all latents side by side, [m, units] in float64.

    Examples
    --------
    >>> flat({"z": torch.zeros(3, 2), "w": torch.ones(3)}).shape
    torch.Size([3, 3])
    """
    return torch.cat([value.reshape(len(value), value.shape[1:].numel()) for value in z.values()], 1).double()


def variance_seen(x: Tensor, correction: int = 1) -> Tensor:
    """Variance over the rows of [n, ...], missing entries left out; NaN where too few are there.

    Examples
    --------
    >>> variance_seen(torch.tensor([[1.0, 5.0], [torch.nan, 5.0], [3.0, torch.nan]]))
    tensor([2., 0.])
    """
    away = x - x.nanmean(0)
    return away.square().nansum(0) / ((~x.isnan()).sum(0) - correction).clamp_min(0)
