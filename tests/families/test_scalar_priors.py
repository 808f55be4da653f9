"""Beta and Gamma priors: mode, expectations, divergence, evidence, and the same posterior by every engine."""

import math

import pytest
import torch
from example_models import bits, numbers
from pyro import distributions as dist
from scipy.special import betaln, gammaln
from torch.distributions import constraints

import ppl_vae as pv
from ppl_vae import families
from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.families import BetaPrior, GammaPrior, conjugate

K, D, N, DRAWS = 3, 2, 60, 20_000
R = torch.softmax(numbers(K, N, seed=4), 0)
COUNTS = (3 * numbers(N, D, seed=6).abs()).floor()
TIMES = 50 * numbers(N, D, seed=2).exp()
BITS, CHANCE, RATE = bits(N, D), BetaPrior(2.5, 1.5), GammaPrior(2.5, 0.7)


class Geometric(families.IndependentFeatures):
    """Failures before a success, declared as a user would."""

    domain, kind, typical = constraints.nonnegative_integer, "counts", (1.0,)
    constraints = {"probs": constraints.unit_interval}  # noqa: RUF012
    weak = BetaPrior

    def distribution(self, index, *given):
        return dist.Geometric(self.member("probs", index)).to_event(len(self.shape) - 1)

    def natural(self):
        p = self.wide("probs")
        return self.linear(p.log(), (-p).log1p())

    def linear(self, first, second):
        return (second,), -first

    def evidence(self, total, seen):
        return seen, total

    def solve(self, means, fixed):
        return {"probs": 1 / (1 + means[..., 0, :])}


# Name: family of `batch` members, data.
TABLE = {
    "bernoulli": (lambda K: families.Bernoulli(D, batch=K, prior=CHANCE), BITS),
    "single bernoulli": (lambda K: families.Bernoulli(batch=K, prior=CHANCE), BITS[:, 0]),
    "poisson": (lambda K: families.Poisson(D, batch=K, prior=RATE), COUNTS),
    "single poisson": (lambda K: families.Poisson(batch=K, prior=RATE), COUNTS[:, 0]),
    "exponential": (lambda K: families.Exponential(D, batch=K, prior=RATE), TIMES),
    "geometric": (lambda K: Geometric(D, batch=K, prior=CHANCE), COUNTS),
    "single exponential": (lambda K: families.Exponential(batch=K, prior=RATE), TIMES[:, 0]),
}


class Mixture(pv.LatentVariableModel):
    """A mixture of any family."""

    def __init__(self, made, K):
        super().__init__()
        self.mixing = families.Categorical(K, prior="weak")
        self.made = made

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.made(z)


def with_gaps(x):
    x = x.clone()
    x.view(N, -1)[::4, 0] = math.nan
    x[11] = math.nan
    return x


def updated(name, missing=False):
    """A family, its data, their sums, its prior as a law, and its posterior."""
    declare, x = TABLE[name]
    family, x = declare(K).double(), with_gaps(x) if missing else x
    family.adapt([(x, None)])
    with family.bind(family.defaults()):
        sums = family.expect(family.features(x), R)
    prior = conjugate(family.prior, family)
    return family, x, sums, prior, prior.updated(sums)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_the_mode_is_the_argmax_of_the_posterior(name, missing):
    family, x, sums, _, _ = updated(name, missing)
    ((parameter, found),) = family.maximize(sums, "map").items()
    value = found.clone().requires_grad_()
    with family.bind({parameter: value}):
        likelihood = (R * family.log_density(family.features(x))).sum()
    (gradient,) = torch.autograd.grad(likelihood + family.site(parameter, {}).log_prob(value), value)
    assert (gradient * found).abs().max() < 1e-9 * N
    ((_, without),) = family.maximize(sums, "ml").items()
    assert (without - found).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize("name", TABLE)
def test_expectations_and_divergence_are_means_over_draws(name):
    family, x, _, prior, q = updated(name, missing=True)
    draws = q.sample(DRAWS)
    ((parameter, values),) = draws.items()
    rows = x[:12]
    found = q.kernel().log_density(q.kernel().expand(family.features(rows)))
    each = []
    for value in values[:400]:
        with family.bind({parameter: value}):
            each.append(family.log_density(family.features(rows)))
    each = torch.stack(each)
    error = each.std(0) / 20
    assert bool(((each.mean(0) - found).abs() <= 4.5 * error + 1e-12).all())
    ratio = q.log_prob(draws) - prior.log_prob(draws)
    assert (ratio.mean() - q.divergence(prior)).abs() < 4.5 * ratio.std() / DRAWS**0.5
    center = q.center()[parameter]
    assert bool(((values.mean(0) - center).abs() < 4.5 * values.std(0) / DRAWS**0.5).all())


def chance_evidence(x, w):
    ones, zeros = (w * x).sum(), (w * (1 - x)).sum()
    return betaln(CHANCE.a + ones, CHANCE.b + zeros) - betaln(CHANCE.a, CHANCE.b)


def rate_evidence(more, and_more, base=0.0):
    a, b = RATE.concentration, RATE.rate
    return gammaln(a + more) - gammaln(a) + a * math.log(b) - (a + more) * math.log(b + and_more) + base


EVIDENCE = {
    "bernoulli": chance_evidence,
    "poisson": lambda x, w: rate_evidence((w * x).sum(), w.sum(), -(w * gammaln(x + 1)).sum()),
    "geometric": lambda x, w: betaln(CHANCE.a + w.sum(), CHANCE.b + (w * x).sum()) - betaln(CHANCE.a, CHANCE.b),
    "exponential": lambda x, w: rate_evidence(w.sum(), (w * x).sum()),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_one_component_has_its_evidence(name, missing):
    """Beta-binomial, gamma-Poisson and gamma-exponential, over the entries seen, with weights."""
    declare, x = TABLE[name]
    x = with_gaps(x) if missing else x
    w = torch.arange(N) % 3
    found = pv.VB(num_draws=2, progress=False).fit(Mixture(declare(1), 1), x, weights=w)
    evidence = EVIDENCE[name.removeprefix("single ")]
    columns = x.reshape(N, -1).numpy().T
    expected = sum(evidence(c[c == c], w.double().numpy()[c == c]) for c in columns)
    assert found.trace["bound"][-1].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "single exponential"])
def test_the_bound_never_falls_and_is_one(name):
    declare, x = TABLE[name]
    found = pv.VB(num_draws=500, max_iter=60, progress=False).fit(Mixture(declare(2), 2), with_gaps(x))
    bound = found.trace["bound"]
    assert bool((bound.diff() >= -1e-9 * bound[-1].abs()).all())
    log_w = (found.pointwise(found.data).sum(-1) + found.sample_stats["log_prior"] - found.sample_stats["log_q"])[0]
    assert bound[-1] < log_w.mean() + 4 * log_w.std() / len(log_w) ** 0.5


@pytest.mark.parametrize("name", ["single bernoulli", "poisson", "exponential"])
def test_svi_and_nuts_have_the_conjugate_posterior(name):
    """One component: means and standard deviations of the exact law, within the errors of the draws."""
    declare, x = TABLE[name]
    engines = {
        "SVI": pv.SVI(2000, optimizer=pv.adam(5e-3), num_draws=4000, progress=False),
        "NUTS": pv.NUTS(800, warmup=400, num_chains=2, progress=False),
    }
    exact = pv.VB(progress=False).fit(Mixture(declare(1), 1), x).q["made"]
    law = exact.prior.law(exact.a, exact.b)
    for engine, how in engines.items():
        fit = how.fit(Mixture(declare(1), 1), x)
        ((_, draws),) = ((k, v) for k, v in fit.draws.items() if k.startswith("made."))
        flat = draws.flatten(0, 1)
        torch.testing.assert_close(flat.mean(0), law.mean, rtol=0, atol=0.2 * law.stddev.max().item(), msg=engine)
        torch.testing.assert_close(flat.std(0), law.stddev, rtol=0.2, atol=0, msg=engine)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_waiting_times_does_not_matter(unit):
    """A weak prior takes its scale from the data, so that the bound moves by the logarithm of the unit."""

    def bound(x):
        model = Mixture(families.Exponential(D, batch=2, prior="weak"), 2)
        return pv.VB(num_draws=2, progress=False).fit(model, x).trace["bound"][-1].item()

    assert bound(TIMES * unit) + N * D * math.log(unit) == pytest.approx(bound(TIMES), rel=1e-7)


def test_the_weak_prior_of_a_column_of_zeros_is_finite():
    x = torch.stack([COUNTS[:, 0], torch.zeros(N)], 1)
    model = Mixture(families.Poisson(2, batch=2, prior="weak"), 2)
    for engine in (pv.EM(progress=False), pv.VB(progress=False), pv.SVI(5, progress=False)):
        fit = engine.fit(model, x)
        assert fit.status.ok
        assert all(bool(v.isfinite().all()) for v in fit.parameters.values())


def test_gradients_do_not_start_at_an_edge():
    """Bits that one kind never has, counts that it always lacks: the mode is on the edge, the mean is not."""
    kind = (torch.arange(200) % 2)[:, None]
    cases = [
        (families.Bernoulli(4, batch=2, prior="weak"), torch.where(kind == 0, 0.0, 1.0).expand(-1, 4), 1 / 102),
        (families.Poisson(4, batch=2, prior="weak"), torch.where(kind == 0, 0.0, 6.0).expand(-1, 4), 1 / (100 + 1 / 3)),
    ]
    for family, x, expected in cases:
        fit = pv.SVI(600, optimizer=pv.adam(2e-2), progress=False).fit(Mixture(family, 2), x)
        name = next(name for name in fit.parameters if name.startswith("made."))
        least = fit.parameters[name].sort(0).values[0]
        torch.testing.assert_close(least, torch.full_like(least, expected), atol=5e-3, rtol=0)


def test_what_is_refused():
    with pytest.raises(DeclarationError, match="Gamma has no conjugate prior"):
        families.Gamma(batch=2, prior="weak")
    with pytest.raises(DeclarationError, match='Poisson: prior must be None, "weak" or a prior object'):
        families.Poisson(batch=2, prior="flat")
    with pytest.raises(DeclarationError, match=r"a and b must be positive, got 0\.0 and 1\.0"):
        BetaPrior(0.0)
    with pytest.raises(DeclarationError, match=r"must be positive, got 1\.0 and -1\.0"):
        GammaPrior(rate=-1.0)
    with pytest.raises(EngineError, match="give GammaPrior a rate"):
        families.Poisson(batch=2, prior="weak").site("rate", {})
    assert families.Poisson(batch=2, prior=RATE).site("rate", {}).event_shape == (2,)


def test_a_prior_of_another_family_is_refused():
    with pytest.raises(DeclarationError, match="Poisson takes a GammaPrior"):
        families.Poisson(batch=2, prior=BetaPrior())
    with pytest.raises(DeclarationError, match="Bernoulli takes a BetaPrior"):
        families.Bernoulli(batch=2, prior=GammaPrior())
    with pytest.raises(DeclarationError, match="Poisson takes a GammaPrior"):
        families.Poisson(batch=2, prior=families.DirichletPrior())
    with pytest.raises(DeclarationError, match="Normal takes a NormalInverseWishartPrior"):
        families.Normal(2, prior=GammaPrior())
    with pytest.raises(DeclarationError, match="Categorical takes a DirichletPrior"):
        families.Categorical(2, prior=families.NormalInverseWishartPrior())
    with pytest.raises(DeclarationError, match="CategoricalVector takes a DirichletPrior"):
        families.CategoricalVector(2, 1, batch=1, prior=BetaPrior())
    with pytest.raises(DeclarationError, match="or a prior object; got 3"):
        families.Normal(2, prior=3.0)


@pytest.mark.parametrize("prior", [BetaPrior(), (BetaPrior(),), (BetaPrior(),) * 3, 1.0])
def test_a_mixture_takes_a_pair_of_priors(prior):
    with pytest.raises(DeclarationError, match="or the pair"):
        pv.models.GaussianMixture(2, 2, prior=prior)
