"""Pixels in {0, 1}, and pixels in [0, 1]."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["Bernoulli", "ContinuousBernoulli", "ContinuousBernoulliLogits"]


class Bernoulli(nn.Module):
    """Independent binary pixels: log p(x|z) = sum_j x_j log p_j + (1 - x_j) log(1 - p_j), p = sigmoid(f(z)).

    x must be 0 or 1: grey pixels are outside its support.

    Attributes
    ----------
    width : int
        1: the decoder gives one number per pixel, a logit.

    Examples
    --------
    >>> Bernoulli()(torch.zeros(5, 3)).log_prob(torch.ones(5, 3)).exp()[0]
    tensor(0.1250)
    """

    width = 1

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Logits [..., d] to a distribution with batch shape [...] and event shape [d]."""
        return dist.Bernoulli(logits=output).to_event(1)


class ContinuousBernoulli(nn.Module):
    """Independent grey pixels: p(x|z) = prod_j C(f_j) p_j^x_j (1 - p_j)^(1 - x_j) on [0, 1], p = sigmoid(f(z)).

    C(f) = f / tanh(f / 2) is what the Bernoulli's formula lacks to be a density on [0, 1].

    Attributes
    ----------
    width : int
        1: the decoder gives one number per pixel, a logit. It is not the mean's logit.

    References
    ----------
    Loaiza-Ganem and Cunningham (2019). The continuous Bernoulli: fixing a pervasive error in variational autoencoders.
    NeurIPS.

    Examples
    --------
    >>> ContinuousBernoulli()(torch.zeros(5, 3)).log_prob(torch.full((5, 3), 0.5)).exp()[0]  # uniform
    tensor(1.)
    """

    width = 1

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Logits [..., d] to a distribution with batch shape [...] and event shape [d]."""
        return ContinuousBernoulliLogits(logits=output).to_event(1)


class ContinuousBernoulliLogits(dist.ContinuousBernoulli):
    """Pyro's, with everything from the logit: its own formulas clamp p, and are wrong beyond a logit of 16."""

    title = "likelihoods.ContinuousBernoulli"

    def log_prob(self, value: Tensor) -> Tensor:
        """Log C(f) + x f - log(1 + e^f)."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_normaliser(self.logits) + value * self.logits - softplus(self.logits)

    @property
    def mean(self) -> Tensor:
        """1 / (1 - e^-f) - 1 / f."""
        small, near, far = _split(self.logits)
        return torch.where(small, 0.5 + near / 12 - near**3 / 720, -1 / torch.expm1(-far) - 1 / far)

    @property
    def variance(self) -> Tensor:
        """1 / f^2 - 1 / (4 sinh^2(f / 2))."""
        small, near, far = _split(self.logits.abs())
        narrow = torch.exp(-far) / torch.expm1(-far).square()
        return torch.where(small, 1 / 12 - near**2 / 240 + near**4 / 6048, far**-2 - narrow)

    def entropy(self) -> Tensor:
        """-E log p(x), nats: log p is linear in x."""
        return -self.log_prob(self.mean)

    def cdf(self, value: Tensor) -> Tensor:
        """(e^(f x) - 1) / (e^f - 1)."""
        small, near, far = _split(self.logits)
        x, steep = value.clamp(0, 1), -far.abs()
        q, r = x * (1 - x), 1 - 2 * x
        series = x - q * near * (1 / 2 - r * near / 12 - q * near**2 / 24 + r * (1 + 3 * q) * near**3 / 720)
        whole = torch.exp(torch.where(far > 0, steep * (1 - x), 0.0)) * torch.expm1(steep * x) / torch.expm1(steep)
        return torch.where(small, series, whole)

    def icdf(self, value: Tensor) -> Tensor:
        """Log(1 + u (e^f - 1)) / f at u, by which draws are made and have their gradient in f."""
        small, near, far = _split(self.logits)
        q, r = value * (1 - value), 1 - 2 * value
        third, fourth = (1 - 6 * q) / 24, r * (1 - 12 * q) / 120  # from the cumulants of a Bernoulli of mean u
        series = value + q * near * (1 / 2 + near * (r / 6 + near * (third + near * fourth)))
        v, steep = torch.where(far > 0, value, 1 - value), far.abs()  # e^f overflows, e^-|f| does not
        below = torch.logaddexp(v.log(), torch.log1p(-v) - steep) / steep
        return torch.where(small, series, torch.where(far > 0, 1 + below, -below))


def _log_normaliser(logits: Tensor) -> Tensor:
    """log(f / tanh(f / 2)), an even function, log 2 at 0."""
    small, near, far = _split(logits.abs())
    series = math.log(2.0) + near**2 / 12 - 7 * near**4 / 1440
    return torch.where(small, series, (far / torch.tanh(far / 2)).log())


def _split(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where f is near 0, f there and 0 elsewhere, f elsewhere and 1 there: no branch sees what it cannot compute."""
    small = f.abs() < 0.1  # the next terms of the series are below 1e-9
    return small, torch.where(small, f, 0.0), torch.where(small, 1.0, f)
