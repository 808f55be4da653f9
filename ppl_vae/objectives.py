"""The evidence lower bound of any model and guide, one value per datum, and its relatives.

Everything here is written on `Sites`: the factors of log p and log q at one draw of the latents. Declared models
make them directly, `trace_sites` makes them from an ordinary Pyro pair.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from ppl_vae.errors import EngineError

__all__ = ["Elbo", "Iwae", "Objective", "Sites", "elbo", "has_analytic_kl", "iwae", "max_plate_nesting", "trace_sites"]


@dataclass
class Sites:
    """Factors of log p and log q at one draw of the latents; n data, last dimension the datum.

    Attributes
    ----------
    log_p : dict of Tensor
        log p(node | parents) by node, [*enumerated, n] up to broadcasting, in nats.
    log_q : dict of Tensor
        log q(latent | ...) by latent, likewise.
    p, q : dict of TorchDistribution
        The distributions behind them.
    values : dict of Tensor
        What the latents were drawn as.
    summed : dict of int
        Latents summed out exactly in the model, with their (negative) dimension.
    enumerated : dict of int
        Latents whose expectation under q is exact, with their (negative) dimension.
    shared_log_p, shared_log_q : Tensor
        log p(theta) and log q(theta) of the latents outside the data plate, total.
    penalties : dict of Tensor
        Terms of the training objective only, by name, [n] nats: subtracted there, never part of the bound.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    p: dict[str, TorchDistribution] = field(default_factory=dict)
    q: dict[str, TorchDistribution] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    summed: dict[str, int] = field(default_factory=dict)
    enumerated: dict[str, int] = field(default_factory=dict)
    shared_log_p: Tensor | float = 0.0
    shared_log_q: Tensor | float = 0.0
    penalties: dict[str, Tensor] = field(default_factory=dict)

    def joint(self) -> Tensor:
        """Log p(x, z) with every enumerated value of z in its own dimension, [*enumerated, n]."""
        return _total(self.log_p.values())

    def marginal(self, joint: Tensor) -> Tensor:
        """Sum the exactly summed latents out of a log joint."""
        dims = [d for d in self.summed.values() if -d <= joint.dim()]
        return torch.logsumexp(joint, dims, keepdim=True) if dims else joint

    def expect(self, value: Tensor) -> Tensor:
        """E_q over the enumerated latents of q, then drop every dimension but the datum's: [n]."""
        if self.enumerated:
            log_q = _total(self.log_q[name] for name in self.enumerated)
            value, log_q = torch.broadcast_tensors(value, log_q)
            # An impossible value of z contributes 0, not 0 * -inf.
            value = torch.where(log_q == -torch.inf, 0.0, value) * log_q.exp()
        return value.flatten(0, -2).sum(0) if value.dim() > 1 else value


def _total(terms: Any) -> Tensor:
    total: Any = 0.0
    for term in terms:
        total = total + term
    return total


def has_analytic_kl(q: TorchDistribution, p: TorchDistribution) -> bool:
    """Whether KL(q || p) is known in closed form."""
    try:
        dist.kl.kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


class Objective(Protocol):
    """A training objective: bound per datum from sites, larger is better."""

    @property
    def num_particles(self) -> int:
        """Draws of the latents per datum."""
        ...

    @property
    def is_bound(self) -> bool:
        """Whether it is the ELBO itself for beta = 1."""
        ...

    def __call__(self, sites: Sites, beta: Tensor | float = 1.0, weights: Tensor | None = None) -> Tensor:
        """[n] nats: the annealed objective for beta other than 1; weights [n] are for means over the batch."""
        ...


@dataclass(frozen=True)
class Elbo:
    """L_i = E_q[log p(x_i | z)] - beta KL(q(z | x_i) || p(z)), [n] nats; beta = 1 is the bound (000 (25), (43)).

    With free bits lambda the KL of unit j is max(lambda, its mean over the batch) (Kingma et al. 2016, eq. 15).
    """

    num_particles: int = 1
    kl: str = "sampled"
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        if self.kl not in ("sampled", "analytic"):
            raise ValueError(f'elbo: kl must be "sampled" or "analytic", got {self.kl!r}')
        if self.num_particles < 1:
            raise ValueError(f"elbo: num_particles must be at least 1, got {self.num_particles}")
        if not self.free_bits >= 0:
            raise ValueError(f"elbo: free_bits are nats per unit, at least 0, got {self.free_bits}")

    @property
    def is_bound(self) -> bool:
        """Whether it is the bound itself for beta = 1."""
        return self.free_bits == 0

    def __call__(self, sites: Sites, beta: Tensor | float = 1.0, weights: Tensor | None = None) -> Tensor:
        """Mean over particles of the bound."""
        if self.is_bound:
            return self.particles(sites, beta).mean(0)
        return self.floored(sites, beta, weights)

    def floored(self, sites: Sites, beta: Tensor | float, weights: Tensor | None) -> Tensor:
        """The objective with free bits for every drawn latent, [n]."""
        drawn = [name for name in sites.log_q if name not in sites.enumerated]
        rest = _total(value for name, value in sites.log_p.items() if name not in sites.log_q)
        rest = rest + beta * _total(self.divergence(sites, name) for name in sites.enumerated)
        value = sites.expect(sites.marginal(rest))
        for name in drawn:
            units = self.by_unit(sites, name)
            w = units.new_ones(len(units)) if weights is None else weights.repeat(self.num_particles)
            mean = (w / w.sum()) @ units
            value = value - beta * mean.clamp_min(self.free_bits).sum()
        return (value + _score(sites, value)).reshape(self.num_particles, -1).mean(0)

    def by_unit(self, sites: Sites, name: str) -> Tensor:
        """KL(q || p) of each unit of a latent, or of all of it where its units are not independent, [n, units]."""
        q, p, z = sites.q[name], sites.p[name], sites.values[name]
        independent = isinstance(q, dist.Independent) and isinstance(p, dist.Independent)
        if not independent or len(q.batch_shape) > 1:
            return -sites.expect(self.divergence(sites, name))[:, None]
        q, p = q.base_dist, p.base_dist
        known = self.kl == "analytic" and has_analytic_kl(q, p)
        each = dist.kl.kl_divergence(q, p) if known else q.log_prob(z) - p.log_prob(z)
        return each.expand(z.shape).flatten(1)

    def particles(self, sites: Sites, beta: Tensor | float = 1.0) -> Tensor:
        """The bound at each particle, [num_particles, n]."""
        value = self.values(sites, beta)
        return (value + _score(sites, value)).reshape(self.num_particles, -1)

    def values(self, sites: Sites, beta: Tensor | float = 1.0) -> Tensor:
        """The bound at each particle with pathwise gradients only, [num_particles * n]."""
        prior_minus_q = _total(self.divergence(sites, name) for name in sites.log_q)
        others = _total(value for name, value in sites.log_p.items() if name not in sites.log_q)
        return sites.expect(sites.marginal(others + beta * prior_minus_q))

    def divergence(self, sites: Sites, name: str) -> Tensor:
        """Log p(z) - log q(z), or its expectation -KL(q || p) where it is known."""
        q, p = sites.q.get(name), sites.p.get(name)
        known = self.kl == "analytic" and name not in sites.enumerated and q is not None and p is not None
        if known and has_analytic_kl(q, p):
            return -dist.kl.kl_divergence(q, p)
        # Pyro's automatic guides also draw auxiliary values, which the model does not have.
        log_p, log_q = sites.log_p.get(name, 0.0), sites.log_q[name]
        if name not in sites.enumerated:
            return log_p - log_q
        # A value that q rules out counts for nothing, and must not bring inf - inf into a gradient.
        return torch.where(log_q == -torch.inf, 0.0, log_p - log_q)


@dataclass(frozen=True)
class Iwae:
    """log (1/S) sum_s p(x_i, z_s) / q(z_s | x_i), z_s ~ q: tighter than the ELBO for S > 1 (Burda et al. 2016)."""

    num_particles: int = 8
    is_bound: ClassVar[bool] = False

    def __call__(self, sites: Sites, beta: Tensor | float = 1.0, weights: Tensor | None = None) -> Tensor:
        """Log of the mean weight over particles."""
        log_w = Elbo().values(sites, beta).reshape(self.num_particles, -1)
        value = torch.logsumexp(log_w, 0) - math.log(self.num_particles)
        # The whole bound is what a draw is credited with, not its own weight (Mnih and Rezende 2016, eq. 5).
        return value + _score(sites, value.repeat(self.num_particles)).reshape(self.num_particles, -1).sum(0)


def elbo(num_particles: int = 1, kl: str = "sampled", free_bits: float = 0.0) -> Elbo:
    """The evidence lower bound as an objective.

    Parameters
    ----------
    num_particles : int
        Draws of z per datum (V of 000 (40)).
    kl : {"sampled", "analytic"}
        Whether E_q[log p(z) - log q(z)] is taken at the draws or in closed form where known.
    free_bits : float
        Nats of KL that each unit of a drawn latent has for free, in the mean over a batch: against collapse.

    Examples
    --------
    >>> elbo(num_particles=2, kl="analytic")
    Elbo(num_particles=2, kl='analytic', free_bits=0.0)
    """
    return Elbo(num_particles, kl, free_bits)


def iwae(num_particles: int = 8) -> Iwae:
    """The importance-weighted bound as an objective.

    Examples
    --------
    >>> iwae(5).num_particles
    5
    """
    return Iwae(num_particles)


def _score(sites: Sites, value: Tensor) -> Tensor:
    """A term of value zero whose gradient is the score-function one, for draws that cannot be reparameterised."""
    names = [n for n, q in sites.q.items() if n not in sites.enumerated and not q.has_rsample]
    if not names:
        return torch.zeros_like(value)
    log_q = _total(sites.log_q[name] for name in names)
    log_q = log_q.flatten(0, -2).sum(0) if log_q.dim() > 1 else log_q
    return value.detach() * (log_q - log_q.detach())


def trace_sites(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple = (), kwargs: dict[str, Any] | None = None
) -> Sites:
    """Sites of an ordinary Pyro pair whose data lie in one plate, minibatch scales removed.

    Raises
    ------
    EngineError
        If the pair has no data plate or several vectorised ones: then only the total bound has a meaning.
    """
    kwargs = kwargs or {}
    first = -1 - max_plate_nesting(model, guide, args, kwargs)
    guide_trace = poutine.trace(EnumMessenger(first_available_dim=first)(guide)).get_trace(*args, **kwargs)
    replayed = poutine.replay(EnumMessenger()(model), trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    for trace in (model_trace, guide_trace):
        poutine.util.prune_subsample_sites(trace)
        trace.compute_log_prob()
    plate = _data_plate(model_trace)
    sites = Sites({}, {})
    for trace, log, fns in ((model_trace, sites.log_p, sites.p), (guide_trace, sites.log_q, sites.q)):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                log[name], fns[name] = site["unscaled_log_prob"], site["fn"]
    for name in list(sites.log_p):
        if not _inside(model_trace.nodes[name], plate):
            sites.shared_log_p = sites.shared_log_p + sites.log_p.pop(name).sum()
            sites.p.pop(name)
    for name in list(sites.log_q):
        if not _inside(guide_trace.nodes[name], plate):
            sites.shared_log_q = sites.shared_log_q + sites.log_q.pop(name).sum()
            sites.q.pop(name)
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and name not in sites.values:
            sites.values[name] = site["value"]
            dim = site["infer"].get("_enumerate_dim")
            if dim is not None:
                (sites.enumerated if name in guide_trace.nodes else sites.summed)[name] = dim
    return sites


def max_plate_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple = (), kwargs: dict[str, Any] | None = None
) -> int:
    """Number of vectorised plate dimensions that a Pyro pair uses, found by running it once."""
    kwargs = kwargs or {}
    with poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    dims = [
        -frame.dim
        for trace in (guide_trace, model_trace)
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return max(dims, default=0)


def _data_plate(trace: poutine.Trace) -> str:
    frames = {
        frame.name
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    }
    if len(frames) != 1:
        raise EngineError(
            f"a bound per datum needs exactly one vectorised plate over the data, this pair has "
            f"{sorted(frames) or 'none'}; its total bound is still available"
        )
    return next(iter(frames))


def _inside(site: dict[str, Any], plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])
