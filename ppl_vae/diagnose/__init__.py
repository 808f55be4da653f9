"""What is wrong with a fit: collapse, prior hole, quality of q."""

from ppl_vae.diagnose.codes import Codes
from ppl_vae.diagnose.collapse import Collapse
from ppl_vae.diagnose.diagnosis import Diagnosis, diagnose
from ppl_vae.diagnose.quantity import Quantity

__all__ = ["Codes", "Collapse", "Diagnosis", "Quantity", "diagnose"]
