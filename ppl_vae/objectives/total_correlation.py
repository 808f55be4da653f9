"""The divergence of a VAE in three parts, each with a weight of its own: beta-TC-VAE."""

from dataclasses import dataclass
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.objectives.bound import Elbo
from ppl_vae.objectives.sites import Sites, score, total

__all__ = ["TcElbo", "TcTerms", "tc_elbo"]


class TcTerms(NamedTuple):
    """Parts of log q(z | x) - log p(z) at a draw, [num_particles * n] nats each; they add up to it."""

    information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor


@dataclass(frozen=True)
class TcElbo:
    """E_q log p(x_i | z) - alpha I(x; z) - beta TC(z) - gamma sum_j KL(q(z_j) || p(z_j)), [n] nats."""

    size: float
    beta: float = 6.0
    alpha: float = 1.0
    gamma: float = 1.0
    num_particles: int = 1

    def __post_init__(self) -> None:
        if not self.size >= 1:
            raise ValueError(f"tc_elbo: size is the number of data in the whole set, at least 1; got {self.size}")
        if min(self.alpha, self.beta, self.gamma) < 0:
            raise ValueError(
                f"tc_elbo: alpha, beta and gamma are weights of penalties, at least 0; got {self.alpha}, {self.beta} "
                f"and {self.gamma}"
            )
        Elbo(self.num_particles)

    @property
    def is_bound(self) -> bool:
        """Whether it is the bound itself for beta = 1 in SVI: the three parts then add up to the divergence."""
        return self.alpha == self.beta == self.gamma == 1

    def __call__(self, sites: Sites, beta: Tensor | float = 1.0, weights: Tensor | None = None) -> Tensor:
        """The objective; the argument beta weighs all three parts."""
        sites = sites.collapsed()
        rest = total(value for name, value in sites.log_p.items() if name not in sites.log_q)
        finite = total(Elbo().divergence(sites, name) for name in sites.enumerated)
        value = sites.expect(sites.marginal(rest + beta * finite))
        for name in sites.log_q:
            if name not in sites.enumerated:
                parts = self.parts(sites, name, weights)
                weighed = total(w * part for w, part in zip((self.alpha, self.beta, self.gamma), parts, strict=True))
                value = value - beta * weighed
        return (value + score(sites, value)).reshape(self.num_particles, -1).mean(0)

    def parts(self, sites: Sites, name: str, weights: Tensor | None = None) -> TcTerms:
        """Log q(z|x) / q(z), log q(z) / prod_j q(z_j) and log prod_j q(z_j) / p(z) of a latent, at its draws.

        Where q has a draw for each value y of finite latents, every q is given y and the parts are means over q(y | x).
        """
        if sites.branches(name):
            raise EngineError(
                f"tc_elbo needs log p(z) of a latent by itself, and the prior of {name!r} depends on "
                f"{', '.join(sites.summed)}, which is summed out: take elbo()"
            )
        whole, each = _log_q_of_all(sites.q[name], sites.values[name], name)
        log_share = self._log_shares(_shares_given(sites, name), weights)
        log_q = torch.logsumexp(whole + log_share, -1)
        by_unit = torch.logsumexp(each + log_share[..., None], -2).sum(-1)
        own = whole.diagonal(dim1=-2, dim2=-1)
        terms = (own - log_q, log_q - by_unit, by_unit - sites.log_p[name])
        return TcTerms(*(sites.expect(term) for term in terms))

    def _log_shares(self, given: Tensor, weights: Tensor | None) -> Tensor:
        """Log of what row k stands for in q(z) seen from draw i, [*values, m, m]; -inf where its weight is 0.

        The datum itself is one of `size`; the others of the batch stand for all the rest. `given`, [*values, m], is how
        probable each value of the finite latents is that q is given.
        """
        n = given.shape[-1] // self.num_particles
        w = given.new_ones(n) if weights is None else weights
        w = torch.where(w.sum() > 0, w, torch.ones_like(w))  # a batch of padding alone, which counts for nothing
        row = (w.repeat(self.num_particles) * given)[..., None, :]
        row = torch.where(row.sum(-1, keepdim=True) > 0, row, torch.ones_like(row))  # a value that no datum has
        same = torch.eye(n, dtype=torch.bool, device=w.device).repeat(self.num_particles, self.num_particles)
        mine, rest = (torch.where(of, row, 0.0).sum(-1, keepdim=True) for of in (same, ~same))
        own = (mine / (mine + rest) * w.sum() / self.size).clamp(max=1.0)
        mine, rest = (mass.clamp_min(torch.finfo(w.dtype).tiny) for mass in (mine, rest))
        share = row * torch.where(same, own / mine, (1 - own) / rest)
        # The logarithm of 0 has no gradient, nor may it bring one.
        return torch.where(share > 0, torch.where(share > 0, share, 1.0).log(), -torch.inf)


def _shares_given(sites: Sites, name: str) -> Tensor:
    """q(y | x) of the values y that q of a latent is given, [*values, m]."""
    shape = sites.q[name].batch_shape
    shares = total(sites.log_q[other] for other in sites.enumerated)
    return shares.exp().sum_to_size(shape) if len(shape) > 1 else sites.log_q[name].new_ones(shape)


def _log_q_of_all(q: TorchDistribution, z: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Log q(z_i | x_k) for every draw i and row k, [*values, m, m], and of every unit j, [*values, m, m, units]."""
    units = _units(q)
    if units is None:
        raise EngineError(
            f"tc_elbo needs a q whose units have known densities; q of {name!r}, a {type(q).__name__}, has no density "
            "for each unit: take elbo(), or the diagonal or full posterior"
        )
    finite = len(q.batch_shape) - 1
    at = z.movedim(finite, 0).unsqueeze(finite + 1)
    each = units.log_prob(at)
    each = each.reshape(*each.shape[: finite + 2], -1).movedim(0, finite)
    return (each.sum(-1) if isinstance(q, dist.Independent) else q.log_prob(at).movedim(0, finite)), each


def _units(q: TorchDistribution) -> TorchDistribution | None:
    """The laws of the units by themselves, [*values, n, units], where they are known."""
    if isinstance(q, torch.distributions.MultivariateNormal):
        return dist.Normal(q.loc, q.variance.sqrt())
    if isinstance(q, dist.Independent):
        return q.base_dist
    return None if q.event_shape else q


def tc_elbo(size: float, beta: float = 6.0, alpha: float = 1.0, gamma: float = 1.0, num_particles: int = 1) -> TcElbo:
    """The beta-TC-VAE as an objective: the divergence in three parts, of which one is the total correlation.

    E_q log p(x | z) - alpha I(x; z) - beta KL(q(z) || prod_j q(z_j)) - gamma sum_j KL(q(z_j) || p(z_j))

    with q(z) = (1/n) sum_i q(z | x_i). At each draw q(z) is estimated from the batch: q(z | x) of its own datum counts
    as one of n, the mean over the others as the remaining n - 1. That is unbiased for q(z) (stratified sampling), exact
    when the batch is the whole data set, and a lower bound of log q(z) in expectation otherwise (Jensen), so that the
    information of small batches is overstated. With several processes or SVI's `accumulate=` the others are those that
    one process has in one piece: as small a batch. With alpha = beta = gamma = 1 the parts add up to the ELBO's
    divergence at the same draw, whatever the batch. The reported bound stays the ELBO.

    Each drawn latent is decomposed by itself, with q(z) over the data and the earlier draws that its q is given, and by
    the values of finite latents that it is given; those keep their divergence. Of a vector of categories, as
    `GumbelVAE` has, each is a unit. For a prior whose units depend on each other the last part is
    E log prod_j q(z_j) - log p(z).

    Parameters
    ----------
    size : float
        n, the number of data in the whole set, or their total weight. SVI refuses another one than that of its data.
    beta, alpha, gamma : float
        Weights of total correlation, of the mutual information of datum and code, and of the units' divergences.
    num_particles : int
        Draws of z per datum. Memory grows with the square of draws in a batch, times the units.

    Raises
    ------
    ValueError
        If a number is out of range.
    EngineError
        At the first step, if the densities of a latent's units are not known, as those of a flow, or the priors of
        several latents depend on a finite one that is summed out.

    References
    ----------
    Chen, Li, Grosse and Duvenaud (2018). Isolating sources of disentanglement in variational autoencoders. NeurIPS.

    Examples
    --------
    >>> tc_elbo(size=60_000, beta=4.0).beta
    4.0
    """
    return TcElbo(size, beta, alpha, gamma, num_particles)
