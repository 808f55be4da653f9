"""Stick-breaking weights, the truncated Dirichlet process, as a prior that variational Bayes updates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ppl_vae.families import Categorical, Posterior, conjugate
from ppl_vae.families.conjugate import ExpectedLogProbs
from ppl_vae.families.family import Sums

__all__ = ["SticksPosterior", "SticksPrior", "broken"]


def broken(shares: Tensor) -> Tensor:
    """w_k = v_k prod_(l<k) (1 - v_l): each weight is a share v_k of what the earlier ones left, [..., K]."""
    left = (1 - shares).cumprod(-1)
    return shares * torch.cat([torch.ones_like(shares[..., :1]), left[..., :-1]], -1)


class Breaking(Transform):
    """The bijection from shares v in (0, 1)^K to weights w > 0 with a sum below one."""

    domain = constraints.independent(constraints.unit_interval, 1)
    codomain = constraints.independent(constraints.unit_interval, 1)
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Breaking)

    __hash__ = object.__hash__

    def _call(self, v: Tensor) -> Tensor:
        return broken(v)

    def _inverse(self, w: Tensor) -> Tensor:
        return w / (1 - (w.cumsum(-1) - w))

    def log_abs_det_jacobian(self, v: Tensor, w: Tensor) -> Tensor:
        """sum_k sum_(l<k) log(1 - v_l)."""
        later = torch.arange(v.shape[-1] - 1, -1, -1, device=v.device)
        return ((1 - v).log() * later).sum(-1)


def _law(first: Tensor, second: Tensor) -> TorchDistribution:
    return dist.TransformedDistribution(dist.Beta(first, second).to_event(1), [Breaking()])


@dataclass(frozen=True)
class SticksPrior:
    """v_k ~ Beta(1, concentration), w = broken(v): a Dirichlet process cut off after K components.

    Blei and Jordan (2006), "Variational inference for Dirichlet process mixtures". As in scikit-learn, the last share
    is random too, so that the weights leave a rest to the components that were cut off.
    """

    concentration: float

    def site(self, family: Categorical, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """The law of the weights, [K]."""
        ones = family.like.new_ones(family.shape)
        return _law(ones, self.concentration * ones)


@dataclass(frozen=True)
class SticksPosterior(Posterior):
    """v_k ~ Beta(first_k, second_k); data add N_k to `first` and the later components' counts to `second`.

    Examples
    --------
    >>> q = conjugate(SticksPrior(2.0), Categorical(3)).updated({"counts": torch.tensor([[5.0, 3.0, 1.0]])})
    >>> q.first.tolist(), q.second.tolist()
    ([6.0, 4.0, 2.0], [6.0, 3.0, 2.0])
    """

    first: Tensor
    second: Tensor

    def updated(self, sums: Sums) -> "SticksPosterior":
        """The posterior of the counts."""
        count = sums["counts"].reshape(self.first.shape)
        later = torch.cat([count.flip(0).cumsum(0).flip(0)[1:], count.new_zeros(1)])
        return replace(self, first=self.first + count, second=self.second + later)

    def kernel(self) -> ExpectedLogProbs:
        """E[log w_k] = E[log v_k] + sum_(l<k) E[log(1 - v_l)]."""
        whole = (self.first + self.second).digamma()
        rest = self.second.digamma() - whole
        return ExpectedLogProbs(self.family, self.first.digamma() - whole + rest.cumsum(0) - rest)

    def divergence(self, prior: "SticksPosterior") -> Tensor:
        """KL of the shares' laws."""
        laws = dist.Beta(self.first, self.second), dist.Beta(prior.first, prior.second)
        return torch.distributions.kl_divergence(*laws).sum()

    def site(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """The law of the weights."""
        return _law(self.first, self.second)

    def center(self) -> dict[str, Tensor]:
        """The mean weights, scaled to sum to one."""
        weights = broken(self.first / (self.first + self.second))
        return {"probs": weights / weights.sum()}


@conjugate.register
def _sticks(prior: SticksPrior, family: Any) -> SticksPosterior:
    ones = torch.ones_like(family.defaults()["probs"])
    return SticksPosterior(family, ones, prior.concentration * ones)
