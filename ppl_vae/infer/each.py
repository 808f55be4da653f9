"""One function at many arguments, as a graph where it can be traced."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ppl_vae.alone import forked_rng, unvalidated
from ppl_vae.infer.tracing import Traced

__all__ = ["each"]

FEW = 10
"""Calls that are not worth a trace."""
CLOSE = 1e-4
"""Relative difference between graph and function that rounding explains."""


def each(function: Callable[..., tuple[Tensor, ...]], rows: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """The function's outputs at each row of arguments, stacked; random draws are those of calls one by one.

    A function that branches on values runs eagerly.

    Examples
    --------
    >>> each(lambda x: (2 * x, x + 1), [(torch.tensor(1.0),), (torch.tensor(3.0),)])
    [tensor([2., 6.]), tensor([2., 4.])]
    """
    listed = list(rows)
    traced = Traced(function, "trace" if len(listed) > FEW else "off")
    with torch.no_grad(), unvalidated(), warnings.catch_warnings():
        # That it runs eagerly is no news to somebody who asked for no graph.
        warnings.filterwarnings("ignore", "runs eagerly", UserWarning)
        if traced.mode == "trace" and _differs(traced, listed):
            traced.mode = "off"
        return [torch.stack(column) for column in zip(*[traced(*row) for row in listed], strict=True)]


def _differs(traced: Traced, rows: list[tuple[Tensor, ...]]) -> bool:
    """Whether a graph of the first row is wrong at the last."""
    with forked_rng():
        traced(*rows[0])
    return traced.mode != "off" and traced.verify(*rows[-1]) > CLOSE
