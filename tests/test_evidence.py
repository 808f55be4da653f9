"""log p(x) and how far to trust it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_models import LinearVAE, make, numbers

import ppl_vae as pv
from ppl_vae.evidence import RunningWeights, exact, hardly_vary, importance, log_mean_exp, pareto_k_hat, tail_length
from ppl_vae.report.training import evaluation_rows
from ppl_vae.report.words import training_summary


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
    ("found", "said"),
    [
        (exact(torch.full((300,), -1.0)), "log p(x) of 300 data, exact\n  mean -1.0000, total -300.0000 nats\n  next:"),
        (importance(torch.zeros(10, 2)), "mean 0.0000, total 0.0000 nats; smallest effective sample size 10\n"),
        (replace(exact(torch.zeros(2)), method="bound"), "bound on log p(x) of 2 data, bound\n"),
    ],
)
def test_it_is_printed_in_three_lines(found, said):
    assert said in repr(found)
    assert repr(found).count("\n") == 2


@pytest.mark.parametrize(
    ("weights", "ess"), [([1.0] * 8, 8.0), ([1.0] + [0.0] * 7, 1.0), ([3.0, 1.0, 0.0, 0.0], 1.6), ([2.0, 2.0], 2.0)]
)
def test_effective_sample_size_is_the_squared_sum_over_the_sum_of_squares(weights, ess):
    w = torch.tensor(weights, dtype=torch.float64)
    found = importance(w.log()[:, None])
    assert found.effective_sample_size.item() == pytest.approx(ess)
    assert found.value.item() == pytest.approx(math.log(w.mean()))
    assert found.standard_error.item() == pytest.approx((w.std() / w.mean() / len(w) ** 0.5).item())


def test_of_a_single_draw_the_standard_error_is_unknown():
    running, log_w = RunningWeights(1), torch.tensor([[-3.0, 2.0]], dtype=torch.float64)
    running.add(log_w)
    for found in (importance(log_w), running.evidence()):
        assert found.value.tolist() == [-3.0, 2.0]
        assert found.standard_error.isnan().all()
        assert found.effective_sample_size.tolist() == [1.0, 1.0]


def test_what_prints_an_unknown_standard_error_says_so():
    model, x = make("linear vae")
    fit = pv.Fit(model, "SVI", {}, {}, "", pv.Status("finished", ""), 0.0, 0)
    found = fit.evaluate(x, num_particles=1)
    assert math.isnan(found.log_prob_se)
    said = " ".join([str(found), *training_summary(fit, found), *(text for _, _, text in evaluation_rows(found))])
    assert said.count("(standard error unknown)") == 3
    assert "nan" not in said.lower().split()
    assert "standard error unknown" in fit.diagnose(x, num_particles=1, gap_data=0)["log p(x)"].text
    assert pv.log_evidence(fit, x, num_particles=1, progress=False).standard_error.isnan().all()


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


def mixture_fits():
    x, model = pv.data.faithful().values, pv.models.GaussianMixture(2, 2, prior="weak")
    return x, {
        "EM": pv.EM(progress=False).fit(model, x),
        "VB": pv.VB(num_draws=60, progress=False).fit(model, x),
        "NUTS": pv.NUTS(20, warmup=20, num_chains=2, progress=False).fit(model, x),
    }


def test_a_fits_log_joint_summed_over_components_is_its_predictive_density():
    x, fits = mixture_fits()
    for name, fit in fits.items():
        each = [fit.log_joint(x, z=torch.full((len(x),), k)) for k in range(2)]
        torch.testing.assert_close(torch.stack(each).logsumexp(0), fit.log_predictive(x), msg=name)


def test_a_fits_evidence_is_of_one_value_of_theta():
    x, fits = mixture_fits()
    found = fits["EM"].evidence(x)
    assert found.method == "exact"
    torch.testing.assert_close(found.value, fits["EM"].log_predictive(x))
    for name in ("VB", "NUTS"):
        with pytest.raises(pv.EngineError, match=rf"has {fits[name].num_draws} draws of it: log_predictive\(x\)"):
            fits[name].evidence(x)


@pytest.mark.parametrize("piece", [37, 2500])
@pytest.mark.parametrize("spread", [1e-9, 0.5, 4.0])
def test_weights_in_pieces_say_what_all_together_say(piece, spread):
    generator = torch.Generator().manual_seed(2)
    log_w = spread * torch.randn(2500, 6, dtype=torch.float64, generator=generator) - 800
    log_w[0, 0] = -torch.inf
    log_w[:, 1] = log_w[:, 1].sort().values  # the largest is always the newest
    running, expected = RunningWeights(2500), importance(log_w)
    for part in log_w.split(piece):
        running.add(part)
    found = running.evidence()
    for name in ("value", "standard_error", "effective_sample_size"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-16)
    assert found.value.dtype == torch.float64
    assert found.method == "importance"


def test_weights_that_are_all_zero_say_that_nothing_is_known():
    running = RunningWeights(50)
    for _ in range(5):
        running.add(torch.tensor([[-torch.inf, -3.0]]).repeat(10, 1))
    found = running.evidence()
    assert found.value.tolist() == [-math.inf, -3.0]
    assert found.standard_error.tolist() == [math.inf, 0.0]
    assert found.effective_sample_size.tolist() == pytest.approx([0.0, 50.0])
    assert found.k_hat.tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("draws", [25, 100, 1000, 2500, 5000])
def test_k_hat_of_the_largest_weights_is_arvizs_of_all(draws):
    from arviz_stats.base import array_stats

    generator = torch.Generator().manual_seed(draws)
    spread = torch.linspace(0.1, 4.0, 12, dtype=torch.float64)
    log_w = spread * torch.randn(draws, 12, dtype=torch.float64, generator=generator) - 230
    running = RunningWeights(draws)
    for part in log_w.split(64):
        running.add(part)
    _, expected = array_stats.psislw(-log_w.T.numpy())  # which takes ratios' negative logarithms
    np.testing.assert_allclose(running.evidence().k_hat.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert expected.min() < 0.5 < expected.max()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_k_hat_of_weights_that_vanish_beside_the_largest_is_infinite():
    """Most of the tail is zero in double precision: there is nothing to fit a law to."""
    top = torch.tensor([0.0, -440.0, -600.0, *(-800.0 - i for i in range(24))], dtype=torch.float64)
    spread = torch.linspace(0.0, -3.0, len(top), dtype=torch.float64)
    found = pareto_k_hat(torch.stack([top, spread], 1))
    assert found[0] == torch.inf
    assert found[1] < 0.7


def test_k_hat_is_that_of_psislw():
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("this ArviZ has no psislw of its own")
    generator = torch.Generator().manual_seed(0)
    log_w = 2 * torch.randn(2500, 5, dtype=torch.float64, generator=generator)  # both versions' tail is 150
    top = log_w.topk(tail_length(2500) + 1, dim=0).values
    np.testing.assert_allclose(pareto_k_hat(top).numpy(), arviz.psislw(log_w.T.numpy().copy())[1], rtol=1e-9)


def test_the_tail_of_weights_that_hardly_vary_moves_log_p_by_next_to_nothing():
    """500 times 500 weights around a tail of k = 0.9, of mean 1: what k makes of weights that vary is not so here."""
    generator = torch.Generator().manual_seed(5)
    u = torch.rand(500, 500, dtype=torch.float64, generator=generator)
    tail = 0.1 * u**-0.9  # a Pareto law of mean 1
    errors = {}
    for name, w in {"even": 0.97 + 0.03 * tail, "uneven": tail}.items():
        running = RunningWeights(500)
        running.add(w.log())
        found = running.evidence()
        even = hardly_vary(found.effective_sample_size, 500)
        assert (found.k_hat > 0.7).double().mean() > 0.5
        assert even.double().mean() > 0.9 if name == "even" else even.double().mean() < 0.05
        errors[name] = found.value[even if name == "even" else ~even].abs()
    assert (errors["even"] < 2**0.9 / (3 * 500**0.5)).all()
    assert (errors["uneven"] > 10 * 2**0.9 / (3 * 500**0.5)).double().mean() > 0.5


@pytest.mark.parametrize("k", [0.1, 0.5, 0.9])
def test_k_hat_finds_the_shape_of_a_pareto_law(k):
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    top = (-k * u[: tail_length(20_000) + 1].log())[:, None]
    assert pareto_k_hat(top).item() == pytest.approx(k, abs=0.05)


def test_a_short_tail_has_no_k_hat():
    running = RunningWeights(24)
    running.add(torch.zeros(24, 3))
    assert running.evidence().k_hat is None
