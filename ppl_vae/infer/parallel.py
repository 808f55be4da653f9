"""How many threads torch uses where: all for the products over the data, one for the small matrices of an M-step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["threads"]


@contextmanager
def threads(count: int) -> Iterator[int]:
    """`count` threads for torch within the block, and the number there was."""
    before = torch.get_num_threads()
    if count != before:  # asking costs nothing, setting wakes the libraries
        torch.set_num_threads(count)
    try:
        yield before
    finally:
        if count != before:
            torch.set_num_threads(before)
