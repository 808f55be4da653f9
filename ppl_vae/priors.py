"""Priors p(z) of a VAE: small modules that return a distribution over the latent, given the encoder's q(z|x).

All but the VampPrior ignore that argument.
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.errors import DeclarationError
from ppl_vae.flows import Layers, coupling
from ppl_vae.nets import loc_and_tril, raw_of_tril

__all__ = ["Flow", "Mixture", "Normal", "Vamp", "real_nvp"]

Encode = Callable[[Tensor], Any]


class Normal(nn.Module):
    """p(z) = N(0, I).

    Parameters
    ----------
    size : int
        k, the dimension of z.

    Examples
    --------
    >>> Normal(2)().event_shape
    torch.Size([2])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, q: Encode | None = None) -> TorchDistribution:
        """A distribution with event shape [k]."""
        return dist.Normal(torch.zeros(self.size), 1.0).to_event(1)


class Mixture(nn.Module):
    """p(z) = sum_j w_j N(z; m_j, L_j L_j'), with weights, means and Cholesky factors of its own.

    Parameters
    ----------
    components : int
        K; their means start as draws of N(0, I), their covariances as I.
    size : int
        k, the dimension of z.

    Examples
    --------
    >>> p = Mixture(10, size=2)()
    >>> p.batch_shape, p.event_shape
    (torch.Size([]), torch.Size([2]))
    """

    def __init__(self, components: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.logits = nn.Parameter(torch.zeros(components))
        start = torch.cat([torch.randn(components, size), torch.zeros(components, size * (size + 1) // 2)], 1)
        self.raw = nn.Parameter(start)

    @classmethod
    def of(cls, weights: Tensor, loc: Tensor, covariance: Tensor) -> "Mixture":
        """The mixture with weights [K], means [K, k] and covariances [K, k, k]."""
        found = cls(*loc.shape).to(loc)
        with torch.no_grad():
            found.logits.copy_(weights.log())
            found.raw.copy_(raw_of_tril(loc, torch.linalg.cholesky(covariance)))
        return found

    def forward(self, q: Encode | None = None) -> TorchDistribution:
        """A distribution with event shape [k]."""
        loc, tril = loc_and_tril(self.raw)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits), dist.MultivariateNormal(loc, scale_tril=tril)
        )


class Vamp(nn.Module):
    """p(z) = (1/K) sum_j q(z | u_j): the encoder's posteriors at K pseudo-inputs that are learned.

    Parameters
    ----------
    components : int
        K.
    input_size : int
        Numbers of a datum, flat.
    activation : callable
        From free numbers to pseudo-inputs: the sigmoid for pixels in [0, 1]; torch.nn.Identity() for real data.
    loc, scale : float
        The free numbers start as draws of N(loc, scale^2).

    Raises
    ------
    DeclarationError
        When it is used, a model without an encoder.

    References
    ----------
    Tomczak and Welling (2018). VAE with a VampPrior. AISTATS.

    Examples
    --------
    >>> q = lambda u: dist.Normal(u[:, :2], 1.0).to_event(1)
    >>> Vamp(500, 784)(q).log_prob(torch.zeros(7, 2)).shape
    torch.Size([7])
    """

    def __init__(
        self,
        components: int,
        input_size: int,
        activation: Callable[[Tensor], Tensor] = torch.sigmoid,
        loc: float = -0.05,
        scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.free = nn.Parameter(loc + scale * torch.randn(components, input_size))
        self.input_size, self.activation = input_size, activation

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, [K, input_size]."""
        return self.activation(self.free)

    def forward(self, q: Encode | None = None) -> TorchDistribution:
        """A distribution with event shape [k], from x [..., input_size] -> q(z|x)."""
        if q is None:
            raise DeclarationError(
                "Vamp is a mixture of q(z | x) at pseudo-inputs, and no q was given: it is for models with an encoder, "
                "such as models.VAE; without one take priors.Mixture"
            )
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(len(self.free))), q(self.pseudo_inputs))


class Flow(nn.Module):
    """p(z): another prior sent through invertible layers.

    Parameters
    ----------
    layers : Layers
        Such as `ppl_vae.flows.coupling(k)`, whose density at any z takes one pass.
    base : Module
        The prior below.

    Examples
    --------
    >>> real_nvp(4)().sample((3,)).shape
    torch.Size([3, 4])
    """

    def __init__(self, layers: Layers, base: nn.Module) -> None:
        super().__init__()
        self.layers, self.base = layers, base
        self.size = layers.size or getattr(base, "size", None)

    def forward(self, q: Encode | None = None) -> TorchDistribution:
        """A distribution with event shape [k]."""
        return self.layers(self.base(q))


def real_nvp(size: int, layers: int = 4) -> Flow:
    """N(0, I) sent through affine coupling layers.

    Parameters
    ----------
    size : int
        k, the dimension of z, at least 2.
    layers : int
        How many.

    Examples
    --------
    >>> real_nvp(4)().event_shape
    torch.Size([4])
    """
    return Flow(coupling(size, layers), Normal(size))
