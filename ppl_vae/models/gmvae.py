"""The mixture VAE: cluster and code in one declaration."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae import families, posteriors
from ppl_vae.declare import latent
from ppl_vae.errors import DeclarationError
from ppl_vae.models.vae import DeepLatentVariableModel, refuse_classes

__all__ = ["GMVAE"]


class GMVAE(DeepLatentVariableModel):
    """p(c) = Categorical(pi), p(z | c) = N(mu_c, Sigma_c), p(x | z) = likelihood(decoder(z)), q(z | x) = N(encoder(x)).

    The cluster c has no posterior of its own: it is summed out exactly, so the bound is

        L = E_q(z|x)[log sum_c p(c) p(z | c) + log p(x | z) - log q(z | x)],

    VaDE's with the best q(c | z) there is, p(c | z). `responsibilities(x)` are p(c | x), by importance weights of draws
    from q. From random weights the clusters seldom find anything: start with a VAE, then EM on its codes (below).

    Parameters
    ----------
    encoder : Module
        x [..., pixels] to (loc, scale), each [..., d].
    decoder : Module
        z [..., d] to what the likelihood takes.
    n_components : int
        K.
    likelihood : str or Module
        As in `VAE`.
    covariance : {"full", "tied", "diagonal", "spherical"}
        Form of Sigma.
    latent_dim : int, optional
        d, read from the encoder's output_size where it has one.
    posterior : Module, optional
        From ppl_vae.posteriors, a diagonal normal by default.

    Raises
    ------
    DeclarationError
        An unknown likelihood or covariance; n_components below 1; no latent_dim, and an encoder without output_size.

    References
    ----------
    Jiang, Zheng, Tan, Tang and Zhou (2017). Variational deep embedding. IJCAI.
    Dilokthanakul et al. (2016). Deep unsupervised clustering with Gaussian mixture variational autoencoders.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> x = (torch.rand(50, 4) < 0.5).float()
    >>> vae = pv.models.VAE(pv.nets.mlp_encoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4))
    >>> vae = pv.SVI(2, progress=False).fit(vae, x).model
    >>> em = pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(3, 2, "diagonal"), vae.posterior(x).mean)
    >>> model = pv.models.GMVAE(vae.encoder, vae.decoder, n_components=3)
    >>> fit = pv.SVI(2, start=em.parameters, progress=False).fit(model, x)
    >>> fit.responsibilities(x).shape
    torch.Size([50, 3])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        n_components: int,
        likelihood: str | nn.Module = "bernoulli",
        covariance: str = "diagonal",
        latent_dim: int | None = None,
        posterior: nn.Module | None = None,
    ) -> None:
        size = latent_dim or getattr(encoder, "output_size", None)
        if size is None:
            raise DeclarationError(f"GMVAE: {type(encoder).__name__} has no output_size; pass latent_dim=")
        super().__init__(decoder, size, likelihood)
        refuse_classes(type(self).__name__, posterior=posterior, encoder=encoder)
        self.encoder, self.posterior_of = encoder, posterior or posteriors.Diagonal()
        self.mixing = families.Categorical(n_components)
        self.components = families.Normal(size, batch=n_components, covariance=covariance)
        self.components.loc = torch.randn(n_components, size)  # equal components would have equal gradients for ever

    @latent
    def c(self) -> TorchDistribution:
        """Categorical(pi)."""
        return self.mixing()

    @latent
    def z(self, c: Tensor) -> TorchDistribution:
        """Normal(mu_c, Sigma_c)."""
        return self.components(c)

    @z.posterior
    def q_z(self, x: Tensor) -> TorchDistribution:
        """Normal(encoder(x)) unless given."""
        return self.posterior_of(*self.encoder(x))
