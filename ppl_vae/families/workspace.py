"""Memory that a thread uses again for each chunk of an E-step: fresh memory costs more than the arithmetic in it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["buffer", "out", "reused_buffers"]


class _Workspace(threading.local):
    """Buffers of one thread in the order in which a chunk asks for them."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.used: int | None = None  # None: nothing may be used again


_own = _Workspace()


def buffer(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor [*shape]; within `reused_buffers` it may be kept until the block ends."""
    if _own.used is None:
        return like.new_empty(shape)
    size, number = torch.Size(shape).numel(), _own.used
    _own.used += 1
    have = _own.buffers[number] if number < len(_own.buffers) else None
    if have is None or len(have) < size or _kind(have) != _kind(like):
        _own.buffers[number : number + 1] = [like.new_empty(size)]
    return _own.buffers[number][:size].view(shape)


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device, bool]:
    # What was made under torch.inference_mode cannot be written to outside it.
    return tensor.dtype, tensor.device, torch.is_inference_mode_enabled() or tensor.is_inference()


def out(like: Tensor, *shape: int) -> Tensor | None:
    """A buffer for an operation to write into; None, which means fresh memory, where gradients are taken."""
    return None if torch.is_grad_enabled() else buffer(like, *shape)


@contextmanager
def reused_buffers() -> Iterator[None]:
    """Within the block this thread's buffers are those of the last such block."""
    before = _own.used
    _own.used = 0 if before is None else before
    try:
        yield
    finally:
        _own.used = before
