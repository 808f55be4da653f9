"""Other units of a feature change an answer by a factor and nothing else."""

import math

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv

X = pv.data.faithful().values
FACTORS = torch.tensor([1e-3, 1e4], dtype=torch.float64)
OFFSET = torch.tensor([-50.0, 3e6], dtype=torch.float64)
SQUARES, PRODUCTS = FACTORS.square(), FACTORS.outer(FACTORS)
GMM = pv.models.GaussianMixture


class Robust(pv.LatentVariableModel):
    """A mixture of Student-t laws."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.components = pv.families.StudentT(2, batch=2, df=4.0)

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.components(z)


CASES = {
    "prior": (GMM(2, 2, prior="weak"), PRODUCTS, {}),
    "full q": (GMM(2, 2, "diagonal", prior="weak"), SQUARES, {"guide": "multivariate"}),
    "tied": (GMM(2, 2, "tied", prior="weak"), PRODUCTS, {}),
    "maximum likelihood": (GMM(2, 2), PRODUCTS, {"batch_size": 64}),
    "Student-t": (Robust(), PRODUCTS, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_units_of_a_feature_do_not_matter(name):
    model, square, options = CASES[name]
    y, jacobian = X * FACTORS + OFFSET, math.log(FACTORS.prod())

    def rescaled(values):
        changed = {"components.loc": FACTORS * values["components.loc"] + OFFSET}
        for key in set(values) & {"components.covariance", "components.scale_matrix"}:
            changed[key] = square * values[key]
        return values | changed

    def fitted(data, start):
        engine = pv.SVI(40, optimizer=pv.adam(1e-2), start=start, progress=False, **options)
        return engine.fit(model, data)

    start = pv.EM(max_iter=5, progress=False).fit(model, X).parameters
    one, other = fitted(X, start), fitted(y, rescaled(start))
    torch.testing.assert_close(other.trace["bound"] + jacobian, one.trace["bound"], rtol=1e-6, atol=0.0)
    expected = rescaled(one.parameters)
    for key, value in other.parameters.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=0.0, msg=key)
    torch.testing.assert_close(other.log_predictive(y) + jacobian, one.log_predictive(X), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("family", [pv.families.Normal(2, batch=3), pv.families.StudentT(2, batch=3)])
def test_means_keep_their_values_when_a_family_sees_data(family):
    loc = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    family.fix({"loc": loc})
    family.double().adapt([(1e3 * X, None)])
    torch.testing.assert_close(family.loc, loc.double())


class Line(pv.LatentVariableModel):
    """z ~ N(m, s^2 I) without a posterior, x = W z + noise: log p(x) and p(z | x) are known."""

    W = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]).double()

    def __init__(self, m=0.0, s=1.0, noise=0.5):
        super().__init__()
        self.m, self.s, self.noise = m, s, noise * s

    @pv.latent
    def z(self):
        return dist.Normal(torch.full((2,), self.m, dtype=self.like.dtype), self.s).to_event(1)

    @pv.observed
    def x(self, z):
        return dist.Normal(z @ self.W, self.noise).to_event(1)

    def exact(self, x):
        """Mean and precision of p(z | x), and log p(x)."""
        precision = torch.eye(2) / self.s**2 + self.W @ self.W.T / self.noise**2
        mean = (self.m / self.s**2 + x @ self.W.T / self.noise**2) @ precision.inverse()
        covariance = self.W.T @ self.W * self.s**2 + torch.eye(3) * self.noise**2
        log_p = dist.MultivariateNormal(torch.full((2,), self.m).double() @ self.W, covariance).log_prob(x)
        return mean, precision, log_p


def lines(count=40):
    z, e = torch.randn(count, 2).double(), torch.randn(count, 3).double()
    return lambda model: (model.m + model.s * z) @ Line.W + model.noise * e


UNITS = [(100.0, 1.0), (0.0, 50.0), (3.0, 0.01)]


def test_units_of_a_latent_of_each_datum_do_not_matter_to_svi():
    """The bound moves by the logarithm of the unit, and each q with its latent."""
    draw = lines()
    found = []
    for m, s in [(0.0, 1.0), *UNITS]:
        model = Line(m, s).double()
        fit = pv.SVI(100, optimizer=pv.adam(2e-2), progress=False).fit(model, draw(model))
        q = fit.model.local_posteriors["z"]
        found.append((fit.trace["bound"] + 3 * math.log(s), q.loc.detach()))
    for bound, loc in found[1:]:
        torch.testing.assert_close(bound, found[0][0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(loc, found[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "s", "noise"), [(m, s, 0.5) for m, s in UNITS] + [(0.0, 1.0, 0.01), (0.0, 1.0, 1e-3)])
def test_the_posterior_of_new_data_is_found_whatever_its_place_and_width(m, s, noise):
    """Within a tenth of its deviation on average, and with the bound of the best q of its kind."""
    model = Line(m, s, noise).double()
    x = lines()(model)
    mean, precision, log_p = model.exact(x)
    scale = precision.diagonal().rsqrt()
    q = model.posterior(x)
    assert ((q.mean - mean) / scale).square().mean().sqrt() < 0.1
    assert (q.stddev / scale).log().abs().mean() < 0.05
    best = (precision.diagonal().log().sum() - precision.logdet()) / 2
    gap = log_p - model.elbo(x, num_particles=200)
    assert gap.mean().item() == pytest.approx(best.item(), abs=0.03)


def test_a_positive_latent_is_in_units_of_its_prior():
    """log z ~ N(m, 1), log x ~ N(log z, 0.5^2): on the scale of logarithms all is normal."""

    class Rate(pv.LatentVariableModel):
        def __init__(self, m):
            super().__init__()
            self.m = m

        @pv.latent
        def z(self):
            return dist.LogNormal(self.m, 1.0)

        @pv.observed
        def x(self, z):
            return dist.LogNormal(z.log(), 0.5)

    for m in (0.0, 30.0):
        log_x = m + 1.1 * torch.randn(30).double()
        expected = dist.Normal(m, 1.25**0.5).log_prob(log_x) - log_x
        assert (expected - Rate(m).double().elbo(log_x.exp())).abs().mean() < 0.05


def test_a_mapped_posterior_has_its_moments():
    """Positive numbers: those of a log-normal; shares: those of draws; vectors of shares have none in closed form."""

    class Mapped(pv.LatentVariableModel):
        def __init__(self, law):
            super().__init__()
            self.made = law

        @pv.latent
        def z(self):
            return self.made

        @pv.observed
        def x(self, z):
            return dist.Normal(z if z.dim() == 1 else z.sum(-1), 0.3)

    x = torch.tensor([0.3, 0.8, 2.0]).double()
    q = Mapped(dist.Gamma(torch.tensor(2.0).double(), 2.0)).double().posterior(x)
    same = dist.LogNormal(q.base_dist.mean, q.base_dist.stddev)
    torch.testing.assert_close(q.mean, same.mean)
    torch.testing.assert_close(q.stddev, same.stddev)
    q = Mapped(dist.Beta(torch.full((2,), 2.0).double(), 3.0).to_event(1)).double().posterior(x)
    draws = q.sample((20_000,))
    assert bool(((draws.mean(0) - q.mean).abs() < 4.5 * q.stddev / 20_000**0.5).all())
    torch.testing.assert_close(draws.std(0), q.stddev, rtol=0.05, atol=0)
    with pytest.raises(NotImplementedError, match="take draws"):
        _ = Mapped(dist.Dirichlet(torch.ones(3).double())).double().posterior(x).mean


class Shares(pv.LatentVariableModel):
    """Shares of each datum and counts drawn by them: Dirichlet-multinomial, whose evidence is known."""

    @pv.latent
    def z(self):
        return dist.Dirichlet(torch.tensor([0.5, 1.0, 3.0], dtype=self.like.dtype))

    @pv.observed
    def x(self, z):
        return dist.Multinomial(total_count=20, probs=z, validate_args=False)


def test_shares_of_each_datum_need_no_posterior():
    model, x = Shares().double(), torch.tensor([[3.0, 7.0, 10.0], [0.0, 2.0, 18.0], [10.0, 10.0, 0.0]]).double()
    exact = dist.DirichletMultinomial(torch.tensor([0.5, 1.0, 3.0]).double(), total_count=20).log_prob(x)
    found = model.evidence(x, 2000)
    assert bool(((found.value - exact).abs() < 4 * found.standard_error + 0.01).all())
    assert ((exact - model.elbo(x, 200)) < 0.15).all()
    fit = pv.SVI(300, optimizer=pv.adam(5e-2), progress=False).fit(model, x)
    assert fit.trace["bound"][-20:].mean().item() == pytest.approx(exact.mean().item(), abs=0.3)
