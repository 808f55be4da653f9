"""The Gaussian mixture."""

import torch
from pyro.distributions import TorchDistribution

from ppl_vae import families
from ppl_vae.declare import LatentVariableModel, latent, observed
from ppl_vae.errors import DeclarationError, check_whole

__all__ = ["GaussianMixture"]


class GaussianMixture(LatentVariableModel):
    """p(z) = Categorical(pi), p(x | z) = N(mu_z, Sigma_z); z is summed out exactly (000 (3), 004 s.7.2).

    Parameters
    ----------
    n_components : int
        K.
    n_features : int
        d; data are [n, d], or [n] when d is 1.
    covariance : {"full", "tied", "diagonal", "spherical"}
        Form of Sigma.
    prior : "weak", (DirichletPrior, NormalInverseWishartPrior) or None
        Conjugate priors of the weights and of the components; "weak" takes its scale from the data
        (Fraley and Raftery 2007). With priors the parameters are shared latents.

    Raises
    ------
    DeclarationError
        An unknown covariance or prior, or n_components or n_features that is no whole number of at least 1.

    Examples
    --------
    >>> import torch
    >>> gmm = GaussianMixture(2, 1)
    >>> gmm.responsibilities(torch.zeros(1)).tolist()
    [[0.5, 0.5]]
    """

    def __init__(
        self,
        n_components: int,
        n_features: int,
        covariance: str = "full",
        prior: str | tuple[families.DirichletPrior, families.NormalInverseWishartPrior] | None = None,
    ) -> None:
        super().__init__()
        check_whole("GaussianMixture", error=DeclarationError, n_components=n_components, n_features=n_features)
        pair = prior if isinstance(prior, tuple) else (prior, prior)
        if len(pair) != 2 or not (isinstance(prior, str | tuple) or prior is None):
            raise DeclarationError(
                'GaussianMixture: prior is None, "weak" or the pair (that of the weights, that of the components), '
                f"such as (DirichletPrior(2.0), NormalInverseWishartPrior()); got {prior!r}"
            )
        mixing, components = pair
        self.mixing = families.Categorical(n_components, prior=mixing)
        self.components = families.Normal(n_features, batch=n_components, covariance=covariance, prior=components)

    @latent
    def z(self) -> TorchDistribution:
        """Categorical(pi)."""
        return self.mixing()

    @observed
    def x(self, z: torch.Tensor) -> TorchDistribution:
        """Normal(mu_z, Sigma_z)."""
        return self.components(z)
