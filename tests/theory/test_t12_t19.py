"""T12, T13, T17 and T19: minibatches, reparameterised gradients, the autoencoder, reconstruction and generation."""

from itertools import combinations

import pyro
import pytest
import torch
from example_models import LinearVAE, bits, make, numbers
from pyro.infer import TraceEnum_ELBO
from torch.distributions import Normal

import ppl_vae as pv

# T12


@pytest.mark.param_store
@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("name", ["mixture, full", "mixture, diagonal, prior", "finite posterior", "two finite"])
def test_t12_the_minibatch_bound_is_unbiased(name, m):
    model, data = make(name)
    model.guide(data)
    data = model.check(data)
    loss = TraceEnum_ELBO(max_plate_nesting=1)

    def value(rows):
        pyro.set_rng_seed(1)  # the same draw of the shared latents for every batch
        rows = torch.tensor(rows)
        total = loss.differentiable_loss(model.model, model.guide, data.rows(rows), index=rows, size=6)
        model.zero_grad()
        total.backward()
        return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    full = value(list(range(6)))
    batches = [value(rows) for rows in combinations(range(6), m)]
    for k in (0, 1):
        mean = torch.stack([batch[k] for batch in batches]).mean(0)
        torch.testing.assert_close(mean, full[k], rtol=1e-9, atol=1e-9)
    assert torch.stack([batch[0] for batch in batches]).std() > 0.1  # not because all batches are alike


# T13


def _closed_bound(model, x):
    """sum_i E_q log p(x_i | z) - KL(q || N(0, I)) of a linear VAE, without draws."""
    m, s = model.encoder(x)
    W, b = model.decoder.weight, model.decoder.bias
    likelihood = Normal(m @ W.T + b, model.noise).log_prob(x).sum() - (s.square() @ W.square().T).sum() / (
        2 * model.noise**2
    )
    return likelihood - 0.5 * (m.square() + s.square() - 1 - 2 * s.log()).sum()


def _gradient(total, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])


def _draws(model, x, objective, times):
    obs = model.check(x).repeat(objective.num_particles)
    with model.numeric():
        return torch.stack([_gradient(objective(model.sites(obs)).sum(), model) for _ in range(times)])


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_t13_the_reparameterised_gradient_is_the_analytic_one(kl):
    model, x = make("linear vae")
    expected = _gradient(_closed_bound(model, x), model)
    draws = _draws(model, x, pv.elbo(num_particles=20, kl=kl), 400)
    error = draws.std(0) / 400**0.5
    assert bool(((draws.mean(0) - expected).abs() < 4 * error + 1e-10).all())
    assert bool((expected.abs() > 4 * error).sum() > len(expected) / 2)  # the signal is larger than the noise


def test_t13_v_particles_divide_the_gradients_variance_by_v():
    model, x = make("linear vae")
    one, ten = (_draws(model, x, pv.elbo(num_particles=v), 600).var(0).sum() for v in (1, 10))
    assert (one / ten).item() == pytest.approx(10, rel=0.3)


# T17


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
@pytest.mark.parametrize("name", ["vae", "gaussian vae", "linear vae", "conditional vae", "hierarchy"])
def test_t17_without_the_divergence_only_the_reconstruction_is_left(name, kl):
    model, data = make(name)
    sites = model.sites(model.check(data))
    found = pv.elbo(kl=kl)(sites, beta=0.0)
    torch.testing.assert_close(found, sites.log_p["x"])
    parameters = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(total.sum(), parameters, retain_graph=True, allow_unused=True)
        for total in (found, sites.log_p["x"])
    )
    for parameter, one, other in zip(parameters, ours, theirs, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other)


def test_t17_with_a_vanishing_scale_it_is_the_autoencoder():
    model, x = make("linear vae")
    with torch.no_grad():
        model.encoder.log_scale.fill_(-30.0)
    code = model.encoder.loc(x)
    error = (x - model.decoder(code)).square().sum(1)
    sites = model.sites(model.check(x))
    difference = pv.elbo()(sites, beta=0.0) + error / (2 * model.noise**2)
    torch.testing.assert_close(difference, difference[:1].expand(6))  # a constant apart, the squared error
    assert error.std() > 0.1


# T19

SHAPES = {
    "mlp": lambda: (pv.models.VAE(pv.nets.mlp_encoder(16, 8, 2), pv.nets.mlp_decoder(2, 8, 16)), bits(5, 16)),
    "convolutions": lambda: (
        pv.models.VAE(pv.nets.conv_encoder((1, 4, 4), (3,), 2), pv.nets.conv_decoder(2, (1, 4, 4), (3,))),
        bits(5, 16),
    ),
    "gaussian": lambda: (
        pv.models.VAE(pv.nets.mlp_encoder(16, 8, 2), pv.nets.mlp_decoder(2, 8, 16), "gaussian"),
        numbers(5, 16),
    ),
    "gaussian-network": lambda: (
        pv.models.VAE(pv.nets.mlp_encoder(16, 8, 2), pv.nets.mlp_decoder(2, 8, 32), "gaussian-network"),
        numbers(5, 16),
    ),
}


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_t19_reconstruction_and_generation_look_like_data(name, particles):
    model, x = SHAPES[name]()
    found, drawn = model.reconstruct(x, num_particles=particles), model.sample(7)
    assert (found.shape, drawn.shape) == ((5, 16), (7, 16))
    assert (found.dtype, drawn.dtype) == (torch.float32, torch.float32)
    if "gaussian" not in name:
        assert bool(((found > 0) & (found < 1)).all())
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(drawn[0], drawn[1])


def test_t19_reconstruction_is_the_mean_of_the_decoder_over_the_posterior():
    model, x = make("linear vae")
    found = model.reconstruct(x, num_particles=5000)
    with torch.no_grad():
        m, s = model.encoder(x)
        expected, W = model.decoder(m), model.decoder.weight
        error = ((s.square() @ W.square().T) / 5000).sqrt()
    assert bool(((found - expected).abs() < 4 * error).all())


def test_t19_generation_has_the_models_moments():
    model, _ = make("linear vae")
    assert isinstance(model, LinearVAE)
    drawn = model.sample(20_000)
    W, b = model.decoder.weight.detach(), model.decoder.bias.detach()
    covariance = W @ W.T + model.noise**2 * torch.eye(3)
    assert bool(((drawn.mean(0) - b).abs() < 4 * (covariance.diagonal() / 20_000).sqrt()).all())
    # Var of an empirical covariance of normals: (S_ij^2 + S_ii S_jj) / n
    error = ((covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / 20_000).sqrt()
    assert bool(((drawn.T.cov() - covariance).abs() < 4 * error).all())
