"""The conjugate posterior of a family with one parameter to a feature."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.families.conjugate import Posterior, conjugate
from ppl_vae.families.family import Sums
from ppl_vae.families.independent import Entries, IndependentFeatures, Natural, density
from ppl_vae.families.scalar_priors import ScalarPrior

__all__ = ["ExpectedNatural", "ScalarPosterior"]


@dataclass(frozen=True)
class ExpectedNatural:
    """An E-step with E_q[eta] and E_q[A] in the place of eta and A."""

    family: IndependentFeatures
    natural: Natural

    def expand(self, features: Entries) -> Entries:
        """The family's statistics as they are."""
        return features

    def log_density(self, expanded: Entries) -> Tensor:
        """E_q[log p(x_i | theta_k)], [K, n]."""
        return density(self.natural, expanded)

    def expect(self, expanded: Entries, r: Tensor) -> Sums:
        """The family's own sums."""
        return self.family.expect(expanded, r)


@dataclass(frozen=True)
class ScalarPosterior(Posterior):
    """Independent laws of all members' parameters, each with two numbers: Beta(a, b) or Gamma(a, b).

    Bernardo and Smith (1994), "Bayesian Theory", section 5.2.

    Attributes
    ----------
    prior : ScalarPrior
        Whose kind the laws are of.
    a, b : Tensor
        [K] or [K, d], in the shape of the parameter.

    Examples
    --------
    >>> from ppl_vae.families import GammaPrior, Poisson
    >>> sums = {"totals": torch.tensor([[[6.0]]]), "seen": torch.tensor([[3.0]])}
    >>> q = conjugate(GammaPrior(2.0, 1.0), Poisson(batch=1)).updated(sums)
    >>> q.a.tolist(), q.b.tolist(), q.center()["rate"].tolist()
    ([8.0], [4.0], [2.0])
    """

    family: IndependentFeatures
    prior: ScalarPrior
    a: Tensor
    b: Tensor

    def updated(self, sums: Sums) -> "ScalarPosterior":
        """Both numbers and what the data add to them."""
        a, b = self.family.updated(self.a, self.b, sums)
        return replace(self, a=a, b=b)

    def kernel(self) -> ExpectedNatural:
        """The natural parameters are linear in functions whose expectations are known."""
        found = self.prior.expectations(self.a, self.b)
        wide = [value.reshape(self.family.batch, -1) for value in found]
        return ExpectedNatural(self.family, self.family.linear(*wide))

    def divergence(self, prior: "ScalarPosterior") -> Tensor:
        """Sum over the members and features."""
        laws = self.prior.law(self.a, self.b), prior.prior.law(prior.a, prior.b)
        return torch.distributions.kl_divergence(*laws).sum()

    def site(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """The law of all members' parameters."""
        return self.prior.law(self.a, self.b).to_event(self.a.dim())

    def center(self) -> dict[str, Tensor]:
        """The mean."""
        return dict.fromkeys(self.family.constraints, self.prior.law(self.a, self.b).mean)


@conjugate.register
def _scalar(prior: ScalarPrior, family: Any) -> ScalarPosterior:
    return ScalarPosterior(family, prior, *prior.pair(family))
