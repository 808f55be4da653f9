"""Supports that depend on latents: a datum may be outside for some of their values, and is then impossible there."""

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import ppl_vae as pv


class Capture(pv.LatentVariableModel):
    """A population of unknown size, of which some are seen."""

    @pv.latent(shared=True)
    def p(self):
        return dist.Beta(2.0, 2.0)

    @pv.latent
    def size(self):
        return dist.Categorical(torch.ones(101) / 101)

    @pv.observed
    def seen(self, size, p):
        return dist.Binomial(size.to(p.dtype), p)


class Ranges(pv.LatentVariableModel):
    """A narrow range within a wide one."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.register_buffer("top", torch.tensor([1.0, 5.0]))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return dist.Uniform(torch.zeros(()), self.top[z])


class Top(pv.LatentVariableModel):
    """A range whose end has a prior."""

    @pv.latent(shared=True)
    def top(self):
        return dist.Pareto(torch.tensor(1.0), 2.0)

    @pv.observed
    def x(self, top):
        return dist.Uniform(torch.zeros(()), top)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_a_population_is_larger_than_what_was_seen(n):
    x = torch.tensor([40.0, 55.0, 47.0, 60.0, 38.0, 51.0])[:n].double()
    fit = pv.EM(progress=False).fit(Capture(), x)
    p = fit.parameters["p"].item()
    log = stats.binom.logpmf(x.numpy()[:, None], range(101), p) - torch.tensor(101.0).double().log().item()
    torch.testing.assert_close(fit.log_prob(x), torch.as_tensor(logsumexp(log, 1)))
    r = torch.as_tensor(log - logsumexp(log, 1, keepdims=True)).exp()
    torch.testing.assert_close(fit.responsibilities(x), r)


@pytest.mark.parametrize("n", [1, 4, 30])
def test_ranges_that_do_not_hold_all_data(n):
    torch.manual_seed(0)
    x = 5 * torch.rand(n, dtype=torch.float64)
    fit = pv.EM(progress=False).fit(Ranges(), x)
    share = fit.parameters["mixing.probs"]
    expected = (share[0] * (x < 1) + share[1] / 5).log()
    torch.testing.assert_close(fit.log_prob(x), expected)
    assert pv.compare({"fit": fit}).rows["fit"].log_predictive == pytest.approx(expected.mean().item())


def test_an_end_with_a_prior_is_not_that_of_one_draw():
    """Pareto is conjugate: the posterior of the end is Pareto(max, 2 + n)."""
    torch.manual_seed(0)
    x = 5 * torch.rand(30, dtype=torch.float64)
    start = {"top": torch.tensor(6.0)}
    fit = pv.NUTS(500, warmup=300, num_chains=2, start=start, progress=False).fit(Top(), x)
    largest = x.max().item()
    drawn = fit.draws["top"].flatten()
    assert drawn.min() > largest
    assert drawn.mean().item() == pytest.approx(largest * 32 / 31, rel=0.02)


class Tries(Ranges):
    """Ten tries, with a chance that a latent decides."""

    @pv.observed
    def x(self, z):
        return dist.Binomial(10, self.top[z] / 10)


@pytest.mark.parametrize("n", [2, 7, 30])
def test_a_support_that_is_the_same_for_all_values_is_checked(n):
    x = torch.linspace(0, 10, n).round()
    Tries().log_prob(x)
    x[1] = 12
    with pytest.raises(pv.DataError, match=r"outside the support of Binomial .0 to 10., the first is 12 in row 1"):
        Tries().log_prob(x)


class Shifted(Ranges):
    """Two Pareto laws, of which one begins where the other is well on its way."""

    @pv.observed
    def x(self, z):
        return dist.Pareto(self.top[z], torch.tensor(1.0))


@pytest.mark.parametrize("engine", [pv.EM(progress=False), pv.SVI(300, optimizer=pv.adam(5e-2), progress=False)])
def test_a_law_has_no_density_outside_its_support(engine):
    """Without a check torch continues the density below a Pareto's beginning: there component 1 alone is possible."""
    x = torch.tensor([1.5, 3.0, 6.0, 9.0], dtype=torch.float64)
    fit = engine.fit(Shifted().double(), x)
    share = fit.parameters["mixing.probs"]
    expected = (share[0] / x**2 + share[1] * 5 * (x > 5) / x**2).log()
    torch.testing.assert_close(fit.log_prob(x), expected)
    assert torch.equal(fit.responsibilities(x)[:2], torch.tensor([[1.0, 0.0]] * 2).double())


class Attempts(pv.LatentVariableModel):
    """As many tries as the datum's own number of them."""

    tries = pv.given()

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.odds = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z, tries):
        return dist.Binomial(tries, logits=self.odds[z])


@pytest.mark.parametrize("n", [1, 7, 8, 21])
def test_ends_of_some_rows_are_not_held_against_others(n):
    """The rows on which the declaration is tried have 3 tries each; later batches have up to 30."""
    first = {"tries": torch.full((n,), 3.0), "x": torch.full((n,), 2.0)}
    first["tries"][-1] = 4.0
    later = {"tries": torch.linspace(20, 30, n).round(), "x": torch.linspace(8, 20, n).round()}
    fit = pv.SVI(1, progress=False).fit(Attempts(), [first, later])
    expected = dist.Binomial(later["tries"], 0.5).log_prob(later["x"])
    assert fit.log_prob(later).shape == expected.shape
    assert bool(fit.log_prob(later).isfinite().all())
