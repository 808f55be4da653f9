"""The factors of log p and log q at one draw of the latents: what every objective is written on."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.over_classes import OverClasses

__all__ = ["Sites", "analytic_kl", "by_datum", "has_analytic_kl", "score", "total"]


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
    sampled : frozenset of str
        Latents z of which -KL(q || p) at the other draws is not E_q[log p - log q]: a parent of p was drawn from z, as
        in q(z1 | x) q(z2 | z1) with p(z1 | z2). Their divergence is taken at the draws.
    looked_at : frozenset of str
        Nodes that q is computed from, and so from something else where entries of them are missing.
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
    sampled: frozenset[str] = frozenset()
    looked_at: frozenset[str] = frozenset()

    @property
    def drawn(self) -> list[str]:
        """Latents of which q was drawn from, not enumerated."""
        return [name for name in self.log_q if name not in self.enumerated]

    def joint(self) -> Tensor:
        """Log p(x, z) with every enumerated value of z in its own dimension, [*enumerated, n]."""
        return total(self.log_p.values())

    def marginal(self, joint: Tensor) -> Tensor:
        """Sum the exactly summed latents out of a log joint."""
        dims = [d for d in self.summed.values() if -d <= joint.dim()]
        return torch.logsumexp(joint, dims, keepdim=True) if dims else joint

    def branches(self, name: str) -> bool:
        """Whether the prior of a latent has a value for each value of a latent that is summed out."""
        log_p = self.log_p.get(name)
        return log_p is not None and any(-d <= log_p.dim() and log_p.shape[d] > 1 for d in self.summed.values())

    def collapsed(self) -> "Sites":
        """The same with the prior of a drawn latent z for what it is with those summed out that it depends on.

        log p(x, z) = log p(x | z) + log p(z), log p(z) = log sum_c p(c) p(z | c): of one such latent z, beside which
        none is enumerated. Others are as they were.
        """
        branching = [name for name in self.drawn if self.branches(name)]
        if len(branching) != 1 or self.enumerated:
            return self
        (name,), n = branching, self.joint().shape[-1:]
        log_c = total(self.log_p[c] for c in self.summed)
        log_c = log_c - self.marginal(log_c)  # where some values of c are known, p(z) is given these
        joint = log_c + self.log_p[name]
        log_z = self.marginal(joint)
        others = total(self.log_p[node] for node in self.log_p if node not in self.log_q and node not in self.summed)
        if any(self.branches(node) for node in self.log_p if node not in (name, *self.summed)):
            # log p(x | z) = log sum_c p(c | z) p(x | z, c)
            others = self.marginal(others + torch.where(log_z == -torch.inf, log_c, joint - log_z))
        priors = {node: self.log_p[node] for node in self.log_p if node in self.log_q}
        priors[name] = by_datum(log_z).expand(n)
        shares = log_c.exp().expand(joint.shape[:-1] + n)
        laws = {**self.p, name: OverClasses(self.p[name], shares)}
        return replace(self, log_p={**priors, "the data": by_datum(others).expand(n)}, p=laws, summed={})

    def expect(self, value: Tensor, event_dim: int = 0) -> Tensor:
        """E_q over the enumerated latents of q, every dimension before the datum's dropped: [n, *event]."""
        if self.enumerated:
            log_q: Tensor = total(self.log_q[name] for name in self.enumerated)
            log_q = log_q.reshape(log_q.shape + (1,) * event_dim)
            value, log_q = torch.broadcast_tensors(value, log_q)
            # An impossible value of z contributes 0, not 0 * -inf.
            value = torch.where(log_q == -torch.inf, 0.0, value) * log_q.exp()
        return by_datum(value, event_dim)


def by_datum(value: Tensor, event_dim: int = 0) -> Tensor:
    """The sum over every dimension before the datum's, which is the last one before the event's, [n, *event]."""
    return value.flatten(0, -2 - event_dim).sum(0) if value.dim() > 1 + event_dim else value


def total(terms: Iterable[Any]) -> Tensor:
    """The sum of factors, 0 of none."""
    found: Any = 0.0
    for term in terms:
        found = found + term
    return found


def analytic_kl(q: TorchDistribution, p: TorchDistribution) -> Tensor:
    """KL(q || p) in closed form, [...] nats.

    Raises
    ------
    NotImplementedError
        If it is not known.
    """
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)  # some of torch's forms do not broadcast
    q, p = (law if law.batch_shape == shape else law.expand(shape) for law in (q, p))
    kl: Tensor = dist.kl.kl_divergence(q, _joint(p) if isinstance(q, dist.MultivariateNormal) else p)
    return kl


def _joint(p: TorchDistribution) -> TorchDistribution:
    """Independent normals as one multivariate normal, the form in which torch knows their KL to another."""
    if isinstance(p, dist.Independent) and isinstance(p.base_dist, dist.Normal) and len(p.event_shape) == 1:
        return dist.MultivariateNormal(p.mean, scale_tril=p.stddev.diag_embed())
    return p


def has_analytic_kl(q: TorchDistribution, p: TorchDistribution) -> bool:
    """Whether KL(q || p) is known in closed form.

    Parameters
    ----------
    q, p : TorchDistribution
        Batch shapes that broadcast, and one event shape.

    Examples
    --------
    >>> has_analytic_kl(dist.Normal(0.0, 1.0), dist.Normal(1.0, 1.0))
    True
    >>> has_analytic_kl(dist.Normal(0.0, 1.0), dist.StudentT(3.0))
    False
    """
    try:
        analytic_kl(q, p)
    except NotImplementedError:
        return False
    return True


def score(sites: Sites, value: Tensor) -> Tensor:
    """A term of value zero whose gradient is the score-function one, for draws that cannot be reparameterised."""
    names = [n for n, q in sites.q.items() if n not in sites.enumerated and not q.has_rsample]
    if not names:
        return torch.zeros_like(value)
    log_q = by_datum(total(sites.log_q[name] for name in names))
    return value.detach() * (log_q - log_q.detach())
