"""From an encoder's output to q(z|x): small modules that return a distribution over the latent of one datum."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.errors import DeclarationError
from ppl_vae.flows import Layers, autoregressive

__all__ = ["Diagonal", "Flow", "Full", "inverse_autoregressive"]


class Diagonal(nn.Module):
    """q(z|x) = N(m(x), diag s(x)^2).

    Examples
    --------
    >>> import torch
    >>> Diagonal()(torch.zeros(5, 2), torch.ones(5, 2)).event_shape
    torch.Size([2])
    """

    def forward(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """Loc and scale [..., k] to a distribution with batch shape [...] and event shape [k]."""
        if scale.shape != loc.shape:
            raise DeclarationError(
                f"Diagonal takes a scale for each mean; loc {list(loc.shape)} and {list(scale.shape)} were given. An "
                'encoder with covariance="full" goes with posterior=ppl_vae.posteriors.Full().'
            )
        return dist.Normal(loc, scale).to_event(1)


class Full(nn.Module):
    """q(z|x) = N(m(x), L(x) L(x)'), L lower triangular with a positive diagonal: the encoder's with covariance="full".

    Examples
    --------
    >>> import torch
    >>> Full()(torch.zeros(5, 2), torch.eye(2).expand(5, 2, 2)).event_shape
    torch.Size([2])
    """

    def forward(self, loc: Tensor, tril: Tensor) -> TorchDistribution:
        """Loc [..., k] and L [..., k, k] to a distribution with batch shape [...] and event shape [k]."""
        if tril.shape != (*loc.shape, loc.shape[-1]):
            raise DeclarationError(
                f"Full takes a Cholesky factor for each mean; loc {list(loc.shape)} and {list(tril.shape)} were given. "
                'Make the encoder with covariance="full", such as mlp_encoder(784, 400, 20, covariance="full").'
            )
        return dist.MultivariateNormal(loc, scale_tril=tril)


class Flow(nn.Module):
    """q(z|x): draws of another posterior sent through invertible layers that are the same for every x.

    Parameters
    ----------
    layers : Layers
        Such as `ppl_vae.flows.autoregressive(k)`.
    base : Module, optional
        The posterior below, `Diagonal()` by default.

    References
    ----------
    Rezende and Mohamed (2015). Variational inference with normalizing flows. ICML.

    Examples
    --------
    >>> import torch
    >>> q = inverse_autoregressive(2)(torch.zeros(5, 2), torch.ones(5, 2))
    >>> z = q.rsample()
    >>> q.log_prob(z).shape
    torch.Size([5])
    """

    def __init__(self, layers: Layers, base: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.base = layers, base or Diagonal()

    def forward(self, *encoded: Tensor) -> TorchDistribution:
        """What the encoder says of x to a distribution with batch shape [...] and event shape [k]."""
        return self.layers(self.base(*encoded))


def inverse_autoregressive(size: int, layers: int = 2) -> Flow:
    """A diagonal normal sent through an inverse autoregressive flow (see `ppl_vae.flows.autoregressive`).

    Parameters
    ----------
    size : int
        k, the dimension of z.
    layers : int
        How many.

    Examples
    --------
    >>> type(inverse_autoregressive(20)).__name__
    'Flow'
    """
    return Flow(autoregressive(size, layers))
