"""What is wrong with a fit: collapse, prior hole, quality of q."""

from ppl_vae.diagnose.ais import annealed
from ppl_vae.diagnose.codes import Codes
from ppl_vae.diagnose.collapse import Collapse
from ppl_vae.diagnose.diagnosis import Diagnosis, diagnose
from ppl_vae.diagnose.discrepancy import Discrepancy, discrepancy
from ppl_vae.diagnose.gap import LocalBound, local_bound
from ppl_vae.diagnose.hole import Hole
from ppl_vae.diagnose.inference import Inference
from ppl_vae.diagnose.quantity import Quantity
from ppl_vae.diagnose.usage import code_shares

__all__ = [
    "Codes",
    "Collapse",
    "Diagnosis",
    "Discrepancy",
    "Hole",
    "Inference",
    "LocalBound",
    "Quantity",
    "annealed",
    "code_shares",
    "diagnose",
    "discrepancy",
    "local_bound",
]
