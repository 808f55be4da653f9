"""Ready-made declarations, each about as long as its formula."""

from ppl_vae.models.mixture import GaussianMixture
from ppl_vae.models.vae import VAE, DeepLatentVariableModel

__all__ = ["VAE", "DeepLatentVariableModel", "GaussianMixture"]
