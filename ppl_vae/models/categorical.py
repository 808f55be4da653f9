"""VAEs with categorical latents: one, summed out, and many, relaxed."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.declare import latent, observed
from ppl_vae.errors import DeclarationError
from ppl_vae.models.vae import DeepLatentVariableModel, refuse_widths
from ppl_vae.relaxed import LogConcrete, corner

__all__ = ["CategoricalVAE", "GumbelVAE"]


class CategoricalVAE(DeepLatentVariableModel):
    """p(z) = 1/K, p(x | z) = likelihood(decoder(one-hot z)), q(z | x) = Categorical(encoder(x)) (004 s.5, T20).

    Every expectation over z is a sum of K terms, so the bound and log p(x) are exact, and `responsibilities` gives
    p(z | x) itself.

    Parameters
    ----------
    encoder : Module
        x [..., pixels] to logits [..., K].
    decoder : Module
        One-hot z [..., K] to what the likelihood takes.
    categories : int
        K.
    likelihood : str or Module
        As in `VAE`.

    Raises
    ------
    DeclarationError
        If a network is made for another number of categories.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae import nets
    >>> model = CategoricalVAE(nets.mlp_decoder(64, 32, 5), nets.mlp_decoder(5, 32, 64), categories=5)
    >>> model.evidence(torch.ones(3, 64)).method
    'exact'
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, categories: int, likelihood: str | nn.Module = "bernoulli"
    ) -> None:
        super().__init__(decoder, categories, likelihood)
        refuse_widths(encoder, decoder, categories, f"categories={categories}")
        self.encoder = encoder

    @latent
    def z(self) -> TorchDistribution:
        """Categorical(1/K)."""
        return dist.Categorical(logits=torch.zeros(self.latent_dim))

    @z.posterior
    def q_z(self, x: Tensor) -> TorchDistribution:
        """Categorical(encoder(x))."""
        logits = self.encoder(x)
        if logits.shape[-1] != self.latent_dim:  # a network that does not know its sizes
            raise DeclarationError(
                f"CategoricalVAE has categories={self.latent_dim}; its encoder, a {type(self.encoder).__name__}, gives "
                f"{logits.shape[-1]} logits"
            )
        return dist.Categorical(logits=logits)

    @observed
    def x(self, z: Tensor) -> TorchDistribution:
        """Likelihood(decoder(one-hot z))."""
        return self.likelihood(self.decoder(nn.functional.one_hot(z, self.latent_dim).to(self.like)))


class GumbelVAE(DeepLatentVariableModel):
    """z of N categories relaxed by Gumbel-softmax: p(z) = LogConcrete(0), q(z | x) = LogConcrete(encoder(x)).

    Relaxed, the decoder sees y = exp z, a point of the simplex: the bound is that of this continuous model, whose
    log p(x) is another one than that of a model with categories. With hard=True the decoder sees the corner nearest to
    y, which under p is uniform over categories: then the bound holds for log p(x) of the model with N uniform
    categories, and only the gradient, which passes the corner straight through, is biased.

    Parameters
    ----------
    encoder : Module
        x [..., pixels] to logits [..., N * K].
    decoder : Module
        [..., N * K] to what the likelihood takes.
    variables, categories : int
        N and K.
    likelihood : str or Module
        As in `VAE`.
    temperature : float
        Of p and q, a buffer: `BufferSchedules(temperature=...)` among a fit's callbacks changes it.
    hard : bool
        Whether the decoder sees corners.

    Raises
    ------
    DeclarationError
        If the temperature is not positive, or a network is made for other sizes.

    References
    ----------
    Maddison, Mnih and Teh (2017). The concrete distribution. ICLR.
    Jang, Gu and Poole (2017). Categorical reparameterization with Gumbel-softmax. ICLR.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae import nets
    >>> model = GumbelVAE(nets.mlp_decoder(64, 32, 12), nets.mlp_decoder(12, 32, 64), variables=3, categories=4)
    >>> model.elbo(torch.ones(5, 64)).shape
    torch.Size([5])
    """

    temperature: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        variables: int,
        categories: int,
        likelihood: str | nn.Module = "bernoulli",
        temperature: float = 0.67,
        hard: bool = False,
    ) -> None:
        super().__init__(decoder, variables * categories, likelihood)
        refuse_widths(encoder, decoder, variables * categories, f"variables={variables} of categories={categories}")
        if not temperature > 0:
            raise DeclarationError(f"GumbelVAE: temperature must be positive, got {temperature}")
        self.encoder, self.shape, self.hard = encoder, (variables, categories), hard
        self.register_buffer("temperature", torch.tensor(temperature))

    @latent
    def z(self) -> TorchDistribution:
        """LogConcrete(0), uniform categories."""
        return LogConcrete(self.temperature, logits=torch.zeros(self.shape)).to_event(1)

    @z.posterior
    def q_z(self, x: Tensor) -> TorchDistribution:
        """LogConcrete(encoder(x))."""
        return LogConcrete(self.temperature, logits=self.encoder(x).unflatten(-1, self.shape)).to_event(1)

    @observed
    def x(self, z: Tensor) -> TorchDistribution:
        """Likelihood(decoder(exp z))."""
        return self.likelihood(self.decoder((corner(z) if self.hard else z.exp()).flatten(-2)))
