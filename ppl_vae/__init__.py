"""Latent-variable models in Pyro: declare once, fit by EM, variational inference or NUTS, compare."""

from importlib import import_module
from types import ModuleType

from ppl_vae import code_priors, codebooks, data, families, flows, likelihoods, models, nets, posteriors, priors
from ppl_vae.bootstrap import bootstrap
from ppl_vae.calibrate import calibrate
from ppl_vae.calibrate_latents import calibrate_latents
from ppl_vae.calibration import Calibration
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
    BufferSchedules,
    Callback,
    Checkpoints,
    CodebookUpdates,
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
from ppl_vae.log_evidence import log_evidence
from ppl_vae.objectives import elbo, infovae, iwae, tc_elbo
from ppl_vae.predictive import loo_pit, predictive_check, prior_predictive
from ppl_vae.ratio import LikelihoodRatio, likelihood_ratio_test
from ppl_vae.refit import refit_prior
from ppl_vae.refit_codes import refit_codes
from ppl_vae.relabel import Ordering, Stephens, relabel
from ppl_vae.select import Selection, select
from ppl_vae.uncertainty import StandardErrors, standard_errors
from ppl_vae.version import __version__

__all__ = [
    "EM",
    "NUTS",
    "SVI",
    "VB",
    "BufferSchedules",
    "CSVTracker",
    "Calibration",
    "Callback",
    "Checkpoints",
    "CodebookUpdates",
    "DataError",
    "DeclarationError",
    "EngineError",
    "Fit",
    "LatentVariableModel",
    "LikelihoodRatio",
    "Ordering",
    "Selection",
    "StandardErrors",
    "Status",
    "Stephens",
    "Table",
    "TensorBoardTracker",
    "__version__",
    "adam",
    "adamw",
    "alternate",
    "bootstrap",
    "calibrate",
    "calibrate_latents",
    "checkpoints",
    "clipped",
    "clipped_adam",
    "code_priors",
    "codebooks",
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
    "log_evidence",
    "loo_pit",
    "models",
    "nets",
    "normalized",
    "observed",
    "optimizer",
    "penalty",
    "posteriors",
    "predictive_check",
    "prior_predictive",
    "priors",
    "refit_codes",
    "refit_prior",
    "relabel",
    "rmsprop",
    "scheduled",
    "select",
    "sgd",
    "standard_errors",
    "svi_step",
    "tc_elbo",
    "track",
]


def __getattr__(name: str) -> ModuleType:
    # Their imports (matplotlib, scikit-learn) are slow: they are loaded when they are asked for.
    if name in ("plots", "sklearn"):
        return import_module(f"ppl_vae.{name}")
    raise AttributeError(f"module 'ppl_vae' has no attribute {name!r}")
