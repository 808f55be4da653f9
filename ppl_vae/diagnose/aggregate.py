"""The aggregate posterior q(z) = (1/n) sum_i q(z | x_i), at codes of the data themselves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.diagnose.codes import Code, Codes
from ppl_vae.evidence import log_mean_exp

__all__ = ["Aggregate", "aggregate"]

DRAWS, MOST, FEWEST = 4, 64, 4000
"""Codes drawn of every datum, at least and at most, and as few as suffice of all data together."""


@dataclass(frozen=True)
class Aggregate:
    """R codes of each of n data, and log densities there, [R, n] nats.

    Attributes
    ----------
    codes : Codes
        Of the n data.
    draws : list of dict
        R codes z_i ~ q(z | x_i).
    own : Tensor
        log q(z_i | x_i).
    mixed : Tensor
        log (1/n) sum_j q(z_i | x_j): q(z) itself.
    others : Tensor
        log (1/(n - 1)) sum_{j != i} q(z_i | x_j): what the other data have there.
    """

    codes: Codes
    draws: list[Code]
    own: Tensor
    mixed: Tensor
    others: Tensor


def aggregate(codes: Codes) -> Aggregate:
    """Draw codes of all data, and see how dense q(z) is at them."""
    draws, found = [], []
    for _ in range(max(DRAWS, min(MOST, -(-FEWEST // codes.n)))):
        draws.append(codes.draw())
        found.append(_densities(codes, draws[-1]))
    return Aggregate(codes, draws, *torch.stack(found, 1))


def _densities(codes: Codes, z: Code) -> Tensor:
    """`own`, `mixed` and `others` at a code of each datum, [3, n]."""
    parts, start = [], 0
    for pairs in codes.log_q(z):
        own = torch.arange(start, start + len(pairs), device=pairs.device)[:, None]
        at, mixed = pairs.gather(1, own)[:, 0], log_mean_exp(pairs, 1)
        others = torch.logsumexp(pairs.scatter_(1, own, -torch.inf), 1) - math.log(max(codes.n - 1, 1))
        parts.append(torch.stack([at, mixed, others]))
        start += len(pairs)
    return torch.cat(parts, 1)
