"""The engines: one declaration, several ways of fitting it."""

from ppl_vae.infer.checkpoint import Checkpoints, checkpoints
from ppl_vae.infer.em import EM
from ppl_vae.infer.nuts import NUTS
from ppl_vae.infer.optimizers import adam, linear, sgd
from ppl_vae.infer.svi import SVI, svi_step
from ppl_vae.infer.vb import VB

__all__ = ["EM", "NUTS", "SVI", "VB", "Checkpoints", "adam", "checkpoints", "linear", "sgd", "svi_step"]
