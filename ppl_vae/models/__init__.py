"""Ready-made declarations, each about as long as its formula."""

from ppl_vae.models.categorical import CategoricalVAE, GumbelVAE
from ppl_vae.models.gmvae import GMVAE
from ppl_vae.models.mixture import GaussianMixture
from ppl_vae.models.vae import VAE, DeepLatentVariableModel
from ppl_vae.models.vqvae import VQVAE, CodePrior

__all__ = [
    "GMVAE",
    "VAE",
    "VQVAE",
    "CategoricalVAE",
    "CodePrior",
    "DeepLatentVariableModel",
    "GaussianMixture",
    "GumbelVAE",
]
