"""What a fit answers is drawn from a seed: the same question, the same answer, and the user's generator untouched."""

import pytest
import torch

import ppl_vae as pv

QUESTIONS = {
    "pointwise": lambda fit, x, **seed: fit.pointwise(x, 5, **seed),
    "log_predictive": lambda fit, x, **seed: fit.log_predictive(x, 5, **seed),
    "log_prob": lambda fit, x, **seed: fit.log_prob(x, 5, **seed),
    "evidence": lambda fit, x, **seed: fit.evidence(x, 5, **seed).value,
    "elbo": lambda fit, x, **seed: fit.elbo(x, 5, **seed),
    "reconstruct": lambda fit, x, **seed: fit.reconstruct(x, 5, **seed),
    "impute": lambda fit, x, **seed: fit.impute(torch.where(x > 0, x, torch.nan), 5, **seed),
    "sample": lambda fit, x, **seed: fit.sample(len(x), **seed),
    "evaluate": lambda fit, x, **seed: torch.tensor(fit.evaluate(x, 5, **seed).log_prob),
}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    x = (torch.rand(20, 6) < 0.5).float()
    net = pv.models.VAE(pv.nets.mlp_encoder(6, 5, 2), pv.nets.mlp_decoder(2, 5, 6))
    return pv.SVI(epochs=2, progress=False).fit(net, x), x


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_answer_is_its_seeds_alone(vae, name):
    fit, x = vae
    ask = QUESTIONS[name]
    state = torch.get_rng_state()
    first = ask(fit, x)
    torch.randn(3)
    assert torch.equal(ask(fit, x), first)
    assert torch.equal(ask(fit, x, seed=0), first)
    assert not torch.equal(ask(fit, x, seed=1), first)
    torch.set_rng_state(state)
    ask(fit, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_shares_of_classes_beside_a_drawn_latent(vae):
    _, x = vae
    torch.manual_seed(1)
    model = pv.models.GMVAE(pv.nets.mlp_encoder(6, 5, 2), pv.nets.mlp_decoder(2, 5, 6), 3)
    fit = pv.SVI(epochs=2, progress=False).fit(model, x)
    first = fit.responsibilities(x, 5)
    assert torch.equal(fit.responsibilities(x, 5), first)
    assert not torch.equal(fit.responsibilities(x, 5, seed=1), first)
    assert torch.equal(fit.labels(x, 5), first.argmax(-1))


@pytest.mark.parametrize("seed", [-1, 0.5, 2**32])
def test_a_seed_that_is_none(vae, seed):
    fit, x = vae
    with pytest.raises(pv.EngineError, match="seed must be a whole number"):
        fit.log_prob(x, seed=seed)
