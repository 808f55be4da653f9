"""The shape of a gamma from its log-gap: finite, positive and exact, whatever the gap."""

import numpy as np
import pytest
import torch
from scipy import optimize, special

from ppl_vae.families.newton import solve_log_minus_digamma


@pytest.mark.parametrize("s", np.logspace(-3, 1, 17))
def test_the_shape_solves_its_equation(s):
    """Against scipy's bracketing root; log a - psi(a) of doubles has 13 digits left there."""
    expected = optimize.brentq(lambda a: np.log(a) - special.digamma(a) - s, 1e-3, 1e4, rtol=1e-14)
    assert solve_log_minus_digamma(torch.tensor(s)).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("s", np.logspace(-16, -3, 27))
def test_the_shape_of_narrow_data_loses_no_digit(s):
    """Between the roots of the bounds 1/(2a) + 1/(12 a^2) - 1/(120 a^4) < log a - psi(a) < 1/(2a) + 1/(12 a^2)."""
    above = (1 + np.sqrt(1 + 4 * s / 3)) / (4 * s)
    a = solve_log_minus_digamma(torch.tensor(s)).item()
    assert above * (1 - 1e-15) - 1 / (60 * above**2) <= a <= above * (1 + 1e-15)


def test_every_gap_has_a_positive_shape():
    gaps = torch.tensor([5e-324, 1e-300, 1e-30, 1e3, 1e100, 0.0, -1e-17], dtype=torch.float64)
    shapes = solve_log_minus_digamma(gaps)
    assert bool((shapes > 0).all())
    assert shapes.isfinite().tolist() == [True] * 5 + [False] * 2
    torch.testing.assert_close(shapes[1:5] * gaps[1:5], torch.tensor([0.5, 0.5, 1.0, 1.0]).double(), rtol=0.01, atol=0)
