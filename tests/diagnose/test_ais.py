"""Annealed importance sampling against closed forms and quadrature."""

import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from example_models import PoissonLatent, bits, numbers, vae

sys.path.insert(0, str(Path(__file__).parent))
from linear import Exact, Narrow, data_of, fitted, weighted

import ppl_vae as pv
from ppl_vae.diagnose import Codes, annealed
from ppl_vae.diagnose.codes import UndefinedError


def codes_of(model, data):
    return Codes(model, model.check(data))


def agrees(found, truth):
    error = found.standard_error.square().sum().sqrt()
    assert abs((found.value - truth).sum()) < 4 * error, (found.value, truth)
    assert error / len(truth) < 0.1
    # Each one too: the largest of n has 4 and a half.
    assert bool(((found.value - truth).abs() < 4.5 * found.standard_error + 0.02).all())


def test_evidence_of_a_linear_model():
    model = weighted(Exact())
    x = data_of(model, 5)
    found = annealed(codes_of(model, x), chains=48, temperatures=30)
    assert found.method == "annealed"
    assert found.value.dtype == torch.float64
    agrees(found, model.exact(x))


def test_the_graph_gives_the_eager_numbers():
    model = weighted(Exact())
    codes = codes_of(model, data_of(model, 3))
    values = []
    for mode in ("trace", "off"):
        torch.manual_seed(1)
        values.append(annealed(codes, chains=4, temperatures=10, compile=mode).value)
    torch.testing.assert_close(*values)


class Positive(pv.LatentVariableModel):
    """p(rate) = LogNormal(0, 1), p(x | rate) = Poisson(rate), with a q that is far off."""

    @pv.latent
    def rate(self):
        return dist.LogNormal(torch.tensor(0.0), 1.0)

    @rate.posterior
    def q_rate(self, x):
        return dist.LogNormal(torch.full_like(x, 3.0), 0.1)

    @pv.observed
    def x(self, rate):
        return dist.Poisson(rate)


def test_a_latent_above_zero_against_quadrature():
    model = Positive().double()
    x = torch.tensor([0.0, 2.0, 7.0]).double()
    grid = torch.linspace(-9, 9, 4001).double()
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(grid) + torch.distributions.Poisson(grid.exp()).log_prob(
        x[:, None]
    )
    truth = torch.logsumexp(log_p, 1) + (grid[1] - grid[0]).log()
    agrees(annealed(codes_of(model, x), chains=48, temperatures=30), truth)


def relaxed(variables, categories):
    torch.manual_seed(0)
    width = variables * categories
    encoder, decoder = pv.nets.linear_decoder(4, width), pv.nets.linear_decoder(width, 4)
    torch.nn.init.normal_(decoder.weight, std=3.0)  # codes that tell much about data
    return pv.models.GumbelVAE(encoder, decoder, variables, categories)


def test_relaxed_categories_against_quadrature():
    """Of two categories y_1 is the logistic of a logistic variable over the temperature."""
    model, x = relaxed(1, 2).double(), bits(4, 4)
    with torch.no_grad():
        u = torch.linspace(0, 1, 20002).double()[1:-1]  # the law of the first coordinate, mapped by its quantiles
        y = torch.sigmoid(torch.logit(u) / model.temperature)
        law = model.likelihood(model.decoder(torch.stack([y, 1 - y], 1)))
        truth = torch.stack([torch.logsumexp(law.log_prob(row), 0) for row in x]) - torch.tensor(20000.0).log()
    agrees(annealed(codes_of(model, x), chains=48, temperatures=30), truth)


def test_many_relaxed_categories_against_draws_of_the_prior():
    model, x = relaxed(2, 3), bits(4, 4).float()
    with torch.no_grad():
        z = model.sample_joint(200_000)["z"]
        law = model.likelihood(model.decoder(z.exp().flatten(-2)))
        truth = torch.stack([torch.logsumexp(law.log_prob(row).double(), 0) for row in x])
    truth -= torch.tensor(200_000.0).log()
    agrees(annealed(codes_of(model, x), chains=48, temperatures=30), truth)


class Conditional(pv.LatentVariableModel):
    """p(z | c) = N(c, 1), p(x | z) = N(z, 1): log p(x | c) = log N(x; c, 2)."""

    c = pv.given()

    @pv.latent
    def z(self, c):
        return dist.Normal(c, 1.0)

    @z.posterior
    def q_z(self, x, c):
        return dist.Normal((x + c) / 2, 0.5**0.5)

    @pv.observed
    def x(self, z):
        return dist.Normal(z, 1.0)


def test_a_prior_that_depends_on_inputs():
    model = Conditional().double()
    data = {"x": numbers(6, seed=1) * 2, "c": numbers(6, seed=2)}
    truth = torch.distributions.Normal(data["c"], 2.0**0.5).log_prob(data["x"])
    agrees(annealed(codes_of(model, data), chains=48, temperatures=20), truth)
    found = fitted(model).diagnose(data, num_particles=25, gap_data=0)
    assert found["KL(q(z) || p)"].text == (
        "not defined: the prior depends on c, a value of each datum: there is no one p(z)"
    )
    assert found["gap"].value == pytest.approx(0.0, abs=1e-12)


def test_the_check_warns_where_q_misses_the_posterior():
    model = weighted(Narrow())
    model.width = 0.02
    found = fitted(model).diagnose(data_of(model, 20), num_particles=50, gap_data=0, ais_data=5)
    assert found["annealed log p(x)"].ok is False
    assert any("annealed" in said for said in found.advice)


def test_float32_networks_are_annealed():
    torch.manual_seed(0)
    model, x = vae(), bits(4, 6).float()
    found = annealed(codes_of(model, x), chains=16, temperatures=30)
    with torch.no_grad():
        truth = model.log_prob(x, 20000).double()
    agrees(found, truth)


def test_a_discrete_latent_cannot_be_moved():
    model = PoissonLatent().double()
    with pytest.raises(UndefinedError, match="z is discrete"):
        annealed(codes_of(model, numbers(3)))


def apart():
    """Two clusters of codes, one wide and one narrow."""
    loc = torch.tensor([[-1.5, 0.5], [1.0, -1.0]])
    tril = torch.tensor([[[0.8, 0.0], [0.3, 0.6]], [[0.4, 0.0], [-0.1, 0.3]]])
    return pv.priors.Mixture.of(torch.tensor([0.3, 0.7]), loc, tril @ tril.mT)


def of_encodings():
    torch.manual_seed(3)
    return pv.priors.Vamp(2, 3, activation=torch.nn.Identity(), scale=2.0)


def linear(prior, encoder=None):
    """A VAE with a linear decoder whose prior is a mixture of normals."""
    torch.manual_seed(1)
    encoder = encoder or pv.nets.linear_encoder(3, 2)
    model = pv.models.VAE(encoder, pv.nets.linear_decoder(2, 3), pv.likelihoods.Gaussian(0.5), prior=prior)
    return weighted(model)


def mixture_evidence(model, x):
    """log p(x) = log sum_k w_k N(x; W m_k + b, W S_k W' + s^2 I)."""
    prior, W = model.prior(model.q_z), model.decoder.weight
    each = prior.component_distribution
    means = each.mean @ W.T + model.decoder.bias
    spread = getattr(each, "covariance_matrix", None)
    spread = each.variance.diag_embed() if spread is None else spread
    law = torch.distributions.MultivariateNormal(means, W @ spread @ W.T + 0.25 * torch.eye(3, dtype=x.dtype))
    return torch.logsumexp(prior.mixture_distribution.probs.log() + law.log_prob(x[:, None]), 1)


@pytest.mark.parametrize("prior", [apart, of_encodings])
def test_a_prior_that_is_a_mixture_of_normals_against_its_closed_form(prior):
    model = linear(prior())
    x = data_of(model, 4)
    with torch.no_grad():
        truth = mixture_evidence(model, x)
    agrees(annealed(codes_of(model, x), chains=96, temperatures=40), truth)


def test_a_refitted_prior_is_annealed_in_a_diagnosis():
    fit = fitted(linear(pv.priors.Normal(2)))
    x = data_of(fit.model, 60)
    again = pv.refit_prior(fit, x, n_components=2)
    found = again.diagnose(x, num_particles=30, gap_data=0, ais_data=2)
    assert found["annealed log p(x)"].value is not None
    with torch.no_grad():
        agrees(annealed(codes_of(again.model, x[:3]), chains=96, temperatures=40), mixture_evidence(again.model, x[:3]))


class Flat(pv.LatentVariableModel):
    """z is in one of two intervals, each with ends of its own."""

    @pv.latent
    def z(self):
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Uniform(torch.tensor([0.0, 4.0]), 5.0))

    @z.posterior
    def q_z(self, x):
        return dist.Uniform(torch.full_like(x, 4.1), 4.9)

    @pv.observed
    def x(self, z):
        return dist.Normal(z, 1.0)


def test_a_mixture_whose_components_have_ends_of_their_own_is_not_annealed():
    model = Flat().double()
    with pytest.raises(UndefinedError, match="no free coordinates"):
        annealed(codes_of(model, numbers(3)))
