"""Families of positive numbers with independent features: Exponential and Gamma."""

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.families.family import Parts
from ppl_vae.families.independent import IndependentFeatures, Natural
from ppl_vae.families.newton import inverse_digamma, solve_log_minus_digamma
from ppl_vae.families.scalar_priors import GammaPrior

__all__ = ["Exponential", "Gamma"]

EDGE = 1e-6
"""A parameter within this share of its bound counts as on it."""
RESOLVED = 2e-15
"""Relative difference of two numbers that float64 tells apart in a sum."""


class Exponential(IndependentFeatures):
    r"""p(x) = rate exp(-rate x), x >= 0, for each of d independent features.

    t(x) = x, eta = -rate, A = -log rate; M-step 1/rate = sum_i r_ki x_i / sum_i r_ki over the entries seen. Missing
    entries (NaN) are skipped. A member on zeros alone has an unbounded likelihood: its mean stays at or above `floor`
    times the data's mean, and it is reported.

    Parameters
    ----------
    n_features : int, optional
        d; None for a single number per datum (event shape ()).
    batch : int
        Number of members.
    prior : GammaPrior, "weak", optional
        Of every rate; "weak" is GammaPrior(1), whose mean is the data's. With it EM finds the posterior's mode.

    Attributes
    ----------
    floor : float
        Smallest mean of a member relative to the data's, 1e-8.

    Raises
    ------
    DataError
        For negative or infinite values.

    Examples
    --------
    >>> import torch
    >>> waiting = Exponential(batch=2)
    >>> sums = waiting.expect(waiting.features(torch.tensor([1.0, 3.0])), torch.eye(2))
    >>> [round(rate, 4) for rate in waiting.maximize(sums, "ml")["rate"].tolist()]
    [1.0, 0.3333]
    """

    domain, kind, typical = constraints.nonnegative, "numbers that are at least 0", (1.0,)
    constraints = {"rate": constraints.positive}  # noqa: RUF012
    weak = GammaPrior
    edge = "are all zero"
    floor = 1e-8

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """Independent Exponential over the features."""
        return dist.Exponential(self.member("rate", index)).to_event(len(self.shape) - 1)

    def natural(self) -> Natural:
        """-rate, and -log rate."""
        rate = self.wide("rate")
        return self.linear(rate.log(), rate)

    def linear(self, first: Tensor, second: Tensor) -> Natural:
        """Of log rate and rate."""
        return (-second,), -first

    def evidence(self, total: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """How many numbers there are, and their sum."""
        return seen, total

    def solve(self, means: Tensor, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One over the mean."""
        return {"rate": 1 / torch.maximum(means[..., 0, :], self._smallest())}

    def on_edge(self, values: Mapping[str, Tensor]) -> Tensor:
        """At the largest rate."""
        return values["rate"] * self._smallest() >= 1 - EDGE

    def _smallest(self) -> Tensor:
        scale = self.means[0]
        return self.floor * torch.where(scale > 0, scale, 1.0)


class Gamma(IndependentFeatures):
    r"""p(x) = rate^a x^(a-1) exp(-rate x) / Gamma(a), x > 0, a = concentration, for each of d independent features.

    M-step: a solves log a - psi(a) = g, g = log(mean of x) - mean of log x, by Newton's steps, rate = a / mean of x;
    the means are weighted, over the entries seen. Missing entries (NaN) are skipped. In units of the data's mean,
    y = x / scale, the statistics are t(y) = (y, phi(y)) with phi(y) = y - 1 - log y, in which narrow data lose no
    digits: g = mean of phi(y) - phi(mean of y) and, with m = a / (rate scale),
    log p = -a phi(y/m) - log x + a log a - a - log Gamma(a), phi(y/m) = phi(y) + y (1/m - 1) + log m.

    A member on one value has an unbounded likelihood: its g stays at or above `floor` times the data's, and the member
    is reported.

    Parameters
    ----------
    n_features : int, optional
        d; None for a single number per datum (event shape ()).
    batch : int
        Number of members.

    Attributes
    ----------
    floor : float
        Smallest g of a member relative to the data's, 1e-8; of narrow data 2 g is the variance over the squared mean.

    Raises
    ------
    DataError
        For values that are zero, negative or infinite.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.5], [1.0], [2.0]])
    >>> gamma = Gamma(1, batch=1)
    >>> values = gamma.maximize(gamma.expect(gamma.features(x), torch.ones(1, 3)), "ml")
    >>> round((values["concentration"] / values["rate"]).item(), 4)  # the mean is the data's
    1.1667
    """

    domain, kind, typical = constraints.positive, "positive numbers", (1.0, 0.5772156649015329)
    constraints = {"concentration": constraints.positive, "rate": constraints.positive}  # noqa: RUF012
    edge = "do not spread"
    floor = 1e-8

    scale: Tensor

    def register(self) -> None:
        """Create the parameters and the unit of x."""
        self.register_buffer("scale", torch.ones_like(self.means[0]))
        super().register()

    def adapt(self, parts: Parts) -> None:
        """Take the data's mean as the unit, and check every value."""
        self.scale = torch.ones_like(self.scale)
        super().adapt(parts)
        self.scale = self.means[0].clone()
        super().adapt(parts)

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """Independent Gamma over the features."""
        concentration, rate = self.member("concentration", index), self.member("rate", index)
        return NarrowGamma(concentration, rate).to_event(len(self.shape) - 1)

    def statistics(self, x: Tensor) -> tuple[Tensor, ...]:
        """Data over scale, and how far they are from it."""
        y = x / self.scale
        return y, _excess(y)

    def base(self, x: Tensor) -> Tensor:
        """-log x."""
        return -x.log()

    def natural(self) -> Natural:
        """-a (1/m - 1, 1), and a log m - (a log a - a - log Gamma(a))."""
        a, rate = self.wide("concentration"), self.wide("rate") * self.scale
        off = (rate - a) / a
        log_m = -torch.where(off.abs() < 0.5, off.log1p(), (rate / a).log())
        return (-a * off, -a), a * log_m - _stirling(a)

    def solve(self, means: Tensor, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shape by Newton's steps, then the rate."""
        mean, excess = means[..., 0, :], means[..., 1, :]
        if "concentration" in fixed:
            a = fixed["concentration"]
        elif "rate" in fixed:
            a = inverse_digamma((fixed["rate"] * self.scale).log() + mean - 1 - excess)
        else:
            a = solve_log_minus_digamma(excess - _excess(mean))
        a = torch.minimum(a, self._largest())
        return {"concentration": a, "rate": a / (mean * self.scale)}

    def on_edge(self, values: Mapping[str, Tensor]) -> Tensor:
        """At the largest concentration."""
        return values["concentration"] >= (1 - EDGE) * self._largest()

    def _largest(self) -> Tensor:
        """The shape of `floor` times the data's own g; that of data without spread is 1/2."""
        gap = self.means[1] - _excess(self.means[0])
        held = torch.where(
            gap > RESOLVED**2, torch.maximum(self.floor * gap, RESOLVED * gap.clamp_min(0).sqrt()), self.floor / 2
        )
        return solve_log_minus_digamma(held)


class NarrowGamma(dist.Gamma):
    """Gamma whose density keeps its digits where the concentration is large."""

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "NarrowGamma":
        """The same law with this batch shape."""
        new: NarrowGamma = self._get_checked_instance(NarrowGamma, _instance)
        return super().expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        """(a - 1) log v - a (v - 1) + log(rate/a) + a log a - a - log Gamma(a), v = x rate/a."""
        if self._validate_args:
            self._validate_sample(value)
        a, inverse_mean = self.concentration, self.rate / self.concentration
        v = value * inverse_mean
        return torch.xlogy(a - 1, v) - a * (v - 1) + inverse_mean.log() + _stirling(a)


def _excess(y: Tensor) -> Tensor:
    """phi(y) = y - 1 - log y, at least 0."""
    return y - 1 - y.log()


def _stirling(a: Tensor) -> Tensor:
    """The number a log a - a - log Gamma(a), by Stirling's series where the terms cancel."""
    large = a.clamp_min(100.0)
    series = 0.5 * (large / (2 * torch.pi)).log() - (1 - 1 / (30 * large.square())) / (12 * large)
    return torch.where(a > 100, series, a * a.log() - a - a.lgamma())
