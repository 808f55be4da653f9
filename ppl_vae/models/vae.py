"""The variational autoencoder."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.declare import LatentVariableModel, latent, observed
from ppl_vae.errors import DeclarationError
from ppl_vae.likelihoods import LIKELIHOODS

__all__ = ["VAE"]


class VAE(LatentVariableModel):
    """p(z) = N(0, I), p(x | z) = likelihood(decoder(z)), q(z | x) = N(encoder(x)) (000 (29), T15).

    Parameters
    ----------
    encoder : Module
        x [..., pixels] to (loc, scale), each [..., latent_dim].
    decoder : Module
        z [..., latent_dim] to what the likelihood takes.
    likelihood : str or Module
        "bernoulli", "gaussian" (fixed s), "gaussian-learned" (one s), "gaussian-network" (s of z), or a module from
        ppl_vae.likelihoods.
    latent_dim : int, optional
        Size of z, read from the encoder's output_size where it has one.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae import nets
    >>> vae = VAE(nets.mlp_encoder(64, 32, 2), nets.mlp_decoder(2, 32, 64))
    >>> vae.sample(3).shape
    torch.Size([3, 64])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: str | nn.Module = "bernoulli",
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        size = latent_dim or getattr(encoder, "output_size", None)
        if size is None:
            raise DeclarationError(f"VAE: {type(encoder).__name__} has no output_size; pass latent_dim=")
        if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
            raise DeclarationError(f"VAE: likelihood must be one of {', '.join(LIKELIHOODS)}; got {likelihood!r}")
        self.encoder, self.decoder, self.latent_dim = encoder, decoder, size
        self.likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood

    @latent
    def z(self) -> TorchDistribution:
        """Normal(0, I)."""
        return dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x: Tensor) -> TorchDistribution:
        """Normal(encoder(x))."""
        loc, scale = self.encoder(x)
        return dist.Normal(loc, scale).to_event(1)

    @observed
    def x(self, z: Tensor) -> TorchDistribution:
        """Likelihood(decoder(z))."""
        return self.likelihood(self.decoder(z))
