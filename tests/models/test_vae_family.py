"""Every likelihood, posterior and prior trains from a traced graph that equals the model; exact cases are reached."""

import math
from copy import deepcopy

import pyro
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import make_batches
from ppl_vae.infer.step import Step

D, K = 6, 2
LEVELS = 5
LIKELIHOODS = {
    "bernoulli": (lambda: "bernoulli", "binary"),
    "continuous": (lambda: "continuous-bernoulli", "grey"),
    "learned": (lambda: "gaussian-learned", "real"),
    "per pixel": (lambda: pv.likelihoods.GaussianLearned(pixels=D), "real"),
    "network": (lambda: "gaussian-network", "real"),
    "optimal": (lambda: "gaussian-optimal", "real"),
    "logistics": (lambda: pv.likelihoods.LogisticMixture(3, levels=LEVELS), "levels"),
    "categorical": (lambda: pv.likelihoods.Categorical(levels=LEVELS), "levels"),
}
POSTERIORS = {
    "diagonal": lambda: pv.posteriors.Diagonal(),
    "full": lambda: pv.posteriors.Full(),
    "flow": lambda: pv.posteriors.inverse_autoregressive(K),
    "coupling": lambda: pv.posteriors.Flow(pv.flows.coupling(K, 2)),
    "flow over full": lambda: pv.posteriors.Flow(pv.flows.autoregressive(K), pv.posteriors.Full()),
}
PRIORS = {
    "normal": lambda: pv.priors.Normal(K),
    "mixture": lambda: pv.priors.Mixture(4, K),
    "vamp": lambda: pv.priors.Vamp(5, D),
    "flow": lambda: pv.priors.real_nvp(K, 2),
    "flow over mixture": lambda: pv.priors.Flow(pv.flows.coupling(K, 2), pv.priors.Mixture(3, K)),
}
VARIANTS = [
    *[(name, "diagonal", "normal") for name in LIKELIHOODS],
    *[("bernoulli", name, "normal") for name in POSTERIORS],
    *[("bernoulli", "diagonal", name) for name in PRIORS],
    ("optimal", "full", "vamp"),
    ("bernoulli", "flow", "vamp"),
    ("logistics", "coupling", "vamp"),
    ("learned", "flow", "mixture"),
]


def data(kind, n=40):
    z = torch.randn(n, K)
    p = torch.sigmoid(2 * z @ torch.randn(K, D))
    found = {
        "binary": torch.bernoulli(p),
        "grey": p,
        "real": p + 0.1 * torch.randn(n, D),
        "levels": (p * (LEVELS - 1)).round() / (LEVELS - 1),
    }
    return found[kind].double()


def variant(likelihood, posterior, prior):
    make, kind = LIKELIHOODS[likelihood]
    covariance = "full" if "full" in posterior else "diagonal"
    found = make()
    law = pv.likelihoods.LIKELIHOODS[found]() if isinstance(found, str) else found
    vae = pv.models.VAE(
        pv.nets.mlp_encoder(D, 8, K, covariance=covariance),
        pv.nets.mlp_decoder(K, 8, D * law.width),
        found,
        prior=PRIORS[prior](),
        posterior=POSTERIORS[posterior](),
    )
    return vae.double(), data(kind)


@pytest.mark.parametrize("names", VARIANTS, ids=" ".join)
def test_the_traced_step_is_the_model(names):
    model, x = variant(*names)
    batches = make_batches(model, x)
    model.adapt(batches.first)
    with pyro.validation_enabled(False):
        climbed = ModelObjective(model.train(), pv.elbo(2, "analytic"), batches.total, annealed=True)
        step = Step(climbed, None, "trace")
        assert step.verify(next(batches.epoch(0)), beta=0.7) < 1e-10
        assert step.mode == "trace"
        _, gradients = step.gradient(next(batches.epoch(0)))
    assert all(bool(g.isfinite().all()) for g in gradients)
    # Free numbers that nothing pulls on would be a part of the declaration that is not connected.
    assert all(bool((g != 0).any()) for g in gradients)


@pytest.mark.parametrize("names", VARIANTS, ids=" ".join)
def test_training_raises_the_bound_and_the_fit_can_be_asked(names, tmp_path):
    model, x = variant(*names)
    fit = pv.SVI(60, optimizer=pv.adam(1e-2), compile="trace", progress=False).fit(model, x)
    bound = fit.trace["bound"]
    assert fit.settings["compile"] == "trace"
    assert bound[-10:].mean() > bound[:5].mean() + 0.05
    assert fit.log_prob(x[:5], 50).isfinite().all()
    assert fit.sample(3).shape == fit.reconstruct(x[:3]).shape == (3, D)
    fit.model.check(fit.sample(20))  # what it draws lies in its support
    expected = fit.elbo(x, seed=1)
    again = pv.Fit.load(fit.save(tmp_path / "fit"), variant(*names)[0])
    torch.testing.assert_close(again.elbo(x, seed=1), expected)
    copy = deepcopy(fit.model)
    torch.manual_seed(1)
    torch.testing.assert_close(copy.elbo(x), expected)


@pytest.mark.parametrize("name", ["flow", "coupling"])
def test_a_flow_is_a_density(name):
    """Its log density at its own draws, from the cache, is that of the same points, from the inverse; it sums to 1."""
    torch.manual_seed(0)
    model, _ = variant("bernoulli", name, "normal")
    posterior = model.posterior_of
    with torch.no_grad(), model.numeric():
        for p in posterior.parameters():
            p.add_(0.1 * torch.randn_like(p))
        q = posterior(torch.zeros(1, K).double(), torch.ones(1, K).double())
        z = q.rsample((50,))
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-8, atol=1e-8)
        grid = torch.linspace(-12, 12, 401).double()
        points = torch.cartesian_prod(grid, grid)[:, None]
        assert q.log_prob(points).exp().sum().item() * 0.06**2 == pytest.approx(1, abs=2e-3)


def test_two_distributions_of_one_flow_do_not_share_a_cache():
    torch.manual_seed(0)
    posterior = pv.posteriors.inverse_autoregressive(K)
    one, other = (posterior(torch.full((3, K), at), torch.ones(3, K)) for at in (0.0, 5.0))
    z = one.rsample()
    before = one.log_prob(z)
    other.rsample()
    torch.testing.assert_close(one.log_prob(z), before)
    torch.testing.assert_close(one.log_prob(z.clone()), before, rtol=1e-4, atol=1e-4)


def test_the_vamp_prior_is_the_mixture_of_the_encoders_posteriors():
    model, _ = variant("bernoulli", "diagonal", "vamp")
    z = torch.randn(7, K).double()
    with torch.no_grad(), model.numeric():
        u = model.prior.pseudo_inputs
        each = torch.stack([model.q_z(row).log_prob(z) for row in u])
        torch.testing.assert_close(model.z().log_prob(z), each.logsumexp(0) - math.log(len(u)))
    real = pv.priors.Vamp(3, D, activation=nn.Identity(), loc=2.0, scale=0.5)
    assert torch.equal(real.pseudo_inputs, real.free)


def rotated(n=200):
    """A linear Gaussian model whose posterior covariance is far from diagonal, its data and their exact evidence."""
    generator = torch.Generator().manual_seed(0)
    w = torch.tensor([[2.0, 1.8], [0.3, -0.2], [1.0, 1.0]]).double()
    s = 0.5
    z, e = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (2, 3))
    x = z @ w.T + s * e
    decoder = pv.nets.linear_decoder(2, 3).double()
    with torch.no_grad():
        decoder.weight.copy_(w)
        decoder.bias.zero_()
    marginal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), w @ w.T + s**2 * torch.eye(3).double())
    covariance = torch.linalg.inv(torch.eye(2).double() + w.T @ w / s**2)
    return decoder, s, x, marginal.log_prob(x), covariance


def held(posterior, covariance):
    """The best q of a form for the rotated model, its decoder held fixed, and the exact evidence."""
    decoder, s, x, evidence, true = rotated()
    torch.manual_seed(0)
    encoder = pv.nets.mlp_encoder(3, 2, covariance=covariance)
    vae = pv.models.VAE(encoder, decoder, pv.likelihoods.Gaussian(s), posterior=posterior).double()
    optimizer = torch.optim.Adam([*vae.encoder.parameters(), *vae.posterior_of.parameters()], 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    step = pv.svi_step(vae, optimizer, objective=pv.elbo(4, kl="analytic"), compile="trace")
    for _ in range(1000):
        step(x)
        scheduler.step()
    return vae.elbo(x, 200).mean().item(), evidence.mean().item(), vae.posterior(x), true


def test_t16_full_covariance_reaches_the_evidence_of_a_rotated_model():
    found, evidence, q, true = held(pv.posteriors.Full(), "full")
    assert found == pytest.approx(evidence, abs=0.01)
    torch.testing.assert_close(q.covariance_matrix.mean(0), true, rtol=0.1, atol=0.01)


def test_t16_a_diagonal_q_stays_below_by_the_divergence_of_the_best_one():
    """The diagonal normal nearest in KL(q || p) has variances 1 / (Sigma^-1)_jj."""
    found, evidence, q, true = held(pv.posteriors.Diagonal(), "diagonal")
    precision = torch.linalg.inv(true)
    gap = 0.5 * (torch.logdet(true) + precision.diagonal().log().sum()).item()
    assert gap > 0.3
    assert evidence - found == pytest.approx(gap, abs=0.02)
    torch.testing.assert_close(q.variance.mean(0), 1 / precision.diagonal(), rtol=0.1, atol=0.01)


def test_a_flow_mends_what_the_diagonal_lacks():
    found, evidence, _, _ = held(pv.posteriors.inverse_autoregressive(2, 2), "diagonal")
    assert found == pytest.approx(evidence, abs=0.05)


def test_encoder_and_posterior_that_do_not_match_are_refused():
    decoder = pv.nets.mlp_decoder(K, D)
    x = torch.zeros(3, D)
    for covariance, posterior, said in (("full", None, "posteriors.Full"), ("diagonal", pv.posteriors.Full(), "Make")):
        vae = pv.models.VAE(pv.nets.mlp_encoder(D, K, covariance=covariance), decoder, posterior=posterior)
        with pytest.raises(pv.DeclarationError, match=said):
            vae.elbo(x)
    with pytest.raises(ValueError, match="covariance must be one of"):
        pv.nets.mlp_encoder(D, K, covariance="banded")


class Crash(pv.Callback):
    """The machine stops in the middle of an epoch."""

    def end(self, run, step, metrics):
        if step == 20:
            raise RuntimeError("the machine is on fire")


@pytest.mark.parametrize("names", [("optimal", "flow", "vamp"), ("logistics", "full", "flow")], ids=" ".join)
def test_a_fit_that_crashed_ends_with_the_same_bits(names, tmp_path):
    """Running means, units of the data and flows are in the checkpoint as the networks are."""

    def fit(**options):
        torch.manual_seed(3)
        model, x = variant(*names)
        return pv.SVI(8, batch_size=10, compile="trace", progress=False, **options).fit(model, x)

    kept = pv.checkpoints(tmp_path, steps=3)
    straight = fit()
    with pytest.raises(RuntimeError, match="on fire"):
        fit(checkpoint=kept, callbacks=[Crash()])
    resumed = fit(checkpoint=kept)
    assert torch.equal(resumed.trace["bound"], straight.trace["bound"])
    assert resumed.model.state_dict().keys() == straight.model.state_dict().keys()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
