"""Conjugate posteriors: the law of a family's parameters that data update by adding expected statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.families.categorical import DirichletPrior
from ppl_vae.families.family import Family, Sums

__all__ = ["DirichletPosterior", "ExpectedLogProbs", "Posterior", "conjugate"]

Own = TypeVar("Own", bound="Posterior")


@dataclass(frozen=True)
class Posterior:
    """q(theta) of one family's parameters. The prior is one of these too: q = prior.updated(sums).

    A new one defines `updated`, `kernel`, `divergence`, `site` and `center`, and is registered with `conjugate`
    for its prior's class.

    Attributes
    ----------
    family : Family
        Whose parameters these are.
    """

    family: Family

    def of(self: Own, family: Family) -> Own:
        """The same law of another copy of the family, which may see the data in other units."""
        return replace(self, family=family)

    def updated(self: Own, sums: Sums) -> Own:
        """The posterior that this prior becomes with expected sufficient statistics."""
        raise NotImplementedError

    def kernel(self) -> Any:
        """An E-step whose log density is E_q[log p(x_i | theta_k)], [K, n]."""
        raise NotImplementedError

    def divergence(self: Own, prior: Own) -> Tensor:
        """KL(q || prior), total nats."""
        raise NotImplementedError

    def site(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """q(parameter | earlier parameters); values may have leading dimensions of draws."""
        raise NotImplementedError

    def center(self) -> dict[str, Tensor]:
        """One value of each parameter in the middle of q."""
        raise NotImplementedError

    def sample(self, count: int) -> dict[str, Tensor]:
        """Draws of every parameter, [count, *event]."""
        values: dict[str, Tensor] = {}
        for name in self.family.constraints:
            values[name] = self.site(name, values).expand((count,)).sample()
        return values

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log q(theta) of draws [count, *event], [count] nats."""
        return torch.stack([self.site(name, values).log_prob(values[name]) for name in self.family.constraints]).sum(0)


@singledispatch
def conjugate(prior: Any, family: Family) -> Posterior:
    """The prior of a family as a law that data update; `conjugate.register` teaches it a new prior.

    Raises
    ------
    EngineError
        If the prior is not conjugate to its family, or there is none.
    """
    raise EngineError(
        f"{prior!r} is not known to be conjugate to {type(family).__name__}: take a prior that is, register this one, "
        f"or fit by SVI or NUTS"
    )


@dataclass(frozen=True)
class ExpectedLogProbs:
    """An E-step of categories with E_q[log probs] in the place of log probs, [batch, ...]."""

    family: Family
    log_probs: Tensor

    def expand(self, features: Any) -> Any:
        """The family's one-hot columns as they are."""
        return features

    def log_density(self, expanded: Tensor) -> Tensor:
        """E_q[log p(x_i | member)], [batch, n]."""
        return self.log_probs.reshape(self.family.batch, -1) @ expanded

    def expect(self, expanded: Tensor, r: Tensor) -> Sums:
        """The family's own counts."""
        return self.family.expect(expanded, r)


@dataclass(frozen=True)
class DirichletPosterior(Posterior):
    """probs ~ Dirichlet(concentration), the concentration [..., C] in the shape of the parameter.

    Bishop (2006), "Pattern Recognition and Machine Learning", (10.57), (10.65), (10.66).

    Examples
    --------
    >>> from ppl_vae.families import Categorical
    >>> q = conjugate(DirichletPrior(1.0), Categorical(2)).updated({"counts": torch.tensor([[3.0, 1.0]])})
    >>> q.concentration.tolist()
    [4.0, 2.0]
    """

    concentration: Tensor

    def updated(self, sums: Sums) -> "DirichletPosterior":
        """Concentrations alpha + N."""
        return replace(self, concentration=self.concentration + sums["counts"].reshape(self.concentration.shape))

    def kernel(self) -> ExpectedLogProbs:
        """E[log probs_c] = digamma(alpha_c) - digamma(sum_c alpha_c)."""
        alpha = self.concentration
        return ExpectedLogProbs(self.family, alpha.digamma() - alpha.sum(-1, keepdim=True).digamma())

    def divergence(self, prior: "DirichletPosterior") -> Tensor:
        """KL of two Dirichlet laws, summed over the members."""
        laws = dist.Dirichlet(self.concentration), dist.Dirichlet(prior.concentration)
        return torch.distributions.kl_divergence(*laws).sum()

    def site(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """The Dirichlet law of all members' probabilities."""
        return dist.Dirichlet(self.concentration).to_event(self.concentration.dim() - 1)

    def center(self) -> dict[str, Tensor]:
        """The mean."""
        return {"probs": self.concentration / self.concentration.sum(-1, keepdim=True)}


@conjugate.register
def _dirichlet(prior: DirichletPrior, family: Any) -> DirichletPosterior:
    return DirichletPosterior(family, torch.full_like(family.defaults()["probs"], prior.concentration))
