"""The importance-weighted bound's two gradients: one expectation, different noise."""

import math

import pytest
import torch
from example_models import LinearVAE, make, numbers

import ppl_vae as pv

COPIES, REPEATS = 100, 40


def gradients(model, x, objective, repeats=REPEATS, beta=1.0):
    """Independent gradients of the objective summed over COPIES of the data, [repeats, parameters]."""
    obs, parameters = model.check(x).repeat(COPIES).repeat(objective.num_particles), list(model.parameters())
    found = []
    with model.numeric():
        for _ in range(repeats):
            total = objective(model.sites(obs), beta).sum()
            each = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
            found.append(torch.cat([g.flatten() for g in each]))
    return torch.stack(found)


@pytest.mark.parametrize(("name", "beta"), [("linear vae", 1.0), ("hierarchy", 0.6), ("mixture vae", 0.6)])
def test_both_gradients_have_one_expectation_and_dreg_less_variance(name, beta):
    """Layers of latents and draws for each enumerated value included, and an annealed weight."""
    model, x = make(name)
    standard = gradients(model, x, pv.iwae(3), beta=beta)
    double = gradients(model, x, pv.iwae(3, "dreg"), beta=beta)
    error = ((standard.var(0) + double.var(0)) / REPEATS).sqrt()
    assert bool(((standard.mean(0) - double.mean(0)).abs() < 4 * error + 1e-12).all())
    assert double.var(0).sum() < 0.8 * standard.var(0).sum()


def test_signal_to_noise_of_q_rises_with_the_draws_instead_of_falling():
    """|mean| / std of q's gradients grows about as sqrt(S), where the standard one's falls as 1 / sqrt(S)."""
    torch.manual_seed(0)
    model, x = LinearVAE().double(), numbers(4, 3)
    chosen = torch.cat([torch.full((p.numel(),), n.startswith("encoder")) for n, p in model.named_parameters()])

    def ratio(objective):
        found = gradients(model, x, objective)[:, chosen]
        # The squared mean, less what noise adds to it.
        signal = (found.mean(0).square() - found.var(0) / len(found)).clamp_min(0).sum()
        return (signal / found.var(0).sum()).sqrt().item()

    standard = [ratio(pv.iwae(s)) for s in (4, 64)]
    double = [ratio(pv.iwae(s, "dreg")) for s in (4, 64)]
    assert standard[1] < 0.7 * standard[0]
    assert double[1] > double[0]
    assert double[1] > 4 * standard[1]


def test_of_one_draw_the_score_is_left_out():
    """S = 1: dz/dphi d log w/dz, against the same with q's parameters held."""
    model, x = make("linear vae")
    with model.numeric():
        sites = model.sites(model.check(x))
    loc, scale = model.encoder(x)
    held = torch.distributions.Normal(loc.detach(), scale.detach()).log_prob(sites.values["z"]).sum(-1)
    parameters = list(model.parameters())
    expected = torch.autograd.grad((sites.joint() - held).sum(), parameters, retain_graph=True)
    found = torch.autograd.grad(pv.iwae(1, "dreg")(sites).sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_value_is_the_same_and_needs_no_gradient():
    model, x = make("hierarchy")
    obs = model.check(x).repeat(4)
    with model.numeric():
        sites = model.sites(obs)
        torch.testing.assert_close(pv.iwae(4, "dreg")(sites), pv.iwae(4)(sites))
        with torch.no_grad():
            sites = model.sites(obs)
            torch.testing.assert_close(pv.iwae(4, "dreg")(sites), pv.iwae(4)(sites))


@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_weights_of_data_stay_outside_the_logarithm(gradient):
    """w_i log mean_s w_is, for each datum: neither a weight nor the scale of a minibatch enters the exponent."""
    model, x = make("linear vae")
    w = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    with model.numeric():
        sites = model.sites(model.check(x).repeat(5))
    log_w = (sites.joint() - sites.log_q["z"]).reshape(5, 6)
    by_hand = (w * (torch.logsumexp(log_w, 0) - math.log(5))).sum()
    torch.testing.assert_close((w * pv.iwae(5, gradient)(sites, 1.0, w)).sum(), by_hand)
    weighted = torch.autograd.grad(
        (w * pv.iwae(5, gradient)(sites, 1.0, w)).sum(), model.encoder.loc.weight, retain_graph=True
    )
    each = [
        torch.autograd.grad(pv.iwae(5, gradient)(sites)[i], model.encoder.loc.weight, retain_graph=True)[0]
        for i in range(6)
    ]
    torch.testing.assert_close(weighted[0], sum(wi * g for wi, g in zip(w, each, strict=True)))


def test_a_prior_made_of_the_encoder_keeps_both_gradients():
    """A VampPrior: the standard and the doubly reparameterised gradient of the encoder still agree."""
    torch.manual_seed(1)
    vae = pv.models.VAE(
        pv.nets.linear_encoder(3, 2), pv.nets.linear_decoder(2, 3), "gaussian",
        prior=pv.priors.Vamp(4, 3, activation=torch.nn.Identity(), scale=1.0),
    ).double()  # fmt: skip
    x = numbers(5, 3)
    standard, double = (gradients(vae, x, pv.iwae(3, g)) for g in ("standard", "dreg"))
    error = ((standard.var(0) + double.var(0)) / REPEATS).sqrt()
    assert bool(((standard.mean(0) - double.mean(0)).abs() < 4 * error + 1e-12).all())


def test_a_flow_for_q_is_taken():
    torch.manual_seed(1)
    vae = pv.models.VAE(
        pv.nets.linear_encoder(3, 2), pv.nets.linear_decoder(2, 3), "gaussian",
        posterior=pv.posteriors.inverse_autoregressive(2, 1),
    ).double()  # fmt: skip
    x = numbers(3, 3)
    standard, double = (gradients(vae, x, pv.iwae(3, g)) for g in ("standard", "dreg"))
    error = ((standard.var(0) + double.var(0)) / REPEATS).sqrt()
    assert bool(((standard.mean(0) - double.mean(0)).abs() < 4 * error + 1e-12).all())
