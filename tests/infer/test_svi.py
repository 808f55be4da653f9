"""SVI: weights, schedules, stopping, failure, one's own loop, and answers known in closed form."""

import pyro.distributions as dist
import pytest
import torch
from example_models import NormalMean

import ppl_vae as pv


@pytest.mark.parametrize("guide", ["normal", "multivariate"])
def test_conjugate_posterior_with_weights(guide):
    x = torch.tensor([0.3, 1.9, 2.2, 0.7, 1.1], dtype=torch.float64)
    w = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    engine = pv.SVI(1500, optimizer=pv.adam(2e-2), objective=pv.elbo(), guide=guide, num_draws=4000, progress=False)
    fit = engine.fit(NormalMean(), x, weights=w)
    precision = 1 / 4 + w.sum()
    mean, sd = (w * x).sum() / precision, precision**-0.5
    draws = fit.draws["mu"]
    # Adam's own noise at this step size is about 0.05 sd.
    assert abs(draws.mean() - mean) < 0.15 * sd
    assert draws.std().item() == pytest.approx(sd.item(), rel=0.12)


def test_elbo_total_bounds_the_evidence():
    """log p(X) is known for the conjugate model: the bound lies below it, the weighted draws on it."""
    from ppl_vae.diagnostics import elbo_total

    x = torch.tensor([0.3, 1.9, 2.2, 0.7, 1.1], dtype=torch.float64)
    fit = pv.SVI(800, optimizer=pv.adam(2e-2), progress=False).fit(NormalMean(), x)
    covariance = torch.eye(5, dtype=torch.float64) + 4.0
    truth = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=torch.float64), covariance).log_prob(x).item()
    bound, evidence, share = elbo_total(fit)
    assert bound <= truth + 0.02
    assert evidence == pytest.approx(truth, abs=0.05)
    assert share > 0.5


@pytest.fixture
def digits():
    return pv.data.images("digits", binarize="threshold")


def small_vae():
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(64, 32, 4), pv.nets.mlp_decoder(4, 32, 64))


def test_reported_bound_is_the_true_one_whatever_is_optimised(digits):
    """At beta = 0 the objective leaves the KL out; the bound beside it does not."""
    fit = pv.SVI(5, batch_size=128, beta=0.0, progress=False).fit(small_vae(), digits.train)
    assert (fit.trace["objective"] > fit.trace["bound"] + 0.01).all()
    warm = pv.SVI(5, batch_size=128, beta=pv.linear(0, 1, epochs=2), progress=False).fit(small_vae(), digits.train)
    torch.testing.assert_close(warm.trace["objective"][3:], warm.trace["bound"][3:], rtol=1e-6, atol=1e-6)


def test_patience_keeps_the_best_state(digits):
    few = digits.train[:40]
    engine = pv.SVI(
        400, batch_size=20, optimizer=pv.adam(1e-2), validation=digits.validation, patience=10, progress=False
    )
    fit = engine.fit(small_vae(), few)
    assert fit.status.code == "stopped early"
    held_out = fit.trace["validation"]
    assert len(held_out) < 400
    # Same noise as the loop's own measurement of that epoch.
    torch.manual_seed(0)
    assert fit.model.elbo(digits.validation).mean().item() == pytest.approx(held_out.max().item(), abs=1e-4)


def test_a_failed_step_is_a_status_and_spoils_nothing(digits):
    def explosive(epoch):
        return float("nan") if 2 < epoch < 3 else 1.0  # at whole epochs it is a number

    fit = pv.SVI(5, batch_size=200, beta=explosive, progress=False).fit(small_vae(), digits.train)
    assert fit.status.code == "failed"
    assert "epoch 2" in fit.status.message
    assert all(torch.isfinite(p).all() for p in fit.model.parameters())


class Detached(pv.LatentVariableModel):
    """Its encoder has no gradient."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(2, 1), torch.nn.Linear(1, 2)

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(self.encoder(x).detach(), 1.0).to_event(1)

    @pv.observed
    def x(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(1)


def test_parameters_that_no_gradient_reached_are_named():
    fit = pv.SVI(2, progress=False).fit(Detached(), torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
    assert fit.status.notes == (
        "encoder.weight, encoder.bias did not move: its gradient or its step was zero throughout",
    )


def test_own_loop_equals_the_engine_s_first_step(digits):
    vae = small_vae()
    step = pv.svi_step(vae, torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True))
    torch.manual_seed(0)
    bound = step(digits.train)
    fit = pv.SVI(1, optimizer=pv.adam(1e-3), progress=False, seed=0).fit(small_vae(), digits.train)
    assert bound.item() == pytest.approx(fit.trace["bound"][0].item(), rel=1e-5)
    for (_, a), (_, b) in zip(vae.named_parameters(), fit.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_missing_pixels_train(digits):
    x = digits.train.clone()
    x[torch.rand_like(x) < 0.2] = torch.nan
    fit = pv.SVI(10, batch_size=128, progress=False).fit(small_vae(), x)
    assert torch.isfinite(fit.trace["bound"]).all()
    assert fit.trace["bound"][-1] > fit.trace["bound"][0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.SVI(0), "at least 1"),
        (lambda: pv.SVI(1, patience=3), "validation"),
        (lambda: pv.SVI(1, start="autoo", progress=False).fit(NormalMean(), torch.zeros(3)), "autoo"),
        (lambda: pv.SVI(1, start=torch.ones(3, 2), progress=False).fit(NormalMean(), torch.zeros(3)), "start must be"),
        (lambda: pv.NUTS(1, start=torch.ones(3, 2), progress=False).fit(NormalMean(), torch.zeros(3)), "start must be"),
        (lambda: pv.SVI(1, guide="nomal", progress=False).fit(NormalMean(), torch.zeros(3)), "nomal"),
        (lambda: pv.svi_step(NormalMean(), torch.optim.Adam([torch.zeros(1)])), "size="),
    ],
)
def test_bad_requests_are_named(make, message):
    with pytest.raises(pv.EngineError, match=message):
        make()


def test_values_to_start_from_are_not_changed():
    x = pv.data.faithful().values
    start = {"components.loc": torch.tensor([[2.0, 55.0], [4.3, 80.0]], dtype=torch.float64)}
    before = start["components.loc"].clone()
    first = pv.SVI(2, start=start, optimizer=pv.sgd(1e-3), progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    kept = {name: value.clone() for name, value in first.parameters.items()}
    second = pv.SVI(2, start=start, optimizer=pv.sgd(1e-3), progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    assert torch.equal(start["components.loc"], before)
    torch.testing.assert_close(second.parameters, kept, rtol=0, atol=0)
    pv.SVI(2, start=first, optimizer=pv.sgd(1e-3), progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    torch.testing.assert_close(first.parameters, kept, rtol=0, atol=0)


def test_a_fit_from_a_fit_takes_its_networks(digits):
    first = pv.SVI(2, batch_size=128, progress=False).fit(small_vae(), digits.train)
    still = pv.SVI(1, optimizer=pv.sgd(0.0), start=first, progress=False).fit(small_vae(), digits.train)
    for name, value in first.model.state_dict().items():
        assert torch.equal(still.model.state_dict()[name], value), name
    # A fit of a mixture has what the families of a mixture VAE need, and no networks.
    codes = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 4, "diagonal"), first.posterior(digits.train).mean)
    both = pv.models.GMVAE(small_vae().encoder, small_vae().decoder, 2)
    found = pv.SVI(1, optimizer=pv.sgd(0.0), start=codes, progress=False).fit(both, digits.train).parameters
    torch.testing.assert_close(found["components.loc"], codes.parameters["components.loc"].float())
    wider = pv.models.VAE(pv.nets.mlp_encoder(64, 20, 3), pv.nets.mlp_decoder(3, 20, 64))
    with pytest.raises(pv.DataError, match=r"the fit to start from has shape \(32, 4\) for decoder.*\(20, 3\)"):
        pv.SVI(1, start=first, progress=False).fit(wider, digits.train)


def test_networks_of_a_fit_train_on():
    """They ask for no gradient any more, which does not say that they are to stay."""
    first = pv.SVI(1, progress=False).fit(small_vae(), torch.ones(20, 64)).model
    both = pv.models.GMVAE(first.encoder, first.decoder, 3)
    again = pv.SVI(2, optimizer=pv.adam(1e-2), progress=False).fit(both, torch.ones(20, 64))
    for name, value in again.model.named_parameters():
        assert not torch.equal(value, dict(both.named_parameters())[name]), name


@pytest.mark.parametrize("engine", [pv.SVI(3, batch_size=50, progress=False), pv.SVI(3, compile="off", progress=False)])
def test_what_its_owner_froze_stays(engine, digits):
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 16, 2), pv.nets.mlp_decoder(2, 16, 64))
    vae.encoder.requires_grad_(False)
    fit = engine.fit(vae, digits.train[:200])
    before, after = vae.encoder.state_dict(), fit.model.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(next(vae.decoder.parameters()), next(fit.model.decoder.parameters()))
    assert fit.model.encoder is not vae.encoder
    # A fit's own networks, which the engine froze, train on.
    again = engine.fit(fit.model, digits.train[:200])
    assert not any(torch.equal(after[name], again.model.encoder.state_dict()[name]) for name in after)


def test_a_module_that_its_owner_put_into_eval_stays_there(digits):
    encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(64), pv.nets.mlp_encoder(64, 16, 2))
    for frozen in (False, True):
        vae = pv.models.VAE(encoder, pv.nets.mlp_decoder(2, 16, 64), latent_dim=2)
        encoder[0].train(not frozen)
        norm = pv.SVI(2, batch_size=50, progress=False).fit(vae, digits.train[:200]).model.encoder[0]
        assert norm.num_batches_tracked.item() == (0 if frozen else 8)
        assert torch.equal(norm.running_mean, encoder[0].running_mean) == frozen


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_running_statistics_are_those_of_the_training_steps(mode, digits):
    """Looks at shapes run the networks too, on a few rows and in training mode."""
    x = digits.train[:200]
    encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(64), pv.nets.mlp_encoder(64, 16, 2))
    decoder = torch.nn.Sequential(torch.nn.BatchNorm1d(2), pv.nets.mlp_decoder(2, 16, 64))
    vae = pv.models.VAE(encoder, decoder, latent_dim=2)
    vae.check(x)
    vae.adapt(x)
    assert encoder[0].num_batches_tracked == decoder[0].num_batches_tracked == 0
    assert torch.equal(decoder[0].running_mean, torch.zeros(2))
    fit = pv.SVI(1, batch_size=50, optimizer=pv.sgd(0.0), compile=mode, progress=False).fit(vae, x)
    assert fit.model.encoder[0].num_batches_tracked == fit.model.decoder[0].num_batches_tracked == 4
    step = pv.svi_step(vae, pv.sgd(0.0), compile=mode)
    for _ in range(3):
        step(x)
    assert encoder[0].num_batches_tracked == decoder[0].num_batches_tracked == 3


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_autocast_around_a_fit_changes_nothing(mode):
    x = (torch.rand(60, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(8, 16, 2), pv.nets.mlp_decoder(2, 16, 8))
    engine = pv.SVI(2, batch_size=20, compile=mode, progress=False)
    expected = engine.fit(vae, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = engine.fit(vae, x)
        codes = expected.posterior(x).mean
    assert torch.equal(found.trace["bound"], expected.trace["bound"])
    assert torch.equal(codes, expected.posterior(x).mean)
