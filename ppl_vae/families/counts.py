"""Families of counts and bits with independent features: Bernoulli and Poisson."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.errors import DeclarationError
from ppl_vae.families.family import Family, Sums

__all__ = ["Bernoulli", "Poisson"]


class _IndependentMeans(Family):
    """Families whose statistic is x itself: the M-step is a weighted mean, N_k^-1 sum_i r_ki x_i."""

    parameter: str

    def __init__(self, n_features: int | None = None, *, batch: int) -> None:
        if batch < 1:
            raise DeclarationError(f"{type(self).__name__}: batch must be at least 1, got {batch}")
        super().__init__(batch)
        self.n_features = n_features
        self.shape = (batch,) if n_features is None else (batch, n_features)
        self.register_buffer("like", torch.zeros(()), persistent=False)
        self.register()

    def features(self, x: Tensor) -> Tensor:
        """[n, d]."""
        return x.reshape(len(x), -1).to(self.like.dtype)

    def member(self, index: Tensor | None) -> Tensor:
        value = getattr(self, self.parameter)
        return value[0] if index is None else value[index]

    def expect(self, features: Tensor, r: Tensor) -> Sums:
        """Counts [K] and sums [K, d]."""
        return {"count": r.sum(1), "first": r @ features}

    def maximize(self, sums: Sums, estimate: str) -> dict[str, Tensor]:
        """The weighted mean."""
        mean = sums["first"] / sums["count"].clamp_min(1e-300)[:, None]
        return {self.parameter: self.interior(mean.reshape(self.shape))}

    def interior(self, mean: Tensor) -> Tensor:
        """The nearest value at which the density is finite for every datum."""
        raise NotImplementedError


class Bernoulli(_IndependentMeans):
    r"""p(x = 1) = probs for each of d independent bits; M-step probs = N_k^-1 sum_i r_ki x_i.

    Parameters
    ----------
    n_features : int, optional
        d; None for a single bit per datum (event shape ()).
    batch : int
        Number of members.

    Examples
    --------
    >>> import torch
    >>> Bernoulli(4, batch=2)(torch.tensor(1)).event_shape
    torch.Size([4])
    """

    parameter = "probs"
    constraints = {"probs": constraints.unit_interval}  # noqa: RUF012

    def defaults(self) -> dict[str, Tensor]:
        """One half."""
        return {"probs": self.like.new_full(self.shape, 0.5)}

    def distribution(self, index: Tensor | None) -> TorchDistribution:
        """Independent Bernoulli over the features."""
        return dist.Bernoulli(self.member(index)).to_event(len(self.shape) - 1)

    def log_density(self, features: Tensor) -> Tensor:
        """sum_j x_j log p_kj + (1 - x_j) log(1 - p_kj), [K, n]."""
        p = self.probs.reshape(self.batch, -1)
        return p.log() @ features.mT + (-p).log1p() @ (1 - features).mT

    def interior(self, mean: Tensor) -> Tensor:
        """Away from 0 and 1 by the dtype's resolution."""
        eps = torch.finfo(mean.dtype).eps
        return mean.clamp(eps, 1 - eps)


class Poisson(_IndependentMeans):
    r"""p(x) = rate^x exp(-rate) / x! for each of d independent counts; M-step rate = N_k^-1 sum_i r_ki x_i.

    Parameters
    ----------
    n_features : int, optional
        d; None for a single count per datum (event shape ()).
    batch : int
        Number of members.

    Examples
    --------
    >>> import torch
    >>> Poisson(batch=2)(torch.tensor([[0], [1]])).batch_shape
    torch.Size([2, 1])
    """

    parameter = "rate"
    constraints = {"rate": constraints.positive}  # noqa: RUF012

    def defaults(self) -> dict[str, Tensor]:
        """Rate one."""
        return {"rate": self.like.new_ones(self.shape)}

    def distribution(self, index: Tensor | None) -> TorchDistribution:
        """Independent Poisson over the features."""
        return dist.Poisson(self.member(index)).to_event(len(self.shape) - 1)

    def log_density(self, features: Tensor) -> Tensor:
        """sum_j x_j log rate_kj - rate_kj - log x_j!, [K, n]."""
        rate = self.rate.reshape(self.batch, -1)
        return rate.log() @ features.mT - rate.sum(1, keepdim=True) - (features + 1).lgamma().sum(1)

    def interior(self, mean: Tensor) -> Tensor:
        """Positive."""
        return mean.clamp_min(torch.finfo(mean.dtype).tiny)
