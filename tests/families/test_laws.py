"""Laws of every family beyond the normal: density, sums, maximum, missing entries, fixed parameters, units."""

import math

import numpy as np
import pytest
import torch
from example_models import bits, numbers
from scipy import stats
from sklearn.linear_model import LogisticRegression as ScikitLogistic
from torch.distributions import biject_to

from ppl_vae import families
from ppl_vae.errors import DataError, DeclarationError
from ppl_vae.missing import Incomplete

K, D, N = 3, 2, 60
R = torch.softmax(numbers(K, N, seed=4), 0)
POSITIVE = numbers(N, D, seed=2).exp()
REAL = numbers(N, D, seed=2) @ torch.tensor([[1.0, 0.4], [0.0, 0.7]]).double() / POSITIVE[:, :1].sqrt()
COUNTS = (3 * numbers(N, D, seed=6).abs()).floor()
CODES = (3 * bits(N, D, seed=3) + bits(N, D, seed=5)).clamp_max(3)
INPUTS = torch.stack([numbers(N, seed=8), 5 + 2 * numbers(N, seed=9)], 1)
LINE = INPUTS @ torch.tensor([1.5, -0.5]).double() + 0.3 * numbers(N, seed=10)
CLICKS = (INPUTS @ torch.tensor([1.0, -0.5]).double() + 2.5 + 2 * numbers(N, seed=11) > 0).double()


def table():
    return families.Product(
        {
            "size": families.Normal(2, batch=K),
            "pets": families.Poisson(batch=K),
            "answers": families.CategoricalVector(4, 2, batch=K),
        }
    )


MIXED = torch.cat([REAL, COUNTS[:, :1], CODES], 1)
# Name: family, data [n, *event], covariates.
TABLE = {
    "bernoulli": (lambda: families.Bernoulli(D, batch=K), bits(N, D), ()),
    "single bernoulli": (lambda: families.Bernoulli(batch=K), bits(N), ()),
    "poisson": (lambda: families.Poisson(D, batch=K), COUNTS, ()),
    "single poisson": (lambda: families.Poisson(batch=K), COUNTS[:, 0], ()),
    "exponential": (lambda: families.Exponential(D, batch=K), POSITIVE, ()),
    "single exponential": (lambda: families.Exponential(batch=K), POSITIVE[:, 0], ()),
    "gamma": (lambda: families.Gamma(D, batch=K), POSITIVE, ()),
    "single gamma": (lambda: families.Gamma(batch=K), POSITIVE[:, 0], ()),
    "categorical vector": (lambda: families.CategoricalVector(4, D, batch=K), CODES, ()),
    "student t, full": (lambda: families.StudentT(D, batch=K), REAL, ()),
    "student t, diagonal": (lambda: families.StudentT(D, batch=K, form="diagonal"), REAL, ()),
    "student t, df = 4": (lambda: families.StudentT(D, batch=K, df=4.0), REAL, ()),
    "univariate student t": (lambda: families.StudentT(1, batch=K), REAL[:, :1], ()),
    "linear regression": (lambda: families.LinearRegression(2, batch=K), LINE, (INPUTS,)),
    "logistic regression": (lambda: families.LogisticRegression(2, batch=K), CLICKS, (INPUTS,)),
    "product": (table, MIXED, ()),
}
ITERATED = [name for name in TABLE if "student" in name or "logistic" in name]
"""Families whose M-step raises a bound on the expected log-likelihood that is tight at the current parameters."""
GAPS = {name for name, (_, x, _) in TABLE.items() if x.dim() > 1}
"""Families whose data can miss single entries."""


def make(name, missing=False):
    """An adapted family, its data and its covariates."""
    declare, x, given = TABLE[name]
    if missing:
        x = x.clone()
        x.view(N, -1)[::4, 0] = math.nan
        x.view(N, -1)[3::7, -1] = math.nan
        x[11] = math.nan
    family = declare().double()
    family.adapt([(x[:25], None, *(g[:25] for g in given)), (x[25:], None, *(g[25:] for g in given))])
    family.fix(family.defaults())
    return family, x, given


def expect(family, x, given, r=R):
    kernel = family.kernel()
    return kernel.expect(kernel.expand(family.features(x, *given)), r)


def density(family, x, given):
    kernel = family.kernel()
    return kernel.log_density(kernel.expand(family.features(x, *given)))


def fitted(name, missing=False, steps=400, fixed=None):
    """A family at the maximum of the expected log-likelihood for the responsibilities R."""
    family, x, given = make(name, missing)
    fixed = fixed or {}
    family.fix({**family.values(), **fixed})
    for _ in range(steps):
        before = family.values()
        family.fix(family.maximize(expect(family, x, given), "ml", fixed))
        moved = [(value - before[key]).abs().max() for key, value in family.values().items()]
        if max(moved) < 1e-10:
            break
    return family, x, given


def log_prob(family, x, given):
    """log p(x_i | k) by the distribution, [K, n], missing entries integrated out."""
    law = family(torch.arange(K)[:, None].expand(K, N), *given)
    missing = x.isnan()
    return Incomplete(law, missing).log_prob(x.nan_to_num()) if bool(missing.any()) else law.log_prob(x)


def gradients(family, x, given, skip=()):
    """Of the expected log-likelihood in unconstrained parameters, the entries' own log density being the judge."""
    maps = {name: biject_to(c) for name, c in constraints(family).items() if name not in skip}
    leaves = {name: maps[name].inv(family.values()[name]).requires_grad_() for name in maps}
    with bound(family, {name: maps[name](leaf) for name, leaf in leaves.items()}):
        (R * log_prob(family, x, given)).sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def constraints(family):
    if isinstance(family, families.Product):
        return dict(family.constraints)
    return {name: family.parameter_constraint(name) for name in family.constraints}


class bound:  # noqa: N801
    """Bind values in a family or in a product's blocks."""

    def __init__(self, family, values):
        blocks = {name: getattr(family, name) for name in getattr(family, "names", ())} or {"": family}
        self.stack = [
            block.bind({k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(name)})
            for name, block in blocks.items()
        ]

    def __enter__(self):
        for block in self.stack:
            block.__enter__()

    def __exit__(self, *error):
        for block in reversed(self.stack):
            block.__exit__(*error)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_log_density_is_the_distributions(name, missing):
    family, x, given = fitted(name, missing, steps=5)
    torch.testing.assert_close(density(family, x, given), log_prob(family, x, given), rtol=1e-12, atol=1e-12)
    law = family(torch.arange(K)[:, None], *given)
    assert law.batch_shape == ((K, N) if given else (K, 1))
    assert law.origin[0] is family
    assert family(None, *given).event_shape == x.shape[1:]
    assert family.width >= K


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_statistics_add_over_chunks_and_weights_repeat_data(name, missing):
    family, x, given = fitted(name, missing, steps=3)
    whole = expect(family, x, given)
    parts = [
        expect(family, x[rows], tuple(g[rows] for g in given), R[:, rows]) for rows in (slice(0, 15), slice(15, N))
    ]
    twice = expect(family, torch.cat([x, x]), tuple(torch.cat([g, g]) for g in given), torch.cat([R, R], 1))
    double = expect(family, x, given, 2 * R)
    assert "count" in whole
    for key, value in whole.items():
        torch.testing.assert_close(parts[0][key] + parts[1][key], value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(twice[key], double[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_the_m_step_ends_at_the_maximum(name, missing):
    family, x, given = fitted(name, missing)
    for key, gradient in gradients(family, x, given).items():
        assert gradient.abs().max() < 1e-6 * N, key


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ITERATED)
def test_an_iterated_m_step_never_lowers_the_expected_log_likelihood(name, missing):
    family, x, given = make(name, missing)
    values = []
    for _ in range(30):
        values.append((R * density(family, x, given)).sum())
        family.fix(family.maximize(expect(family, x, given), "ml"))
    steps = torch.stack(values).diff()
    assert (steps >= -1e-10 * abs(values[-1])).all()
    assert steps[0] > 0.1


# An engine does not ask a family whose only parameter is fixed.
FIXABLE = ["gamma", "student t, full", "student t, diagonal", "linear regression", "logistic regression", "product"]


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, p) for name in FIXABLE for p in TABLE[name][0]().constraints], ids=str
)
def test_a_fixed_parameter_stays_and_the_others_are_maximal(name, parameter):
    family, _, _ = fitted(name, steps=10)
    transform = biject_to(constraints(family)[parameter])
    value = transform(transform.inv(family.values()[parameter]) + 0.1)
    family, x, given = fitted(name, fixed={parameter: value})
    torch.testing.assert_close(family.values()[parameter], value)
    for key, gradient in gradients(family, x, given, skip=(parameter,)).items():
        assert gradient.abs().max() < 1e-6 * N, key


@pytest.mark.parametrize("name", ["linear regression", "logistic regression"])
def test_two_fixed_parameters_of_a_regression_stay(name):
    values = fitted(name, steps=10)[0].values()
    fixed = {"coef": 0.9 * values["coef"], "intercept": 1.2 * values["intercept"]}
    family, x, given = make(name)
    family.fix({**values, **fixed})
    found = family.maximize(expect(family, x, given), "ml", fixed)
    for key, value in fixed.items():
        assert found[key] is value
    if "variance" in found:
        residual = x - (INPUTS @ fixed["coef"].T + fixed["intercept"]).T
        torch.testing.assert_close(found["variance"], (R * residual.square()).sum(1) / R.sum(1))


@pytest.mark.parametrize("name", sorted(GAPS))
def test_a_row_without_entries_says_nothing(name):
    family, x, given = fitted(name, missing=True, steps=3)
    assert bool(x[11].isnan().all())
    torch.testing.assert_close(density(family, x, given)[:, 11], torch.zeros(K).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(GAPS - {"product"}))
def test_a_member_that_never_sees_a_feature_keeps_finite_parameters(name):
    family, x, given = make(name, missing=True)
    r = torch.zeros(K, N).double()
    r[0, :20], r[1, 20:40], r[2, 40:] = 1.0, 1.0, 1.0
    x[20:40, 0] = math.nan
    family.fix(family.maximize(expect(family, x, given, r), "ml"))
    assert all(bool(value.isfinite().all()) for value in family.values().values())
    assert bool(density(family, x, given).isfinite().all())


@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize(
    "name", ["exponential", "gamma", "student t, full", "student t, diagonal", "univariate student t"]
)
def test_the_unit_of_the_data_does_not_matter(name, unit):
    one, x, _ = make(name)
    for _ in range(20):
        one.fix(one.maximize(expect(one, x, ()), "ml"))
    other = TABLE[name][0]().double()
    other.adapt([(x * unit, None)])
    other.fix(other.defaults())
    for _ in range(20):
        other.fix(other.maximize(expect(other, x * unit, ()), "ml"))
    shifted = density(other, x * unit, ()) + x.shape[1] * math.log(unit)
    torch.testing.assert_close(shifted, density(one, x, ()), rtol=1e-9, atol=1e-9)


def test_offsets_and_units_of_covariates_do_not_cost_digits():
    x = (INPUTS * 2**20).round() / 2**20
    moved = (x + 1e7) * torch.tensor([1e-9, 1e9])
    y = x @ torch.tensor([1.5, -0.5]).double() + 0.01 * numbers(N, seed=3)
    fits = []
    for inputs in (x, moved):
        family = families.LinearRegression(2, batch=K).double()
        family.adapt([(y, None, inputs)])
        family.fix(family.maximize(expect(family, y, (inputs,)), "ml"))
        fits.append(density(family, y, (inputs,)))
    torch.testing.assert_close(*fits, rtol=1e-5, atol=1e-5)


# One member against scipy, numpy and scikit-learn.


def single(family, x, given=(), steps=500):
    family = family.double()
    family.adapt([(x, None, *given)])
    family.fix(family.defaults())
    for _ in range(steps):
        family.fix(family.maximize(expect(family, x, given, torch.ones(1, len(x)).double()), "ml"))
    return {name: value[0].numpy() for name, value in family.values().items()}


def test_exponential_and_gamma_are_scipys():
    x = POSITIVE[:, 0]
    _, scale = stats.expon.fit(x.numpy(), floc=0)
    assert single(families.Exponential(batch=1), x, steps=1)["rate"] == pytest.approx(1 / scale, rel=1e-12)
    shape, _, scale = stats.gamma.fit(x.numpy(), floc=0)
    ours = single(families.Gamma(batch=1), x, steps=1)
    assert ours["concentration"] == pytest.approx(shape, rel=1e-6)
    assert ours["rate"] == pytest.approx(1 / scale, rel=1e-6)


def test_univariate_t_is_scipys():
    x = torch.as_tensor(stats.t.rvs(3.0, 1.0, 2.0, size=400, random_state=1))
    df, loc, scale = stats.t.fit(x.numpy())
    ours = single(families.StudentT(1, batch=1), x[:, None])
    found = [ours["df"], ours["loc"][0], ours["scale_matrix"][0, 0] ** 0.5]
    theirs = stats.t.logpdf(x, df, loc, scale).sum()
    mine = stats.t.logpdf(x, *found).sum()
    assert mine >= theirs - 1e-6
    np.testing.assert_allclose(found, [df, loc, scale], rtol=2e-3)


def test_multivariate_t_density_is_scipys():
    family, x, _ = fitted("student t, full", steps=5)
    values = {name: value.numpy() for name, value in family.values().items()}
    ours = density(family, x, ()).detach()
    expected = [
        stats.multivariate_t.logpdf(x.numpy(), values["loc"][k], values["scale_matrix"][k], values["df"][k])
        for k in range(K)
    ]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-10)


def test_linear_regression_is_least_squares():
    ours = single(families.LinearRegression(2, batch=1), LINE, (INPUTS,), steps=1)
    design = np.column_stack([np.ones(N), INPUTS.numpy()])
    beta, residual, *_ = np.linalg.lstsq(design, LINE.numpy(), rcond=None)
    np.testing.assert_allclose([ours["intercept"], *ours["coef"]], beta, rtol=1e-10)
    assert ours["variance"] == pytest.approx(residual[0] / N, rel=1e-10)


def test_logistic_regression_is_scikit_learns():
    ours = single(families.LogisticRegression(2, batch=1), CLICKS, (INPUTS,), steps=300)
    theirs = ScikitLogistic(C=np.inf, tol=1e-10, max_iter=1000).fit(INPUTS.numpy(), CLICKS.numpy())
    np.testing.assert_allclose([ours["intercept"], *ours["coef"]], [theirs.intercept_[0], *theirs.coef_[0]], rtol=1e-5)


def test_collinear_covariates_have_the_fit_of_the_plane():
    x = torch.stack([INPUTS[:, 0], 2 * INPUTS[:, 0]], 1)
    ours = single(families.LinearRegression(2, batch=1), LINE, (x,), steps=1)
    alone = single(families.LinearRegression(1, batch=1), LINE, (x[:, :1],), steps=1)
    assert ours["coef"] @ [1, 2] == pytest.approx(alone["coef"][0], rel=1e-8)
    assert ours["variance"] == pytest.approx(alone["variance"], rel=1e-8)


def test_separable_clicks_stay_finite_and_their_likelihood_approaches_one():
    x = INPUTS[:, :1]
    y = (x[:, 0] > 0).double()
    family = families.LogisticRegression(1, batch=1).double()
    family.adapt([(y, None, x)])
    totals = []
    for _ in range(200):
        family.fix(family.maximize(expect(family, y, (x,), torch.ones(1, N).double()), "ml"))
        totals.append(density(family, y, (x,)).sum().item())
    assert np.diff(totals).min() >= 0
    assert -0.05 < totals[-1] / N < 0
    assert bool(family.coef.isfinite().all())


# What has no bound, and what is not data.


@pytest.mark.parametrize(
    ("family", "x"),
    [
        (lambda: families.Exponential(batch=2), torch.cat([torch.zeros(5), POSITIVE[:15, 0]])),
        (lambda: families.Gamma(batch=2), torch.cat([torch.full((5,), 2.5), POSITIVE[:15, 0]])),
        (lambda: families.StudentT(1, batch=2), torch.cat([torch.full((2, 1), 2.5), REAL[:18, :1]])),
    ],
    ids=["exponential", "gamma", "student t"],
)
def test_a_member_on_one_value_is_kept_bounded_and_reported(family, x):
    family, x = family().double(), x.double()
    r = torch.zeros(2, 20).double()
    alone = int((x.flatten() == x.flatten()[0]).sum())
    r[0, :alone], r[1, alone:] = 1.0, 1.0
    family.adapt([(x, None)])
    for _ in range(100):
        sums = expect(family, x, (), r)
        family.fix(family.maximize(sums, "ml"))
    assert all(bool(value.isfinite().all()) for value in family.values().values())
    assert bool(density(family, x, ()).isfinite().all())
    assert family.degenerate(sums, family.values()).tolist() == [True, False]


def test_a_line_through_its_only_points_is_reported():
    family = families.LinearRegression(2, batch=2).double()
    family.adapt([(LINE, None, INPUTS)])
    r = torch.zeros(2, N).double()
    r[0, :3], r[1, 3:] = 1.0, 1.0
    sums = expect(family, LINE, (INPUTS,), r)
    values = family.maximize(sums, "ml")
    assert family.degenerate(sums, values).tolist() == [True, False]
    design = np.column_stack([np.ones(N), INPUTS])
    _, residual, *_ = np.linalg.lstsq(design, LINE.numpy(), rcond=None)
    assert values["variance"][0] == pytest.approx(1e-8 * residual[0] / N, rel=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_a_member_without_data_is_reported_and_finite(name):
    family, x, given = make(name)
    r = R.clone()
    r[0] = 0
    sums = expect(family, x, given, r)
    values = family.maximize(sums, "ml")
    assert family.degenerate(sums, values).tolist() == [True, False, False]
    assert all(bool(value.isfinite().all()) for value in values.values())


@pytest.mark.parametrize("family", [families.Gamma, families.Exponential])
def test_a_constant_feature_is_nobodys_fault_and_noted(family):
    """The members cannot help it where other features spread; where none does, there is no maximum at all."""
    constant = torch.full((N, 1), 3.0 if family is families.Gamma else 0.0).double()
    beside = family(2, batch=K).double()
    x = torch.cat([constant, POSITIVE[:, :1]], 1)
    beside.adapt([(x, None)])
    sums = expect(beside, x, ())
    assert not bool(beside.degenerate(sums, beside.maximize(sums, "ml")).any())
    assert "in 1 of 2 features" in beside.remarks()[0]
    alone = family(1, batch=K).double()
    alone.adapt([(constant, None)])
    sums = expect(alone, constant, ())
    assert bool(alone.degenerate(sums, alone.maximize(sums, "ml")).all())
    assert "in 1 of 1 features" in alone.remarks()[0]


BAD = {
    "bernoulli": (0.5, "zeros and ones", "0.5 in row 30 (counted from 0), feature 0"),
    "poisson": (1.5, "counts 0, 1, 2", "1.5 in row 30"),
    "single poisson": (-1.0, "counts 0, 1, 2", "-1 in row 30"),
    "exponential": (-2.0, "at least 0", "-2 in row 30"),
    "gamma": (0.0, "positive numbers", "0 in row 30"),
    "categorical vector": (4.0, "categories 0, ..., 3", "4 in row 30 (counted from 0), feature 0"),
    "student t, full": (math.inf, "infinite", "row"),
    "linear regression": (-math.inf, r"row 30 \(counted from 0\) is infinite", ""),
    "logistic regression": (2.0, "zeros and ones", "2 in row 30"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_named(name):
    value, expected, where = BAD[name]
    declare, x, given = TABLE[name]
    x = x.clone()
    x.view(N, -1)[30, 0] = value
    parts = [(x[:20], None, *(g[:20] for g in given)), (x[20:], None, *(g[20:] for g in given))]
    with pytest.raises(DataError, match=expected) as error:
        declare().double().adapt(parts)
    assert where in str(error.value)
    with pytest.raises(DataError, match=expected.split(" is ")[-1]):
        declare().double().features(x, *given)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (INPUTS[:, :1], r"shape \[n, 1\], \[n, 2\] is expected: declare LinearRegression\(1, ...\)"),
        (INPUTS.masked_fill(INPUTS > 8, math.nan), "covariates of row"),
        (INPUTS[:, 0], r"shape \[n\], \[n, 2\] is expected: put them together by torch.stack"),
    ],
)
def test_bad_covariates_are_named(inputs, message):
    with pytest.raises(DataError, match=message):
        families.LinearRegression(2, batch=2).features(LINE, inputs)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: families.Exponential(0, batch=2), "n_features must be a whole number, at least 1, got 0"),
        (lambda: families.CategoricalVector(0, 2, batch=2), "n_categories must be .* got 0"),
        (lambda: families.StudentT(2, batch=2, form="round"), "full, diagonal; got 'round'"),
        (lambda: families.StudentT(2, batch=2, df=-1.0), "positive, got -1.0"),
        (lambda: families.StudentT(0, batch=2), "n_features must be .* got 0"),
        (lambda: families.LinearRegression(0, batch=2), "n_inputs must be .* got 0"),
        (lambda: families.Product({"a": families.Poisson(batch=2), "b": families.Poisson(batch=3)}), "same batch"),
        (lambda: families.Product({"children": families.Poisson(batch=2)}), "'children' cannot be the name"),
        (lambda: families.Product({}), "same batch"),
    ],
)
def test_wrong_declarations_are_refused(declare, message):
    with pytest.raises(DeclarationError, match=message):
        declare()


def test_a_table_of_another_width_is_refused():
    with pytest.raises(DataError, match=r"\(60, 2\); \[n, 5\] is expected"):
        table().features(REAL)


def test_categorical_vector_with_a_prior_is_the_mode_of_the_posterior():
    family = families.CategoricalVector(4, D, batch=K, prior=families.DirichletPrior(2.5)).double()
    with family.bind(family.defaults()):
        sums = expect(family, CODES, ())
    probs = family.maximize(sums, "map")["probs"]
    logits = probs.log().requires_grad_()
    moved = logits.softmax(-1)
    log_posterior = (sums["counts"] * moved.log()).sum() + family.site("probs", {}).log_prob(moved)
    (gradient,) = torch.autograd.grad(log_posterior, logits)
    assert gradient.abs().max() < 1e-9
