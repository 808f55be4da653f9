"""Standard errors: closed forms, a likelihood written by hand, other units, weights, and what is refused."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch import nn

import ppl_vae as pv
from ppl_vae import latent, observed, plots
from ppl_vae.coordinates import coordinates

EXACT = pv.EM(n_init=3, tol=1e-13, progress=False)


def two_groups(n=400, seed=0):
    noise = torch.Generator().manual_seed(seed)
    z = torch.rand(n, generator=noise, dtype=torch.float64) < 0.35
    e = torch.randn(n, generator=noise, dtype=torch.float64)
    return torch.where(z, -2.0 + 0.7 * e, 1.5 + 1.2 * e)


@pytest.fixture(scope="module")
def groups():
    return two_groups()


@pytest.fixture(scope="module")
def mixture(groups):
    return EXACT.fit(pv.models.GaussianMixture(2, 1), groups)


def test_one_normal_has_the_closed_form():
    """Var(mean) = sigma^2 / n and Var(sigma^2) = 2 sigma^4 / n, and the two are independent."""
    x = 3 + 2 * torch.randn(500, 1, dtype=torch.float64)
    errors = pv.standard_errors(pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 1), x))
    variance = x.var(correction=0).item()
    assert errors.standard_error["components.loc"].item() == pytest.approx(math.sqrt(variance / 500), rel=1e-9)
    expected = math.sqrt(2 / 500) * variance
    assert errors.standard_error["components.covariance"].item() == pytest.approx(expected, rel=1e-9)
    assert errors.standard_error["mixing.probs"].item() == 0  # one weight is 1, with no freedom
    assert errors.condition == pytest.approx(1, rel=1e-6)
    assert errors.covariance[1, 2].abs() < 1e-12


def test_one_multivariate_normal_has_the_closed_form():
    """Var(S_ij) = (S_ii S_jj + S_ij^2) / n, Var(mean) = S / n."""
    x = torch.randn(300, 3, dtype=torch.float64) @ torch.tensor([[2.0, 1.0, 0.0], [0, 1, 0.5], [0, 0, 3]]).double()
    errors = pv.standard_errors(pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 3), x))
    S = torch.cov(x.mT, correction=0)
    expected = ((S.diagonal()[:, None] * S.diagonal() + S.square()) / 300).sqrt()
    torch.testing.assert_close(errors.standard_error["components.covariance"][0], expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(errors.standard_error["components.loc"][0], (S.diagonal() / 300).sqrt())
    loc = slice(10, 13)  # after one weight and nine covariances
    torch.testing.assert_close(errors.covariance[loc, loc], S / 300)


def by_hand(x, v):
    """log p(x) of two normals with weight v0 of the first, means v1, v2, variances v3, v4."""
    parts = [np.log(v[0]) + norm.logpdf(x, v[1], np.sqrt(v[3])), np.log1p(-v[0]) + norm.logpdf(x, v[2], np.sqrt(v[4]))]
    return logsumexp(parts, axis=0)


def central_hessian(f, v, h=1e-4):
    P = len(v)
    H = np.zeros((P, P))
    for i in range(P):
        for j in range(P):
            e, g = np.eye(P)[i] * h, np.eye(P)[j] * h
            H[i, j] = (f(v + e + g) - f(v + e - g) - f(v - e + g) + f(v - e - g)) / (4 * h * h)
    return H


def test_two_components_agree_with_finite_differences(mixture, groups):
    x, p = groups.numpy(), mixture.parameters
    v = np.array([p["mixing.probs"][0], *p["components.loc"].flatten(), *p["components.covariance"].flatten()])
    information = -central_hessian(lambda u: by_hand(x, u).sum(), v)
    expected = np.sqrt(np.diag(np.linalg.inv(information)))
    got = pv.standard_errors(mixture).standard_error
    order = [got["mixing.probs"][:1], got["components.loc"].flatten(), got["components.covariance"].flatten()]
    np.testing.assert_allclose(torch.cat(order).numpy(), expected, rtol=1e-5)


def test_the_sandwich_agrees_with_finite_differences(mixture, groups):
    x, p = groups.numpy(), mixture.parameters
    v = np.array([p["mixing.probs"][0], *p["components.loc"].flatten(), *p["components.covariance"].flatten()])
    A = -central_hessian(lambda u: by_hand(x, u).sum(), v)
    h = 1e-5
    scores = np.stack([(by_hand(x, v + h * e) - by_hand(x, v - h * e)) / (2 * h) for e in np.eye(5)])
    expected = np.sqrt(np.diag(np.linalg.inv(A) @ (scores @ scores.T) @ np.linalg.inv(A)))
    got = pv.standard_errors(mixture, kind="sandwich").standard_error
    order = [got["mixing.probs"][:1], got["components.loc"].flatten(), got["components.covariance"].flatten()]
    np.testing.assert_allclose(torch.cat(order).numpy(), expected, rtol=1e-4)


def test_the_information_is_a_sum_over_chunks(mixture, monkeypatch):
    whole = pv.standard_errors(mixture, kind="sandwich")
    monkeypatch.setattr("ppl_vae.information.ELEMENTS_AT_ONCE", 500)
    parts = pv.standard_errors(mixture, kind="sandwich")
    torch.testing.assert_close(parts.information, whole.information)
    torch.testing.assert_close(parts.covariance, whole.covariance)


def test_missing_entries_are_integrated_out():
    """With independent features each mean rests on the entries that are there."""
    x = torch.randn(200, 2, dtype=torch.float64)
    x[:80, 1] = math.nan
    fit = pv.EM(tol=1e-13, progress=False).fit(pv.models.GaussianMixture(1, 2, covariance="diagonal"), x)
    seen = x[80:, 1]
    expected = [math.sqrt(x[:, 0].var(correction=0) / 200), math.sqrt(seen.var(correction=0) / 120)]
    assert pv.standard_errors(fit).standard_error["components.loc"][0].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_stream_gives_the_same_errors_as_its_rows(mixture, groups):
    source = pv.data.stream(groups[:, None], rows=70)
    streamed = pv.standard_errors(mixture, source)
    torch.testing.assert_close(streamed.information, pv.standard_errors(mixture).information)
    w = torch.linspace(0, 2, len(groups))
    torch.testing.assert_close(
        pv.standard_errors(mixture, source, weights=w).information,
        pv.standard_errors(mixture, groups, weights=w).information,
    )


@pytest.mark.parametrize("form", ["full", "tied", "diagonal", "spherical"])
def test_errors_follow_the_units(form):
    x = pv.data.faithful().values
    errors = pv.standard_errors(EXACT.fit(pv.models.GaussianMixture(2, 2, covariance=form), x)).standard_error
    scaled = EXACT.fit(pv.models.GaussianMixture(2, 2, covariance=form), 1e-3 * x)
    small = pv.standard_errors(scaled).standard_error
    for name, power in (("mixing.probs", 0), ("components.loc", 1), ("components.covariance", 2)):
        a, b = errors[name].sort(0).values, (small[name] * 1e3**power).sort(0).values
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0)


def test_a_weight_is_a_count_for_the_information():
    x = two_groups(150)
    w = torch.ones(150)
    w[:60] = 3
    weighted = pv.standard_errors(EXACT.fit(pv.models.GaussianMixture(2, 1), x, weights=w))
    rows = torch.arange(150).repeat_interleave(w.long())
    repeated = EXACT.fit(pv.models.GaussianMixture(2, 1), x[rows])
    for name, error in pv.standard_errors(repeated).standard_error.items():
        torch.testing.assert_close(
            weighted.standard_error[name].sort(0).values, error.sort(0).values, rtol=1e-5, atol=0
        )


def test_a_weight_is_an_emphasis_for_the_sandwich():
    """The robust variance of a weighted mean, sum w_i^2 (x_i - m)^2 / (sum w_i)^2."""
    x, w = torch.randn(200, 1, dtype=torch.float64), torch.rand(200, dtype=torch.float64)
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 1), x, weights=w)
    error = pv.standard_errors(fit, kind="sandwich").standard_error["components.loc"].item()
    m = (w @ x / w.sum()).item()
    expected = math.sqrt((w.square() @ (x - m).square()).item()) / w.sum().item()
    assert error == pytest.approx(expected, rel=1e-8)


def test_a_mode_has_the_curvature_of_the_prior_too():
    """Two categories under a Dirichlet prior, whose posterior is known."""

    class Categories(pv.LatentVariableModel):
        """p(x) = Categorical(pi)."""

        def __init__(self):
            super().__init__()
            self.mixing = pv.families.Categorical(2, prior=pv.families.DirichletPrior(4.0))

        @observed
        def x(self):
            return self.mixing()

    x = torch.tensor([0.0] * 12 + [1.0] * 30)
    fit = pv.EM(progress=False).fit(Categories(), x)
    p = (12 + 3) / (42 + 6)
    # The log posterior is 15 log p + 33 log(1 - p): its curvature in p gives p (1 - p) / 48.
    error = pv.standard_errors(fit).standard_error["mixing.probs"]
    assert error.tolist() == pytest.approx([math.sqrt(p * (1 - p) / 48)] * 2, rel=1e-6)


class Softmax(pv.LatentVariableModel):
    """p(z) from a network's bias, p(x | z) normal: a free parameter that no family owns."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))
        self.components = pv.families.Normal(1, batch=2)

    @latent
    def z(self):
        return dist.Categorical(logits=torch.stack([self.logit, -self.logit]))

    @observed
    def x(self, z):
        return self.components(z)


def test_networks_have_standard_errors(mixture, groups):
    """The weight's error is the same through a logit of one's own: dp = 2 p (1 - p) dlogit."""
    fit = pv.EM(start=mixture.responsibilities(groups), tol=1e-13, progress=False).fit(Softmax(), groups)
    errors = pv.standard_errors(fit)
    p = mixture.parameters["mixing.probs"]
    expected = pv.standard_errors(mixture).standard_error
    got = errors.standard_error["logit"] * 2 * p[0] * p[1]
    torch.testing.assert_close(got, expected["mixing.probs"][0], rtol=1e-3, atol=0)
    torch.testing.assert_close(errors.standard_error["components.loc"], expected["components.loc"], rtol=1e-3, atol=0)


def test_coordinates_go_there_and_back(mixture):
    free = coordinates(mixture.model)
    u = free.vector(mixture.parameters)
    assert u.shape == (free.size,) == (5,)
    for name, value in free.values(u).items():
        torch.testing.assert_close(value, mixture.parameters[name])
    assert free.owners() == ["mixing.probs", *["components.covariance"] * 2, *["components.loc"] * 2]


def test_two_equal_components_are_singular(groups):
    same = {
        "mixing.probs": torch.tensor([0.5, 0.5]),
        "components.loc": groups.mean().expand(2, 1),
        "components.covariance": groups.var(correction=0).expand(2, 1, 1),
    }
    fit = pv.EM(start=same, max_iter=3, progress=False).fit(pv.models.GaussianMixture(2, 1), groups)
    with pytest.raises(pv.EngineError, match=r"not positive definite .* mostly"):
        pv.standard_errors(fit)


def test_an_empty_component_is_on_the_boundary(mixture):
    start = {**mixture.parameters, "mixing.probs": torch.tensor([1.0, 1e-13])}
    fit = pv.EM(start=start, max_iter=1, progress=False).fit(pv.models.GaussianMixture(2, 1), mixture.data)
    with pytest.raises(pv.EngineError, match=r"not positive definite|on the boundary"):
        pv.standard_errors(fit)


def test_a_probability_of_zero_is_on_the_boundary():
    class Bits(pv.LatentVariableModel):
        """p(x) = Bernoulli(p)."""

        def __init__(self):
            super().__init__()
            self.bits = pv.families.Bernoulli(2, batch=1)

        @observed
        def x(self):
            return self.bits()

    x = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    with pytest.raises(pv.EngineError, match=r"bits.probs is on the boundary"):
        pv.standard_errors(pv.EM(progress=False).fit(Bits(), x))


def test_a_mixture_of_single_bits_is_not_told():
    """A mixture of Bernoullis of one bit is a Bernoulli, however its shares and chances are chosen."""

    class Bit(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.mixing = pv.families.Categorical(2)
            self.bit = pv.families.Bernoulli(1, batch=2)

        @pv.latent
        def z(self):
            return self.mixing()

        @observed
        def x(self, z):
            return self.bit(z)

    x = (torch.arange(100) % 3 == 0).double()[:, None]
    start = {"mixing.probs": [0.4, 0.6], "bit.probs": [[0.6], [0.2]]}
    with pytest.raises(pv.EngineError, match=r"not told by these data|not positive definite"):
        pv.standard_errors(pv.EM(start=start, progress=False).fit(Bit(), x))


def test_how_far_from_the_maximum_is_said(mixture, groups):
    assert pv.standard_errors(mixture).status.ok
    assert pv.standard_errors(mixture).distance < 1e-3
    other = pv.standard_errors(mixture, groups[:200])
    assert other.distance > 0.1
    assert "standard errors from zero" in str(other.status)


def test_what_has_no_information_is_refused(mixture, groups, tmp_path):
    svi = pv.SVI(3, progress=False).fit(pv.models.GaussianMixture(2, 1, prior="weak"), groups)
    with pytest.raises(pv.EngineError, match="got one by SVI"):
        pv.standard_errors(svi)
    with pytest.raises(pv.EngineError, match="information, sandwich"):
        pv.standard_errors(mixture, kind="robust")
    loaded = pv.Fit.load(mixture.save(tmp_path / "fit.safetensors"), pv.models.GaussianMixture(2, 1))
    with pytest.raises(pv.EngineError, match=r"standard_errors\(fit, data\)"):
        pv.standard_errors(loaded)
    again = pv.standard_errors(loaded, groups).standard_error["components.loc"]
    torch.testing.assert_close(again, pv.standard_errors(mixture).standard_error["components.loc"])


def test_the_frame_the_card_and_the_figure(mixture):
    errors = pv.standard_errors(mixture)
    frame = errors.to_frame()
    row = frame.loc["components.loc[1, 0]"]
    assert row["estimate"] == mixture.parameters["components.loc"][1, 0].item()
    assert row["upper"] - row["lower"] == pytest.approx(2 * 1.959964 * row["standard error"], rel=1e-6)
    narrow = errors.to_frame(level=0.5).loc["components.loc[1, 0]"]
    assert narrow["upper"] - narrow["lower"] == pytest.approx(2 * 0.6744898 * row["standard error"], rel=1e-6)
    assert "components.loc[1, 0]" in repr(errors)
    assert "components.loc[1, 0]" in errors._repr_html_()
    ax = plots.intervals({"information": errors, "sandwich": pv.standard_errors(mixture, kind="sandwich")})
    first = ax.containers[0]
    np.testing.assert_allclose(first.lines[0].get_xdata(), 0, atol=1e-9)
    left = first.lines[1][0].get_xdata()
    np.testing.assert_allclose(left, -1.959964, rtol=1e-6)
    with pytest.raises(pv.EngineError, match="point estimate"):
        plots.intervals({"fit": mixture})


def test_frozen_parameters_are_taken_as_known(mixture, groups):
    engine = pv.EM(start=mixture, tol=1e-13, frozen=("components.covariance",), progress=False)
    errors = pv.standard_errors(engine.fit(pv.models.GaussianMixture(2, 1), groups))
    assert set(errors.estimate) == {"mixing.probs", "components.loc"}
    free = pv.standard_errors(mixture)
    assert errors.information.shape == (3, 3)
    assert (errors.standard_error["components.loc"] < free.standard_error["components.loc"]).all()
    refits = pv.bootstrap(engine.fit(pv.models.GaussianMixture(2, 1), groups), num_samples=3, progress=False)
    assert (refits.draws["components.covariance"][0] == mixture.parameters["components.covariance"]).all()
