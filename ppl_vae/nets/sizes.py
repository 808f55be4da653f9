"""What networks check: the sizes they are made of, and the width of what they are given."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from ppl_vae.errors import DataError

__all__ = ["checked", "of_width"]


def checked(sizes: Sequence[int]) -> Sequence[int]:
    """The sizes of a network, at least two whole numbers above 0."""
    if len(sizes) < 2 or not all(isinstance(size, Integral) and size > 0 for size in sizes):
        raise ValueError(
            f"sizes {tuple(sizes)} were given; an input size, any hidden sizes and an output size were expected, "
            "whole numbers above 0, such as (784, 400, 20)."
        )
    return sizes


def of_width(x: torch.Tensor, module: Any) -> torch.Tensor:
    """The tensor itself, if its last dimension is what the network takes."""
    if x.shape[-1:] != (module.input_size,):
        raise DataError(
            f"{type(module).__name__} takes [..., {module.input_size}]; {list(x.shape)} was given. Flatten each datum "
            "to one row, or make the network with another input size."
        )
    return x
