"""The law of a latent whose posterior depends on a finite one that is not known: a mixture over its values."""

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

__all__ = ["OverClasses"]


class OverClasses(TorchDistribution):
    """q(z) = sum_k r_k q(z | k), each datum by itself.

    Parameters
    ----------
    law : TorchDistribution
        q(z | k), batch shape [*enumerated, n].
    r : Tensor
        Probability of every combination of finite values, [*enumerated, n].

    Examples
    --------
    >>> import torch
    >>> import pyro.distributions as dist
    >>> law = OverClasses(dist.Normal(torch.tensor([[0.0], [2.0]]), 1.0), torch.tensor([[0.5], [0.5]]))
    >>> law.batch_shape, law.mean.item(), law.variance.item()
    (torch.Size([1]), 1.0, 2.0)
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, law: TorchDistribution, r: Tensor) -> None:
        shape = torch.broadcast_shapes(law.batch_shape, r.shape)
        self.law, self.r = law.expand(shape), r.expand(shape)
        super().__init__(shape[-1:], law.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        """That of q(z | k)."""
        return self.law.support

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, [..., n] nats."""
        value = value.expand(torch.broadcast_shapes(value.shape, self.shape()))
        dims = self.r.dim() - 1
        at = value.dim() - 1 - len(self.event_shape)
        each = self.law.log_prob(value.reshape(*value.shape[:at], *[1] * dims, *value.shape[at:]))
        return torch.logsumexp((each + self.r.log()).flatten(at, at + dims - 1), at)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, each datum's of a class of its own."""
        with torch.no_grad():
            return self.weighed(sample_shape)[0]

    def weighed(self, sample_shape: torch.Size = torch.Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        """Draws that follow their class's law, and weights that are 1, with the gradient of the class's probability.

        The gradient of a mean of weight times f(draw) is without bias for E f.
        """
        shape, dims = torch.Size(sample_shape), self.r.dim() - 1
        draw = self.law.rsample if self.law.has_rsample else self.law.sample
        each = draw(shape).flatten(len(shape), len(shape) + dims - 1)  # [*shape, classes, n, *event]
        shares = self.r.flatten(0, -2)
        which = torch.distributions.Categorical(shares.detach().mT).sample(shape)  # [*shape, n]
        share = shares.expand(*shape, *shares.shape).gather(len(shape), which.unsqueeze(len(shape))).squeeze(len(shape))
        which = which.reshape(*shape, 1, -1, *[1] * len(self.event_shape))
        index = which.expand(*shape, 1, *each.shape[len(shape) + 1 :])
        return each.gather(len(shape), index).squeeze(len(shape)), share / share.detach()

    @property
    def mean(self) -> Tensor:
        """sum_k r_k E[z | k]."""
        return self._over(self.law.mean)

    @property
    def variance(self) -> Tensor:
        """Mean of the classes' variances, and variance of their means."""
        return self._over(self.law.variance) + self._over((self.law.mean - self.mean).square())

    def _over(self, each: Tensor) -> Tensor:
        r = self.r.reshape(*self.r.shape, *[1] * len(self.event_shape))
        return (r * each).flatten(0, self.r.dim() - 2).sum(0)
