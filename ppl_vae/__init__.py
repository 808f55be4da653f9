"""Latent-variable models in Pyro: declare once, fit by EM, variational inference or NUTS, compare."""

from ppl_vae import data, families, likelihoods, models, nets
from ppl_vae.compare import Table, compare
from ppl_vae.declare import LatentVariableModel, given, latent, observed
from ppl_vae.errors import DataError, DeclarationError, EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer import EM, NUTS, SVI, adam, linear, sgd, svi_step
from ppl_vae.objectives import elbo, iwae
from ppl_vae.version import __version__

__all__ = [
    "EM",
    "NUTS",
    "SVI",
    "DataError",
    "DeclarationError",
    "EngineError",
    "Fit",
    "LatentVariableModel",
    "Status",
    "Table",
    "__version__",
    "adam",
    "compare",
    "data",
    "elbo",
    "families",
    "given",
    "iwae",
    "latent",
    "likelihoods",
    "linear",
    "models",
    "nets",
    "observed",
    "sgd",
    "svi_step",
]
