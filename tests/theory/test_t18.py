"""T18: the VAE trained as EM, q and the model in turns, in exact arithmetic."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import ppl_vae as pv

UNITS, FEATURES, ROWS = 2, 4, 80


class SigmaPoints(dist.Normal):
    """A normal whose 2 k draws are loc +- sqrt(k) scale_j e_j: their mean of any quadratic is its expectation."""

    def rsample(self, sample_shape=()):
        eye = math.sqrt(UNITS) * torch.eye(UNITS, dtype=self.loc.dtype)
        points = torch.cat([eye, -eye])
        n = len(self.loc)
        return self.loc + self.scale * points[torch.arange(n) * len(points) // n]


class Exact(torch.nn.Module):
    def forward(self, loc, scale):
        return SigmaPoints(loc, scale).to_event(1)


OBJECTIVE = pv.elbo(2 * UNITS, kl="analytic")


@pytest.fixture
def example():
    """Data, a linear VAE whose bound is computed without noise, and the maximum of probabilistic PCA."""
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    x = normal(ROWS, UNITS) @ torch.diag(torch.tensor([2.0, 1.0]).double()) @ normal(UNITS, FEATURES)
    x = x + 0.5 * normal(ROWS, FEATURES)
    x = x - x.mean(0)
    roots = torch.linalg.eigvalsh(x.T @ x / ROWS).flip(0)
    noise = roots[UNITS:].mean()
    log_det = roots[:UNITS].log().sum() + (FEATURES - UNITS) * noise.log()
    best = -0.5 * (FEATURES * math.log(2 * math.pi) + log_det + FEATURES).item()
    torch.manual_seed(0)
    vae = pv.models.VAE(
        pv.nets.linear_encoder(FEATURES, UNITS), pv.nets.linear_decoder(UNITS, FEATURES), "gaussian-learned",
        posterior=Exact(),
    ).double()  # fmt: skip
    return vae, x, best


def closed_bound(model, x):
    """Mean of E_q log p(x | z) - KL(q || N(0, I)), written out."""
    m, s = model.encoder(x)
    w, b, noise = model.decoder.weight, model.decoder.bias, model.likelihood.scale
    spread = (s.square() @ w.square().T).sum(1) / (2 * noise**2)
    fitted = Normal(m @ w.T + b, noise).log_prob(x).sum(1) - spread
    return (fitted - 0.5 * (m.square() + s.square() - 1 - 2 * s.log()).sum(1)).mean().item()


def evidence(model, x):
    w, b, noise = model.decoder.weight, model.decoder.bias, model.likelihood.scale
    covariance = w @ w.T + noise**2 * torch.eye(FEATURES, dtype=x.dtype)
    return MultivariateNormal(b, covariance).log_prob(x).mean().item()


def engine(epochs, optimizer, **options):
    return pv.SVI(epochs, optimizer=optimizer, objective=OBJECTIVE, progress=False, compile="trace", **options)


@pytest.mark.parametrize("turns", [pv.alternate(), pv.alternate(q=5, model=2), pv.alternate(q=20, model=20)])
def test_t18_the_bound_never_falls(example, turns):
    vae, x, _ = example
    fit = engine(300, pv.sgd(5e-3), alternate=turns).fit(vae, x)
    bound = fit.trace["bound"]
    assert bool((bound.diff() > -1e-12).all())
    assert bound[-1] - bound[0] > 0.5
    again = engine(1, pv.sgd(5e-3)).fit(fit.model, x)  # its trace is the bound before the step
    assert again.trace["bound"][0].item() == pytest.approx(closed_bound(fit.model, x), rel=1e-12)
    assert closed_bound(fit.model, x) <= evidence(fit.model, x)


def test_t18_the_same_optimum_as_joint_training_that_of_probabilistic_pca(example):
    vae, x, best = example
    rate = pv.scheduled(pv.adam(3e-2), torch.optim.lr_scheduler.ExponentialLR, gamma=0.998)
    joint = engine(1500, rate).fit(vae, x).model
    turns = engine(2500, rate, alternate=pv.alternate()).fit(vae, x).model
    for model in (joint, turns):
        assert evidence(model, x) == pytest.approx(best, abs=1e-4)
        assert closed_bound(model, x) == pytest.approx(best, abs=1e-4)  # and the bound is tight there


def test_t18_a_turn_to_its_end_is_an_e_step(example):
    """q's turn at a fixed model: the gap that is left is that of the best diagonal q, in closed form."""
    vae, x, _ = example
    rate = pv.scheduled(pv.adam(3e-2), torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)
    fit = engine(700, rate, alternate=pv.alternate(q=700)).fit(vae, x)
    model = fit.model
    for before, after in zip(vae.decoder.parameters(), model.decoder.parameters(), strict=True):
        assert torch.equal(before, after)
    w, noise = model.decoder.weight, model.likelihood.scale
    precision = torch.eye(UNITS, dtype=x.dtype) + w.T @ w / noise**2
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert evidence(model, x) - closed_bound(model, x) == pytest.approx(gap, abs=1e-6)
