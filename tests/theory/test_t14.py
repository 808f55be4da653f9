"""T14: a q with parameters of its own for every datum against an encoder's, where the best q is known."""

import torch
from torch import nn
from torch.nn.functional import linear

import ppl_vae as pv
from ppl_vae.diagnose.codes import Codes
from ppl_vae.diagnose.gap import local_bound

N, D, K, S = 30, 5, 2, 0.7


class FixedDecoder(nn.Module):
    """W z + b that no fit moves."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("weight", torch.randn(D, K, generator=generator, dtype=torch.float64))
        self.register_buffer("bias", torch.randn(D, generator=generator, dtype=torch.float64))

    def forward(self, z):
        return linear(z, self.weight, self.bias)


class Blinkered(nn.Module):
    """An encoder that sees the first pixel only, so that it cannot know the posterior."""

    output_size = K

    def __init__(self):
        super().__init__()
        self.net = pv.nets.mlp_encoder(1, 8, K)

    def forward(self, x):
        return self.net(x[..., :1])


def law():
    return pv.likelihoods.Gaussian(S)


def data(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, K, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, D, generator=generator, dtype=torch.float64)
    decoder = FixedDecoder()
    return decoder(z) + S * noise


def best(x):
    """Mean and scale of the best factorised q of each datum, its bound, and the precision of p(z | x).

    The posterior is N(m, P^-1); the best factorised normal has its mean and the variances 1 / P_jj.
    """
    W, b = FixedDecoder().weight, FixedDecoder().bias
    precision = torch.eye(K, dtype=x.dtype) + W.T @ W / S**2
    mean = torch.linalg.solve(precision, ((x - b) @ W / S**2).T).T
    scale = precision.diagonal().rsqrt()
    covariance = W @ W.T + S**2 * torch.eye(D, dtype=x.dtype)
    evidence = torch.distributions.MultivariateNormal(b, covariance).log_prob(x)
    return mean, scale, evidence - (precision.diagonal().log().sum() - precision.logdet()) / 2, precision


def below(x, loc, scale):
    """How far q = N(loc, diag scale^2) stays below the best factorised one, in closed form, [n] nats."""
    mean, _, _, precision = best(x)
    d = loc - mean
    stretch = scale.square() * precision.diagonal()
    return ((d @ precision) * d).sum(-1) / 2 + (stretch - 1 - stretch.log()).sum(-1) / 2


def amortised(encoder):
    torch.manual_seed(0)
    model = pv.models.VAE(encoder(), FixedDecoder(), law()).double()
    steps = pv.scheduled(pv.adam(0.05), torch.optim.lr_scheduler.ExponentialLR, gamma=0.985)
    engine = pv.SVI(400, None, steps, pv.elbo(8, kl="analytic"), compile="trace", progress=False)
    return engine.fit(model, data())


def local_fit(x, epochs, mode):
    model = pv.models.DeepLatentVariableModel(FixedDecoder(), K, law()).double()
    steps = pv.scheduled(pv.adam(0.2), torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)
    engine = pv.SVI(epochs, 15, steps, pv.elbo(16, kl="analytic"), compile=mode, progress=False)
    return engine.fit(model, x).model.local_posteriors["z"]


def test_t14_sparse_rows_reach_the_best_q_of_every_datum():
    """Minibatches move only their own rows; at the end each row is the closed form's, and its bound the best."""
    x = data()
    q = local_fit(x, 200, "trace")
    mean, scale, *_ = best(x)
    torch.testing.assert_close(q.loc, mean, rtol=0, atol=0.05)
    torch.testing.assert_close(q.log_scale.exp(), scale.expand(N, K), rtol=0.1, atol=0)
    assert below(x, q.loc, q.log_scale.exp()).max() < 5e-3


def test_t14_traced_rows_are_the_eager_ones():
    x = data()
    traced, eager = (local_fit(x, 4, mode) for mode in ("trace", "off"))
    torch.testing.assert_close(traced.loc, eager.loc, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(traced.log_scale, eager.log_scale, rtol=1e-10, atol=1e-12)


def test_t14_new_data_get_a_q_of_their_own():
    x = data(10, seed=4)
    model = pv.models.DeepLatentVariableModel(FixedDecoder(), K, law()).double()
    q = model.posterior(x)
    assert below(x, q.base_dist.loc, q.base_dist.scale).max() < 0.06  # of the 300 steps of its search
    torch.manual_seed(0)
    z = q.sample((500,))
    spread = (torch.stack([model.log_joint(x, z=one) for one in z]) - q.log_prob(z)).std(0)
    expected = best(x)[2] - below(x, q.base_dist.loc, q.base_dist.scale)
    assert bool(((model.elbo(x, 2000) - expected).abs() < 4 * spread / 2000**0.5).all())


def test_t14_an_encoder_is_never_above_the_best_q_of_a_datum():
    """What it loses is the closed form's; a linear model's encoder loses nothing, one that sees a pixel much."""
    x, bound = data(), best(data())[2]
    lost = {}
    for encoder in (lambda: pv.nets.linear_encoder(D, K), Blinkered):
        fit = amortised(encoder)
        q = fit.posterior(x)
        expected = below(x, q.base_dist.loc, q.base_dist.scale)
        draws = torch.stack([fit.elbo(x, seed=s) for s in range(400)])
        error = draws.std(0) / 400**0.5
        assert bool(((bound - draws.mean(0) - expected).abs() < 4 * error).all())
        assert bool((expected >= 0).all())
        lost[encoder] = expected.mean().item()
    linear, blinkered = lost.values()
    assert linear < 0.01
    assert blinkered > 0.5


def test_t14_the_amortisation_gap_is_what_the_encoder_loses():
    """The local search starts at the encoder's answer, never ends below it, and finds what the closed form says."""
    x, fit = data(), amortised(Blinkered)
    with torch.no_grad(), fit.model.numeric():
        torch.manual_seed(0)
        codes = Codes(fit.model, fit.model.check(x))
        found = local_bound(codes)
    q = fit.posterior(x)
    expected = below(x, q.base_dist.loc, q.base_dist.scale)
    gain = found.local - found.amortised
    assert bool((gain > -0.05).all())
    torch.testing.assert_close(gain.mean(), expected.mean(), rtol=0.05, atol=0.02)


def test_a_mixture_for_a_prior_takes_a_q_of_every_datum():
    """log p(x) = log sum_k w_k N(x; W m_k + b, W S_k W' + s^2 I), here of a decoder that no fit moves."""
    loc, scale = torch.tensor([[-1.0, 0.0], [1.0, 1.0]]).double(), torch.tensor([0.5, 0.8]).double()
    weights, eye = torch.tensor([0.4, 0.6]).double(), torch.eye(K, dtype=torch.float64)
    spread = scale[:, None, None].square() * eye
    prior = pv.priors.Mixture.of(weights, loc, spread).requires_grad_(False)
    model, x = pv.models.DeepLatentVariableModel(FixedDecoder(), K, law(), prior), data()
    fit = pv.SVI(200, None, pv.adam(5e-2), progress=False).fit(model, x)
    W, b = FixedDecoder().weight, FixedDecoder().bias
    noise = S**2 * torch.eye(D, dtype=torch.float64)
    each = torch.distributions.MultivariateNormal(loc @ W.T + b, W @ spread @ W.T + noise)
    truth = torch.logsumexp(weights.log() + each.log_prob(x[:, None]), 1)
    torch.manual_seed(0)
    found = fit.evidence(x, num_particles=2000)
    assert bool(((found.value - truth).abs() < 5 * found.standard_error + 1e-2).all())
    assert bool((fit.elbo(x, 200) < truth + 0.1).all())
