"""log p(x) and how far to trust it."""

import math

import numpy as np
import pytest
import torch
from example_models import LinearVAE, make, numbers

from ppl_vae.evidence import exact, importance, log_mean_exp


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_mean_exp_keeps_its_digits(dtype):
    log_w = (numbers(1000, 3) * 5 - 800).to(dtype)
    expected = np.logaddexp.reduce(log_w.double().numpy(), 0) - math.log(1000)
    found = log_mean_exp(log_w)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14 if dtype == torch.float64 else 1e-6)


def test_exact_evidence_has_no_error():
    found = exact(torch.tensor([-1.0, -2.0]))
    assert found.standard_error.tolist() == [0.0, 0.0]
    assert found.effective_sample_size.tolist() == [math.inf, math.inf]
    assert found.method == "exact"


@pytest.mark.parametrize(
    ("weights", "ess"), [([1.0] * 8, 8.0), ([1.0] + [0.0] * 7, 1.0), ([3.0, 1.0, 0.0, 0.0], 1.6), ([2.0, 2.0], 2.0)]
)
def test_effective_sample_size_is_the_squared_sum_over_the_sum_of_squares(weights, ess):
    w = torch.tensor(weights, dtype=torch.float64)
    found = importance(w.log()[:, None])
    assert found.effective_sample_size.item() == pytest.approx(ess)
    assert found.value.item() == pytest.approx(math.log(w.mean()))
    assert found.standard_error.item() == pytest.approx((w.std() / w.mean() / len(w) ** 0.5).item())


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    generator = torch.Generator().manual_seed(1)
    log_w = 0.5 * torch.randn(400, 2000, dtype=torch.float64, generator=generator)
    found = importance(log_w)  # 2000 repetitions of 400 draws of a lognormal weight with mean exp(1/8)
    error = (found.value - 0.125) / found.standard_error
    assert abs(error.mean()) < 0.2  # a log of a mean is biased by half its squared error
    assert error.std().item() == pytest.approx(1.0, abs=4 / math.sqrt(2 * 2000) + 0.03)


def test_importance_finds_the_evidence_of_a_linear_vae():
    model, x = make("linear vae")
    found = model.evidence(x, num_particles=20_000)
    assert isinstance(model, LinearVAE)
    assert found.method == "importance"
    assert bool((found.effective_sample_size < 20_000).all())
    assert bool(((found.value - model.exact(x)).abs() < 4 * found.standard_error).all())
    torch.manual_seed(3)
    value = model.log_prob(x, num_particles=5)
    torch.manual_seed(3)
    torch.testing.assert_close(value, model.evidence(x, num_particles=5).value)


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    model, x = make("linear vae")
    with torch.no_grad():
        model.decoder.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]))  # orthogonal columns
        posterior = model.exact_posterior(x)
        V = torch.linalg.lstsq(torch.cat([x, torch.ones(6, 1)], 1), posterior.mean).solution
        model.encoder.loc.weight.copy_(V[:3].T), model.encoder.loc.bias.copy_(V[3])
        model.encoder.log_scale.copy_(posterior.stddev[0].log())
    found = model.evidence(x, num_particles=3)
    torch.testing.assert_close(found.value, model.exact(x).detach())
    torch.testing.assert_close(found.effective_sample_size, torch.full((6,), 3.0).double())
    torch.testing.assert_close(model.elbo(x), model.exact(x).detach())
