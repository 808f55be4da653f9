"""Families of counts and bits with independent features: Bernoulli and Poisson."""

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.families.independent import IndependentFeatures, Natural
from ppl_vae.families.scalar_priors import BetaPrior, GammaPrior

__all__ = ["Bernoulli", "Poisson"]


class Bernoulli(IndependentFeatures):
    r"""p(x = 1) = probs for each of d independent bits.

    t(x) = x, eta = log probs/(1 - probs), A = -log(1 - probs); M-step probs = sum_i r_ki x_i / sum_i r_ki over the
    entries seen. Missing entries (NaN) are skipped. Probabilities stay away from 0 and 1 by the dtype's
    resolution.

    Parameters
    ----------
    n_features : int, optional
        d; None for a single bit per datum (event shape ()).
    batch : int
        Number of members.
    prior : BetaPrior, "weak", optional
        Of every probability; "weak" is BetaPrior(1, 1), uniform. With it EM finds the posterior's mode.

    Raises
    ------
    DataError
        For values other than 0 and 1.

    Examples
    --------
    >>> import torch
    >>> Bernoulli(4, batch=2)(torch.tensor(1)).event_shape
    torch.Size([4])
    """

    domain, kind, typical = constraints.boolean, "zeros and ones", (0.5,)
    constraints = {"probs": constraints.unit_interval}  # noqa: RUF012
    weak = BetaPrior

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """Independent Bernoulli over the features."""
        return dist.Bernoulli(self.member("probs", index)).to_event(len(self.shape) - 1)

    def natural(self) -> Natural:
        """The log odds, and -log(1 - probs)."""
        p = _interior(self.wide("probs"))
        return self.linear(p.log(), (-p).log1p())

    def linear(self, first: Tensor, second: Tensor) -> Natural:
        """Of log probs and log(1 - probs)."""
        return (first - second,), -second

    def evidence(self, total: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Ones and zeros."""
        return total, seen - total

    def solve(self, means: Tensor, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean."""
        return {"probs": _interior(means[..., 0, :])}


class Poisson(IndependentFeatures):
    r"""p(x) = rate^x exp(-rate) / x! for each of d independent counts.

    t(x) = x, eta = log rate, A = rate, h(x) = -log x!; M-step rate = sum_i r_ki x_i / sum_i r_ki over the entries seen.
    Missing entries (NaN) are skipped.

    Parameters
    ----------
    n_features : int, optional
        d; None for a single count per datum (event shape ()).
    batch : int
        Number of members.
    prior : GammaPrior, "weak", optional
        Of every rate; "weak" is GammaPrior(1), whose mean is the data's. With it EM finds the posterior's mode.

    Raises
    ------
    DataError
        For values that are not whole numbers 0, 1, 2, ...

    Examples
    --------
    >>> import torch
    >>> Poisson(batch=2)(torch.tensor([[0], [1]])).batch_shape
    torch.Size([2, 1])
    """

    domain, kind, typical = constraints.nonnegative_integer, "counts 0, 1, 2, ...", (1.0,)
    constraints = {"rate": constraints.positive}  # noqa: RUF012
    weak = GammaPrior

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """Independent Poisson over the features."""
        return dist.Poisson(self.member("rate", index)).to_event(len(self.shape) - 1)

    def base(self, x: Tensor) -> Tensor:
        """-log x!."""
        return -(x + 1).lgamma()

    def natural(self) -> Natural:
        """The log rate, and the rate."""
        rate = self.wide("rate")
        return self.linear(rate.log(), rate)

    def linear(self, first: Tensor, second: Tensor) -> Natural:
        """Of log rate and rate."""
        return (first,), second

    def evidence(self, total: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the counts, and how many there are."""
        return total, seen

    def solve(self, means: Tensor, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean, kept positive."""
        return {"rate": means[..., 0, :].clamp_min(torch.finfo(means.dtype).tiny)}


def _interior(p: Tensor) -> Tensor:
    eps = torch.finfo(p.dtype).eps
    return p.clamp(eps, 1 - eps)
