"""InfoVAE: part of the divergence replaced by the discrepancy between all codes together and the prior."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.objectives.bound import Elbo
from ppl_vae.objectives.sites import Sites

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
        where and only where q's draws follow the joint prior.
        """
        earlier: list[Tensor] = []
        found = sites.log_p[next(iter(sites.log_p))].new_zeros(())
        for name in self._drawn(sites):
            z, p = sites.values[name], sites.p[name]
            shape = torch.Size() if p.batch_shape else z.shape[:1]
            prior = p.rsample(shape) if p.has_rsample else p.sample(shape)
            codes, draws = (self._grouped([*earlier, one.expand_as(z)]) for one in (z, prior))
            w = codes.new_ones(codes.shape[1]) if weights is None else weights
            spread = 2 * codes.shape[-1] * self.scale**2
            found = found + discrepancy(codes, draws, w, KERNELS[self.kernel](spread))
            earlier.append(z)
        return found

    def _grouped(self, values: list[Tensor]) -> Tensor:
        """Draws side by side, each particle by itself, [num_particles, n, d]."""
        flat = torch.cat([value.reshape(len(value), -1) for value in values], 1)
        return flat.reshape(self.num_particles, -1, flat.shape[1])

    def _drawn(self, sites: Sites) -> list[str]:
        """The latents in the model's order, each with one reparameterised draw per datum."""
        if not sites.log_q:
            raise EngineError("infovae compares draws of q with the prior, and this model draws no latent")
        for name, q in sites.q.items():
            if name in sites.enumerated or sites.log_q[name].dim() > 1 or sites.log_p[name].dim() > 1:
                raise EngineError(
                    f"infovae needs one draw of a latent per datum; {name!r} is finite or has a value for each value "
                    "of a finite latent: take elbo()"
                )
            if not q.has_rsample:
                raise EngineError(
                    f"infovae needs draws that follow the parameters of q, and q of {name!r}, a {type(q).__name__}, "
                    "has none: take elbo()"
                )
        return [name for name in sites.p if name in sites.log_q]


def discrepancy(x: Tensor, y: Tensor, weights: Tensor, kernel: Kernel) -> Tensor:
    """sum_{i != j} w_i w_j [k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)] / sum_{i != j} w_i w_j.

    The unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 4): it may be negative. Rows of weight 0 count for nothing.

    Parameters
    ----------
    x, y : Tensor
        Draws of both distributions, [m, n, d]; the mean over m is taken.
    weights : Tensor
        [n], of the rows of both.
    kernel : callable
        k as a function of |x - y|^2.

    Examples
    --------
    >>> x = torch.zeros(1, 3, 2)
    >>> discrepancy(x, x + 3.0, torch.ones(3), lambda squares: torch.exp(-squares)).item()
    2.0
    """
    different = 1 - torch.eye(len(weights), dtype=x.dtype, device=x.device)
    pairs = weights[:, None] * weights * different
    xx, yy, xy = (kernel(_squares(a, b)) for a, b in ((x, x), (y, y), (x, y)))
    total = (pairs * (xx + yy - xy - xy.mT)).sum((-2, -1))
    weight = pairs.sum()
    return (total / torch.where(weight > 0, weight, 1.0)).mean()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, [m, n, n]."""
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)


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
    can be reparameterised (a mixture's cannot). With several processes or SVI's `accumulate=` the estimate is made of
    the rows that one process has in one piece, and the parts' mean is taken: still without bias, with more noise. The
    reported bound stays the ELBO.

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
        At the first step, for finite latents and draws that cannot be reparameterised.

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
