"""VB: the evidence where q is exact, a bound that never falls elsewhere, scikit-learn's numbers, refusals."""

import math
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import gammaln, multigammaln
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

import ppl_vae as pv
from ppl_vae.compare import compare
from ppl_vae.diagnostics import elbo_total
from ppl_vae.errors import EngineError
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


def fit(model, x, weights=None, **settings):
    return pv.VB(**{"num_draws": 50, "progress": False, **settings}).fit(model, x, weights)


def mixture(K, form="full", d=2, alpha=1.0, **prior):
    priors = (DirichletPrior(alpha), NormalInverseWishartPrior(**prior))
    return pv.models.GaussianMixture(K, d, covariance=form, prior=priors)


@pytest.fixture(scope="module")
def faithful():
    return pv.data.faithful().values.double()


# Where q is exact.


def matrix_evidence(x, m0, kappa, df, scale):
    """log p(X) of a normal with a normal-inverse-Wishart prior (Murphy 2007, (266))."""
    n, d = x.shape
    mean = x.mean(0)
    after = scale + (x - mean).T @ (x - mean) + kappa * n / (kappa + n) * np.outer(mean - m0, mean - m0)
    return (
        -n * d / 2 * math.log(math.pi)
        + multigammaln((df + n) / 2, d)
        - multigammaln(df / 2, d)
        + df / 2 * np.linalg.slogdet(scale)[1]
        - (df + n) / 2 * np.linalg.slogdet(after)[1]
        + d / 2 * math.log(kappa / (kappa + n))
    )


def variance_evidence(columns, m0, kappa, df, scale):
    """log p(X) of normals with one variance of inverse-gamma law (df/2, scale/2) and a mean for each column."""
    n = sum(len(x) for x in columns)
    after = scale + sum(
        ((x - x.mean()) ** 2).sum() + kappa * len(x) / (kappa + len(x)) * (x.mean() - m) ** 2
        for x, m in zip(columns, m0, strict=True)
        if len(x)
    )
    means = sum(math.log(kappa / (kappa + len(x))) / 2 for x in columns)
    return (
        -n / 2 * math.log(math.pi)
        + gammaln((df + n) / 2)
        - gammaln(df / 2)
        + df / 2 * math.log(scale)
        - (df + n) / 2 * math.log(after)
        + means
    )


EVIDENCE = {
    "full": lambda columns, m0, kappa, df, scale: matrix_evidence(np.stack(columns, 1), m0, kappa, df, scale),
    "tied": lambda columns, m0, kappa, df, scale: matrix_evidence(np.stack(columns, 1), m0, kappa, df, scale),
    "diagonal": lambda columns, m0, kappa, df, scale: sum(
        variance_evidence([x], [m], kappa, df, s) for x, m, s in zip(columns, m0, scale, strict=True)
    ),
    "spherical": variance_evidence,
}
SCALE = {
    "full": [[2.0, 1.0], [1.0, 30.0]],
    "tied": [[2.0, 1.0], [1.0, 30.0]],
    "diagonal": [2.0, 30.0],
    "spherical": 9.0,
}
MEAN = [3.0, 60.0]


def one_component(form):
    return mixture(1, form, mean=torch.tensor(MEAN), strength=0.3, df=4.5, scale=torch.tensor(SCALE[form]))


@pytest.mark.parametrize("form", FORMS)
def test_one_component_has_its_evidence(faithful, form):
    found = fit(one_component(form), faithful)
    expected = EVIDENCE[form](list(faithful.numpy().T), np.array(MEAN), 0.3, 4.5, np.array(SCALE[form]))
    assert found.trace["bound"][-1].item() == pytest.approx(expected, rel=1e-12)
    # Draws of the exact posterior all have one and the same weight, log p(X).
    bound, weighted, share = elbo_total(found)
    assert bound == pytest.approx(weighted, rel=1e-12)
    assert share == pytest.approx(1)


@pytest.mark.parametrize("form", ["diagonal", "spherical"])
def test_evidence_of_the_entries_seen(faithful, form):
    """Features that are independent given the parameters: a missing entry is as if it had never been asked for."""
    x = faithful.clone()
    x[::3, 0], x[1::5, 1] = NAN, NAN
    columns = [c[~np.isnan(c)] for c in x.numpy().T]
    expected = EVIDENCE[form](columns, np.array(MEAN), 0.3, 4.5, np.array(SCALE[form]))
    assert fit(one_component(form), x).trace["bound"][-1].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_evidence_counts_weights(faithful, form):
    w = torch.arange(len(faithful)) % 3
    columns = list(faithful.repeat_interleave(w, 0).numpy().T)
    expected = EVIDENCE[form](columns, np.array(MEAN), 0.3, 4.5, np.array(SCALE[form]))
    assert fit(one_component(form), faithful, weights=w).trace["bound"][-1].item() == pytest.approx(expected, rel=1e-12)


def test_one_latent_class_has_its_evidence():
    """Dirichlet-multinomial evidence, question by question."""

    class Answers(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.mixing = Categorical(1, prior="weak")
            self.answers = CategoricalVector(3, 2, batch=1, prior=DirichletPrior(0.5))

        @pv.latent
        def z(self):
            return self.mixing()

        @pv.observed
        def x(self, z):
            return self.answers(z)

    x = torch.randint(3, (50, 2)).double()
    x[:5, 0] = NAN
    expected = 0.0
    for column in x.T:
        counts = torch.bincount(column[~column.isnan()].long(), minlength=3).numpy()
        expected += gammaln(1.5) - gammaln(1.5 + counts.sum()) + (gammaln(0.5 + counts) - gammaln(0.5)).sum()
    assert fit(Answers(), x).trace["bound"][-1].item() == pytest.approx(expected, rel=1e-12)


# The bound.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("start", ["k-means++", "random"])
def test_the_bound_never_falls_and_is_one(faithful, form, gaps, start):
    x = faithful[::2].clone()
    if gaps:
        x[torch.rand_like(x) < 0.2] = NAN
        x[0] = NAN
    found = fit(mixture(3, form), x, start=start, max_iter=60, num_draws=200)
    steps, last = found.trace["bound"].diff(), found.trace["bound"][-1]
    assert bool((steps >= -1e-9 * last.abs()).all())
    assert steps.max() > 1
    # E_q[log p(X | theta)] - KL(q || p), with the best q(z | theta) for each theta, is at least as high; its
    # importance weights estimate the evidence itself.
    bound, weighted, _ = elbo_total(found)
    log_w = (found.pointwise(x).sum(-1) + found.sample_stats["log_prior"] - found.sample_stats["log_q"]).flatten()
    error = log_w.std() / len(log_w) ** 0.5
    assert bound == last
    assert bound < log_w.mean() + 4 * error
    assert bound < weighted + 4 * error


def test_above_the_mean_field_normal(faithful):
    """SVI's q is normal and factorised in unconstrained coordinates; VB's has the right shape and few factors."""
    x, model = faithful[:60], mixture(2)
    found = fit(model, x)
    svi = pv.SVI(epochs=120, optimizer=pv.adam(3e-2), start=found, num_draws=500, progress=False).fit(model, x)
    log_w = (svi.pointwise(x).sum(-1) + svi.sample_stats["log_prior"] - svi.sample_stats["log_q"]).flatten()
    assert found.trace["bound"][-1] > log_w.mean() - 4 * log_w.std() / len(log_w) ** 0.5
    # SVI has come close, so that the comparison means something.
    assert found.trace["bound"][-1] < log_w.mean() + 3


def test_two_latents():
    """A law of z2 for every value of z1: q(z1, z2) is joint, and tables stand where their latents are."""

    class Nested(pv.LatentVariableModel):
        def __init__(self, prior="weak"):
            super().__init__()
            self.outer = Categorical(2, prior=prior)
            self.inner = Categorical(3, batch=2, prior=prior)
            self.components = Normal(1, batch=3, prior=prior)

        @pv.latent
        def a(self):
            return self.outer()

        @pv.latent
        def b(self, a):
            return self.inner(a)

        @pv.observed
        def x(self, b):
            return self.components(b)

        @pv.observed
        def y(self, a):
            return dist.Normal(6.0 * a[..., None], 1.0).to_event(1)

    a = torch.arange(120) % 2
    b = torch.where(a == 0, torch.arange(120) // 2 % 2, 2)
    data = {"x": 10.0 * b[:, None] + torch.randn(120, 1), "y": 6.0 * a[:, None] + torch.randn(120, 1)}
    found = fit(Nested(), data, n_init=4)
    assert bool((found.trace["bound"].diff() >= -1e-9 * found.trace["bound"].abs().max()).all())
    counts = found.q["inner"].concentration - 1
    order = found.q["components"].loc[:, 0].argsort()
    torch.testing.assert_close(
        counts[:, order], torch.tensor([[30.0, 30.0, 0.0], [0.0, 0.0, 60.0]], dtype=torch.float64), rtol=0.05, atol=2.0
    )
    torch.testing.assert_close(found.q["outer"].concentration - 1, torch.full((2,), 60.0).double(), rtol=0.05, atol=0)


class Table(pv.LatentVariableModel):
    """Sizes and answers in one table."""

    def __init__(self):
        super().__init__()
        self.mixing = Categorical(2, prior="weak")
        self.people = Product(
            {"size": Normal(1, batch=2, prior="weak"), "answers": CategoricalVector(2, 3, batch=2, prior="weak")}
        )

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.people(z)


def test_a_table_of_mixed_types():
    z = torch.arange(200) % 2
    answers = torch.bernoulli(torch.where(z == 0, 0.2, 0.8)[:, None].expand(-1, 3))
    x = torch.cat([torch.randn(200, 1) + 4 * z[:, None], answers], 1)
    found = fit(Table(), x)
    assert bool((found.trace["bound"].diff() >= -1e-9 * found.trace["bound"].abs().max()).all())
    assert found.draws["people.answers.probs"].shape == (1, 50, 2, 3, 2)
    share = found.parameters["people.answers.probs"][..., 1].mean(1).sort().values
    assert share.tolist() == pytest.approx([0.2, 0.8], abs=0.08)
    bound, weighted, _ = elbo_total(found)
    assert bound < weighted + 0.1


def test_spare_components_empty_themselves():
    """A small concentration lets components that nothing needs return to their prior."""
    x = torch.cat([torch.randn(100, 2), torch.randn(60, 2) + 8]).double()
    found = fit(mixture(4, alpha=0.01), x)
    counts = found.q["mixing"].concentration.sort().values - 0.01
    assert counts.tolist() == pytest.approx([0.0, 0.0, 60.0, 100.0], abs=0.1)
    spare = found.q["components"].strength.argmin()
    assert found.q["components"].df[spare].item() == pytest.approx(4.0, abs=0.1)


# The same map over the data.


def test_weights_count_rows(faithful):
    w = (torch.arange(len(faithful)) % 3).double()
    start = {"components.loc": faithful[[0, 1]]}
    one = fit(mixture(2, mean=MEAN, scale=torch.eye(2)), faithful, weights=w, start=start)
    two = fit(mixture(2, mean=MEAN, scale=torch.eye(2)), faithful.repeat_interleave(w.long(), 0), start=start)
    assert one.trace["bound"][-1].item() == pytest.approx(two.trace["bound"][-1].item(), rel=1e-10)
    torch.testing.assert_close(one.q["components"].scale, two.q["components"].scale, rtol=1e-6, atol=1e-6)


def test_a_stream_is_as_good_as_a_tensor(faithful):
    start = {"components.loc": faithful[[0, 1]]}
    one = fit(mixture(2), faithful, start=start)
    two = fit(mixture(2), pv.data.stream(lambda: iter(faithful.split(50))), start=start)
    assert two.trace["bound"][-1].item() == pytest.approx(one.trace["bound"][-1].item(), rel=1e-9)
    assert two.data is None


class Sized(pv.LatentVariableModel):
    """Two numbers and a count, one component after the other."""

    def __init__(self):
        super().__init__()
        self.mixing = Categorical(2, prior="weak")
        numbers, count = Normal(2, batch=2, prior="weak"), Poisson(1, batch=2, prior="weak")
        self.parts = Product({"numbers": numbers, "count": count})

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.parts(z)


@pytest.mark.parametrize("make", [*(lambda form=form: mixture(2, form) for form in FORMS), Sized])
def test_a_fit_to_start_from_is_gone_on_from(faithful, make):
    """Its whole q(theta): in its middle alone what is hidden of the data would be another thing."""
    x = faithful.clone() if make is not Sized else torch.cat([faithful, faithful[:, 1:].round()], 1)
    x[::3, 0], x[1::4, 1] = torch.nan, torch.nan
    first = fit(make(), x, max_iter=7)
    again = fit(make(), x, start=first, max_iter=5)
    whole = fit(make(), x, max_iter=11)
    torch.testing.assert_close(again.trace["bound"], whole.trace["bound"][6:], rtol=1e-10, atol=0)


@pytest.mark.parametrize("shift", [0.0, 1e8])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_any_scale(faithful, scale, shift):
    """log p(c x) = log p(x) - n d log c under the weak prior, which scales with the data."""
    base = fit(mixture(2), faithful, tol=1e-13).trace["bound"][-1].item()
    x = scale * (faithful + shift)
    found = fit(mixture(2), x, tol=1e-13).trace["bound"][-1].item()
    rounding = 1e-9 if shift == 0 else 1e-5  # the data themselves are stored to 1e-8 at this shift
    assert found + x.numel() * math.log(scale) == pytest.approx(base, rel=rounding)


# Starts, draws, the declaration.


def test_starts(faithful):
    model = mixture(2)
    default = fit(model, faithful)
    em = pv.EM(progress=False).fit(model, faithful)
    ends = [
        fit(model, faithful, start=start).trace["bound"][-1].item()
        for start in (em, em.parameters, em.responsibilities(faithful), default)
    ]
    assert ends == pytest.approx([default.trace["bound"][-1].item()] * 4, rel=1e-7)
    many = fit(model, faithful, n_init=3)
    assert len(many.trace["starts"]) == 3
    assert many.trace["bound"][-1] == many.trace["starts"].max()


def test_draws_are_of_q(faithful):
    model = mixture(2)
    found = fit(model, faithful, num_draws=2000)
    assert found.draws["components.covariance"].shape == (1, 2000, 2, 2, 2)
    for path, q in found.q.items():
        for name, center in q.center().items():
            value = found.draws[f"{path}.{name}"][0]
            if name != "covariance":
                assert bool(((value.mean(0) - center).abs() < 5 * value.std(0) / 2000**0.5).all())
    own = torch.stack([found.model.log_prior(found.draw(s)) for s in range(3)])
    torch.testing.assert_close(found.sample_stats["log_prior"][0, :3], own)
    again = fit(model, faithful, num_draws=2000)
    assert torch.equal(again.draws["components.loc"], found.draws["components.loc"])
    assert not any("loc" in family.__dict__ for family in model.families().values())


def test_what_a_fit_can_do(faithful, tmp_path):
    train, test = faithful[:200], faithful[200:]
    model = mixture(2)
    found = fit(model, train)
    assert found.responsibilities(test).shape == (72, 2)
    assert found.log_predictive(test).mean() > -5
    assert found.sample(5).shape == (5, 2)
    tree = found.to_datatree()
    assert tree["posterior"]["components.loc"].shape == (1, 50, 2, 2)
    found.save(tmp_path / "vb.safetensors")
    loaded = pv.Fit.load(tmp_path / "vb.safetensors", model)
    torch.testing.assert_close(loaded.log_predictive(test), found.log_predictive(test))


def test_in_a_comparison(faithful):
    model = mixture(2)
    em, vb = pv.EM(progress=False).fit(model, faithful), fit(model, faithful)
    table = compare({"EM": em, "VB": vb})
    row = table.rows["VB"]
    assert row.elbo_total == vb.trace["bound"][-1]
    assert row.gap > -0.2
    assert row.log_likelihood is None
    assert row.bic is None
    assert math.isfinite(row.elpd_loo)
    assert abs(row.log_predictive - table.rows["EM"].log_predictive) < 0.05


# scikit-learn.


def theirs(x, K, kind, r, iterations, prior):
    """scikit-learn after this many iterations from responsibilities r."""

    class Started(BayesianGaussianMixture):
        def _initialize_parameters(self, X, random_state, xp=None):
            self._initialize(X, r.copy())

    engine = Started(
        n_components=K,
        covariance_type=kind,
        weight_concentration_prior_type="dirichlet_distribution",
        reg_covar=0,
        tol=0,
        max_iter=iterations,
        **prior,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return engine.fit(x)


SAME = [("full", 2), ("full", 1), ("diagonal", 1), ("spherical", 1), ("tied", 1)]
"""Where the two models are the same: see docs/variational-bayes.md for the others."""
THEIRS = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


@pytest.mark.parametrize("iterations", [1, 40])
@pytest.mark.parametrize(("form", "d"), SAME)
def test_scikit_learn_has_the_same_posterior(faithful, form, d, iterations):
    x = faithful[:, :d].contiguous()
    K = 1 if form == "tied" else 3
    r = torch.distributions.Dirichlet(torch.ones(K, dtype=torch.float64)).sample((len(x),))
    scale = {"full": 2 * np.eye(d), "tied": 2 * np.eye(d), "diagonal": 2 * np.ones(d), "spherical": 2.0}[form]
    prior = {
        "weight_concentration_prior": 0.7,
        "mean_precision_prior": 0.4,
        "mean_prior": np.full(d, 3.0),
        "degrees_of_freedom_prior": d + 1.5,
        "covariance_prior": scale,
    }
    other = theirs(x.numpy(), K, THEIRS[form], r.numpy(), iterations, prior)
    model = mixture(K, form, d, 0.7, mean=torch.full((d,), 3.0), strength=0.4, df=d + 1.5, scale=torch.as_tensor(scale))
    # scikit-learn's parameters are those after the last M-step, ours those whose bound is the last.
    found = fit(model, x, start=r, tol=0, max_iter=iterations + 1)
    alpha, q = found.q["mixing"].concentration, found.q["components"]
    close = {"rtol": 1e-6, "atol": 1e-9}
    assert other.n_iter_ == iterations or other.converged_
    np.testing.assert_allclose(alpha, other.weight_concentration_, **close)
    np.testing.assert_allclose(q.strength[:, 0], other.mean_precision_, **close)
    np.testing.assert_allclose(q.loc, other.means_, **close)
    np.testing.assert_allclose(q.df.reshape(-1), np.reshape(other.degrees_of_freedom_, -1), **close)
    np.testing.assert_allclose(q.center()["covariance"], other.covariances_, **close)


# What it refuses.


class Fixed(pv.LatentVariableModel):
    """Knows its weights and how its components depend on a location with a prior."""

    def __init__(self):
        super().__init__()
        self.components = Normal(1, batch=2, prior="weak")

    @pv.latent
    def z(self):
        return dist.Categorical(torch.tensor([0.5, 0.5]))

    @pv.observed
    def x(self, z):
        return self.components(z)


class Aside(Fixed):
    @pv.observed
    def x(self, z):
        return dist.Normal(self.components.loc[z], 1.0).to_event(1)


class ByHand(Fixed):
    @pv.latent(shared=True)
    def shift(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    @pv.observed
    def y(self, shift):
        return dist.Normal(shift, 1.0).to_event(1)


class Continuous(Fixed):
    @pv.latent
    def u(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)


class Free(Fixed):
    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(1))


class Counts(Fixed):
    def __init__(self):
        super().__init__()
        self.components = Poisson(batch=2)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            pv.models.GaussianMixture(2, 1),
            torch.zeros(9, 1),
            "VB cannot update mixing: Categorical has no prior: give it a conjugate one",
        ),
        (Counts(), torch.zeros(9), "VB cannot update components: Poisson has no prior"),
        (Aside(), torch.zeros(9, 1), "uses a parameter otherwise"),
        (ByHand(), {"x": torch.zeros(9, 1), "y": torch.zeros(9, 1)}, "shift is a shared latent declared by hand"),
        (Continuous(), torch.zeros(9, 1), "'u' is not: fit by SVI"),
        (Free(), torch.zeros(9, 1), "offset is a free parameter"),
        (lambda x: None, torch.zeros(9, 1), "VB takes a declared model"),
    ],
)
def test_refusals(model, data, message):
    with pytest.raises(EngineError, match=message):
        fit(model, data)


def test_known_weights_are_no_hindrance(faithful):
    found = fit(Fixed(), faithful[:, :1])
    assert found.status.code == "converged"
    assert set(found.q) == {"components"}


def test_a_prior_of_ones_own(faithful):
    """Registering a law for a new class of prior is all that VB asks."""

    class Uniform:
        def site(self, family, name, values):
            return DirichletPrior(1.0).site(family, name, values)

    conjugate.register(Uniform, lambda prior, family: conjugate(DirichletPrior(1.0), family))
    own = pv.models.GaussianMixture(2, 2, prior=(Uniform(), NormalInverseWishartPrior()))
    assert fit(own, faithful).trace["bound"][-1] == fit(mixture(2), faithful).trace["bound"][-1]


def test_bad_settings():
    with pytest.raises(EngineError, match="num_draws must be a whole number, at least 1"):
        pv.VB(num_draws=0)


PARTLY = {
    "nothing": {},
    "equal weights": {"mixing.probs": [0.5, 0.5]},
    "one covariance for all": {"components.covariance": torch.diag(torch.tensor([0.1, 36.0])).repeat(2, 1, 1)},
}


@pytest.mark.parametrize("case", PARTLY)
@pytest.mark.parametrize("source", [lambda x: x, lambda x: pv.data.stream(x, rows=100)], ids=["held", "stream"])
def test_what_a_start_leaves_out_is_found(faithful, case, source):
    """Components that are alike would stay so."""
    best = fit(mixture(2), faithful).trace["bound"][-1]
    found = fit(mixture(2), source(faithful), start=PARTLY[case]).trace["bound"][-1]
    torch.testing.assert_close(found, best, rtol=1e-7, atol=0)


def test_a_random_start_depends_on_the_seed_alone(faithful):
    def bounds(outer, seed):
        torch.manual_seed(outer)
        return fit(mixture(3), faithful, start="random", seed=seed, max_iter=3).trace["bound"].tolist()

    assert bounds(1, 0) == bounds(2, 0) != bounds(1, 1)


def test_responsibilities_as_an_array_are_one_start_for_all_data():
    x = torch.randn(20_001, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = np.eye(2)[np.arange(len(x)) % 2]
    for engine in (pv.EM, pv.VB):
        fits = [
            engine(start=start, n_init=3, max_iter=2, progress=False).fit(mixture(2, d=1), x)
            for start in (r, torch.as_tensor(r))
        ]
        assert [len(one.trace["starts"]) for one in fits] == [1, 1]
        assert fits[0].trace["bound"].tolist() == fits[1].trace["bound"].tolist()
