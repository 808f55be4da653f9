"""Conjugate posteriors: additive, with the expected densities, divergences and draws that they claim."""

import math

import pytest
import torch

from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.families import (
    Categorical,
    CategoricalVector,
    DirichletPrior,
    Normal,
    NormalInverseWishartPrior,
    Poisson,
    Product,
    conjugate,
)

FORMS = ["full", "tied", "diagonal", "spherical"]
NAN = math.nan
D, K, N = 2, 3, 40


def normal(form, d=D, batch=K):
    """A family with a prior of its own, adapted to data far from the origin and of unequal scales."""
    family = Normal(d, batch=batch, covariance=form, prior=NormalInverseWishartPrior(strength=0.7, df=d + 3.0)).double()
    x = torch.randn(N, d, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.2])[:d].double() + 5
    family.adapt([(x, None)])
    return family, x


def sums_of(family, x, r):
    kernel = conjugate(family.prior, family).kernel()
    return kernel.expect(kernel.expand(family.features(x)), r)


def weights(n=N, batch=K):
    return torch.distributions.Dirichlet(torch.ones(batch, dtype=torch.float64)).sample((n,)).T


def posterior(form, gaps=False):
    family, x = normal(form)
    if gaps:
        x[torch.rand_like(x) < 0.3] = NAN
    prior = conjugate(family.prior, family)
    return family, x, prior, prior.updated(sums_of(family, x, weights()))


def fields(q):
    return {name: value for name, value in vars(q).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("form", FORMS)
def test_data_add(form):
    """Data seen in two parts give the posterior of all data."""
    family, x = normal(form)
    prior, r = conjugate(family.prior, family), weights()
    whole = prior.updated(sums_of(family, x, r))
    parts = prior.updated(sums_of(family, x[:15], r[:, :15])).updated(sums_of(family, x[15:], r[:, 15:]))
    for name, value in fields(whole).items():
        torch.testing.assert_close(fields(parts)[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_no_data_leave_the_prior(form):
    family, x = normal(form)
    prior = conjugate(family.prior, family)
    q = prior.updated(sums_of(family, x, 0 * weights()))
    for name, value in fields(prior).items():
        torch.testing.assert_close(fields(q)[name], value.expand(fields(q)[name].shape))
    assert q.divergence(prior).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_prior_is_the_declared_one(form):
    """Its log density is the sum of the laws that NUTS and SVI draw from."""
    family, _ = normal(form)
    prior = conjugate(family.prior, family)
    draws = prior.sample(5)
    for s in range(5):
        values = {name: value[s] for name, value in draws.items()}
        declared = sum(family.site(name, values).log_prob(values[name]) for name in family.constraints)
        assert prior.log_prob(draws)[s].item() == pytest.approx(declared.item(), rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_expected_density_is_the_mean_over_draws(form):
    family, x, _, q = posterior(form)
    kernel, few = q.kernel(), x[:5]
    expected = kernel.log_density(kernel.expand(family.features(few)))
    draws = q.sample(1500)

    def one(values):
        root = family.form.select(family.form.root(values["covariance"]), torch.arange(K))
        return family.form.distribution(values["loc"], root).log_prob(few[:, None])

    each = torch.stack([one({name: value[s] for name, value in draws.items()}) for s in range(1500)])
    error = each.std(0) / 1500**0.5
    assert bool(((each.mean(0).T - expected).abs() < 4.5 * error.T).all())


@pytest.mark.parametrize("form", ["diagonal", "spherical"])
def test_expected_density_of_seen_entries(form):
    """A missing entry counts for nothing: the features are independent."""
    family, _, _, q = posterior(form, gaps=True)
    kernel = q.kernel()
    rows = torch.tensor([[4.0, NAN], [NAN, 6.0], [4.0, 6.0], [NAN, NAN]], dtype=torch.float64)
    first, second, both, none = kernel.log_density(kernel.expand(family.features(rows))).T
    torch.testing.assert_close(first + second, both)
    torch.testing.assert_close(none, torch.zeros_like(none))


@pytest.mark.parametrize("form", ["full", "tied"])
def test_a_missing_entry_of_a_matrix_has_the_best_q(form):
    """The density of a row with a gap is the integral of exp E[log N(x_seen, x_hidden)] over what is hidden."""
    family, _, _, q = posterior(form)
    kernel = q.kernel()
    gap = torch.tensor([[4.0, NAN]], dtype=torch.float64)
    grid = torch.linspace(-60, 70, 8001, dtype=torch.float64)
    rows = torch.stack([torch.full_like(grid, 4.0), grid], 1)
    integrand = kernel.log_density(kernel.expand(family.features(rows))).exp()
    integral = torch.trapezoid(integrand, grid).log()
    torch.testing.assert_close(kernel.log_density(kernel.expand(family.features(gap)))[:, 0], integral)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gaps", [False, True])
def test_divergence_is_the_mean_log_ratio(form, gaps):
    _, _, prior, q = posterior(form, gaps)
    draws = q.sample(1500)
    ratio = q.log_prob(draws) - prior.log_prob(draws)
    assert (ratio.mean() - q.divergence(prior)).abs() < 4.5 * ratio.std() / 1500**0.5
    assert q.divergence(prior) > 1


@pytest.mark.parametrize("family", [Categorical(3), Categorical(3, batch=2), CategoricalVector(3, 2, batch=2)])
def test_dirichlet(family):
    """Counts add to the concentrations; expected logs and divergences are means over draws."""
    family = family.double()
    prior = conjugate(DirichletPrior(0.5), family)
    counts = torch.arange(6.0, dtype=torch.float64).repeat(2)[: prior.concentration.numel()]
    q = prior.updated({"counts": counts.reshape(prior.concentration.shape)})
    torch.testing.assert_close(q.concentration.flatten(), 0.5 + counts)
    draws = q.sample(20000)
    logs = draws["probs"].log()
    error = logs.std(0) / 20000**0.5
    assert bool(((logs.mean(0) - q.kernel().log_probs).abs() < 4.5 * error).all())
    ratio = q.log_prob(draws) - prior.log_prob(draws)
    assert (ratio.mean() - q.divergence(prior)).abs() < 4.5 * ratio.std() / 20000**0.5


@pytest.mark.parametrize("form", FORMS)
def test_center_and_draws_agree(form):
    family, _, _, q = posterior(form)
    center, draws = q.center(), q.sample(1500)
    error = draws["loc"].std(0) / 1500**0.5
    assert bool(((draws["loc"].mean(0) - center["loc"]).abs() < 4.5 * error).all())
    inverse = draws["covariance"].inverse() if q.order > 1 else draws["covariance"].reciprocal()
    precision = center["covariance"].inverse() if q.order > 1 else center["covariance"].reciprocal()
    error = inverse.std(0) / 1500**0.5
    assert bool(((inverse.mean(0) - precision).abs() < 4.5 * error).all())
    assert draws["covariance"].shape[1:] == family.defaults()["covariance"].shape


def test_what_has_no_conjugate_law_says_so():
    with pytest.raises(EngineError, match="Poisson has no prior"):
        conjugate(None, Poisson(batch=2))
    with pytest.raises(EngineError, match="'flat' is not known to be conjugate to Poisson"):
        conjugate("flat", Poisson(batch=2))
    half = Product({"size": Normal(2, batch=2, prior="weak"), "count": Poisson(batch=2)})
    with pytest.raises(EngineError, match="count: Poisson has no prior"):
        conjugate(None, half)


def test_a_product_is_its_blocks():
    """The same sums give the same posteriors, and what they say adds up."""
    blocks = {
        "size": Normal(2, batch=K, prior=NormalInverseWishartPrior(torch.zeros(2), scale=torch.eye(2))),
        "answers": CategoricalVector(3, 2, batch=K, prior="weak"),
    }
    table, r = Product(blocks).double(), weights()
    x = torch.cat([torch.randn(N, 2), torch.randint(3, (N, 2))], 1).double()
    prior = conjugate(table.prior, table)
    q = prior.updated(sums_of(table, x, r))
    alone = {name: conjugate(f.prior, f) for name, f in blocks.items()}
    parts = {"size": x[:, :2], "answers": x[:, 2:]}
    after = {name: alone[name].updated(sums_of(blocks[name], part, r)) for name, part in parts.items()}
    torch.testing.assert_close(q.divergence(prior), sum(after[name].divergence(alone[name]) for name in blocks))
    kernel = q.kernel()
    density = kernel.log_density(kernel.expand(table.features(x)))
    expected = 0.0
    for name, part in parts.items():
        kernel = after[name].kernel()
        expected = expected + kernel.log_density(kernel.expand(blocks[name].features(part)))
    torch.testing.assert_close(density, expected)
    draws = q.sample(7)
    assert draws["size.covariance"].shape == (7, K, 2, 2)
    assert q.log_prob(draws).shape == (7,)
    assert set(q.center()) == set(table.constraints)


@pytest.mark.parametrize(("form", "df"), [("full", 1.0), ("tied", 1.0), ("diagonal", -1.0)])
def test_too_few_degrees_of_freedom(form, df):
    family = Normal(2, covariance=form, prior=NormalInverseWishartPrior(torch.zeros(2), df=df, scale=torch.ones(())))
    with pytest.raises(DeclarationError, match="df must be above"):
        conjugate(family.prior, family)
