"""Ready-made declarations, each about as long as its formula."""

from ppl_vae.models.mixture import GaussianMixture
from ppl_vae.models.vae import VAE

__all__ = ["VAE", "GaussianMixture"]
