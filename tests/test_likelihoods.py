import math
from decimal import Context, Decimal, localcontext

import numpy
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.errors import DataError
from ppl_vae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Gaussian,
    GaussianLearned,
    GaussianNetwork,
    GaussianOptimal,
    LogisticMixture,
)
from ppl_vae.likelihoods.binary import ContinuousBernoulliLogits


def _numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


OUTPUT, X = _numbers(4, 6), _numbers(4, 3, seed=1)


def _normal(x, loc, scale):
    return torch.from_numpy(stats.norm.logpdf(x.numpy(), loc.numpy(), scale).sum(-1))


def test_bernoulli_is_the_closed_form():
    x = (X > 0).double()
    p = OUTPUT[:, :3].sigmoid()
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    torch.testing.assert_close(Bernoulli()(OUTPUT[:, :3]).log_prob(x), expected)
    torch.testing.assert_close(torch.from_numpy(stats.bernoulli.logpmf(x, p).sum(-1)), expected)


def test_gaussian_with_a_fixed_scale_weighs_the_squared_error_by_half_the_precision():
    scale, loc = 0.1, OUTPUT[:, :3]
    found = Gaussian(scale)(loc).log_prob(X)
    torch.testing.assert_close(found, _normal(X, loc, scale))
    formula = -((X - loc) ** 2).sum(-1) / (2 * scale**2) - 3 * math.log(scale) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found, formula)


def test_a_squared_error_of_weight_one_is_a_variance_of_one_half():
    p = Gaussian(math.sqrt(0.5))(OUTPUT[:, :3])
    other = _numbers(4, 3, seed=2)
    errors = [((x - OUTPUT[:, :3]) ** 2).sum(-1) for x in (X, other)]
    torch.testing.assert_close(p.log_prob(X) - p.log_prob(other), errors[1] - errors[0])


@pytest.mark.parametrize("initial", [2e-3, 0.3, 1.0, 100.0])
def test_the_learned_scale_starts_where_it_was_told_to(initial):
    likelihood = GaussianLearned(initial)
    assert likelihood.scale.item() == pytest.approx(initial, rel=1e-5)
    found = likelihood(OUTPUT[:, :3]).log_prob(X)
    expected = _normal(X, OUTPUT[:, :3], likelihood.scale.item())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_learned_scale_never_falls_below_its_floor_and_finds_the_best():
    likelihood = GaussianLearned(floor=0.01).double()
    with torch.no_grad():
        likelihood.rho.fill_(-1e4)
    assert likelihood.scale.item() == 0.01
    likelihood = GaussianLearned().double()
    optimiser = torch.optim.LBFGS(likelihood.parameters(), line_search_fn="strong_wolfe", max_iter=50)

    def loss():
        optimiser.zero_grad()
        value = -likelihood(OUTPUT[:, :3]).log_prob(X).sum()
        value.backward()
        return value

    optimiser.step(loss)
    best = ((X - OUTPUT[:, :3]) ** 2).mean().sqrt()
    assert likelihood.scale.item() == pytest.approx(best.item(), rel=1e-5)


def test_the_network_gives_means_then_scales():
    likelihood = GaussianNetwork(floor=0.01)
    loc, raw = OUTPUT.split(3, -1)
    expected = _normal(X, loc, (0.01 + raw.exp().log1p()).numpy())
    torch.testing.assert_close(likelihood(OUTPUT).log_prob(X), expected)
    assert bool(likelihood(1e6 * OUTPUT).log_prob(X).isfinite().all())
    with pytest.raises(DataError, match=r"\[4, 5\] was given"):
        likelihood(OUTPUT[:, :5])


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
def test_every_likelihood_is_a_distribution_over_one_datum(name, batch):
    likelihood = LIKELIHOODS[name]()
    output = torch.full((*batch, 3 * likelihood.width), 0.25, requires_grad=True)
    p = likelihood(output)
    assert (p.batch_shape, p.event_shape) == (batch, (3,))
    assert p.mean.shape == (*batch, 3)
    p.log_prob(torch.ones(3)).sum().backward()
    assert all(parameter.grad.abs() > 0 for parameter in likelihood.parameters())
    assert bool((output.grad[..., :3] != 0).all())


@pytest.mark.parametrize("make", [lambda: Gaussian(0.0), lambda: Gaussian(math.nan), lambda: GaussianLearned(1e-3)])
def test_a_scale_that_is_none_is_refused(make):
    with pytest.raises(ValueError, match="was given; a finite number above"):
        make()


def test_grey_pixels_are_outside_the_bernoulli():
    with pytest.raises(ValueError, match="support"):
        Bernoulli()(torch.zeros(2, 3)).log_prob(torch.full((2, 3), 0.5))


def _levels_of(likelihood, output):
    """log P of every level for every pixel, [levels, *batch, d]."""
    x = torch.linspace(0, 1, likelihood.levels, dtype=output.dtype)
    p = likelihood(output).base_dist
    return torch.stack([p.log_prob(one) for one in x])


@pytest.mark.parametrize("make", [lambda: LogisticMixture(4), lambda: Categorical(), lambda: LogisticMixture(2, 3)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 20.0])
def test_probabilities_of_all_levels_sum_to_one(make, spread):
    likelihood = make()
    output = spread * _numbers(5, likelihood.width * 3)
    total = _levels_of(likelihood, output).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(5, 3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_logistic_is_the_difference_of_its_distribution_function():
    """One component, by hand: rounding to k means lying between k - 1/2 and k + 1/2; the ends take the tails."""
    likelihood = LogisticMixture(1, levels=16, floor=1e-3)
    w, loc, raw = output = _numbers(3, 1)
    a, s = 7.5 * (1 + loc), 7.5 * (1e-3 + raw.exp().log1p())
    edges = torch.tensor([-math.inf, *[k + 0.5 for k in range(15)], math.inf], dtype=torch.float64)
    expected = torch.from_numpy(stats.logistic.cdf(edges, a, s)).diff()
    torch.testing.assert_close(_levels_of(likelihood, output.flatten()).exp().flatten(), expected)
    assert w.isfinite().all()


def test_mean_and_draws_of_grey_levels_agree():
    likelihood = LogisticMixture(2, levels=9)
    p = likelihood(_numbers(3 * 6))
    draws = p.sample((20_000,))
    assert set((draws * 8).unique().tolist()) <= set(range(9))
    torch.testing.assert_close(draws.double().mean(0), p.mean, rtol=0, atol=0.01)
    frequency = torch.stack([(draws == k / 8).double().mean(0) for k in range(9)])
    expected = _levels_of(likelihood, _numbers(3 * 6)).exp()
    assert (frequency[[0, 4, 8]] - expected[[0, 4, 8]]).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_densities_and_gradients_are_finite_at_extremes(name, dtype):
    likelihood = LIKELIHOODS[name]().to(dtype)
    for size in (0.0, 1e-3, 1.0, 50.0, 1e4):
        for sign in (-1, 1):
            output = torch.full((2, 3 * likelihood.width), sign * size, dtype=dtype, requires_grad=True)
            x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=dtype)
            value = likelihood(output).log_prob(x)
            value.sum().backward()
            assert bool(value.isfinite().all()), (size, sign)
            assert bool(output.grad.isfinite().all()), (size, sign)


LOGITS = [-300.0, -20.0, -0.11, -0.09, 0.0, 1e-4, 0.09, 0.11, 3.0, 20.0, 300.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_integrates_to_one_with_its_mean(logit):
    p = ContinuousBernoulli()(torch.tensor([logit], dtype=torch.float64))
    edge = torch.logspace(-9, math.log10(0.5), 20_000, dtype=torch.float64)
    x = torch.cat([torch.zeros(1, dtype=torch.float64), edge, (1 - edge).flip(0)[1:], torch.ones(1).double()])
    density = p.log_prob(x[:, None]).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)
    assert torch.trapezoid(x * density, x).item() == pytest.approx(p.mean.item(), abs=1e-5)
    assert torch.trapezoid(x.square() * density, x).item() == pytest.approx((p.variance + p.mean**2).item(), abs=1e-5)
    surprise = torch.where(density > 0, density * density.log(), 0.0)
    assert -torch.trapezoid(surprise, x).item() == pytest.approx(p.base_dist.entropy().item(), abs=1e-4)
    single = ContinuousBernoulli()(torch.tensor([logit]))
    assert single.log_prob(torch.ones(1)).item() == pytest.approx(p.log_prob(torch.ones(1)).item(), rel=1e-5, abs=1e-6)


def _inverse(u, f):
    """x(u; f) = log(1 + u (e^f - 1)) / f and its derivative in f, to 60 digits."""
    if f == 0:
        return float(u), float(u * (1 - u) / 2)
    with localcontext(Context(prec=60)):
        inside = 1 + u * (f.exp() - 1)
        x = inside.ln() / f
        return float(x), float((u * f.exp() / inside - x) / f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [*LOGITS, -1e4, 1e4])
def test_the_continuous_bernoulli_draws_by_its_own_inverse_distribution(logit, dtype):
    """F(x) = (e^(f x) - 1) / (e^f - 1); x and dx/df against 60 digits."""
    rounding = 1e-5 if dtype == torch.float32 else 1e-8
    u = torch.tensor([0.0, 1e-4, 0.03, 0.3, 0.5, 0.77, 0.999], dtype=dtype)
    f = torch.tensor(logit, dtype=dtype, requires_grad=True)
    law = ContinuousBernoulliLogits(logits=f)
    x = law.icdf(u)
    gradient = torch.stack([torch.autograd.grad(each, f, retain_graph=True)[0] for each in x])
    torch.testing.assert_close(law.cdf(x), u, rtol=0, atol=max(rounding, abs(logit) * torch.finfo(dtype).eps))
    exact = [_inverse(Decimal(here), Decimal(f.item())) for here in u.tolist()]
    at, slope = torch.tensor(exact, dtype=torch.float64).T
    torch.testing.assert_close(x.double(), at, rtol=0, atol=rounding)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=rounding)


@pytest.mark.parametrize("logit", [-100.0, -30.0, 0.0, 0.05, 2.0, 30.0, 100.0])
def test_draws_of_the_continuous_bernoulli_have_its_mean(logit):
    torch.manual_seed(0)
    p = ContinuousBernoulli()(torch.full((20_000, 1), logit))
    error = (p.variance[0] / 20_000).sqrt().item()
    assert p.sample().mean().item() == pytest.approx(p.mean[0].item(), abs=4 * error)
    assert p.rsample().var().item() == pytest.approx(p.variance[0].item(), rel=0.08)


def test_a_scale_for_each_pixel():
    likelihood = GaussianLearned(initial=0.5, pixels=3).double()
    with torch.no_grad():
        likelihood.rho.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    expected = _normal(X, OUTPUT[:, :3], likelihood.scale.detach().numpy())
    torch.testing.assert_close(likelihood(OUTPUT[:, :3]).log_prob(X), expected)


def test_the_optimal_scale_is_the_root_of_the_mean_squared_error():
    likelihood = GaussianOptimal().double()
    loc = OUTPUT[:, :3].clone().requires_grad_()
    best = ((X - loc) ** 2).mean().sqrt()
    found = likelihood(loc).log_prob(X)
    torch.testing.assert_close(found, _normal(X, OUTPUT[:, :3], best.item()))
    # No other scale is better, and the gradient is that of the log of the mean squared error.
    for other in (0.9, 1.1):
        assert _normal(X, OUTPUT[:, :3], other * best.item()).sum() < found.sum()
    (gradient,) = torch.autograd.grad(found.sum(), loc, retain_graph=True)
    (expected,) = torch.autograd.grad(-X.numel() * best.log(), loc)
    torch.testing.assert_close(gradient, expected)
    # The first batch sets what a fitted model uses, later ones move it by their share.
    assert likelihood.scale.item() == pytest.approx(best.item())
    likelihood(loc.detach() + 1).log_prob(X)
    second = ((X - loc.detach() - 1) ** 2).mean()
    assert likelihood.variance.item() == pytest.approx(((best**2 + 17 * second) / 18).item())
    likelihood.eval()
    torch.testing.assert_close(likelihood(loc.detach()).log_prob(X), _normal(X, OUTPUT[:, :3], likelihood.scale.item()))


@pytest.mark.parametrize(("steps", "memory"), [(40, 100.0), (400, 100.0), (4000, 50.0)])
def test_the_optimal_scale_follows_errors_that_fall(steps, memory):
    """s^2 = 1 + 50 / t, a decoder that learns: the kept one is that of the last seventeenth of the steps, or memory."""
    likelihood = GaussianOptimal(memory=memory).double()
    falling = [1 + 50 / t for t in range(1, steps + 1)]
    for s2 in falling:
        likelihood(torch.zeros(1, 1)).log_prob(torch.tensor([[s2**0.5]], dtype=torch.float64))
    # With weights that grow as t^eta the mean of 1 / t is (eta + 1) / eta times the last.
    excess = 50 / steps * (17 / 16 if steps < memory * 17 else 1 + memory / steps)
    assert likelihood.variance.item() == pytest.approx(1 + excess, rel=0.02)
    assert likelihood.scale.item() == pytest.approx(falling[-1] ** 0.5, rel=0.05)


def test_the_optimal_scale_of_a_short_fit_is_that_of_its_last_decoder():
    """240 steps are few, and the errors still fall: 10% are the spread of batches, and what the last steps gained."""
    generator = torch.Generator().manual_seed(1)
    x = 3 + torch.randn(100, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(6, 8, 2), pv.nets.mlp_decoder(2, 8, 6), "gaussian-optimal")
    engine = pv.SVI(60, batch_size=25, optimizer=pv.adam(1e-2), compile="off", progress=False)
    model = engine.fit(vae, x).model
    errors = torch.stack([x - model.decoder(model.q_z(x).sample()) for _ in range(50)])
    assert model.likelihood.scale.item() == pytest.approx(errors.square().mean().sqrt().item(), rel=0.1)


def test_the_optimal_scale_is_of_the_pixels_that_are_there():
    likelihood = GaussianOptimal().double()
    missing = torch.zeros_like(X, dtype=torch.bool)
    missing[0, 1] = missing[2] = True
    found = likelihood(OUTPUT[:, :3]).marginal_log_prob(X.masked_fill(missing, 0.0), missing)
    best = ((X - OUTPUT[:, :3]) ** 2)[~missing].mean().sqrt().item()
    each = stats.norm.logpdf(X.numpy(), OUTPUT[:, :3].numpy(), best)
    torch.testing.assert_close(found, torch.from_numpy(each).masked_fill(missing, 0.0).sum(-1))


SCALED = {
    "learned": (lambda: GaussianLearned(), lambda p: p.rho),
    "network": (lambda: GaussianNetwork(), None),
    "optimal": (lambda: GaussianOptimal(), None),
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("unit", [1.0, 255.0, 1e-3])
def test_t24_floors_follow_the_units_of_the_data(name, unit):
    """The least scale of data in other units is the least scale in those units; a constant pixel stays finite."""
    x = unit * torch.cat([_numbers(50, 2), torch.ones(50, 1, dtype=torch.float64)], 1)
    likelihood = SCALED[name][0]().double()
    likelihood.adapt(x)
    assert likelihood.unit.item() == pytest.approx(x.var(0, correction=0).mean().sqrt().item())
    if name == "learned":
        likelihood.rho.data.fill_(-1e4)
    output = x if name != "network" else torch.cat([x, torch.full_like(x, -1e4)], 1)
    p = likelihood(output)
    density = p.log_prob(x)
    floor = 1e-3 * likelihood.unit.item()
    assert density.max().item() == pytest.approx(3 * math.log(1 / (floor * math.sqrt(2 * math.pi))))


def test_constant_data_and_gaps_leave_a_unit():
    likelihood = GaussianLearned()
    likelihood.adapt(torch.full((10, 3), 7.0))
    assert likelihood.unit.item() == 1.0
    likelihood.adapt(torch.tensor([[0.0, math.nan], [2.0, 5.0], [math.nan, 9.0]]))
    assert likelihood.unit.item() == pytest.approx(math.sqrt((1 + 4) / 2))


def test_a_unit_counts_rows_by_their_weights():
    """Rows of weight w are w copies of a row, rows of weight 0 are not there, and weights below 1 are shares."""
    x = _numbers(6, 3)
    x[0, 1] = x[4, 2] = math.nan
    x[5] = 1e6
    weights = torch.tensor([1.0, 3.0, 2.0, 1.0, 2.0, 0.0])
    likelihood = GaussianLearned().double()
    for w in (weights, weights / 100):
        likelihood.adapt(x, w)
        variances = numpy.nanvar(x.repeat_interleave(weights.long(), 0).numpy(), 0)
        assert likelihood.unit.item() == pytest.approx(math.sqrt(variances.mean()))


@pytest.mark.parametrize("make", [GaussianLearned, GaussianNetwork, GaussianOptimal])
def test_a_unit_that_was_given_stays(make):
    likelihood = make(unit=1.0)
    likelihood.adapt(7 * _numbers(50, 2))
    assert likelihood.unit.item() == 1.0
    with pytest.raises(ValueError, match=r"unit = 0 was given; a finite number above 0"):
        make(unit=0)


@pytest.mark.parametrize(
    ("name", "x", "said"),
    [
        ("continuous-bernoulli", 1.5, r"of likelihoods.ContinuousBernoulli \[0, 1\], the first is 1.5.*x / 255"),
        ("continuous-bernoulli", -3.0, r"likelihoods.ContinuousBernoulli \[0, 1\].*scale them to \[0, 1\] .x / 255"),
        ("categorical", 17.0, "outside the support of likelihoods.Categorical, .*divide whole numbers by 255"),
        ("logistic-mixture", 0.3, "support of likelihoods.LogisticMixture, .*256 grey levels"),
        ("continuous-bernoulli", -0.5, r"\(x \+ 1\) / 2 where they go from -1 to 1"),
        ("bernoulli", 0.5, "grey pixels"),
        ("bernoulli", -1.0, r"pixels from -1 to 1, .*take \(x \+ 1\) / 2"),
    ],
)
def test_data_outside_the_contract_are_refused_at_fit(name, x, said):
    width = LIKELIHOODS[name]().width
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 1), pv.nets.mlp_decoder(1, 4, 3 * width), name)
    for data in (torch.full((5, 3), x), torch.full((5, 3), x).numpy()):
        with pytest.raises(pv.DataError, match=said):
            pv.SVI(1, progress=False).fit(vae, data)
    good = (torch.rand(5, 3) * 255).round() / 255 if name != "bernoulli" else torch.ones(5, 3)
    vae.check(good)


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name.startswith("gaussian")])
def test_normal_pixels_are_finite_real_numbers_of_the_decoders_width(name):
    """The contract of every normal likelihood, whatever its scale."""
    width = LIKELIHOODS[name].width
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 1), pv.nets.mlp_decoder(1, 4, 3 * width), name)
    fit = pv.SVI(1, progress=False).fit
    infinite = torch.ones(5, 3).index_fill(0, torch.tensor([2]), math.inf)
    for x, said in (
        (infinite, r"row 2 \(counted from 0\) is infinite"),
        (torch.ones(5, 3, dtype=torch.uint8), r"by x / 255"),
    ):
        with pytest.raises(pv.DataError, match=said):
            fit(vae, x)
    narrow = pv.models.VAE(pv.nets.mlp_encoder(4, 4, 1), pv.nets.mlp_decoder(1, 4, 3 * width), name)
    with pytest.raises(pv.DataError, match=r"has event shape \(3,\)"):
        fit(narrow, torch.ones(5, 4))
    vae.check(torch.randn(5, 3) * 1e6)


def test_eight_bit_integers_are_told_how_to_become_pixels():
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 1), pv.nets.mlp_decoder(1, 4, 3 * 256), "categorical")
    x = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
    with pytest.raises(pv.DataError, match="divide whole numbers by 255"):
        vae.check(x)
    vae.check(x / 255)


@pytest.mark.parametrize(
    "make",
    [lambda: Categorical(1), lambda: LogisticMixture(0), lambda: LogisticMixture(floor=0), lambda: GaussianOptimal(0)],
)
def test_sizes_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match="given"):
        make()


def test_a_decoder_of_another_width_is_told_the_right_one():
    with pytest.raises(DataError, match="15 times as wide"):
        LogisticMixture()(torch.zeros(2, 16))


@pytest.mark.parametrize("make", [Categorical, LogisticMixture])
def test_levels_in_half_precision_are_the_levels(make):
    """All 256 levels k/255, rounded to 11 bits, have the densities of their own level; 8 bits merge levels."""
    likelihood = make()
    levels = torch.arange(256.0)[:, None] / 255
    vae = pv.models.VAE(pv.nets.mlp_encoder(1, 4, 1), pv.nets.mlp_decoder(1, 4, likelihood.width), likelihood)
    law = likelihood(_numbers(256, likelihood.width, seed=2).float())
    seen = vae.check(levels.half()).values["x"]
    torch.testing.assert_close(law.log_prob(seen), law.log_prob(levels))
    with pytest.raises(DataError, match=r"divide whole numbers by 255 in float32, since bfloat16"):
        vae.check(levels.bfloat16())


def test_levels_that_half_precision_merges_are_refused():
    vae = pv.models.VAE(pv.nets.mlp_encoder(1, 4, 1), pv.nets.mlp_decoder(1, 4, 4096), Categorical(4096))
    x = torch.arange(4096.0)[:, None] / 4095
    assert len(x.half().unique()) < len(x)
    vae.check(x)
    with pytest.raises(DataError, match="float16 are too coarse"):
        vae.check(x.half())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_complex_data_are_refused(name):
    width = LIKELIHOODS[name]().width
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 1), pv.nets.mlp_decoder(1, 4, 3 * width), name)
    x = torch.ones(5, 3, dtype=torch.complex64)
    for data in (x, x.numpy(), {"x": x}):
        with pytest.raises(DataError, match=r"'x' is .*complex64; real numbers are expected: pass x.real"):
            pv.SVI(1, progress=False).fit(vae, data)


def vae_of(**parts):
    return pv.models.VAE(pv.nets.mlp_encoder(6, 4, 3), pv.nets.mlp_decoder(3, 4, 6), **parts)


def without_encoder(prior):
    return pv.models.DeepLatentVariableModel(pv.nets.mlp_decoder(3, 4, 6), 3, prior=prior)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            lambda: vae_of(likelihood=GaussianLearned(pixels=5)),
            DataError,
            r"pixels=5; \[\d+, 6\] was given. Pass pixels=6",
        ),
        (
            lambda: vae_of(posterior=pv.posteriors.inverse_autoregressive(5)),
            pv.DeclarationError,
            r"made with size=5; draws of shape \[3\]",
        ),
        (
            lambda: vae_of(prior=pv.priors.Flow(pv.flows.coupling(3), pv.priors.Normal(5))),
            pv.DeclarationError,
            r"size=3; draws of shape \[5\]",
        ),
        (lambda: without_encoder(pv.priors.Vamp(4, 6)), pv.DeclarationError, "models with an encoder.*priors.Mixture"),
        (lambda: vae_of(likelihood=GaussianLearned), pv.DeclarationError, r"likelihood is the class GaussianLearned"),
        (lambda: without_encoder(pv.priors.Normal), pv.DeclarationError, r"prior is the class Normal.*Normal\(...\)"),
        (lambda: vae_of(posterior=pv.posteriors.Full), pv.DeclarationError, r"VAE: posterior is the class Full"),
        (lambda: GaussianLearned(torch.zeros(4, 6)), ValueError, r"initial = a tensor \[4, 6\] was given"),
    ],
)
def test_parts_that_do_not_fit_are_told(make, error, said):
    with pytest.raises(error, match=said):
        pv.SVI(1, progress=False).fit(make(), torch.rand(8, 6).round())


def test_a_pixel_that_nobody_saw_says_nothing_of_the_unit():
    x = 7.0 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    likelihood = pv.likelihoods.GaussianLearned()
    likelihood.adapt(torch.cat([x, torch.full((4000, 1), torch.nan)], 1))
    assert likelihood.unit.item() == pytest.approx(x.std(0, correction=0).square().mean().sqrt().item(), rel=1e-5)
