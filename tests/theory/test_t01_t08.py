"""T1 to T8: the bound, the evidence, entropies and mixtures, against enumeration and quadrature."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from example_models import LinearGaussian, LinearVAE, make, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.distributions import Categorical, MultivariateNormal, Normal, kl_divergence

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.objectives import Sites

GRID = torch.linspace(-12, 12, 20_001, dtype=torch.float64)


class Logistic(pv.LatentVariableModel):
    """z ~ N(0, 1), three bits with logits w z + b, q(z | x) = N(v x, s^2): nothing is in closed form."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(numbers(3, seed=1) * 2), nn.Parameter(numbers(3, seed=2))
        self.v, self.log_s = nn.Parameter(0.4 * numbers(3, seed=3)), nn.Parameter(torch.tensor(-0.4))

    @latent
    def z(self):
        return dist.Normal(torch.tensor(0.0), 1.0)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(x @ self.v, self.log_s.exp())

    @observed
    def x(self, z):
        return dist.Bernoulli(logits=z[..., None] * self.w + self.b).to_event(1)


BITS = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def logistic():
    """The model, its log joint and its log q on the grid, [grid, n]."""
    model = Logistic().double()
    with torch.no_grad():
        joint = torch.stack([model.log_joint(BITS[i].expand(len(GRID), 3), z=GRID) for i in range(4)], 1)
        log_q = model.q_z(BITS).log_prob(GRID[:, None])
    return model, joint, log_q


def integral(value):
    return torch.trapezoid(value, GRID, dim=0)


def draws_of(objective, model, x, times):
    with torch.no_grad(), model.numeric():
        return objective(model.sites(model.check(x).repeat(times * objective.num_particles))).reshape(times, -1)


def agree(draws, expected):
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() < 4 * error).all()), (draws.mean(0), expected, error)


# T1


@pytest.mark.parametrize("seed", range(5))
def test_t01_evidence_is_bound_plus_divergence_by_enumeration(seed):
    model, x = make("finite posterior")
    with torch.no_grad():
        model.slope.copy_(2 * numbers(2, seed=seed))  # any q
        q = model.q_a(x).probs
    posterior = model.responsibilities(x)["a"]
    divergence = (q * (q.log() - posterior.log())).sum(1)
    torch.testing.assert_close(model.elbo(x) + divergence, model.log_prob(x), rtol=0, atol=1e-10)


def test_t01_evidence_is_bound_plus_divergence_by_quadrature(logistic):
    model, joint, log_q = logistic
    evidence = integral(joint.exp()).log()
    bound = integral(log_q.exp() * (joint - log_q))
    divergence = integral(log_q.exp() * (log_q - (joint - evidence)))
    torch.testing.assert_close(bound + divergence, evidence, rtol=0, atol=1e-10)
    agree(draws_of(pv.elbo(), model, BITS, 20_000), bound)
    found = model.evidence(BITS, num_particles=20_000)
    assert bool(((found.value - evidence).abs() < 4 * found.standard_error).all())
    assert bool((divergence > 0.01).all())


# T2


def test_t02_three_forms_of_the_bound_are_equal(logistic):
    model, joint, log_q = logistic
    q, p = model.q_z(BITS), Normal(torch.zeros(4).double(), 1.0)
    likelihood = joint - p.log_prob(GRID[:, None])
    with torch.no_grad():
        first = integral(log_q.exp() * likelihood) - kl_divergence(Normal(q.loc, q.scale), p)
        second = integral(log_q.exp() * joint) + q.entropy()
        third = integral(log_q.exp() * (joint - log_q))
    torch.testing.assert_close(first, third, rtol=0, atol=1e-9)
    torch.testing.assert_close(second, third, rtol=0, atol=1e-9)
    for kl in ("sampled", "analytic"):
        agree(draws_of(pv.elbo(kl=kl), model, BITS, 20_000), third)


def test_t02_three_forms_of_the_bound_are_equal_for_finite_latents():
    model, x = make("finite posterior")
    q, p = model.q_a(x), model.a()
    a = torch.arange(2)[:, None]
    with torch.no_grad():
        given_a = torch.stack(
            [
                torch.logsumexp(model.b(k).logits[:, None] + model.x(k, torch.arange(3)[:, None]).log_prob(x), 0)
                for k in (0, 1)
            ]
        )
        weights = q.probs.T
        first = (weights * given_a).sum(0) - kl_divergence(q, p.expand([6]))
        second = (weights * (given_a + p.log_prob(a))).sum(0) + q.entropy()
    torch.testing.assert_close(first, model.elbo(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(second, model.elbo(x), rtol=0, atol=1e-12)


# T3 and T4: the prior as q


class PriorAsPosterior(LinearGaussian):
    @LinearGaussian.z.posterior
    def q_z(self, x):
        return dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)


def with_exact_posterior():
    """A linear VAE whose q is its posterior: orthogonal columns, so that a diagonal covariance is exact."""
    model, x = LinearVAE().double(), numbers(6, 3)
    with torch.no_grad():
        model.decoder.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]))
        W, b = model.decoder.weight, model.decoder.bias
        variance = 1 / (1 + W.square().sum(0) / 0.25)
        model.encoder.loc.weight.copy_(variance[:, None] * W.T / 0.25)
        model.encoder.loc.bias.copy_(-(model.encoder.loc.weight @ b))
        model.encoder.log_scale.copy_(variance.log() / 2)
    prior = PriorAsPosterior().double()
    prior.decoder.load_state_dict(model.decoder.state_dict())
    return model, prior, x


def test_t03_the_naive_bound_is_far_looser_than_the_bound_at_its_best_q():
    model, prior, x = with_exact_posterior()
    with torch.no_grad():
        evidence, W, b = model.exact(x), model.decoder.weight, model.decoder.bias
        naive = Normal(b, 0.5).log_prob(x).sum(1) - W.square().sum() / (2 * 0.25)
    agree(draws_of(pv.elbo(), prior, x, 20_000), naive)
    torch.testing.assert_close(model.elbo(x), evidence)
    assert bool((naive < evidence - 3).all())


def test_t03_jensen_for_any_q():
    model, x = make("finite posterior")
    for seed in range(20):
        with torch.no_grad():
            model.slope.copy_(3 * numbers(2, seed=seed))
        assert bool((model.elbo(x) <= model.log_prob(x) + 1e-12).all())


def test_t04_naive_monte_carlo_converges_and_its_sample_size_shows_why_a_q_is_needed():
    model, prior, x = with_exact_posterior()
    exact = model.exact(x).detach()
    naive = prior.evidence(x, num_particles=50_000)
    assert bool(((naive.value - exact).abs() < 4 * naive.standard_error).all())
    with torch.no_grad():
        by_hand = Normal(model.decoder(numbers(50_000, 2)), 0.5).log_prob(x[:, None]).sum(-1)
    share = by_hand.softmax(1)
    expected = 1 / share.square().sum(1)
    torch.testing.assert_close(naive.effective_sample_size, expected, rtol=0.3, atol=0)
    with_q = model.evidence(x, num_particles=50_000)
    assert bool((with_q.effective_sample_size > 3 * naive.effective_sample_size).all())
    few, many = (prior.evidence(x, num_particles=count) for count in (500, 50_000))
    assert many.standard_error.mean() < few.standard_error.mean() / 4


# T5


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_t05_gibbs_principle_on_a_finite_space(seed):
    model, x = make("mixture, full")
    with torch.no_grad():
        eta = model.mixing.probs
        g = model.components(torch.arange(2)[:, None]).log_prob(x)  # any function on the latent space
    xi = (3 * numbers(6, 2, seed=seed)).softmax(1)
    value = (xi * (g.T - xi.log() + eta.log())).sum(1)
    supremum = model.log_prob(x)
    assert bool((value <= supremum + 1e-12).all())
    tilted = model.responsibilities(x)
    attained = (tilted * (g.T - tilted.log() + eta.log())).sum(1)
    torch.testing.assert_close(attained, supremum, rtol=0, atol=1e-12)


def test_t05_gibbs_principle_on_normals():
    model, x = make("linear vae")
    model.noise = 0.9
    with torch.no_grad():
        tilted, W, b = model.exact_posterior(x), model.decoder.weight, model.decoder.bias

        def value(xi):
            """E_xi log p(x | z) - KL(xi || N(0, I)), closed form."""
            expected = Normal(xi.loc @ W.T + b, 0.9).log_prob(x).sum(1)
            expected = expected - torch.einsum("ij,njk,ik->n", W, xi.covariance_matrix, W) / (2 * 0.81)
            return expected - kl_divergence(xi, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))

        torch.testing.assert_close(value(tilted), model.exact(x))
        for seed in range(10):
            moved = MultivariateNormal(tilted.loc + 0.3 * numbers(6, 2, seed=seed), 1.2 * tilted.covariance_matrix)
            assert bool((value(moved) < model.exact(x)).all())


# T6


def test_t06_divergence_of_a_diagonal_normal_from_the_standard_one():
    model, x = make("linear vae")
    with torch.no_grad(), model.numeric():
        sites = model.sites(model.check(x).repeat(5000))
        m, s = model.encoder(x)
        closed = 0.5 * (m.square() + s.square() - 1 - 2 * s.log()).sum(1)
        pyros = dist.kl.kl_divergence(dist.Normal(m, s).to_event(1), dist.Normal(torch.zeros(2), 1.0).to_event(1))
        found = -pv.elbo(kl="analytic").divergence(sites, "z")[:6]
    torch.testing.assert_close(found, closed, rtol=0, atol=1e-12)
    torch.testing.assert_close(pyros, closed, rtol=0, atol=1e-12)
    agree((sites.log_q["z"] - sites.log_p["z"]).reshape(5000, 6), closed)


def test_t06_expected_log_density_of_one_normal_under_another():
    factors = [numbers(3, 3, seed=seed).tril() + 2 * torch.eye(3).double() for seed in (1, 2)]
    (m1, S1), (m2, S2) = [(numbers(3, seed=s + 4), L @ L.T) for s, L in enumerate(factors)]
    q, p = MultivariateNormal(m1, S1), MultivariateNormal(m2, S2)
    off, inverse = m1 - m2, torch.linalg.inv(S2)
    closed = -0.5 * (3 * math.log(2 * math.pi) + S2.logdet() + (inverse @ S1).trace() + off @ inverse @ off)
    torch.testing.assert_close(closed, -q.entropy() - kl_divergence(q, p))
    agree(p.log_prob(q.sample((20_000, 1))), closed)
    # The same number as the normal family's log-likelihood of moments: N = 1, sum x = m~, sum x x' = S~ + m~ m~'.
    family = pv.families.Normal(3).double()
    values = family.maximize(
        {"count": torch.ones(1).double(), "first": m1[None], "second": (S1 + torch.outer(m1, m1))[None]}, "ml"
    )
    torch.testing.assert_close(values["covariance"][0], S1)
    torch.testing.assert_close(values["loc"][0], m1)


# T7

PROBABILITIES = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64) / sum(values)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(PROBABILITIES, PROBABILITIES)
def test_t07_divergence_is_cross_entropy_minus_entropy_and_not_negative(q, p):
    sites = Sites({"z": p.log()[:, None]}, {"z": q.log()[:, None]}, enumerated={"z": -2})
    divergence = -pv.elbo()(sites).item()  # a model of z alone: its bound is -KL(q || p)
    entropy, cross = -(q * q.log()).sum().item(), -(q * p.log()).sum().item()
    assert divergence == pytest.approx(cross - entropy, abs=1e-12)
    assert divergence == pytest.approx(stats.entropy(q.numpy(), p.numpy()), abs=1e-12)
    assert divergence / math.log(2) == pytest.approx(stats.entropy(q.numpy(), p.numpy(), base=2), abs=1e-12)
    assert divergence == pytest.approx(kl_divergence(Categorical(q), Categorical(p)).item(), abs=1e-9)
    assert divergence >= 0.5 * (q - p).abs().sum().item() ** 2 - 1e-12  # Pinsker: zero only where they are equal


@settings(max_examples=50, deadline=None, derandomize=True)
@given(PROBABILITIES)
def test_t07_entropy_is_largest_for_the_uniform_distribution(q):
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    sites = Sites({"z": uniform.log()[:, None]}, {"z": q.log()[:, None]}, enumerated={"z": -2})
    entropy = pv.elbo()(sites).item() + math.log(3)
    assert entropy == pytest.approx(Categorical(q).entropy().item(), abs=1e-9)
    assert entropy <= math.log(3) + 1e-12
    half = Categorical(torch.tensor([0.5, 0.5, 0.0]).double()).entropy().item()
    assert half < math.log(3)  # "largest at one half" holds for two outcomes only


# T8


def test_t08_complete_and_incomplete_likelihood_of_a_mixture():
    model, x = make("mixture, full")
    pi, mu, sigma = (
        v.detach().numpy() for v in (model.mixing.probs, model.components.loc, model.components.covariance)
    )
    density = np.stack([stats.multivariate_normal.pdf(x.numpy(), mu[k], sigma[k]) for k in (0, 1)], 1)
    incomplete = np.log(density @ pi)
    np.testing.assert_allclose(model.log_prob(x).numpy(), incomplete, rtol=1e-12)
    z = torch.tensor([0, 1, 1, 0, 1, 0])
    complete = np.log(pi[z] * density[np.arange(6), z])  # the weights belong to it: log p(z), not log q(z)
    np.testing.assert_allclose(model.log_joint(x, z=z).detach().numpy(), complete, rtol=1e-12)
    both = torch.stack([model.log_joint(x, z=torch.full((6,), k)) for k in (0, 1)])
    torch.testing.assert_close(both.logsumexp(0).detach(), model.log_prob(x))
