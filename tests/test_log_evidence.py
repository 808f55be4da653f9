"""log p(x) of many data by many draws: the exact value, traced or not, interrupted or not, in bounded memory."""

import math

import pyro.distributions as dist
import pytest
import torch
from example_models import LinearVAE, make, numbers

import ppl_vae as pv
from ppl_vae import log_evidence as found_by
from ppl_vae.evidence import importance
from ppl_vae.infer.optimizers import adam

module = __import__("ppl_vae.log_evidence", fromlist=["log_evidence"])
NAMES = ("value", "standard_error", "effective_sample_size", "k_hat")


def same(a, b, **tolerance):
    for name in NAMES:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **tolerance)


@pytest.mark.parametrize("name", ["linear vae", "local q"])
def test_it_finds_the_evidence_of_linear_models(name):
    model, x = make(name)
    found = found_by(model, x, num_particles=3000, at_once=1000, progress=False)
    assert bool(((found.value - model.exact(x)).abs() < 4 * found.standard_error + 1e-9).all())
    assert found.value.dtype == torch.float64
    assert bool((found.effective_sample_size <= 3000 + 1e-6).all())


@pytest.mark.parametrize("name", ["vae with NaN", "conditional vae", "hierarchy", "poisson latent", "mixture vae"])
def test_it_agrees_with_the_models_own_evidence(name):
    model, x = make(name)
    found = found_by(model, x, num_particles=4000, progress=False)
    torch.manual_seed(1)
    other = model.evidence(x, num_particles=4000)
    error = torch.hypot(found.standard_error, other.standard_error)
    assert bool(((found.value - other.value).abs() < 4 * error + 1e-9).all())


@pytest.mark.parametrize("name", ["vae", "vae with NaN", "conditional vae", "hierarchy", "mixture vae"])
def test_traced_it_gives_the_same_numbers(name):
    model, x = make(name)
    plain = found_by(model, x, num_particles=60, at_once=40, compile="off", progress=False)
    traced = found_by(model, x, num_particles=60, at_once=40, compile="trace", progress=False)
    same(plain, traced, rtol=1e-9, atol=1e-9)


def test_finite_latents_need_no_draws():
    model, x = make("mixture, full")
    found = found_by(model, x, progress=False)
    assert found.method == "exact"
    torch.testing.assert_close(found.value, model.log_prob(x))


def test_every_draw_counts_once_however_they_are_cut():
    model, x = make("vae")
    plan = module.Plan(count=50, at_once=42, seed=3, size=6)
    assert (plan.rows, plan.pieces, plan.draws) == (6, 8, 7)  # 8 x 7 draws, of which 50 count
    found = found_by(model, x, num_particles=50, at_once=42, seed=3, compile="off", progress=False)
    obs = model.check(x)
    torch.manual_seed(3 * 1_000_003)
    with torch.no_grad(), model.numeric():
        log_w = torch.cat([module.weights_of(model, obs, 7, ["z"]) for _ in range(8)])[:50]
    torch.testing.assert_close(found.value, importance(log_w).value)


def test_the_encoder_runs_once_for_all_draws_of_a_pass_and_memory_is_bounded():
    model, x = make("vae")
    seen = {"encoder": [], "decoder": []}
    model.encoder.register_forward_hook(lambda m, args, out: seen["encoder"].append(len(args[0])))
    model.decoder.register_forward_hook(lambda m, args, out: seen["decoder"].append(len(args[0])))
    found_by(model, x.repeat(10, 1), num_particles=100, at_once=320, compile="off", progress=False)
    passes = [n for n in seen["decoder"] if n > 16]
    assert passes == [320] * (4 * 5)  # 60 data in 4 blocks of 16, 100 draws in 5 pieces of 20
    assert max(seen["encoder"]) <= 16


class StopError(Exception):
    pass


def test_interrupted_it_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    model, x = make("vae")
    data, file = x.repeat(9, 1), tmp_path / "found.safetensors"
    ask = {"num_particles": 40, "at_once": 160, "progress": False}
    whole = found_by(model, data, **ask)
    block, done = module._of_block, []

    def breaks(*args):
        if len(done) == 2:
            raise StopError
        done.append(1)
        return block(*args)

    monkeypatch.setattr(module, "_of_block", breaks)
    with pytest.raises(StopError):
        found_by(model, data, checkpoint=file, **ask)
    monkeypatch.setattr(module, "_of_block", block)
    resumed = found_by(model, data, checkpoint=file, **ask)
    same(whole, resumed, rtol=0.0, atol=0.0)
    monkeypatch.setattr(module, "_of_block", breaks)  # nothing is left to do
    same(whole, found_by(model, data, checkpoint=file, **ask), rtol=0.0, atol=0.0)
    with pytest.raises(pv.EngineError, match="num_particles was 40"):
        found_by(model, data, checkpoint=file, **{**ask, "num_particles": 41})
    with torch.no_grad():
        model.decoder.net[0].bias.add_(1.0)
    with pytest.raises(pv.EngineError, match="parameters"):
        found_by(model, data, checkpoint=file, **ask)


def test_settings_that_no_parameter_tells_make_another_call(tmp_path):
    x, file = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), tmp_path / "found.safetensors"
    encoder, decoder = pv.nets.linear_encoder(3, 2), pv.nets.linear_decoder(2, 3)
    wide, narrow = (pv.models.VAE(encoder, decoder, pv.likelihoods.Gaussian(scale)) for scale in (1.0, 0.2))
    found_by(wide, x, 20, checkpoint=file, progress=False)
    with pytest.raises(pv.EngineError, match=r"likelihood\.scale was 1\.0 there and is 0\.2 here"):
        found_by(narrow, x, 20, checkpoint=file, progress=False)


def test_a_fit_keeps_its_mode_and_the_users_generator_stands_where_it_stood():
    model, x = make("vae")
    fit = pv.SVI(2, optimizer=adam(1e-2), progress=False).fit(model, x)
    fit.model.train()
    state = torch.get_rng_state()
    first = found_by(fit, x, num_particles=30, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert fit.model.training
    same(first, found_by(fit, x, num_particles=30, progress=False), rtol=0.0, atol=0.0)
    other = found_by(fit, x, num_particles=30, seed=1, progress=False)
    assert not torch.equal(first.value, other.value)


def test_more_draws_raise_it():
    model, x = make("vae")
    few, many = (found_by(model, x.repeat(20, 1), num_particles=s, progress=False).value for s in (1, 500))
    assert many.mean() > few.mean()
    assert math.isfinite(few.mean().item())


def test_what_it_refuses(monkeypatch):
    model, x = make("vae")
    with pytest.raises(pv.EngineError, match="at least 1"):
        found_by(model, x, num_particles=0)
    mixture = pv.models.GaussianMixture(2, 2, prior="weak")
    draws = pv.SVI(1, num_draws=5, progress=False).fit(mixture, numbers(20, 2))
    with pytest.raises(pv.EngineError, match="log_predictive"):
        found_by(draws, numbers(20, 2))
    monkeypatch.setattr(module, "weights_of", lambda *args: torch.tensor([0.0, 0.0, torch.nan, 0.0, 0.0, 0.0])[None])
    with pytest.raises(pv.EngineError, match="datum 2 is not finite"):
        found_by(model, x, num_particles=30, at_once=6, progress=False)


class Penalised(LinearVAE):
    """A linear model whose penalty asks for q."""

    @pv.penalty
    def width(self, q_z):
        return q_z.variance.sum(-1)


def test_a_penalty_is_no_part_of_the_evidence():
    torch.manual_seed(2)
    model = Penalised().double()
    x = model.sample(5)
    found = found_by(model, x, num_particles=3000, progress=False)
    assert bool(((found.value - model.exact(x)).abs() < 4 * found.standard_error + 1e-9).all())
    fit = pv.SVI(3, progress=False).fit(model, x)
    annealed = fit.diagnose(x, num_particles=500, gap_data=0, ais_data=2)["annealed log p(x)"]
    assert abs(annealed.value) < 5 * annealed.standard_error


def test_a_penalty_of_a_q_does_not_stop_questions_about_data_that_give_its_latent():
    """log p(x, z) of a given z is a normal's, and is its bound and its evidence too."""
    model = Penalised().double()
    x = model.sample(5)
    z = numbers(5, 2)
    truth = model.log_joint(x, z=z)
    data = {"x": x, "z": z}
    torch.testing.assert_close(model.log_prob(data), truth)
    torch.testing.assert_close(model.elbo(data), truth)


def test_a_point_mass_has_its_bound_and_nothing_to_anneal():
    torch.manual_seed(0)
    networks = pv.nets.mlp_decoder(6, 8, 4), pv.nets.mlp_decoder(4, 8, 6)
    model, x = pv.models.VQVAE(*networks, pv.codebooks.Learned(8, 2), 2), torch.randn(20, 6)
    found = found_by(model, x, 20, progress=False)
    z = model.q_z(x).code.detach()
    assert found.method == "bound"
    torch.testing.assert_close(found.value, model.x(z).log_prob(x).detach() - 2 * math.log(8))
    fit = pv.Fit(model, "SVI", {}, {}, "ELBO", pv.Status("finished", "as it stands"), 0.0, 0)
    assert fit.diagnose(x, num_particles=30, gap_data=0, ais_data=2)["annealed log p(x)"].text == (
        "not defined: z is discrete, and moves follow a gradient"
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_point_mass_has_its_bound_under_either_name(nested):
    """q(z | x) = delta(z - f(x)): log p(x, f(x)), of any number of particles."""

    class Point(pv.LatentVariableModel):
        @pv.latent
        def z(self):
            return dist.Normal(torch.zeros(2), 1.0).to_event(1)

        @z.posterior
        def q_z(self, x):
            return dist.Delta(x / 2).to_event(1) if nested else dist.Delta(x / 2, event_dim=1)

        @pv.observed
        def x(self, z):
            return dist.Normal(z, 1.0).to_event(1)

    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    found = pv.log_evidence(Point(), x, 60, progress=False)
    half = dist.Normal(0.0, 1.0).log_prob(x / 2).sum(-1)
    assert found.method == "bound"
    torch.testing.assert_close(found.value, 2 * half)
