"""Latent-variable models in Pyro: declare once, fit by EM, variational inference or NUTS, compare."""

from ppl_vae import data, families, models, nets
from ppl_vae.declare import LatentVariableModel, given, latent, observed
from ppl_vae.fit import Fit, Status
from ppl_vae.infer import EM
from ppl_vae.objectives import elbo, iwae
from ppl_vae.version import __version__

__all__ = [
    "EM",
    "Fit",
    "LatentVariableModel",
    "Status",
    "__version__",
    "data",
    "elbo",
    "families",
    "given",
    "iwae",
    "latent",
    "models",
    "nets",
    "observed",
]
