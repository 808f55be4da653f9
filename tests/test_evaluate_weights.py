"""What is reported of weighted data is that of the data repeated."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from example_models import Nested

import ppl_vae as pv
from ppl_vae.progress import _within


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    x = torch.randn(30, 3)
    model = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 2), pv.nets.mlp_decoder(2, 4, 3), likelihood="gaussian")
    return x, pv.SVI(2, progress=False).fit(model, x)


def test_weights_count_data(vae):
    x, fit = vae
    w = torch.where(x.norm(dim=1) > 2, 4.0, 1.0)
    weighted, repeated = fit.evaluate(x, 300, weights=w), fit.evaluate(x.repeat_interleave(w.long(), 0), 300)
    torch.testing.assert_close(weighted.kl_per_unit, repeated.kl_per_unit.to(weighted.kl_per_unit))
    # The bound and the importance weights have noise of their own for every row.
    assert weighted.log_prob == pytest.approx(repeated.log_prob, abs=0.05)
    assert weighted.log_prob_se == pytest.approx(repeated.log_prob_se, rel=0.05)
    assert weighted.log_prob < fit.evaluate(x, 300).log_prob - 0.1


def test_the_training_data_have_the_weights_they_were_fitted_with(vae):
    x, _ = vae
    w = torch.tensor([0.0, 5.0, 1.0]).repeat(10)
    model = pv.models.GaussianMixture(2, 3, prior="weak")
    fit = pv.EM(progress=False).fit(model, x, weights=w)
    assert fit.evaluate(x).log_prob == fit.evaluate(x, weights=w).log_prob
    assert fit.evaluate(x).log_prob != fit.evaluate(x, weights=torch.ones(30)).log_prob


def test_a_latent_that_is_drawn_is_not_said_to_be_exact():
    x = torch.randn(20, generator=torch.Generator().manual_seed(0))
    fit = pv.SVI(5, num_draws=3, progress=False).fit(Nested(), x)
    found = fit.evaluate(x, num_particles=5)
    assert found.method == "importance"
    assert found.min_ess != found.min_ess


def test_what_rests_on_few_draws_says_so():
    x = 4 + torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    model = pv.models.VAE(
        pv.nets.mlp_encoder(3, 4, 2), pv.nets.mlp_decoder(2, 4, 3), likelihood=pv.likelihoods.Gaussian(0.05)
    )
    found = pv.SVI(1, progress=False).fit(model, x).evaluate(x)
    assert found.min_ess < 10
    assert f"rest on {found.min_ess:.1f} draws" in str(found)
    exact = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 3, prior="weak"), x).evaluate(x)
    assert "ESS" not in str(exact)
    assert not exact.doubt


BATCHES = {
    "a loader": lambda x: torch.utils.data.DataLoader(x, batch_size=7),
    "a Dataset": lambda x: torch.utils.data.TensorDataset(x),
    "a stream": lambda x: pv.data.stream(x, rows=8),
    "batches": lambda x: [x[:19], x[19:]],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_data_in_batches_are_evaluated_as_the_same_data_at_once(kind, vae):
    x, fit = vae
    mixture = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 3, prior="weak"), x)
    whole, parts = mixture.evaluate(x), mixture.evaluate(BATCHES[kind](x))
    assert parts.method == "exact"
    assert (parts.n, parts.log_prob) == (30, pytest.approx(whole.log_prob, abs=1e-5))
    assert parts.log_prob_se == pytest.approx(whole.log_prob_se, abs=1e-5)
    whole, parts = fit.evaluate(x, 2000), fit.evaluate(BATCHES[kind](x), 2000)
    torch.testing.assert_close(parts.kl_per_unit, whole.kl_per_unit, rtol=1e-5, atol=1e-7)
    assert parts.active_units == whole.active_units
    # Other draws of q: the weights' own error is what the two do not share, less than that over the data.
    assert parts.log_prob == pytest.approx(whole.log_prob, abs=whole.log_prob_se / 4)


def test_batches_without_numbers_of_rows_have_no_weights(vae):
    x, fit = vae
    with pytest.raises(pv.DataError, match="weights"):
        fit.evaluate(BATCHES["a loader"](x), weights=torch.ones(30))
    w = torch.arange(30.0)
    mixture = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 3, prior="weak"), x)
    found = mixture.evaluate(BATCHES["a Dataset"](x), weights=w).log_prob
    assert found == pytest.approx(mixture.evaluate(x, weights=w).log_prob, abs=1e-5)


def test_data_that_do_not_count_do_not_count_for_the_effective_sample_size(vae):
    x, fit = vae
    far = torch.cat([x, torch.full((1, 3), 30.0)])
    w = torch.ones(31)
    assert fit.evaluate(far).min_ess < fit.evaluate(x).min_ess
    w[30] = 0.0
    assert fit.evaluate(far, weights=w).min_ess > fit.evaluate(far).min_ess


class Shaped(pv.LatentVariableModel):
    """A model of numbers whose latent has 4 units, in any shape."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.encoder, self.decoder = shape, pv.nets.mlp_encoder(3, 8, 4), pv.nets.mlp_decoder(4, 8, 3)

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(self.shape), 1.0).to_event(len(self.shape))

    @z.posterior
    def q_z(self, x):
        loc, scale = (part.unflatten(-1, self.shape) for part in self.encoder(x))
        return dist.Normal(loc, scale).to_event(len(self.shape))

    @pv.observed
    def x(self, z):
        return dist.Normal(self.decoder(z.flatten(-len(self.shape))), 1.0).to_event(1)


@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (4, 1), (2, 1, 2)], ids=str)
def test_every_number_of_a_latent_is_a_unit_whatever_its_shape(shape):
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))

    def found(*shape):
        torch.manual_seed(0)
        return pv.SVI(20, optimizer=pv.adam(1e-2), progress=False).fit(Shaped(*shape), x).evaluate(x)

    vector, other = found(4), found(*shape)
    assert other.kl_per_unit.shape == (4,)
    torch.testing.assert_close(other.kl_per_unit, vector.kl_per_unit, rtol=1e-4, atol=1e-5)
    assert other.active_units == vector.active_units
    assert f"of {len(vector.kl_per_unit)}" in str(other)


def test_an_interruption_leaves_progress_as_it_was(vae, monkeypatch):
    x, fit = vae

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(fit), "elbo", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        fit.evaluate(BATCHES["a loader"](x))
    assert kept.value.__traceback__ is not None
    assert not _within.get()


def test_a_pyro_pair_is_evaluated_on_its_arguments():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))

    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    fit = pv.SVI(1, optimizer=pv.adam(0.0), progress=False).fit((model, guide), x)
    found = fit.evaluate(x)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum(1).mean().item()  # q is the posterior
    assert found.log_prob == pytest.approx(exact, abs=1e-5)
    torch.testing.assert_close(found.kl_per_unit.float(), ((x / 2) ** 2 / 2).mean(0) + 0.5 * (0.5 - 1 - math.log(0.5)))
    with pytest.raises(pv.DataError, match="on its arguments"):
        fit.evaluate(torch.utils.data.DataLoader(x))
