"""InfoVAE: part of the divergence replaced by the discrepancy between all codes together and the prior."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.objectives.bound import Elbo
from ppl_vae.objectives.sites import Sites
from ppl_vae.over_classes import OverClasses

__all__ = ["KERNELS", "InfoVae", "discrepancy", "infovae"]


Kernel = Callable[[Tensor], Tensor]
"""k(x, y) as a function of |x - y|^2."""


def _imq(spread: float) -> Kernel:
    return lambda squares: spread / (spread + squares)


def _rbf(spread: float) -> Kernel:
    return lambda squares: torch.exp(-squares / spread)


KERNELS: dict[str, Callable[[float], Kernel]] = {"imq": _imq, "rbf": _rbf}
"""Kernels by name, from their spread 2 d scale^2: the mean of |x - y|^2 between two draws of the prior."""


@dataclass(frozen=True)
class InfoVae:
    """E_q log p(x_i | z) - (1 - alpha) KL(q(z | x_i) || p(z)) - (alpha + lambda - 1) MMD^2(q(z), p(z)), [n] nats.

    The last term belongs to the batch; each datum carries it whole, so that sum_i w_i L_i counts it sum_i w_i times.
    """

    alpha: float
    lambda_: float
    kernel: str = "imq"
    scale: float = 1.0
    num_particles: int = 1
    kl: str = "sampled"

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"infovae: kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if not (self.alpha <= 1 and self.alpha + self.lambda_ >= 1):
            raise ValueError(
                f"infovae: alpha at most 1 and alpha + lambda_ at least 1 keep both terms penalties, got "
                f"alpha={self.alpha} and lambda_={self.lambda_}"
            )
        if not self.scale > 0:
            raise ValueError(f"infovae: scale is the prior's standard deviation, above 0; got {self.scale}")
        Elbo(self.num_particles, self.kl)

    @property
    def is_bound(self) -> bool:
        """Whether it is the bound itself for beta = 1."""
        return self.alpha == 0 and self.lambda_ == 1

    def __call__(self, sites: Sites, beta: Tensor | float = 1.0, weights: Tensor | None = None) -> Tensor:
        """The objective; beta weighs both terms beside the reconstruction."""
        sites = sites.collapsed()
        value = Elbo(self.num_particles, self.kl)(sites, beta * (1 - self.alpha))
        return value - beta * (self.alpha + self.lambda_ - 1) * self.batch_discrepancy(sites, weights)

    def batch_discrepancy(self, sites: Sites, weights: Tensor | None = None) -> Tensor:
        """The unbiased estimate of MMD^2 from the codes of a batch; of several latents the sum, one after the other.

        (z_1 .. z_l) of q is set against (z_1 .. z_{l-1}) of q with z_l from its prior given these: the sum vanishes
        where and only where q follows the joint prior. Of finite latents every value counts with its probability, as
        corners of a simplex with sides as long as two draws of a normal unit lie apart.
        """
        n = sites.joint().shape[-1] // self.num_particles
        w = sites.joint().new_ones(n) if weights is None else weights
        found, units = sites.joint().new_zeros(()), 0
        earlier: list[Tensor] = []
        for name in self._compared(sites):
            of_q = self._corners(sites, name) if name in sites.enumerated else _flat(sites.values[name], sites.q[name])
            of_p, p_shares = (of_q, _prior_shares(sites, name)) if name in sites.enumerated else _prior(sites, name)
            units += 1 if name in sites.enumerated else of_q.shape[-1]
            codes = _cloud([*earlier, of_q], _shares(sites, sites.enumerated), w, self.num_particles)
            draws = _cloud([*earlier, of_p], p_shares, w, self.num_particles)
            found = found + discrepancy(*codes, *draws, w, KERNELS[self.kernel](2 * units * self.scale**2))
            earlier.append(of_q)
        return found

    def _corners(self, sites: Sites, name: str) -> Tensor:
        """The values of a finite latent as codes, [K, 1 ..., K]."""
        dim = sites.enumerated[name]
        K = sites.log_q[name].shape[dim]
        eye = torch.eye(K, dtype=sites.log_q[name].dtype, device=sites.log_q[name].device)
        return self.scale * eye.reshape(K, *[1] * (-dim - 1), K)

    def _compared(self, sites: Sites) -> list[str]:
        """The latents with a q in the model's order, each of which can be compared with its prior."""
        compared = [name for name in sites.p if name in sites.log_q]
        if not compared:
            raise EngineError("infovae compares q with the prior, and no latent of this model has a q: take elbo()")
        for number, name in enumerate(compared):
            if sites.branches(name):
                raise EngineError(
                    f"infovae needs the prior of {name!r} by itself, and it depends on what is summed out, "
                    f"{', '.join(sites.summed)}: take elbo()"
                )
            if name in sites.enumerated:
                later = [other for other in compared[:number] if _varies(sites, other, sites.enumerated[name])]
                if later:
                    raise EngineError(
                        f"infovae needs a q that draws in the model's order; q of {later[0]!r} depends on {name!r}, "
                        "which the model draws after it: take elbo()"
                    )
            elif not sites.q[name].has_rsample:
                raise EngineError(
                    f"infovae needs draws that follow the parameters of q, and q of {name!r}, a "
                    f"{type(sites.q[name]).__name__}, has none: take elbo()"
                )
        return compared


def _flat(value: Tensor, law: TorchDistribution) -> Tensor:
    """Draws as codes, [*values of finite latents, n, d]."""
    return value.flatten(-law.event_dim) if law.event_dim else value[..., None]


def _shares(sites: Sites, names: Iterable[str]) -> Tensor:
    """Probability under q of every value of these finite latents, [*values, n]."""
    shares = sites.joint().new_ones(())
    for name in names:
        shares = shares * sites.log_q[name].exp()
    return shares


def _prior_shares(sites: Sites, name: str) -> Tensor:
    """The same with the prior of one of them, given what is known of it, in place of its q."""
    others = _shares(sites, [other for other in sites.enumerated if other != name])
    return others * sites.log_p[name].log_softmax(sites.enumerated[name]).exp()


def _prior(sites: Sites, name: str) -> tuple[Tensor, Tensor]:
    """A draw of the prior of a latent for every datum and value of the finite ones, and the share of each."""
    law, shares, rows = sites.p[name], _shares(sites, sites.enumerated), sites.joint().shape[-1:]
    if isinstance(law, OverClasses):
        z, weight = law.weighed(torch.Size() if law.batch_shape == rows else rows)
        z, shares = z.reshape(*rows, *law.event_shape), shares * weight.reshape(rows)
    elif law.batch_shape:
        law = law.expand(torch.broadcast_shapes(law.batch_shape, rows))
        z = law.rsample() if law.has_rsample else law.sample()
    else:
        z = law.rsample(rows) if law.has_rsample else law.sample(rows)
    return _flat(z, law).to(sites.values[name]), shares


def _varies(sites: Sites, name: str, dim: int) -> bool:
    """Whether q of a latent has a value for each of those along a dimension."""
    log_q = sites.log_q[name]
    return -dim <= log_q.dim() and log_q.shape[dim] > 1


def _cloud(codes: list[Tensor], shares: Tensor, weights: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    """Codes side by side, [particles, values * n, d], and the share of each in its datum, [particles, values * n].

    Shares of values that no code depends on are summed.
    """
    n = len(weights)
    shape = torch.broadcast_shapes(*(code.shape[:-1] for code in codes), (particles * n,))
    shares = shares.expand(torch.broadcast_shapes(shape, shares.shape)).sum_to_size(shape)
    joined = torch.cat([code.expand(*shape, -1) for code in codes], -1)
    joined = joined.reshape(-1, particles, n, joined.shape[-1]).transpose(0, 1).flatten(1, 2)
    shares = shares.reshape(-1, particles, n).transpose(0, 1).flatten(1, 2)
    return joined.to(weights), shares.to(weights)


def discrepancy(x: Tensor, x_shares: Tensor, y: Tensor, y_shares: Tensor, weights: Tensor, kernel: Kernel) -> Tensor:
    """sum_{i != j} w_i w_j E[k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)] / sum_{i != j} w_i w_j.

    The unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 4): it may be negative. Rows of weight 0 count for nothing.

    Parameters
    ----------
    x, y : Tensor
        Draws of both distributions, [m, k * n, d], of datum i in rows i, n + i, ...; the mean over m is taken.
    x_shares, y_shares : Tensor
        Probability of each draw among those of its datum, over which E is, [m, k * n].
    weights : Tensor
        [n], of the data.
    kernel : callable
        k as a function of |x - y|^2.

    Examples
    --------
    >>> x, ones = torch.zeros(1, 3, 2), torch.ones(1, 3)
    >>> discrepancy(x, ones, x + 3.0, ones, torch.ones(3), lambda squares: torch.exp(-squares)).item()
    2.0
    """
    different = 1 - torch.eye(len(weights), dtype=x.dtype, device=x.device)
    pairs = weights[:, None] * weights * different

    def mean(a: Tensor, a_shares: Tensor, b: Tensor, b_shares: Tensor) -> Tensor:
        each = pairs.repeat(a.shape[1] // len(weights), b.shape[1] // len(weights)) * kernel(_squares(a, b))
        return torch.einsum("mij,mi,mj->m", each, a_shares, b_shares)

    total = mean(x, x_shares, x, x_shares) + mean(y, y_shares, y, y_shares) - 2 * mean(x, x_shares, y, y_shares)
    weight = pairs.sum()
    return (total / torch.where(weight > 0, weight, 1.0)).mean()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, [m, rows, rows]."""
    lengths = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return torch.baddbmm(lengths, a, b.mT, alpha=-2).clamp_min(0.0)


def infovae(
    alpha: float,
    lambda_: float,
    kernel: str = "imq",
    scale: float = 1.0,
    num_particles: int = 1,
    kl: str = "sampled",
) -> InfoVae:
    """InfoVAE as an objective: less of the divergence of each datum's q, more of that of all codes together.

    E_q log p(x | z) - (1 - alpha) KL(q(z | x) || p(z)) - (alpha + lambda - 1) MMD^2(q(z), p(z)),

    with q(z) = (1/n) sum_i q(z | x_i). The mean KL(q(z | x) || p(z)) is I(x; z) + KL(q(z) || p(z)): alpha is what the
    information is spared, lambda what the aggregate posterior costs. alpha = 0, lambda = 1 is the bound; alpha = 1
    leaves the MMD alone. MMD^2 is estimated without bias from the codes of a batch and as many draws of the prior, so
    batches should have some dozens of rows. A prior with parameters gets its gradient through these draws where they
    can be reparameterised, and through the shares of classes that it is summed over. Finite latents that have a q count
    with all their values: memory grows with the square of rows times values. With several processes or SVI's
    `accumulate=` the estimate is made of the rows that one process has in one piece, and the parts' mean is taken:
    still without bias, with more noise. The reported bound stays the ELBO.

    Parameters
    ----------
    alpha : float
        Weight of the mutual information, at most 1.
    lambda_ : float
        Weight of the divergence of the aggregate posterior; alpha + lambda at least 1. MMD^2 is below 2, so that it
        needs a weight of about the number of nats at stake.
    kernel : {"imq", "rbf"}
        c / (c + |x - y|^2) or exp(-|x - y|^2 / c) with c = 2 d scale^2; the inverse multiquadric has the heavier tails.
    scale : float
        Standard deviation of the prior.
    num_particles : int
        Draws of z per datum; the MMD is taken for each and averaged.
    kl : {"sampled", "analytic"}
        As in `elbo`.

    Raises
    ------
    ValueError
        If a number or the kernel is out of range.
    EngineError
        At the first step, for draws that cannot be reparameterised, a model no latent of which has a q, priors of
        several latents that depend on a finite one summed out, and a q that is given a finite latent which comes after
        its own in the model.

    References
    ----------
    Zhao, Song and Ermon (2019). InfoVAE: balancing learning and inference in variational autoencoders. AAAI.
    Gretton et al. (2012). A kernel two-sample test. JMLR 13.

    Examples
    --------
    >>> infovae(alpha=1.0, lambda_=50.0).kernel
    'imq'
    """
    return InfoVae(alpha, lambda_, kernel, scale, num_particles, kl)
