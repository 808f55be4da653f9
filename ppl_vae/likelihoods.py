"""From a decoder's output to p(x|z): small modules that return a distribution over one datum."""

import math
from types import MappingProxyType

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from ppl_vae.errors import DataError

__all__ = ["LIKELIHOODS", "Bernoulli", "Gaussian", "GaussianLearned", "GaussianNetwork"]


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


class Gaussian(nn.Module):
    """Normal pixels with one fixed scale: log p(x|z) = -|x - f(z)|^2 / (2 s^2) - d log s - (d/2) log(2 pi).

    The squared error has the weight 1 / (2 s^2). A squared error of weight one is therefore s = sqrt(1/2), not s = 1,
    a factor that some derivations drop.

    Parameters
    ----------
    scale : float
        s > 0, in the units of x.

    Attributes
    ----------
    width : int
        1: the decoder gives one number per pixel, its mean.

    Raises
    ------
    ValueError
        A scale that is not positive and finite.

    Examples
    --------
    >>> p = Gaussian(scale=0.5)(torch.zeros(5, 3))
    >>> p.batch_shape, p.event_shape, p.stddev[0]
    (torch.Size([5]), torch.Size([3]), tensor([0.5000, 0.5000, 0.5000]))
    """

    width = 1

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = _above("scale", scale, 0.0)  # a float, so that it is exact in the dtype of any output

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Means [..., d] to a distribution with batch shape [...] and event shape [d]."""
        return dist.Normal(output, self.scale).to_event(1)

    def extra_repr(self) -> str:
        """Show the scale in the module's repr."""
        return f"scale={self.scale:g}"


class GaussianLearned(nn.Module):
    """Normal pixels with one learned scale: N(f(z), s^2 I), s = floor + softplus(rho).

    The floor keeps the density bounded where the decoder reproduces its data exactly.

    Parameters
    ----------
    initial : float
        s at the start, above the floor, in the units of x.
    floor : float
        The least s, positive, in the units of x.

    Attributes
    ----------
    width : int
        1: the decoder gives one number per pixel, its mean.
    rho : torch.nn.Parameter
        [], unconstrained.

    Raises
    ------
    ValueError
        A floor that is not positive, or an initial scale that is not above it.

    References
    ----------
    Rybkin, Daniilidis and Levine (2021). Simple and effective VAE training with calibrated decoders. ICML.

    Examples
    --------
    >>> p = GaussianLearned(initial=0.5)
    >>> round(p.scale.item(), 6), p(torch.zeros(5, 3)).event_shape
    (0.5, torch.Size([3]))
    """

    width = 1

    def __init__(self, initial: float = 1.0, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = _above("floor", floor, 0.0)
        excess = _above("initial", initial, self.floor) - self.floor
        self.rho = nn.Parameter(torch.tensor(excess + math.log(-math.expm1(-excess))))  # softplus's inverse

    @property
    def scale(self) -> torch.Tensor:
        """s, []."""
        return self.floor + softplus(self.rho)

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Means [..., d] to a distribution with batch shape [...] and event shape [d]."""
        return dist.Normal(output, self.scale).to_event(1)

    def extra_repr(self) -> str:
        """Show the floor in the module's repr."""
        return f"floor={self.floor:g}"


class GaussianNetwork(nn.Module):
    """Normal pixels whose scales the decoder gives too: N(f(z), diag s(z)^2), s = floor + softplus(raw).

    Parameters
    ----------
    floor : float
        The least scale, positive, in the units of x.

    Attributes
    ----------
    width : int
        2: the first half of the decoder's output are the means, the second half the raw scales.

    Raises
    ------
    ValueError
        A floor that is not positive.
    DataError
        An output of odd width.

    Examples
    --------
    >>> GaussianNetwork()(torch.zeros(5, 2 * 3)).event_shape
    torch.Size([3])
    """

    width = 2

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = _above("floor", floor, 0.0)

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Means and raw scales [..., 2 d] to a distribution with batch shape [...] and event shape [d]."""
        if output.shape[-1] % 2:
            raise DataError(
                f"GaussianNetwork takes [..., 2 d], means then raw scales; {list(output.shape)} was given. "
                "Make the decoder twice as wide as a datum."
            )
        loc, raw = output.chunk(2, -1)
        return dist.Normal(loc, self.floor + softplus(raw)).to_event(1)

    def extra_repr(self) -> str:
        """Show the floor in the module's repr."""
        return f"floor={self.floor:g}"


def _above(name: str, value: float, bound: float) -> float:
    if not (bound < value < math.inf):
        raise ValueError(f"{name} = {value} was given; a finite number above {bound:g} was expected.")
    return float(value)


LIKELIHOODS = MappingProxyType(
    {
        "bernoulli": Bernoulli,
        "gaussian": Gaussian,
        "gaussian-learned": GaussianLearned,
        "gaussian-network": GaussianNetwork,
    }
)
