"""Maximum mean discrepancy of two samples, and how large it is by chance."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Discrepancy", "discrepancy"]

PERMUTATIONS = 200


@dataclass(frozen=True)
class Discrepancy:
    """The unbiased MMD^2 of two samples.

    Attributes
    ----------
    value, standard_error : Tensor
        [] each; the value may be below zero.
    by_chance : Tensor
        [], the 95% quantile when both samples are shuffled together.
    p_value : Tensor
        [], the share of shuffles that are at least as large.
    bandwidth : Tensor
        [], of the kernel.
    """

    value: Tensor
    standard_error: Tensor
    by_chance: Tensor
    p_value: Tensor
    bandwidth: Tensor


def discrepancy(x: Tensor, y: Tensor, permutations: int = PERMUTATIONS) -> Discrepancy:
    """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), without its diagonal terms, k(a, b) = exp(-|a - b|^2 / (2 h^2)).

    The bandwidth h is the median distance between any two of the points.

    Parameters
    ----------
    x, y : Tensor
        [m, units] each, m at least 2.
    permutations : int
        Shuffles for the distribution under equality.

    References
    ----------
    Gretton, Borgwardt, Rasch, Schoelkopf and Smola (2012). A kernel two-sample test. JMLR.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> found = discrepancy(torch.randn(200, 2), torch.randn(200, 2) + 1)
    >>> bool(found.value > found.by_chance), bool(found.p_value < 0.01)
    (True, True)
    """
    m = len(x)
    both = torch.cat([x, y]).double()
    width = torch.pdist(both).median().clamp_min(1e-12)
    # In place: of thousands of points this is the largest tensor of a diagnosis.
    kernel = torch.cdist(both, both).square_().div_(-2 * width**2).exp_().fill_diagonal_(0)
    first = torch.cat([both.new_ones(m), both.new_zeros(m)])
    shuffled = torch.stack([first[torch.randperm(2 * m)] for _ in range(permutations)], 1)
    value, null = _mmd(kernel, first[:, None])[0], _mmd(kernel, shuffled)
    # Every pair (x_i, y_i) has a mean effect on the estimate; their spread is the error where the two differ.
    each = torch.stack([sign * (block.sum(1) - block.diagonal()) for sign, block in _blocks(kernel)]).sum(0) / (m - 1)
    error = torch.hypot(2 * each.std() / m**0.5, null.std())
    above = (1 + (null >= value).sum()) / (permutations + 1)
    return Discrepancy(value, error, null.quantile(0.95), above, width)


def _blocks(kernel: Tensor) -> list[tuple[int, Tensor]]:
    """k(x, x'), k(y, y') and k(x, y) twice, with their signs in MMD^2."""
    m = len(kernel) // 2
    x, y = slice(0, m), slice(m, None)
    return [(1, kernel[x, x]), (1, kernel[y, y]), (-1, kernel[x, y]), (-1, kernel[y, x])]


def _mmd(kernel: Tensor, first: Tensor) -> Tensor:
    """MMD^2 for each column of indicators of the first sample, [2 m, P] to [P]."""
    m = len(kernel) // 2
    second = 1 - first
    to_first = kernel @ first
    within = (first * to_first).sum(0) + (second * (kernel @ second)).sum(0)
    return within / (m * (m - 1)) - 2 * (second * to_first).sum(0) / m**2
