"""Families: density, statistics, maximum and conjugate law, each against an independent answer."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from example_models import bits, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import biject_to

from ppl_vae import families
from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.families import InverseWishart, LogCholesky, NormalInverseWishartPrior, covariance_matrix
from ppl_vae.families.scales import center_and_scale

COVARIANCES = ["full", "tied", "diagonal", "spherical"]
K, D, N = 3, 2, 40
R = torch.softmax(numbers(K, N, seed=4), 0)
X = numbers(N, D, seed=2) @ torch.tensor([[1.0, 0.4], [0.0, 0.7]]).double() + torch.tensor([1.0, -2.0])
COUNTS = (3 * numbers(N, D, seed=6).abs()).floor()
LABELS = torch.arange(N) % 4


def normal(covariance, prior=None, n_features=D, x=X):
    family = families.Normal(n_features, batch=K, covariance=covariance, prior=prior).double()
    family.adapt([(x, None)])
    return family


def sums_of(family, x, r):
    """Sums of complete data do not depend on the parameters, which a family with a prior does not have."""
    with family.bind(family.defaults()):
        return family.expect(family.features(x), r)


FAMILIES = {
    **{f"normal, {c}": lambda c=c: (normal(c), X) for c in COVARIANCES},
    "univariate normal": lambda: (normal("full", n_features=1, x=X[:, :1]), X[:, :1]),
    "bernoulli": lambda: (families.Bernoulli(D, batch=K).double(), bits(N, D)),
    "single bernoulli": lambda: (families.Bernoulli(batch=K).double(), bits(N)),
    "poisson": lambda: (families.Poisson(D, batch=K).double(), COUNTS),
    "single poisson": lambda: (families.Poisson(batch=K).double(), COUNTS[:, 0]),
    "categorical": lambda: (families.Categorical(4, batch=K).double(), LABELS),
}


def fitted(name):
    """A family away from its start: at the maximum for the responsibilities R."""
    family, x = FAMILIES[name]()
    family.fix(family.maximize(family.expect(family.features(x), R), "ml"))
    return family, x


def expected_log_likelihood(family, x, r=R):
    return (r.T * torch.stack([family(torch.tensor(k)).log_prob(x) for k in range(K)], 1)).sum()


def freed(family, constraints=None):
    """The parameters as unconstrained leaves, to take gradients of anything that the family computes."""
    leaves = {
        name: biject_to(family.parameter_constraint(name)).inv(family.values()[name]) for name in family.constraints
    }
    return {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}


def bound(family, leaves):
    return family.bind({name: biject_to(family.parameter_constraint(name))(leaf) for name, leaf in leaves.items()})


@pytest.mark.parametrize("name", FAMILIES)
def test_log_density_is_the_distributions(name):
    family, x = fitted(name)
    each = torch.stack([family(torch.tensor(k)).log_prob(x) for k in range(K)])
    torch.testing.assert_close(family.log_density(family.features(x)), each, rtol=1e-10, atol=1e-10)
    enumerated = family(torch.arange(K)[:, None])
    assert enumerated.batch_shape == (K, 1)
    torch.testing.assert_close(enumerated.log_prob(x), each)
    assert enumerated.origin[0] is family


@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_add_over_chunks(name):
    family, x = FAMILIES[name]()
    whole = family.expect(family.features(x), R)
    parts = [family.expect(family.features(x[rows]), R[:, rows]) for rows in (slice(0, 15), slice(15, N))]
    assert "count" in whole
    for key, value in whole.items():
        torch.testing.assert_close(parts[0][key] + parts[1][key], value)


@pytest.mark.parametrize("name", FAMILIES)
def test_maximize_is_the_argmax(name):
    family, x = fitted(name)
    best = expected_log_likelihood(family, x)
    leaves = freed(family)
    with bound(family, leaves):
        expected_log_likelihood(family, x).backward()
    for key, leaf in leaves.items():
        assert leaf.grad.abs().max() < 1e-8 * N, key
    for seed in range(10):
        moved = {k: leaf.detach() + 0.05 * numbers(*leaf.shape, seed=seed) for k, leaf in leaves.items()}
        with bound(family, moved):
            assert expected_log_likelihood(family, x) < best


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_maximize_with_a_prior_is_the_mode_of_the_posterior(covariance):
    family = normal(covariance, NormalInverseWishartPrior(strength=0.7, df=6.5))
    values = family.maximize(sums_of(family, X, R), "map")
    leaves = {name: values[name].clone().requires_grad_() for name in family.constraints}

    def log_posterior(values):
        with family.bind(values):
            laws = [family.site(name, values).log_prob(values[name]) for name in family.constraints]
            assert all(law.shape == () for law in laws)
            return expected_log_likelihood(family, X) + sum(laws)

    best = log_posterior(leaves)
    best.backward()
    for key, leaf in leaves.items():  # the mode in the parameter's own space, no Jacobian
        symmetric = key == "covariance" and covariance in ("full", "tied")
        gradient = leaf.grad + leaf.grad.mT if symmetric else leaf.grad
        assert gradient.abs().max() < 1e-7 * N, key
    ml = family.maximize(sums_of(family, X, R), "ml")
    assert log_posterior(ml) < best


def test_categorical_with_a_prior_is_the_mode_of_the_posterior():
    family = families.Categorical(4, batch=K, prior=families.DirichletPrior(2.5)).double()
    sums = family.expect(family.features(LABELS), R)
    values = family.maximize(sums, "map")

    def log_posterior(probs):
        return (sums["counts"] * probs.log()).sum() + family.site("probs", {}).log_prob(probs)

    logits = values["probs"].log().requires_grad_()
    best = log_posterior(logits.softmax(-1))
    (gradient,) = torch.autograd.grad(best, logits)
    # The mode on the simplex: the gradient along the simplex, which is what softmax passes on, is zero.
    assert gradient.abs().max() < 1e-9
    torch.testing.assert_close(values["probs"].sum(-1), torch.ones(K).double())
    assert log_posterior(family.maximize(sums, "ml")["probs"]) < best


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_no_data_leave_the_priors_mode(covariance):
    family = normal(covariance, NormalInverseWishartPrior(strength=0.7, df=6.5))
    values = family.maximize(sums_of(family, X, 0 * R), "map")
    torch.testing.assert_close(values["loc"], family.prior_mean.expand(K, D))
    assert bool(values["covariance"].isfinite().all())


def test_a_category_without_data_has_probability_zero_and_an_empty_member_is_uniform():
    family = families.Categorical(3, batch=2).double()
    r = torch.stack([torch.ones(5), torch.zeros(5)]).double()
    probs = family.maximize(family.expect(family.features(torch.tensor([0, 0, 1, 1, 1])), r), "ml")["probs"]
    torch.testing.assert_close(probs, torch.tensor([[0.4, 0.6, 0.0], [1 / 3, 1 / 3, 1 / 3]]).double())


# Scales


@pytest.mark.parametrize("scale", [1e-15, 1e15, 1.0])
@pytest.mark.parametrize("shift", [0.0, 1e8])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("prior", [None, "weak"])
def test_shifted_and_scaled_data_have_the_shifted_and_scaled_answer(covariance, prior, shift, scale):
    # A grid that 1e8 does not round, so that the shifted data are the same data.
    x = (X * 2**20).round() / 2**20
    moved = (x + shift) * scale
    one, other = normal(covariance, prior, x=x), normal(covariance, prior, x=moved)
    values, found = (f.maximize(sums_of(f, data, R), "map") for f, data in ((one, x), (other, moved)))
    digits = 1e-9 if shift == 0 else 1e-5
    torch.testing.assert_close(found["covariance"] / scale**2, values["covariance"], rtol=digits, atol=digits)
    torch.testing.assert_close(found["loc"] / scale - shift, values["loc"], rtol=digits, atol=1e-7)
    if prior is None:
        one.fix(values), other.fix(found)
        ours, theirs = (f.log_density(f.features(data)) for f, data in ((one, x), (other, moved)))
        torch.testing.assert_close(theirs + D * math.log(scale), ours, rtol=digits, atol=100 * digits)


@pytest.mark.parametrize("constant", [0.0, 5.0, -1e8, 1e-100])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_constant_feature_stays_finite(covariance, constant):
    x = X.clone()
    x[:, 1] = constant
    family = normal(covariance, x=x)
    values = family.maximize(family.expect(family.features(x), R), "ml")
    family.fix(values)
    density = family.log_density(family.features(x))
    assert bool(density.isfinite().all())
    torch.testing.assert_close(values["loc"][:, 1], torch.full((K,), constant).double())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_floor_is_relative_to_the_datas_scale(covariance):
    x = torch.cat([X, X[:1].expand(5, 2)]) * 1e-9
    r = torch.zeros(K, len(x)).double()
    r[0, -5:], r[1, :20], r[2, 20:-5] = 1.0, 1.0, 1.0  # the first member owns five equal data
    family = normal(covariance, x=x)
    values = family.maximize(family.expect(family.features(x), r), "ml")
    smallest = family.form.smallest(values["covariance"], family.reference, K)
    assert bool((smallest >= family.floor * (1 - 1e-6)).all())
    if covariance != "tied":
        assert smallest[0] == pytest.approx(family.floor, rel=1e-3)
        degenerate = family.degenerate({"count": torch.tensor([1.0, 20.0, 20.0]).double()}, values)
        assert degenerate.tolist() == [True, False, False]


def test_a_member_without_data_is_degenerate():
    family = normal("full")
    sums = {"count": torch.tensor([0.0, 20.0, 20.0]).double()}
    assert family.degenerate(sums, family.defaults()).tolist() == [True, False, False]


def test_adapt_ignores_missing_entries_and_heeds_weights():
    x = X.clone()
    x[::3, 0] = math.nan
    family = normal("diagonal", x=x)
    torch.testing.assert_close(family.center, torch.stack([x[:, 0].nanmean(), x[:, 1].mean()]))
    doubled, weighted = families.Normal(D, K).double(), families.Normal(D, K).double()
    doubled.adapt([(torch.cat([X, X[:10]]), None)])
    weighted.adapt([(X, torch.cat([torch.full((10,), 2.0), torch.ones(N - 10)]))])
    torch.testing.assert_close(weighted.center, doubled.center)
    torch.testing.assert_close(weighted.reference, doubled.reference)


# Covariance matrices


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_log_cholesky_is_a_bijection_with_this_jacobian(d):
    transform = LogCholesky()
    u = numbers(d * (d + 1) // 2, seed=d)
    sigma = transform(u)
    assert bool(covariance_matrix.check(sigma))
    torch.testing.assert_close(transform.inv(sigma), u)
    assert transform.forward_shape(u.shape) == sigma.shape
    assert transform.inverse_shape(sigma.shape) == u.shape
    row, column = torch.tril_indices(d, d)
    jacobian = torch.autograd.functional.jacobian(lambda u: transform(u)[row, column], u)
    torch.testing.assert_close(transform.log_abs_det_jacobian(u, sigma), jacobian.slogdet().logabsdet)
    log_det = torch.linalg.slogdet(sigma).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(u, sigma), d * math.log(2) + (d + 1) / 2 * log_det)


def test_other_units_shift_the_coordinates_of_a_covariance():
    sigma, units = LogCholesky()(numbers(6, seed=1)), torch.tensor([1e-15, 1.0, 1e15], dtype=torch.float64)
    before, after = LogCholesky().inv(sigma), LogCholesky().inv(units[:, None] * sigma * units)
    diagonal = torch.tensor([True, False, True, False, False, True])
    torch.testing.assert_close(after[diagonal] - before[diagonal], units.log())
    torch.testing.assert_close(after[~diagonal], before[~diagonal])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 10_000))
def test_log_cholesky_keeps_batches(d, seed):
    u = 2 * numbers(3, 2, d * (d + 1) // 2, seed=seed)
    sigma = LogCholesky()(u)
    assert sigma.shape == (3, 2, d, d)
    torch.testing.assert_close(LogCholesky().inv(sigma), u, rtol=1e-6, atol=1e-6)
    assert LogCholesky().log_abs_det_jacobian(u, sigma).shape == (3, 2)


@pytest.mark.parametrize(
    ("matrix", "inside"),
    [([[2.0, 1.0], [1.0, 2.0]], True), ([[1.0, 2.0], [2.0, 1.0]], False), ([[1.0, 0.5], [0.0, 1.0]], False)],
)
def test_the_constraint_knows_covariance_matrices(matrix, inside):
    assert bool(covariance_matrix.check(torch.tensor(matrix))) is inside


@pytest.mark.parametrize("d", [1, 2, 4])
def test_inverse_wishart_is_scipys(d):
    df, scale = d + 2.5, LogCholesky()(numbers(d * (d + 1) // 2, seed=d))
    sigma = LogCholesky()(numbers(5, d * (d + 1) // 2, seed=d + 10))
    found = InverseWishart(torch.tensor(df).double(), scale).log_prob(sigma)
    expected = [stats.invwishart.logpdf(s.numpy(), df, scale.numpy()) for s in sigma]
    np.testing.assert_allclose(found.numpy(), np.array(expected).ravel(), rtol=1e-10)


def test_inverse_wishart_draws_have_its_mean_and_its_spread():
    scale = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    law = InverseWishart(torch.tensor(9.0).double(), scale)
    draws = law.sample((20_000,))
    assert bool(covariance_matrix.check(draws).all())
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - scale / 6).abs() < 4 * error).all())
    torch.testing.assert_close(law.mean, scale / 6)
    # Var[S_11] = 2 Psi_11^2 / ((nu - d - 1)^2 (nu - d - 3)), d = 2
    squares = (draws[:, 0, 0] - scale[0, 0] / 6).square()
    assert abs(squares.mean() - 2 * 4 / (36 * 4)) < 4 * squares.std() / len(draws) ** 0.5
    batched = law.expand((3,)).sample((5,))
    assert batched.shape == (5, 3, 2, 2)


# Declarations of families


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: families.Normal(2, covariance="round"), "full, tied, diagonal, spherical; got 'round'"),
        (lambda: families.Normal(0), "at least 1, got 0"),
        (lambda: families.Categorical(0), "at least 1, got 0"),
        (lambda: families.Poisson(batch=0), "at least 1, got 0"),
        (lambda: families.DirichletPrior(0.0), "positive, got 0.0"),
        (lambda: NormalInverseWishartPrior(strength=-1.0), "positive, got -1.0"),
    ],
)
def test_wrong_families_are_refused(declare, message):
    with pytest.raises(DeclarationError, match=message):
        declare()


def test_a_family_without_a_prior_has_no_law_and_one_with_a_prior_no_value():
    with pytest.raises(EngineError, match="no prior"):
        families.Normal(2).site("loc", {})
    family = families.Categorical(2, prior="weak")
    with pytest.raises(EngineError, match="shared latent"):
        _ = family.probs
    with family.bind({"probs": torch.tensor([0.2, 0.8])}):
        assert isinstance(family(), dist.Categorical)
    with pytest.raises(EngineError, match="shared latent"):
        family()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_weak_prior_is_that_of_fraley_and_raftery(covariance):
    family = normal(covariance, "weak")
    S = torch.cov(X.T, correction=0)
    expected = {
        "full": S,
        "tied": S,
        "diagonal": S.diagonal(),
        "spherical": S.trace() / D,
    }[covariance] / K ** (2 / D)
    torch.testing.assert_close(family.prior_scale, expected)
    torch.testing.assert_close(family.prior_mean, X.mean(0))
    assert (family.prior.strength, family.prior_df) == (0.01, D + 2)


def test_a_covariance_too_flat_for_single_precision_is_named():
    family = families.Normal(2, batch=1).float()
    flat = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])  # 1 + 1e-9 in more digits
    with pytest.raises(EngineError, match=r"covariance is not positive definite in torch.float32.*data.double"):
        family.fix({"covariance": flat})


@pytest.mark.parametrize("form", ["full", "tied"])
@pytest.mark.parametrize("seed", range(3))
def test_features_that_depend_on_each_other_are_seen_in_float32_too(form, seed):
    draw = torch.Generator().manual_seed(seed)
    free = torch.randn(500, 2, generator=draw)
    x = torch.cat([free, free @ torch.randn(2, 2, generator=draw)], 1)
    single, double = families.Normal(4, 2, form, "weak"), families.Normal(4, 2, form, "weak").double()
    single.adapt([(x, None)])
    double.adapt([(x.double(), None)])
    assert single.prior_scale.dtype == torch.float32
    torch.testing.assert_close(single.prior_scale.double(), double.prior_scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_column_that_a_chunk_does_not_have_leaves_its_scale_to_the_others(dtype):
    empty = torch.tensor([[1.0, math.nan], [3.0, math.nan]], dtype=dtype)
    full = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    for parts in ([(empty, None), (full, None)], [(full, torch.zeros(2)), (full, torch.ones(2))]):
        center, scale = center_and_scale(parts, full)
        torch.testing.assert_close(center, torch.tensor([2.0, 3.0], dtype=dtype))
        torch.testing.assert_close(scale, torch.ones(2, dtype=dtype))
