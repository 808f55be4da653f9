"""The engines: one declaration, several ways of fitting it."""

from ppl_vae.infer.buffer_schedules import BufferSchedules
from ppl_vae.infer.callbacks import Callback, Run
from ppl_vae.infer.checkpoint import Checkpoints, checkpoints
from ppl_vae.infer.codebook_updates import CodebookUpdates
from ppl_vae.infer.em import EM
from ppl_vae.infer.nuts import NUTS
from ppl_vae.infer.optimizers import (
    adam,
    adamw,
    clipped,
    clipped_adam,
    normalized,
    optimizer,
    rmsprop,
    scheduled,
    sgd,
)
from ppl_vae.infer.own_loop import svi_step
from ppl_vae.infer.schedules import constant, cyclical, linear
from ppl_vae.infer.svi import SVI
from ppl_vae.infer.trackers import CSVTracker, TensorBoardTracker, Tracker, track
from ppl_vae.infer.turns import Alternate, Lagging, alternate, lagging
from ppl_vae.infer.vb import VB

__all__ = [
    "EM",
    "NUTS",
    "SVI",
    "VB",
    "Alternate",
    "BufferSchedules",
    "CSVTracker",
    "Callback",
    "Checkpoints",
    "CodebookUpdates",
    "Lagging",
    "Run",
    "TensorBoardTracker",
    "Tracker",
    "adam",
    "adamw",
    "alternate",
    "checkpoints",
    "clipped",
    "clipped_adam",
    "constant",
    "cyclical",
    "lagging",
    "linear",
    "normalized",
    "optimizer",
    "rmsprop",
    "scheduled",
    "sgd",
    "svi_step",
    "track",
]
