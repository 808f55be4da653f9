import math

import pytest
import torch
from scipy import stats

from ppl_vae.errors import DataError
from ppl_vae.likelihoods import LIKELIHOODS, Bernoulli, Gaussian, GaussianLearned, GaussianNetwork


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
