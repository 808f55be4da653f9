"""What is climbed: the evidence lower bound of any model and guide, one value per datum, and its relatives.

Everything here is written on `Sites`: the factors of log p and log q at one draw of the latents. Declared models
make them directly, `trace_sites` makes them from an ordinary Pyro pair.
"""

from ppl_vae.objectives.bound import Elbo, Objective, elbo
from ppl_vae.objectives.discrepancy import InfoVae, discrepancy, infovae
from ppl_vae.objectives.importance import Iwae, iwae
from ppl_vae.objectives.sites import Sites, analytic_kl, has_analytic_kl
from ppl_vae.objectives.total_correlation import TcElbo, TcTerms, tc_elbo
from ppl_vae.objectives.tracing import max_plate_nesting, trace_sites

__all__ = [
    "Elbo",
    "InfoVae",
    "Iwae",
    "Objective",
    "Sites",
    "TcElbo",
    "TcTerms",
    "analytic_kl",
    "discrepancy",
    "elbo",
    "has_analytic_kl",
    "infovae",
    "iwae",
    "max_plate_nesting",
    "tc_elbo",
    "trace_sites",
]
