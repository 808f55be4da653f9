"""The evidence lower bound, one value per datum, annealed or with free bits."""

from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import EngineError, check_whole
from ppl_vae.objectives.sites import Sites, analytic_kl, has_analytic_kl, score, total

__all__ = ["Elbo", "Objective", "elbo"]


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

    With free bits lambda the KL of unit j is max(lambda, its mean over the batch) (Kingma et al. 2016, eq. 15), beside
    an enumerated latent y that of E_q(y)[KL(q(z_j | y) || p(z_j | y))], and that of d units that depend on each other
    max(d lambda, its mean).
    """

    num_particles: int = 1
    kl: str = "sampled"
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        if self.kl not in ("sampled", "analytic"):
            raise ValueError(f'elbo: kl must be "sampled" or "analytic", got {self.kl!r}')
        check_whole("elbo", error=ValueError, num_particles=self.num_particles)
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
        sites = sites.collapsed()
        if branching := [name for name in sites.drawn if sites.branches(name)]:
            raise EngineError(
                f"elbo: free_bits need the divergence of each latent by itself, and the prior of {branching[0]!r} "
                f"depends on {', '.join(sites.summed)}, which is summed out; take free_bits=0, and warm up by beta="
            )
        rest = total(value for name, value in sites.log_p.items() if name not in sites.log_q)
        rest = rest + beta * total(self.divergence(sites, name) for name in sites.enumerated)
        value = sites.expect(sites.marginal(rest))
        for name in sites.drawn:
            units = self.by_unit(sites, name)
            w = units.new_ones(len(units)) if weights is None else weights.repeat(self.num_particles)
            mean = (w / w.sum().clamp_min(torch.finfo(w.dtype).tiny)) @ units
            allowance = self.free_bits * _number_of_units(sites.q[name]) / len(mean)
            value = value - beta * mean.clamp_min(allowance).sum()
        return (value + score(sites, value)).reshape(self.num_particles, -1).mean(0)

    def by_unit(self, sites: Sites, name: str) -> Tensor:
        """KL(q || p) of each unit of a latent, or of all of it where its units are not independent, [n, units or 1].

        Where it depends on enumerated latents y, it is the mean over them: E_q(y)[KL(q(z_j | y) || p(z_j | y))].
        """
        q, p, z = sites.q[name], sites.p[name], sites.values[name]
        independent = isinstance(q, dist.Independent) and isinstance(p, dist.Independent)
        if not independent or q.base_dist.event_dim != p.base_dist.event_dim:
            return -sites.expect(self.divergence(sites, name))[:, None]
        units, q, p = q.reinterpreted_batch_ndims, q.base_dist, p.base_dist
        known = self.kl == "analytic" and name not in sites.sampled and has_analytic_kl(q, p)
        each = analytic_kl(q, p) if known else q.log_prob(z) - p.log_prob(z)
        each = each.expand(torch.broadcast_shapes(each.shape, z.shape[: z.dim() - q.event_dim]))
        return sites.expect(each.flatten(-units), event_dim=1)

    def particles(self, sites: Sites, beta: Tensor | float = 1.0) -> Tensor:
        """The bound at each particle, [num_particles, n]."""
        value = self.values(sites, beta)
        return (value + score(sites, value)).reshape(self.num_particles, -1)

    def values(self, sites: Sites, beta: Tensor | float = 1.0) -> Tensor:
        """The bound at each particle with pathwise gradients only, [num_particles * n]."""
        prior_minus_q = total(self.divergence(sites, name) for name in sites.log_q)
        others = total(value for name, value in sites.log_p.items() if name not in sites.log_q)
        return sites.expect(sites.marginal(others + beta * prior_minus_q))

    def divergence(self, sites: Sites, name: str) -> Tensor:
        """Log p(z) - log q(z), or its expectation -KL(q || p) where it is known."""
        q, p = sites.q.get(name), sites.p.get(name)
        known = self.kl == "analytic" and name not in sites.enumerated and name not in sites.sampled
        # A sum over another latent lies between E_q and log p: the mean of a log-sum is not the log-sum of means.
        known = known and not sites.branches(name)
        if known and q is not None and p is not None and has_analytic_kl(q, p):
            return -analytic_kl(q, p)
        # Pyro's automatic guides also draw auxiliary values, which the model does not have.
        log_p, log_q = sites.log_p.get(name, 0.0), sites.log_q[name]
        if name not in sites.enumerated:
            return log_p - log_q
        # A value that q rules out counts for nothing, and must not bring inf - inf into a gradient.
        return torch.where(log_q == -torch.inf, 0.0, log_p - log_q)


def _number_of_units(q: TorchDistribution) -> int:
    """Entries of a draw of q, of which those of a vector that is drawn as one, such as a relaxed category, are one."""
    return (q.event_shape[: q.reinterpreted_batch_ndims] if isinstance(q, dist.Independent) else q.event_shape).numel()


def elbo(num_particles: int = 1, kl: str = "sampled", free_bits: float = 0.0) -> Elbo:
    """The evidence lower bound as an objective.

    Parameters
    ----------
    num_particles : int
        Draws of z per datum (V of 000 (40)).
    kl : {"sampled", "analytic"}
        Whether E_q[log p(z) - log q(z)] is taken at the draws or in closed form where known.
    free_bits : float
        Nats of KL that each unit of a drawn latent has for free, in the mean over a batch and over the classes of an
        enumerated latent: against collapse. Where units depend on each other, under q as with a full covariance or a
        flow, or a priori as in a mixture, they have no KL by themselves, and all d of them have d free_bits together. A
        vector of categories, as `GumbelVAE` has several of, is one unit. With several processes or SVI's `accumulate=`
        the mean is over the rows that one process has in one piece, so that the maximum of each part is taken, which is
        more than that of the whole batch.

    Raises
    ------
    ValueError
        If an argument is out of range.
    EngineError
        At the first step, for free bits of several latents whose priors depend on a finite one that is summed out:
        they have no KL by themselves. A single one has that to its prior with the finite one summed out.

    Examples
    --------
    >>> elbo(num_particles=2, kl="analytic")
    Elbo(num_particles=2, kl='analytic', free_bits=0.0)
    """
    return Elbo(num_particles, kl, free_bits)
