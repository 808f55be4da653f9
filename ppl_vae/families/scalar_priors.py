"""Conjugate priors of families with one parameter to a feature: Beta for chances, Gamma for rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.families.family import ConjugatePrior

__all__ = ["BetaPrior", "Expectations", "GammaPrior", "ScalarPrior"]


class Expectations(NamedTuple):
    """E[f(theta)] and E[g(theta)] of the two functions that a family's natural parameters are linear in."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class ScalarPrior(ConjugatePrior):
    """A law with two numbers, to which data add: what `BetaPrior` and `GammaPrior` share."""

    def pair(self, family: Any) -> tuple[Tensor, Tensor]:
        """Both numbers, in the shape of the family's parameter."""
        raise NotImplementedError

    def law(self, a: Tensor, b: Tensor) -> TorchDistribution:
        """The distribution with these numbers."""
        raise NotImplementedError

    def mode(self, a: Tensor, b: Tensor) -> Tensor:
        """Where its density is highest."""
        raise NotImplementedError

    def expectations(self, a: Tensor, b: Tensor) -> Expectations:
        """Under the distribution with these numbers."""
        raise NotImplementedError

    def site(self, family: Any, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """Independent laws of all members and features."""
        return self.law(*self.pair(family)).to_event(len(family.shape))


@dataclass(frozen=True)
class BetaPrior(ScalarPrior):
    """probs ~ Beta(a, b) for every member and feature; (1, 1) is uniform.

    Parameters
    ----------
    a, b : float
        The same for all probabilities, [K] or [K, d] of them; positive.

    Raises
    ------
    DeclarationError
        If one of them is not positive.

    Examples
    --------
    >>> BetaPrior(2.0, 2.0).mode(torch.tensor(5.0), torch.tensor(2.0)).item()
    0.800000011920929
    """

    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise DeclarationError(f"BetaPrior: a and b must be positive, got {self.a} and {self.b}")

    def pair(self, family: Any) -> tuple[Tensor, Tensor]:
        """The same for every entry."""
        return family.means.new_full(family.shape, self.a), family.means.new_full(family.shape, self.b)

    def law(self, a: Tensor, b: Tensor) -> TorchDistribution:
        """Beta(a, b)."""
        return dist.Beta(a, b)

    def mode(self, a: Tensor, b: Tensor) -> Tensor:
        """(a - 1) / (a + b - 2); where the density is highest at both ends or nowhere, the mean."""
        one, zero = (a - 1).clamp_min(0), (b - 1).clamp_min(0)
        return torch.where(one + zero > 0, one / (one + zero), a / (a + b))

    def expectations(self, a: Tensor, b: Tensor) -> Expectations:
        """E log p and E log(1 - p)."""
        both = (a + b).digamma()
        return Expectations(a.digamma() - both, b.digamma() - both)


@dataclass(frozen=True)
class GammaPrior(ScalarPrior):
    """rate ~ Gamma(concentration, rate) for every member and feature, with mean concentration / rate.

    A `rate` of None is taken from the data when the model is fitted, such that the prior's mean is the rate of all data
    together; with concentration 1 that is the weak prior, worth one datum.

    Parameters
    ----------
    concentration : float
        The same for all rates, [K] or [K, d] of them; positive.
    rate : float, optional
        The same for all; positive. None takes it from the data, feature by feature.

    Raises
    ------
    DeclarationError
        If one of them is not positive.

    Examples
    --------
    >>> GammaPrior(1.0, 2.0).mode(torch.tensor(4.0), torch.tensor(6.0)).item()
    0.5
    """

    concentration: float = 1.0
    rate: float | None = None

    def __post_init__(self) -> None:
        if not (self.concentration > 0 and (self.rate is None or self.rate > 0)):
            raise DeclarationError(
                f"GammaPrior: concentration and rate must be positive, got {self.concentration} and {self.rate}"
            )

    def pair(self, family: Any) -> tuple[Tensor, Tensor]:
        """Concentration and rate, the latter perhaps from the data."""
        concentration = family.means.new_full(family.shape, self.concentration)
        if self.rate is not None:
            return concentration, torch.full_like(concentration, self.rate)
        mean = family.defaults()["rate"]
        # A column of zeros alone has no scale.
        mean = torch.where(mean > torch.finfo(mean.dtype).tiny, mean, 1.0)
        return concentration, concentration / mean

    def site(self, family: Any, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """Independent laws of all members and features."""
        if self.rate is None and not bool(family.adapted):
            raise EngineError(
                "a weak prior takes its scale from data that it has not seen; fit the model, call model.adapt(x), or "
                "give GammaPrior a rate"
            )
        return super().site(family, name, values)

    def law(self, a: Tensor, b: Tensor) -> TorchDistribution:
        """Gamma(a, b)."""
        return dist.Gamma(a, b)

    def mode(self, a: Tensor, b: Tensor) -> Tensor:
        """(a - 1) / b, and never 0."""
        return ((a - 1) / b).clamp_min(torch.finfo(a.dtype).tiny)

    def expectations(self, a: Tensor, b: Tensor) -> Expectations:
        """E log rate and E rate."""
        return Expectations(a.digamma() - b.log(), a / b)
