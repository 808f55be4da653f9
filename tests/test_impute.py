"""Imputation: E[x_missing | x_seen], against quadrature of the model's own density, enumeration and closed forms."""

import pyro.distributions as dist
import pytest
import torch
from example_models import FamilyMixture, numbers

import ppl_vae as pv
from ppl_vae import families, latent, observed

NAN = torch.nan


FAMILIES = {
    **{
        form: lambda form=form: families.Normal(2, covariance=form, batch=2)
        for form in ("full", "tied", "diagonal", "spherical")
    },
    "student": lambda: families.StudentT(2, batch=2),
    "exponentials": lambda: families.Product({"a": families.Exponential(batch=2), "b": families.Exponential(batch=2)}),
    "normals": lambda: families.Product({"a": families.Normal(1, batch=2), "b": families.Normal(1, batch=2)}),
}


def fitted(name):
    z = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.4
    x = numbers(200, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]).double() + 3 * z[:, None] * torch.tensor([1.0, -1.0])
    x = x.exp() if name == "exponentials" else x
    return pv.EM(max_iter=20, tol=0, progress=False).fit(FamilyMixture(FAMILIES[name]()).double(), x), x


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_of_a_missing_entry_is_that_of_the_models_own_density(name):
    fit, x = fitted(name)
    if name == "exponentials":
        grid = torch.linspace(-25, 7, 40_001).double().exp()
    else:  # the tails of a Student-t are as heavy as its degrees of freedom are few
        grid = (torch.linspace(-9, 9, 40_001).double()).sinh()
    for row, gone in ((0, 0), (1, 1), (2, 1)):
        gappy = x[row : row + 1].clone()
        gappy[0, gone] = NAN
        points = gappy.repeat(len(grid), 1)
        points[:, gone] = grid
        p = fit.log_prob(points).exp()
        expected = gappy.clone()
        expected[0, gone] = torch.trapezoid(grid * p, grid) / torch.trapezoid(p, grid)
        torch.testing.assert_close(fit.impute(gappy), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_seen_stays_and_what_was_not_is_a_number(name):
    fit, x = fitted(name)
    gappy = x[:6].clone()
    gappy[0], gappy[2, 0], gappy[4, 1] = NAN, NAN, NAN
    found = fit.impute(gappy)
    assert bool(found.isfinite().all())
    assert torch.equal(found[~gappy.isnan()], gappy[~gappy.isnan()])
    assert torch.equal(fit.impute(x), x)
    # Where nothing was seen it is the mean of the mixture.
    torch.testing.assert_close(found[0], fit.reconstruct(gappy)[0])


def table():
    """A number, and answers of three kinds that go with it."""
    low = torch.rand(300, generator=torch.Generator().manual_seed(1)) < 0.5
    number = torch.where(low, -3.0, 3.0) + numbers(300)
    answers = torch.where(low, 0.0, 2.0)[:, None].repeat(1, 2).double()
    answers[::7] = 1.0
    return torch.cat([number[:, None], answers], 1)


def answered():
    blocks = {"number": families.Normal(1, batch=2), "answers": families.CategoricalVector(3, 2, batch=2)}
    return FamilyMixture(families.Product(blocks)).double()


def test_a_missing_category_is_the_most_probable_one():
    x = table()
    fit = pv.EM(progress=False).fit(answered(), x)
    gappy = x[:40].clone()
    gappy[:, 2] = NAN
    each = []
    for category in range(3):
        gappy_with = gappy.clone()
        gappy_with[:, 2] = category
        each.append(fit.log_prob(gappy_with))
    found = fit.impute(gappy)
    assert torch.equal(found[:, 2], torch.stack(each).argmax(0).double())
    assert len(found[:, 2].unique()) > 1


class Answers(pv.LatentVariableModel):
    """p(x) = probs, for draws of it."""

    @latent(shared=True)
    def probs(self):
        return dist.Dirichlet(torch.ones(3))

    @observed
    def x(self, probs):
        return dist.Categorical(probs)

    @observed
    def y(self, probs):
        return dist.Normal(probs[..., 0], 1.0)


def test_over_draws_it_is_the_mean_of_probabilities_not_of_codes():
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.4, 0.6], [0.0, 0.4, 0.6]])
    fit = pv.Fit(Answers(), "NUTS", {"probs": probs[None]}, {}, "none", pv.Status("finished", ""), 0.0, 0)
    found = fit.impute({"x": torch.tensor([NAN, 1.0]), "y": torch.tensor([NAN, NAN])})
    assert found["x"].tolist() == [2.0, 1.0]  # of the mean codes 0, 2, 2 there is none
    torch.testing.assert_close(found["y"], torch.full((2,), 0.3))
    rebuilt = fit.reconstruct({"x": torch.tensor([0, 1]), "y": torch.zeros(2)})
    torch.testing.assert_close(rebuilt["x"], probs.mean(0).expand(2, 3))


def test_categories_of_a_mixture_are_reconstructed_as_probabilities():
    x = table()[:, 1].long()
    model = FamilyMixture(families.Categorical(3, batch=2))
    fit = pv.EM(max_iter=5, progress=False).fit(model, x)
    expected = fit.responsibilities(x) @ fit.parameters["components.probs"]
    torch.testing.assert_close(fit.reconstruct(x), expected.to(fit.reconstruct(x)))


class Factor(pv.LatentVariableModel):
    """z ~ N(0, 1), x ~ N(w z, 1/2), whose posterior is found by local optimisation."""

    w = torch.tensor([1.0, -2.0, 0.5]).double()

    @latent
    def z(self):
        return dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)

    @observed
    def x(self, z):
        return dist.Normal(z[..., None] * self.w, 0.5).to_event(1)


def test_a_continuous_latent_carries_what_was_seen():
    model, x = Factor().double(), numbers(5, 3)
    x[:, 1] = NAN
    x[2, 0] = NAN
    expected = x.clone()
    for row in range(5):
        seen = ~x[row].isnan()
        precision = 1 + 4 * model.w[seen].square().sum()
        mean = 4 * (model.w[seen] * x[row][seen]).sum() / precision
        expected[row][~seen] = mean * model.w[~seen]
    # The posterior's standard deviation is at most 0.71, times |w| <= 2, over 4,000 draws.
    close = {"atol": 4 * 1.42 / 4_000**0.5 + 2e-3, "rtol": 0}
    torch.testing.assert_close(model.impute(x, 4_000), expected, **close)
    fit = pv.Fit(model, "SVI", {}, {}, "none", pv.Status("finished", ""), 0.0, 0)
    torch.testing.assert_close(fit.impute(x, 4_000), expected, **close)
    torch.testing.assert_close(fit.reconstruct(x, 4_000)[x.isnan()], expected[x.isnan()], **close)


@pytest.mark.parametrize("law", [dist.Cauchy(0.0, 1.0), dist.MultivariateStudentT(0.5, torch.zeros(2), torch.eye(2))])
def test_what_has_no_mean_is_not_imputed(law):
    class NoMean(pv.LatentVariableModel):
        @observed
        def x(self):
            return law

    x = torch.full((3, *law.event_shape), NAN)
    with pytest.raises(pv.EngineError, match=r"impute gives means, and 'x', a .*, has none"):
        NoMean().impute(x)
    whole = torch.zeros(3, *law.event_shape)
    assert torch.equal(NoMean().impute(whole), whole)


@pytest.fixture(scope="module")
def factors():
    """A linear VAE trained on complete data: its decoder's own density has every conditional mean."""
    torch.manual_seed(0)
    x = torch.randn(500, 2) @ torch.tensor([[2.0, 1.8], [0.3, -0.2], [1.0, 1.0]]).T + 0.5 * torch.randn(500, 3) + 3
    networks = pv.nets.linear_encoder(3, 2), pv.nets.linear_decoder(2, 3)
    vae = pv.models.VAE(*networks, pv.likelihoods.Gaussian(0.5))
    return pv.SVI(300, optimizer=pv.adam(3e-2), compile="trace", progress=False).fit(vae, x), x


def test_what_an_encoder_has_not_seen_is_inferred(factors):
    """The encoder takes a missing entry for a zero, and its q lies far from the posterior."""
    fit, x = factors
    gappy = x[:6].clone()
    gappy[:5, 0] = NAN  # the last row is whole
    W, b = fit.model.decoder.weight, fit.model.decoder.bias
    C = W @ W.T + 0.25 * torch.eye(3)
    expected = b[0] + C[0, 1:] @ torch.linalg.solve(C[1:, 1:], (x[:5, 1:] - b[1:]).T)
    found = fit.impute(gappy, 4000)
    torch.testing.assert_close(found[:5, 0], expected, rtol=0, atol=0.15)  # a draw's deviation is about 1
    assert torch.equal(found[:, 1:], gappy[:, 1:])
    assert torch.equal(found[5], x[5])
    nothing = fit.reconstruct(torch.full((1, 3), NAN), 4000)
    torch.testing.assert_close(nothing[0], b, rtol=0, atol=0.2)


def test_log_prob_of_what_was_seen_does_not_rest_on_what_was_not(factors):
    """log N(x_seen; b, W W^T + 0.25 I) of the seen entries, where draws of the encoder's q miss the posterior."""
    fit, x = factors
    gappy = x[:40].clone()
    gappy[:20, 0] = gappy[20:30, 2] = NAN
    W, b = fit.model.decoder.weight.detach(), fit.model.decoder.bias.detach()
    C = W @ W.T + 0.25 * torch.eye(3)
    seen = [~row.isnan() for row in gappy]
    exact = [dist.MultivariateNormal(b[s], C[s][:, s]).log_prob(row[s]) for s, row in zip(seen, gappy, strict=True)]
    found = fit.log_prob(gappy, 1000)
    torch.testing.assert_close(found, torch.stack(exact), rtol=0, atol=0.25)
    assert (found - torch.stack(exact)).mean().abs() < 0.01
    assert fit.evaluate(gappy, 1000).min_ess > 300


def test_rows_with_gaps_under_a_mixture_prior_have_qs_of_their_own_too(factors):
    """p(z) = sum_k N(mu_k, I) / 2, so that p(x_seen) is a mixture of two normals."""
    fit, x = factors
    torch.manual_seed(0)
    prior = pv.priors.Mixture(2, 2)
    model = pv.models.VAE(fit.model.encoder, fit.model.decoder, pv.likelihoods.Gaussian(0.5), prior=prior).eval()
    gappy = x[:20].clone()
    gappy[:, 0] = NAN
    W, b = model.decoder.weight.detach(), model.decoder.bias.detach()
    with torch.no_grad():
        law = prior()
        S = torch.diag_embed(law.component_distribution.variance)
        C, m = W @ S @ W.T + 0.25 * torch.eye(3), law.component_distribution.mean @ W.T + b
        each = dist.MultivariateNormal(m[:, 1:], C[:, 1:, 1:]).log_prob(gappy[:, None, 1:])
        exact = (law.mixture_distribution.logits.log_softmax(-1) + each).logsumexp(-1)
        found = model.log_prob(gappy, 2000)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.3)
    assert (found - exact).mean().abs() < 0.03


class Bayesian(pv.LatentVariableModel):
    """z ~ N(0, 1), x ~ N(z + shift, 0.5) of two features, and an encoder that takes what is missing for zeros."""

    @latent(shared=True)
    def shift(self):
        return dist.Normal(0.0, 10.0)

    @latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @z.posterior
    def q_z(self, x):
        return dist.Normal((x.sum(-1) - 10) * 4 / 9, 1 / 3)  # exact for shift = 5

    @observed
    def x(self, z, shift):
        return dist.Normal((z + shift)[..., None].expand(*z.shape, 2), 0.5).to_event(1)


def test_over_draws_of_theta_log_prob_of_what_was_seen_is_so_too(monkeypatch):
    x = torch.tensor([[5.0, 6.0], [4.0, NAN], [NAN, 5.5], [NAN, 3.0]])
    fit = pv.SVI(1, progress=False).fit(Bayesian(), x[:1])
    shift = 5 + torch.linspace(-0.3, 0.3, 40)
    fit = pv.Fit(**{**vars(fit), "draws": {"shift": shift[None]}})
    calls, sites = [], Bayesian.bound_sites
    monkeypatch.setattr(Bayesian, "bound_sites", lambda self, *rest: calls.append(1) or sites(self, *rest))
    found = fit.pointwise(x, 400)[0]
    for row, own in zip(x, found.T, strict=True):
        seen = ~row.isnan()
        C = torch.ones(2, 2) + 0.25 * torch.eye(2)
        law = dist.MultivariateNormal(shift[:, None].expand(-1, int(seen.sum())), C[seen][:, seen])
        torch.testing.assert_close(own, law.log_prob(row[seen]), rtol=0, atol=0.3)
        assert (own - law.log_prob(row[seen])).mean().abs() < 0.05
    assert 0 < len(calls) < 1500  # not a search for each draw


def test_complete_data_are_reconstructed_by_the_encoder(factors):
    fit, x = factors
    decoded = fit.model.decoder(fit.posterior(x[:3]).mean)
    decoded = decoded[0] if isinstance(decoded, tuple) else decoded
    torch.testing.assert_close(fit.reconstruct(x[:3], 4000), decoded, rtol=0, atol=0.1)
