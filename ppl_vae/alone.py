"""One thread at a time where settings of the whole process are changed: torch's default dtype, its random state."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ppl_vae.errors import EngineError, check_seed

__all__ = ["alone", "differentiable", "forked_rng", "full_precision", "lent", "seeded_rng", "unvalidated"]


class _Lock:
    """A lock that its thread may take again; a forked process has one of its own."""

    def __init__(self) -> None:
        self.own = threading.RLock()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.own = threading.RLock()


_lock, _here = _Lock(), threading.local()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block no other thread is in such a block; fits and questions in several threads take turns."""
    if getattr(_here, "lent", False):
        yield
        return
    with _lock.own:
        yield


@contextmanager
def lent() -> Iterator[None]:
    """Within the block this thread works for one that is in `alone`, and waits for it."""
    before, _here.lent = getattr(_here, "lent", False), True
    try:
        yield
    finally:
        _here.lent = before


@contextmanager
def forked_rng(devices: Iterable[Any] = ()) -> Iterator[None]:
    """Within the block, in `alone`, what torch draws counts nowhere else; CUDA devices are to be named."""
    with alone(), torch.random.fork_rng(list(devices)):
        yield


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Within the block, in `alone`, torch draws from this seed on every device, and that counts nowhere else."""
    with forked_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(check_seed(seed))
        yield


@contextmanager
def unvalidated() -> Iterator[None]:
    """Within the block, in `alone`, distributions do not check their arguments and values."""
    import pyro

    with alone(), pyro.validation_enabled(False):
        yield


@contextmanager
def full_precision(kind: str) -> Iterator[None]:
    """Within the block an autocast around it counts no more, on this kind of device."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield


@contextmanager
def differentiable() -> Iterator[None]:
    """Within the block gradients are taken.

    Raises
    ------
    EngineError
        Under `torch.inference_mode()`, which cannot be undone for tensors that were made in it.
    """
    if torch.is_inference_mode_enabled():
        raise EngineError("torch.inference_mode() is on, and this needs gradients: call it outside that block")
    with torch.enable_grad():
        yield
