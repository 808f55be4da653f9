"""Two equations with the digamma function, solved by Newton steps: shapes of gammas, degrees of freedom."""

import torch
from torch import Tensor

__all__ = ["inverse_digamma", "solve_log_minus_digamma"]

STEPS = 8
"""From the starts below the error is under rounding after five steps."""
LARGE = 16.0
"""Argument from which Stirling's series is exact to rounding."""


def solve_log_minus_digamma(s: Tensor) -> Tensor:
    """The a > 0 with log a - psi(a) = s, for s > 0; infinite for s <= 0, where there is none.

    The steps are Newton's in 1/a, which converge from the start for every s (Minka 2002, "Estimating a Gamma
    distribution").

    Examples
    --------
    >>> import torch
    >>> a = torch.tensor([0.01, 3.0, 1e4], dtype=torch.float64)
    >>> [round(found, 6) for found in solve_log_minus_digamma(a.log() - a.digamma()).tolist()]
    [0.01, 3.0, 10000.0]
    """
    positive = s > 0
    target = torch.where(positive, s, 1.0).clamp_min(torch.finfo(s.dtype).tiny)
    root = (target - 3).abs() + ((target - 3).square() + 24 * target).sqrt()
    u = torch.where(target > 3, root / 2, 12 * target / root)
    for _ in range(STEPS):
        value, slope = _log_minus_digamma(u)
        u = u - (value - target) / slope
    return torch.where(positive, 1 / u, torch.inf)


def _log_minus_digamma(u: Tensor) -> tuple[Tensor, Tensor]:
    """Log a - psi(a) at a = 1/u, and its derivative in u."""
    # For large a the two cancel; Stirling's series has no digit to lose.
    small, a = u.clamp_max(1 / LARGE), 1 / u.clamp_min(1 / LARGE)
    v = small.square()
    series = small / 2 + v * (1 / 12 - v * (1 / 120 - v * (1 / 252 - v * (1 / 240 - v / 132))))
    slope = 0.5 + small * (1 / 6 - v * (1 / 30 - v * (1 / 42 - v * (1 / 30 - v * 10 / 132))))
    large = u < 1 / LARGE
    return (
        torch.where(large, series, a.log() - a.digamma()),
        torch.where(large, slope, (torch.polygamma(1, a) * a - 1) * a),
    )


def inverse_digamma(y: Tensor) -> Tensor:
    """The a > 0 with psi(a) = y (Minka 2000, "Estimating a Dirichlet distribution", appendix C).

    Examples
    --------
    >>> import torch
    >>> a = torch.tensor([0.01, 3.0, 1e4], dtype=torch.float64)
    >>> [round(found, 6) for found in inverse_digamma(a.digamma()).tolist()]
    [0.01, 3.0, 10000.0]
    """
    euler = 0.5772156649015329
    a = torch.where(y >= -2.22, y.clamp_max(700).exp() + 0.5, -1 / (y.clamp_max(-2.22) + euler))
    for _ in range(STEPS):
        a = a - (a.digamma() - y) / torch.polygamma(1, a)
    return a
