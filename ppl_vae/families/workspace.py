"""Memory that a thread uses again for each chunk of an E-step: fresh memory costs more than the arithmetic in it."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["buffer", "out", "reused_buffers"]


Kind = tuple[torch.dtype, torch.device, bool]


@dataclass
class _Buffer:
    """Memory, what it is for, and how it was last seen."""

    kind: Kind
    memory: Tensor
    view: Tensor


class _Workspace(threading.local):
    """Buffers of one thread in the order in which a chunk asks for them."""

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.used: int | None = None  # None: nothing may be used again


_own = _Workspace()


def buffer(like: Tensor, *shape: int) -> Tensor:
    """An empty tensor [*shape]; within `reused_buffers` it may be kept until the block ends."""
    number, buffers = _own.used, _own.buffers
    if number is None:
        return like.new_empty(shape)
    _own.used = number + 1
    kind = _kind(like)
    have = buffers[number] if number < len(buffers) else None
    if have is not None and have.kind == kind:
        if have.view.shape == shape:  # chunks are of one size, mostly
            return have.view
        size = math.prod(shape)
        if have.memory.numel() >= size:
            have.view = have.memory[:size].view(shape)
            return have.view
    memory = like.new_empty(math.prod(shape))
    buffers[number : number + 1] = [_Buffer(kind, memory, memory.view(shape))]
    return buffers[number].view


def _kind(like: Tensor) -> Kind:
    # What was made under torch.inference_mode cannot be written to outside it.
    return like.dtype, like.device, torch.is_inference_mode_enabled() or like.is_inference()


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
