"""Latent-variable models in Pyro: declare once, fit by EM, variational inference or NUTS, compare."""

from ppl_vae import data, families, flows, likelihoods, models, nets, posteriors, priors
from ppl_vae.bootstrap import bootstrap
from ppl_vae.compare import Table, compare
from ppl_vae.declare import LatentVariableModel, given, latent, observed, penalty
from ppl_vae.errors import DataError, DeclarationError, EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.from_pyro import from_pyro
from ppl_vae.infer import (
    EM,
    NUTS,
    SVI,
    VB,
    Callback,
    Checkpoints,
    CSVTracker,
    TensorBoardTracker,
    adam,
    adamw,
    alternate,
    checkpoints,
    clipped,
    clipped_adam,
    constant,
    cyclical,
    lagging,
    linear,
    normalized,
    optimizer,
    rmsprop,
    scheduled,
    sgd,
    svi_step,
    track,
)
from ppl_vae.objectives import elbo, infovae, iwae, tc_elbo
from ppl_vae.ratio import LikelihoodRatio, likelihood_ratio_test
from ppl_vae.refit import refit_prior
from ppl_vae.select import Selection, select
from ppl_vae.uncertainty import StandardErrors, standard_errors
from ppl_vae.version import __version__

__all__ = [
    "EM",
    "NUTS",
    "SVI",
    "VB",
    "CSVTracker",
    "Callback",
    "Checkpoints",
    "DataError",
    "DeclarationError",
    "EngineError",
    "Fit",
    "LatentVariableModel",
    "LikelihoodRatio",
    "Selection",
    "StandardErrors",
    "Status",
    "Table",
    "TensorBoardTracker",
    "__version__",
    "adam",
    "adamw",
    "alternate",
    "bootstrap",
    "checkpoints",
    "clipped",
    "clipped_adam",
    "compare",
    "constant",
    "cyclical",
    "data",
    "elbo",
    "families",
    "flows",
    "from_pyro",
    "given",
    "infovae",
    "iwae",
    "lagging",
    "latent",
    "likelihood_ratio_test",
    "likelihoods",
    "linear",
    "models",
    "nets",
    "normalized",
    "observed",
    "optimizer",
    "penalty",
    "posteriors",
    "priors",
    "refit_prior",
    "rmsprop",
    "scheduled",
    "select",
    "sgd",
    "standard_errors",
    "svi_step",
    "tc_elbo",
    "track",
]
