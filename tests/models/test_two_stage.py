"""The two-stage prior closes the hole between the codes and N(0, I), by what the bound gains."""

from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.diagnose.advice import training_of


def clusters(n, seed):
    """Three kinds of binary data of 12 pixels, each with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.eye(3).repeat_interleave(4, 1) * 0.9 + 0.05
    return torch.bernoulli(kinds[torch.randint(3, (n,), generator=generator)], generator=generator)


@pytest.fixture(scope="module")
def fits():
    torch.manual_seed(0)
    x = clusters(400, 1)
    vae = pv.models.VAE(pv.nets.mlp_encoder(12, 32, 2), pv.nets.mlp_decoder(2, 32, 12))
    # A small weight of the KL term spreads the codes far beyond the prior: the hole.
    before = pv.SVI(60, batch_size=100, optimizer=pv.adam(2e-2), beta=0.1, compile="trace", progress=False).fit(vae, x)
    return before, pv.refit_prior(before, x, n_components=6)


def divergence(fit, x, draws=20):
    """KL(q(z) || p(z)) of the aggregate posterior over x, at draws of it."""
    q, model = fit.posterior(x), fit.model
    with torch.no_grad(), model.numeric():
        z = q.sample((draws,)).flatten(0, 1)
        aggregate = q.log_prob(z[:, None]).logsumexp(1) - torch.tensor(float(len(x))).log()
        return (aggregate - model.z().log_prob(z)).mean().item()


def test_the_hole_is_closed_on_held_out_data(fits):
    before, after = fits
    x = clusters(200, 2)
    assert divergence(before, x) > 0.7
    assert divergence(after, x) < 0.5 * divergence(before, x)
    gain = (after.log_prob(x, 200) - before.log_prob(x, 200)).double()
    assert gain.mean() > 4 * gain.std() / len(x) ** 0.5
    assert gain.mean() > 0.3


def test_what_it_draws_looks_like_the_data(fits):
    """Of the data nearly all have one bright block; of the old prior's draws many lie between the kinds."""

    def share(x):
        blocks = x.view(-1, 3, 4).mean(2)
        return ((blocks > 0.6).sum(1) == 1).double().mean().item()

    before, after = fits
    truth = share(clusters(2000, 3))
    old, new = share(before.sample(2000)), share(after.sample(2000))
    assert truth - new < 0.5 * (truth - old)


def test_the_bound_gains_what_the_prior_gains(fits):
    before, after = fits
    x = clusters(50, 4)
    bounds = [fit.elbo(x, seed=0) for fit in fits]
    torch.manual_seed(0)
    with torch.no_grad():
        z = before.model.sites(before.model.check(x)).values["z"]
        expected = after.model.z().log_prob(z) - before.model.z().log_prob(z)
    torch.testing.assert_close(bounds[1] - bounds[0], expected, rtol=1e-4, atol=1e-4)


def test_the_fit_is_as_it_was_and_the_new_one_can_be_kept(fits, tmp_path):
    before, after = fits
    assert isinstance(before.model.prior, pv.priors.Normal)
    assert isinstance(after.model.prior, pv.priors.Mixture)
    assert torch.equal(before.model.decoder.net[0].weight, after.model.decoder.net[0].weight)
    assert "prior refitted as a mixture of 6" in str(after.status)
    vae = pv.models.VAE(pv.nets.mlp_encoder(12, 32, 2), pv.nets.mlp_decoder(2, 32, 12), prior=pv.priors.Mixture(6, 2))
    again = pv.Fit.load(after.save(tmp_path / "fit"), vae)
    z = torch.randn(5, 2)
    torch.testing.assert_close(again.model.z().log_prob(z), after.model.z().log_prob(z))
    state = torch.get_rng_state()
    same = pv.refit_prior(before, clusters(400, 1), n_components=6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(same.model.z().log_prob(z), after.model.z().log_prob(z))


def test_data_of_weight_zero_have_no_part_in_the_prior(fits):
    """Weights that take one of three kinds away, passed or the fit's own: the prior no longer has its codes."""
    before, _ = fits
    x = clusters(400, 1)
    first = x[:, :4].mean(1) > 0.6
    weights = 2.0 * (~first)
    own = replace(before, weights=weights.double())
    passed, known = (pv.refit_prior(fit, x, 6, weights=w) for fit, w in ((before, weights), (own, None)))
    torch.testing.assert_close(passed.model.state_dict(), known.model.state_dict())
    with torch.no_grad():
        codes = before.posterior(x[first]).mean
        lost = pv.refit_prior(before, x, 6).model.z().log_prob(codes) - passed.model.z().log_prob(codes)
        kept = before.posterior(x[~first]).mean
        gained = passed.model.z().log_prob(kept) - pv.refit_prior(before, x, 6).model.z().log_prob(kept)
    assert lost.mean() > 2
    assert gained.mean() > 0.2


def test_a_fit_without_codes_is_refused():
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful().values)
    with pytest.raises(pv.EngineError, match="GaussianMixture declares a z of its own, or none"):
        pv.refit_prior(fit, pv.data.faithful().values, 2)


class LaplaceVAE(pv.models.VAE):
    @pv.latent
    def z(self):
        return dist.Laplace(torch.zeros(self.latent_dim), 1.0).to_event(1)


def test_a_prior_that_z_does_not_come_from_is_not_replaced():
    vae = LaplaceVAE(pv.nets.mlp_encoder(12, 8, 2), pv.nets.mlp_decoder(2, 8, 12))
    fit = pv.SVI(2, compile="off", progress=False).fit(vae, clusters(50, 1))
    with pytest.raises(pv.EngineError, match="LaplaceVAE declares a z of its own"):
        pv.refit_prior(fit, clusters(50, 1), 2)
    assert not training_of(fit, vae.check(clusters(50, 1))).refits


def test_codes_of_data_with_a_q_each_have_a_prior_as_well():
    torch.manual_seed(0)
    x = clusters(60, 1)
    model = pv.models.DeepLatentVariableModel(pv.nets.mlp_decoder(2, 8, 12), 2)
    before = pv.SVI(150, optimizer=pv.adam(2e-2), compile="off", progress=False).fit(model, x)
    after = pv.refit_prior(before, x, n_components=3)
    gain = after.elbo(x, 100) - before.elbo(x, 100)
    assert gain.mean() > 4 * gain.std() / len(x) ** 0.5


def test_a_mixture_prior_has_the_covariances_it_was_given():
    covariance = torch.tensor([[[2.0, 0.7], [0.7, 1.0]], [[0.01, 0.0], [0.0, 25.0]]]).double()
    loc = torch.tensor([[1.0, 2.0], [-3.0, 0.0]]).double()
    p = pv.priors.Mixture.of(torch.tensor([0.3, 0.7]).double(), loc, covariance)()
    torch.testing.assert_close(p.component_distribution.covariance_matrix, covariance, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(p.mean, torch.tensor([0.3, 0.7]).double() @ loc)
