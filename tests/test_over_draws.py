"""The posterior of a latent under many draws of theta."""

import pyro.distributions as dist
import torch
from example_models import Nested, numbers
from scipy import stats

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.over_draws import OverDraws


class Classed(Nested):
    """The same with a class beside z."""

    @latent
    def c(self):
        return dist.Categorical(torch.tensor([0.5, 0.5]))

    @observed
    def y(self, c, mu):
        return dist.Normal(mu + 2.0 * c, 1.0)


MU = torch.tensor([[-1.0, 0.5, 2.0], [0.0, 1.0, 4.0]]).double()


def fit_of(model):
    return pv.Fit(model, "NUTS", {"mu": MU}, {}, "none", pv.Status("finished", ""), 0.0, 0)


def test_it_is_the_mixture_of_the_exact_posteriors():
    fit, x = fit_of(Nested().double()), numbers(4)
    q = fit.posterior(x)
    means = (MU.flatten()[:, None] + x) / 2
    torch.testing.assert_close(q.mean, means.mean(0), atol=5e-3, rtol=0)
    torch.testing.assert_close(q.variance, 0.5 + means.var(0, unbiased=False), atol=2e-2, rtol=0)
    at = numbers(4, seed=3)
    expected = stats.norm.pdf(at, means, 0.5**0.5).mean(0)
    torch.testing.assert_close(q.log_prob(at).exp(), torch.as_tensor(expected), atol=5e-3, rtol=0)


def test_its_draws_have_its_moments():
    q = fit_of(Nested().double()).posterior(numbers(4))
    torch.manual_seed(0)
    drawn = q.sample((20_000,))
    assert drawn.shape == (20_000, 4)
    torch.testing.assert_close(drawn.mean(0), q.mean, atol=4 * (q.variance.max().item() / 20_000) ** 0.5, rtol=0)
    # The standard error of a variance is at most sqrt(kurtosis / n) of it.
    torch.testing.assert_close(drawn.var(0), q.variance, atol=0, rtol=4 * (4 / 20_000) ** 0.5)


def test_finite_latents_are_beside_it():
    fit = fit_of(Classed().double())
    data = {"x": numbers(4), "y": numbers(4, seed=2)}
    found = fit.posterior(data)
    assert set(found) == {"z", "c"}
    torch.testing.assert_close(found["c"].probs, fit.responsibilities(data))
    assert isinstance(found["z"], OverDraws)


def test_global_random_state_is_as_it_was():
    fit = fit_of(Nested().double())
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    fit.posterior(numbers(4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_new_data_are_not_sorted_by_their_draw_of_theta():
    """Of data grouped by draw the first hundred would be of the lowest draws alone."""
    fits = [fit_of(model().double()) for model in (Nested, Classed)]
    drawn = [fits[0].sample(600), fits[1].sample(600)["x"]]
    for x in drawn:
        # MU has the variance 2.5 over its draws; within a draw x has 2.
        assert abs(x[:300].mean() - x[300:].mean()) < 4 * (2 * 4.5 / 300) ** 0.5


def test_reconstructions_over_draws_are_those_of_each_draw():
    fit, x = fit_of(Nested().double()), numbers(4)
    # E[z | x, mu] = (mu + x) / 2; 6,000 draws of z with a variance of 1/2.
    expected = (MU.mean() + x) / 2
    torch.testing.assert_close(fit.reconstruct(x, 6_000), expected, atol=4 * (0.5 / 6_000) ** 0.5 + 5e-3, rtol=0)
