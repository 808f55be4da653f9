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
    """Pyro's, with the density and the mean from the logit: its own clamp p, and are wrong beyond a logit of 16."""

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


def _log_normaliser(logits: Tensor) -> Tensor:
    """log(f / tanh(f / 2)), an even function, log 2 at 0."""
    small, near, far = _split(logits.abs())
    series = math.log(2.0) + near**2 / 12 - 7 * near**4 / 1440
    return torch.where(small, series, (far / torch.tanh(far / 2)).log())


def _split(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where f is near 0, f there and 0 elsewhere, f elsewhere and 1 there: no branch sees what it cannot compute."""
    small = f.abs() < 0.1  # the next terms of the series are below 1e-9
    return small, torch.where(small, f, 0.0), torch.where(small, 1.0, f)
