"""The deep latent variable model, and with an encoder the variational autoencoder."""

from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae import posteriors, priors
from ppl_vae.declare import LatentVariableModel, latent, observed
from ppl_vae.errors import DeclarationError
from ppl_vae.likelihoods import LIKELIHOODS

__all__ = ["VAE", "DeepLatentVariableModel", "takes_prior"]


class DeepLatentVariableModel(LatentVariableModel):
    """p(z) = prior, p(x | z) = likelihood(decoder(z)): the generative half of a VAE, without an encoder (T14).

    No posterior is declared, so that SVI gives every datum i a q_i(z) = N(m_i, diag s_i^2) of its own, whose rows move
    when their datum is in the batch. What is asked of new data is answered at a q found for them by local optimisation.

    Parameters
    ----------
    decoder : Module
        z [..., latent_dim] to what the likelihood takes.
    latent_dim : int
        Size of z.
    likelihood : str or Module
        "bernoulli", "continuous-bernoulli", "gaussian" (fixed s), "gaussian-learned" (one s), "gaussian-network" (s of
        z), "gaussian-optimal" (the best s), "logistic-mixture" or "categorical" (grey levels), or a module from
        ppl_vae.likelihoods.
    prior : Module, optional
        From ppl_vae.priors, N(0, I) by default. A VampPrior needs an encoder.

    Raises
    ------
    DeclarationError
        An unknown likelihood, a class in the place of a module, or a prior of another size; when it is used, a decoder
        that takes another size.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae import SVI, nets
    >>> model = DeepLatentVariableModel(nets.mlp_decoder(2, 32, 64), 2)
    >>> fit = SVI(epochs=2, batch_size=5, progress=False).fit(model, torch.ones(10, 64))
    >>> fit.model.local_posteriors["z"].loc.shape
    torch.Size([10, 2])
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: str | nn.Module = "bernoulli",
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
            raise DeclarationError(f"{name}: likelihood must be one of {', '.join(LIKELIHOODS)}; got {likelihood!r}")
        self.decoder, self.latent_dim = decoder, latent_dim
        self.prior = prior or priors.Normal(latent_dim)
        self.likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
        refuse_classes(name, likelihood=likelihood, prior=prior, decoder=decoder)
        of_z = getattr(prior, "size", None) or latent_dim
        if of_z != latent_dim:
            raise DeclarationError(
                f"{name}: z has latent_dim={latent_dim} entries; its prior, a {type(prior).__name__}, was made with "
                f"size={of_z}. Make the prior with size={latent_dim}, or networks for a z of {of_z}"
            )

    @latent
    def z(self) -> TorchDistribution:
        """Prior, Normal(0, I) unless given."""
        return self.prior()

    @observed
    def x(self, z: Tensor) -> TorchDistribution:
        """Likelihood(decoder(z))."""
        taken = getattr(self.decoder, "input_size", z.shape[-1])
        if z.shape[-1] != taken:
            raise DeclarationError(
                f"{type(self).__name__}: draws of z have {z.shape[-1]} entries; its decoder, a "
                f"{type(self.decoder).__name__}, takes {taken}. Make the decoder, the prior and q for one size of z"
            )
        return self.likelihood(self.decoder(z))


def refuse_classes(owner: str, **parts: object) -> None:
    """Say of a class in the place of a module that it is to be called first.

    Raises
    ------
    DeclarationError
        If one of the parts is a class.
    """
    for part, given in parts.items():
        if isinstance(given, type):
            raise DeclarationError(
                f"{owner}: {part} is the class {given.__name__}, and a module is expected: call it, "
                f"{given.__name__}(...)"
            )


def refuse_widths(encoder: nn.Module, decoder: nn.Module, width: int, said: str) -> None:
    """Whether networks that know their sizes are made for codes of this width.

    Raises
    ------
    DeclarationError
        If one is not.
    """
    given, taken = getattr(encoder, "output_size", width), getattr(decoder, "input_size", width)
    if (given, taken) != (width, width):
        raise DeclarationError(
            f"{said} take an encoder with {width} outputs and a decoder with {width} inputs; {type(encoder).__name__} "
            f"has {given} and {type(decoder).__name__} takes {taken}"
        )


class VAE(DeepLatentVariableModel):
    """p(z) = prior, p(x | z) = likelihood(decoder(z)), q(z | x) = posterior(encoder(x)) (000 (29), T15).

    As it stands p(z) = N(0, I) and q(z | x) = N(m(x), diag s(x)^2).

    Parameters
    ----------
    encoder : Module
        x [..., pixels] to what the posterior takes: (loc, scale), each [..., latent_dim], for the diagonal one.
    decoder : Module
        z [..., latent_dim] to what the likelihood takes.
    likelihood : str or Module
        "bernoulli", "continuous-bernoulli", "gaussian" (fixed s), "gaussian-learned" (one s), "gaussian-network" (s of
        z), "gaussian-optimal" (the best s), "logistic-mixture" or "categorical" (grey levels), or a module from
        ppl_vae.likelihoods.
    latent_dim : int, optional
        Size of z, read from the encoder's output_size where it has one.
    prior : Module, optional
        From ppl_vae.priors, N(0, I) by default: a function of x -> q(z | x), which only the VampPrior uses.
    posterior : Module, optional
        From ppl_vae.posteriors, a diagonal normal by default.

    Raises
    ------
    DeclarationError
        An unknown likelihood; no latent_dim, and an encoder without output_size; a prior of another size, or of
        pseudo-inputs of another size than the encoder takes; when it is used, an encoder that returns one tensor, or a
        decoder that takes another size of z.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae import nets
    >>> vae = VAE(nets.mlp_encoder(64, 32, 2), nets.mlp_decoder(2, 32, 64))
    >>> vae.sample(3).shape
    torch.Size([3, 64])
    >>> from ppl_vae import posteriors, priors
    >>> encoder = nets.mlp_encoder(64, 32, 2, covariance="full")
    >>> full = VAE(encoder, vae.decoder, prior=priors.Vamp(10, 64), posterior=posteriors.Full())
    >>> full.elbo(torch.ones(5, 64)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: str | nn.Module = "bernoulli",
        latent_dim: int | None = None,
        prior: nn.Module | None = None,
        posterior: nn.Module | None = None,
    ) -> None:
        size = latent_dim or getattr(encoder, "output_size", None)
        if size is None:
            raise DeclarationError(f"VAE: {type(encoder).__name__} has no output_size; pass latent_dim=")
        super().__init__(decoder, size, likelihood, prior)
        refuse_classes(type(self).__name__, posterior=posterior, encoder=encoder)
        self.encoder, self.posterior_of = encoder, posterior or posteriors.Diagonal()
        taken = getattr(encoder, "input_size", None)
        for part in self.prior.modules():
            if isinstance(part, priors.Vamp) and part.input_size != (taken or part.input_size):
                raise DeclarationError(
                    f"{type(self).__name__}: the pseudo-inputs of a Vamp are as long as a datum; this one has "
                    f"input_size={part.input_size}, and its encoder, a {type(encoder).__name__}, takes {taken}: "
                    f"priors.Vamp({len(part.free)}, {taken})"
                )

    @latent
    def z(self) -> TorchDistribution:
        """Prior, Normal(0, I) unless given."""
        return self.prior(self.q_z)

    @z.posterior
    def q_z(self, x: Tensor) -> TorchDistribution:
        """Normal(encoder(x)) unless given."""
        parameters = self.encoder(x)
        if isinstance(parameters, Tensor):
            raise DeclarationError(
                f"{type(self).__name__}: its encoder, a {type(self.encoder).__name__}, returned one tensor "
                f"{list(parameters.shape)}; an encoder returns what the posterior takes, (loc, scale) by default"
            )
        return self.posterior_of(*parameters)


def takes_prior(model: Any) -> bool:
    """Whether z is drawn from the module `prior`, as a VAE's is, unless a subclass declares another z."""
    return isinstance(model, DeepLatentVariableModel) and type(model).z in (VAE.z, DeepLatentVariableModel.z)
