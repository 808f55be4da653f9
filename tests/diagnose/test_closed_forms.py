"""Collapse, prior hole and the quality of q against linear-Gaussian truth."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from linear import (
    Answered,
    Diagonal,
    Exact,
    Narrow,
    Offset,
    Shifted,
    best_diagonal,
    data_of,
    fitted,
    information,
    weighted,
)

import ppl_vae as pv
from ppl_vae.diagnose import Codes
from ppl_vae.diagnose.diagnosis import chosen
from ppl_vae.diagnose.gap import local_bound
from ppl_vae.diagnose.inference import _tails
from ppl_vae.diagnose.offsets import moved
from ppl_vae.diagnose.quantity import Quantity, with_error
from ppl_vae.diagnose.weights import weigh
from ppl_vae.errors import DataError
from ppl_vae.relaxed import LogConcrete


def near(quantity, truth, errors=4, slack=0.0):
    assert abs(quantity.value - truth) < errors * quantity.standard_error + slack, (quantity, truth)


@pytest.fixture(scope="module")
def exact():
    model = weighted(Exact())
    x = data_of(model, 700)
    return model, x, fitted(model).diagnose(x, num_particles=50, gap_data=8)


def test_mutual_information_is_bracketed(exact):
    model, _, found = exact
    below, above, truth = found["mutual information"], found["mutual information, at most"], information(model)
    assert below.value - 4 * below.standard_error < truth < above.value + 4 * above.standard_error
    near(below, truth, slack=0.05)
    near(above, truth, slack=0.05)


def test_kl_is_that_of_the_normals(exact):
    model, x, found = exact
    p = model.exact_posterior(x)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    truth = torch.distributions.kl_divergence(p, prior).mean().item()
    assert found["KL"].value == pytest.approx(truth, abs=1e-9)


def test_variance_of_the_mean_is_that_of_the_posterior_means(exact):
    model, x, found = exact
    torch.testing.assert_close(found.collapse.variance, model.exact_posterior(x).loc.var(0))
    assert found["active units"].value == 2


def test_sensitivity_is_the_size_of_the_linear_map(exact):
    model, x, found = exact
    probe = torch.eye(3, dtype=x.dtype)
    slope = model.exact_posterior(probe).loc - model.exact_posterior(torch.zeros(3, 3).double()).loc
    truth = (slope * x.std(0)[:, None]).square().sum(0).sqrt()
    # The prior's sd is that of 4,096 draws, and directions are random: the square has errors of chi^2 size.
    torch.testing.assert_close(found.collapse.sensitivity, truth, rtol=0.12, atol=0.0)


def test_a_model_at_its_own_data_has_no_hole(exact):
    _, _, found = exact
    least = found["KL(q(z) || p), at least"]
    assert least.value < 0.02 + 4 * (least.standard_error or 0.0)
    near(found["prior in holes"], 0.01, slack=0.01)
    near(found["MMD"], 0.0)
    assert found["variance over the prior's"].value == pytest.approx(1.0, abs=0.15)


def test_an_exact_q_has_no_gap_and_equal_weights(exact):
    model, x, found = exact
    truth = model.exact(x[found.index])
    torch.testing.assert_close(found.inference.bound, truth)
    torch.testing.assert_close(found.inference.evidence.value, truth)
    assert found["gap"].value == pytest.approx(0.0, abs=1e-9)
    near(found["amortisation gap"], 0.0, slack=1e-9)
    near(found["approximation gap"], 0.0, slack=1e-9)
    assert found["effective sample size"].value == pytest.approx(50)
    assert found["bad Pareto k"].value == 0
    assert bool((found.inference.evidence.k_hat < 0).all())
    assert found.ok
    assert not found.advice


def test_a_q_that_is_too_narrow_has_heavy_tails_and_an_amortisation_gap():
    model = weighted(Narrow())
    x = data_of(model, 100)
    found = fitted(model).diagnose(x, num_particles=2000, gap_data=10)
    # log w = (1 - 0.2^2) |e|^2 / 2 with e ~ N(0, I): a Pareto tail with k = 1 - 0.2^2.
    assert found.inference.evidence.k_hat.median().item() == pytest.approx(0.96, abs=0.15)
    assert found["bad Pareto k"].value > 0.8
    assert found["bad Pareto k"].ok is False
    few = x[found.index][:10]
    narrow = model.q_z(few)
    truth = torch.distributions.kl_divergence(narrow, model.exact_posterior(few))
    local = found.inference.local
    assert found["amortisation gap"].ok is False
    assert bool(local.moved.all())
    torch.testing.assert_close(local.local, model.exact(few), rtol=0.0, atol=0.05)
    assert local.local.mean().item() == pytest.approx(model.exact(few).mean().item(), abs=0.02)
    assert found["amortisation gap"].value == pytest.approx(truth.mean().item(), rel=0.1)
    assert 0 <= found["approximation gap"].value < 0.02


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.3])
def test_a_small_gap_of_the_encoder_is_not_called_the_familys(gap):
    model = weighted(Offset())
    x = data_of(model, 48)
    P = model.exact_posterior(x).precision_matrix[0]
    model.by = (2 * gap / P.sum()).sqrt()  # KL(q || p(z | x)) = by^2 1'P1 / 2
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = local_bound(Codes(model, model.check(x)))
    gained, rest = found.local - found.amortised, found.evidence.value - found.local
    # Adam's 4 draws a step leave the q found about 0.003 nats per unit short of the best.
    assert abs(gained.mean().item() - gap) < 4 * gained.std().item() / 48**0.5 + 0.01
    assert abs(rest.mean().item()) < 4 * rest.std().item() / 48**0.5 + 0.01
    below = found.local - model.exact(x)
    assert below.mean().item() < 4 * below.std().item() / 48**0.5 + 1e-9


class Angle(pv.LatentVariableModel):
    """p(z) = VM(0, 1), p(x | z) = VM(z, 2): p(z | x) = VM(arg c, |c|), c = 1 + 2 exp(i x); q is off by an angle."""

    by = 0.0

    @pv.latent
    def z(self):
        return dist.VonMises(torch.tensor(0.0).double(), 1.0)

    @z.posterior
    def q_z(self, x):
        c = 1 + 2 * torch.exp(1j * x)
        return dist.VonMises(c.angle() + self.by, c.abs())

    @pv.observed
    def x(self, z):
        return dist.VonMises(z, 2.0)


@pytest.mark.filterwarnings("ignore:runs eagerly")
@pytest.mark.parametrize("by", [0.0, 1.0])
def test_the_gap_of_a_q_whose_draws_have_no_gradient(by):
    model, x = Angle().double(), torch.linspace(-3, 3, 12).double()
    model.by = by
    found = fitted(model).diagnose(x, num_particles=50, gap_data=12)
    c = (1 + 2 * torch.exp(1j * x)).abs()
    truth = (c * torch.special.i1(c) / torch.special.i0(c)).mean().item() * (1 - math.cos(by))  # KL of turned laws
    # Draws whose density alone has a gradient leave the q found a little short of the best.
    near(found["amortisation gap"], truth, slack=0.1)
    assert 0 <= found["approximation gap"].value < 0.1


@pytest.mark.parametrize(
    ("law", "count"),
    [
        (dist.Normal(torch.zeros(3), torch.ones(3)), 2),
        (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), 2),
        (dist.Categorical(torch.tensor([0.2, 0.8])), 1),
        (dist.OneHotCategorical(torch.tensor([0.2, 0.8])), 1),
        (dist.Bernoulli(torch.tensor([0.2, 0.8])).to_event(1), 1),
        (dist.RelaxedOneHotCategorical(torch.tensor(0.5), torch.tensor([0.2, 0.8])), 1),
        (dist.RelaxedBernoulli(torch.tensor(0.5), torch.tensor(0.3)), 1),
        (LogConcrete(torch.tensor(0.5), torch.tensor([[0.2, 0.8]])).to_event(1), 1),
        (dist.NegativeBinomial(torch.tensor(3.0), torch.tensor(0.3)), 2),
    ],
)
def test_each_parameter_of_a_law_is_moved_once(law, count):
    seen = []

    def stay(u):
        seen.append(u)
        return u

    z = law.sample()
    torch.testing.assert_close(moved(law, stay).log_prob(z), law.log_prob(z))
    assert len(seen) == count
    assert not torch.equal(
        moved(law, lambda u: u + torch.arange(1.0, u.numel() + 1).view_as(u)).log_prob(z), law.log_prob(z)
    )


def test_the_gap_of_a_relaxed_latent_is_split():
    """The encoder says nothing; the best logits are those of a grid, the bound there by quadrature."""
    torch.manual_seed(0)
    encoder, decoder = pv.nets.linear_decoder(4, 2), pv.nets.linear_decoder(2, 4)
    torch.nn.init.normal_(decoder.weight, std=3.0)
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)
    model = pv.models.GumbelVAE(encoder, decoder, 1, 2).double()
    x = data_of(model, 12)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = local_bound(Codes(model, model.check(x)))
    u = torch.linspace(0, 1, 4002).double()[1:-1].logit()  # a standard logistic variable by its quantiles
    bounds = []
    for logit in torch.linspace(-6, 6, 121).double():
        half = torch.stack([(logit + u) / model.temperature, torch.zeros_like(u)], 1)
        z = half.log_softmax(1)
        q, p = (LogConcrete(model.temperature, logits=torch.stack([at, 0 * at])) for at in (logit, 0 * logit))
        with torch.no_grad():
            log_p = model.likelihood(model.decoder(z.exp())[:, None]).log_prob(x)
            bounds.append((log_p + (p.log_prob(z) - q.log_prob(z))[:, None]).mean(0))
    best, start = torch.stack(bounds).max(0).values, bounds[60]
    torch.testing.assert_close(found.local.mean(), best.mean(), rtol=0.0, atol=0.1)  # 256 draws of 12 data
    gain = found.local - found.amortised
    assert abs((gain - (best - start)).mean()) < 4 * (gain - (best - start)).std() / 12**0.5 + 0.02
    assert gain.mean() > 0.05


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_the_best_diagonal_q_is_found(mode):
    torch.manual_seed(0)
    model = weighted(Diagonal())
    x = data_of(model, 12)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = local_bound(Codes(model, model.check(x)), compile=mode)
    truth = model.exact(x) - best_diagonal(model, x)
    torch.testing.assert_close(found.local, truth, rtol=0.0, atol=0.08)
    assert found.local.mean().item() == pytest.approx(truth.mean().item(), abs=0.02)
    assert bool((found.evidence.value >= found.local).all())


def test_traced_steps_are_the_eager_ones():
    model = weighted(Diagonal())
    codes = Codes(model, model.check(data_of(model, 5)))
    bounds = []
    for mode in ("trace", "off"):
        torch.manual_seed(0)
        bounds.append(local_bound(codes, steps=20, compile=mode).local)
    torch.testing.assert_close(*bounds)


def test_a_shifted_aggregate_posterior_is_as_far_as_its_normal():
    model = weighted(Shifted())
    model.shift = torch.tensor([2.0, 0.0]).double()
    found = fitted(model).diagnose(data_of(model, 1000), num_particles=25, gap_data=0)
    truth = 2.0**2 / 2
    below, above = found["KL(q(z) || p), at least"], found["KL(q(z) || p)"]
    assert below.value - 4 * below.standard_error < truth < above.value + 4 * above.standard_error
    near(above, truth, slack=0.05)
    # Outside the ellipse that holds 99% of N((2, 0), I): a chi^2 that is not central.
    share = stats.ncx2.sf(stats.chi2.ppf(0.99, 2), 2, 2.0**2)
    near(found["prior in holes"], share, slack=0.03)
    assert found["MMD"].value > 4 * found["MMD"].standard_error
    assert found["KL(q(z) || p), at least"].ok is False
    assert found["prior in holes"].ok is False
    outside = found.hole.codes.mean(0)
    assert outside[0] > 1.8
    density = torch.distributions.Normal(torch.tensor([2.0, 0.0]).double(), 1.0).log_prob(found.hole.empty).sum(1)
    assert bool((density < found.hole.level + 0.7).all())


def test_codes_that_spread_too_far_are_seen():
    model = weighted(Shifted())
    model.factor = 3.0
    found = fitted(model).diagnose(data_of(model, 500), num_particles=25, gap_data=0)
    assert found["variance over the prior's"].value == pytest.approx(9.0, rel=0.15)
    assert found["variance over the prior's"].ok is False
    assert any(said.startswith("the codes spread to ") for said in found.advice)


def test_an_encoder_that_ignores_its_data_has_collapsed():
    model = weighted(Answered())
    found = fitted(model).diagnose(data_of(model, 300), gap_data=0)
    assert found["active units"].value == 0
    assert found["active units"].ok is False
    assert found["mutual information"].value == pytest.approx(0.0, abs=1e-12)
    assert found["mutual information"].ok is False
    assert found["encoder sensitivity"].value == 0
    assert found.advice[0].startswith("2 of 2 units are inactive (variance of the posterior mean under 0.01): ")


def test_kl_per_unit_is_that_of_evaluate():
    model = weighted(Diagonal())
    x = data_of(model, 50)
    fit = fitted(model)
    found = fit.diagnose(x, num_particles=25, gap_data=0)
    torch.testing.assert_close(found.collapse.kl_per_unit, fit.evaluate(x).kl_per_unit)
    assert found["KL"].value == pytest.approx(found.collapse.kl_per_unit.sum().item())


def test_far_apart_codes_bound_the_information_by_log_n():
    model = weighted(Exact(scale=1e-4))
    found = fitted(model).diagnose(data_of(model, 40), num_particles=25, gap_data=0)
    assert found["mutual information"].value == pytest.approx(math.log(40), abs=1e-3)
    assert found["mutual information, at most"].value == pytest.approx(found["KL"].value, rel=0.05)


def test_the_digits_of_a_number_are_those_that_its_error_leaves():
    assert with_error(3.14159, 0.012) == "3.142 ± 0.012"
    assert Quantity("a", "b", "c", why="no encoder").text == "not defined: no encoder"


def test_a_heavy_tail_is_bad_only_where_weights_vary():
    tail = torch.rand(1000, 3, dtype=torch.float64) ** -0.9
    for even, share in ((0.999, 0.0), (0.0, 1.0)):
        k, size = _tails(weigh((even + (1 - even) * tail).log()), 1000)
        assert (k.name, k.value, k.ok) == ("bad Pareto k", share, share == 0.0)
        assert (size.value > 900) == (even > 0)


def test_a_datum_of_weight_two_counts_as_two():
    """The bound and the posterior means of an exact q have no noise: they are those of the data written out."""
    model = weighted(Exact())
    x = data_of(model, 60)
    counts = torch.arange(60) % 3
    options = {"num_particles": 25, "gap_data": 0}
    out = fitted(model).diagnose(x.repeat_interleave(counts, 0), **options)
    own = replace(fitted(model), data=model.check(x), weights=counts.double())
    for found in (fitted(model).diagnose(x, weights=counts, **options), own.diagnose(**options), own.diagnose(x)):
        assert found.index.tolist() == torch.arange(60).repeat_interleave(counts).tolist()
        for name in ("ELBO", "log p(x)", "active units"):
            assert found[name].value == pytest.approx(out[name].value)
            assert found[name].standard_error == pytest.approx(out[name].standard_error)
        torch.testing.assert_close(found.collapse.variance, out.collapse.variance)
        assert "60 rows count as 60 data" in str(found)
    assert own.diagnose(x + 1, **options).notes == ()


def test_weights_that_are_no_counts_are_chances():
    w = torch.tensor([0.5, 0.0, 2.25, 1.25])
    often = torch.zeros(4, dtype=torch.float64)
    for seed in range(400):
        torch.manual_seed(seed)
        rows = chosen(4, 100, w)
        assert len(rows) == 4  # as many data as the weights stand for
        count = torch.bincount(rows, minlength=4)
        assert bool(((count - w).abs() < 1).all())
        often += count / 400
    assert bool(((often - w).abs() <= 4 * 0.5 / 400**0.5).all())
    with pytest.raises(DataError, match=r"weights sum to 0\.4, less than one datum"):
        chosen(2, 10, torch.tensor([0.3, 0.1]))
