"""The bound and its relatives, against closed forms and enumeration."""

import pyro.distributions as dist
import pytest
import torch
from example_models import MODELS, make
from torch.distributions import Normal, Poisson

import ppl_vae as pv
from ppl_vae.objectives import Sites, analytic_kl, elbo, has_analytic_kl, iwae

FINITE = [name for name in MODELS if name.startswith(("two finite", "finite posterior"))]


def many(model, x, objective, times):
    """`times` independent values of an objective, [times, n]."""
    obs = model.check(x)
    with torch.no_grad(), model.numeric():
        return objective(model.sites(obs.repeat(objective.num_particles * times))).reshape(times, -1)


@pytest.mark.parametrize("name", FINITE)
def test_the_bound_never_exceeds_the_evidence(name):
    model, data = make(name)
    gap = model.log_prob(data) - model.elbo(data)
    assert bool((gap > -1e-12).all())
    assert bool((gap > 1e-3).any()) is ("posterior" in name)


def test_the_bound_of_a_linear_vae_is_below_its_evidence_by_the_divergence():
    model, x = make("linear vae")
    draws = many(model, x, elbo(), 4000)
    q = torch.distributions.MultivariateNormal(model.encoder(x)[0], torch.diag_embed(model.encoder(x)[1].square()))
    divergence = torch.distributions.kl_divergence(q, model.exact_posterior(x))
    error = draws.std(0) / 4000**0.5
    assert bool(((draws.mean(0) - (model.exact(x) - divergence)).abs() < 4 * error).all())


def test_more_particles_make_iwae_tighter_and_leave_the_elbo():
    model, x = make("linear vae")
    with torch.no_grad():
        exact, times = model.exact(x), 1000
        means, errors = {}, {}
        for count in (1, 5, 50):
            draws = many(model, x, iwae(count), times)
            means[count], errors[count] = draws.mean(0), draws.std(0) / times**0.5
    assert bool((means[1] + 4 * errors[1] < means[5] - 4 * errors[5]).all())
    assert bool((means[5] + 4 * errors[5] < means[50] - 4 * errors[50]).any())
    assert bool((means[50] < exact + 4 * errors[50]).all())
    five = many(model, x, elbo(5), times)
    assert bool(((five.mean(0) - means[1]).abs() < 4 * (five.var(0) / times + errors[1] ** 2).sqrt()).all())


def test_iwae_of_one_particle_is_the_elbo():
    model, x = make("linear vae")
    sites = model.sites(model.check(x))
    torch.testing.assert_close(iwae(1)(sites), elbo()(sites))


# Draws that cannot be reparameterised


def _poisson_bound(model, x, power):
    """sum_i E_q of the bound by summation over z = 0..60."""
    z = torch.arange(60, dtype=torch.float64)[:, None]
    q = Poisson((model.a + model.b * x).exp())
    value = Poisson(torch.tensor(2.0).double()).log_prob(z) + Normal(z, 1.0).log_prob(x) - q.log_prob(z)
    return (q.log_prob(z).exp() * value).sum()


def _gradients(model, x, objective, times):
    found = []
    obs = model.check(x)
    with model.numeric():
        for _ in range(times):
            total = objective(model.sites(obs.repeat(objective.num_particles))).sum()
            found.append(torch.stack(torch.autograd.grad(total, (model.a, model.b))))
    return torch.stack(found)


def _agree(draws, expected):
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() < 4 * error).all()), (draws.mean(0), expected, error)


def test_the_score_function_gradient_is_unbiased():
    model, x = make("poisson latent")
    expected = torch.stack(torch.autograd.grad(_poisson_bound(model, x, 1), (model.a, model.b)))
    _agree(_gradients(model, x, elbo(100), 200), expected)


def test_the_score_function_gradient_of_iwae_is_unbiased():
    model, x = make("poisson latent")
    z = torch.arange(40, dtype=torch.float64)
    one, other = z[:, None, None], z[None, :, None]
    q = Poisson((model.a + model.b * x).exp())

    def log_weight(z):
        return Poisson(torch.tensor(2.0).double()).log_prob(z) + Normal(z, 1.0).log_prob(x) - q.log_prob(z)

    log_mean = torch.logaddexp(log_weight(one), log_weight(other)) - torch.log(torch.tensor(2.0).double())
    bound = ((q.log_prob(one) + q.log_prob(other)).exp() * log_mean).sum()
    expected = torch.stack(torch.autograd.grad(bound, (model.a, model.b)))
    draws = _gradients(model, x, iwae(2), 3000)
    _agree(draws, expected)


def test_particles_of_one_draw_do_not_mix_data():
    model, x = make("poisson latent")
    obs = model.check(x).repeat(3)
    with model.numeric():
        values = elbo(3).particles(model.sites(obs))
    assert values.shape == (3, 6)


# The pieces of the objective


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
@pytest.mark.parametrize("name", ["vae", "linear vae", "hierarchy", "finite posterior", "mixture vae"])
def test_beta_weighs_the_divergence_alone(name, kl):
    model, x = make(name)
    obs = model.check(x)
    with model.numeric():
        sites = model.sites(obs)
        objective = elbo(kl=kl)
        zero, half, one, three = (objective(sites, beta) for beta in (0.0, 0.5, 1.0, 3.0))
    if sites.summed:  # the divergence sits inside a logarithm of a sum: affine in beta only without one
        assert bool((one < zero).any())
        return
    torch.testing.assert_close(half, (zero + one) / 2)
    torch.testing.assert_close(three, zero + 3 * (one - zero))


def test_beta_may_be_a_tensor():
    model, x = make("vae")
    sites = model.sites(model.check(x))
    torch.testing.assert_close(elbo()(sites, torch.tensor(0.3).double()), elbo()(sites, 0.3))


def test_the_analytic_divergence_replaces_its_draw():
    model, x = make("linear vae")
    sites = model.sites(model.check(x))
    loc, scale = model.encoder(x)
    closed = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)
    torch.testing.assert_close(elbo(kl="analytic")(sites), sites.log_p["x"] - closed)
    sampled = Normal(loc, scale).log_prob(sites.values["z"]).sum(-1) - Normal(0.0, 1.0).log_prob(sites.values["z"]).sum(
        -1
    )
    torch.testing.assert_close(elbo()(sites), sites.log_p["x"] - sampled)


@pytest.mark.parametrize(
    ("q", "p", "known"),
    [
        (dist.Normal(0.0, 1.0), dist.Normal(1.0, 2.0), True),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Normal(torch.zeros(2), 2.0).to_event(1), True),
        (dist.Normal(0.0, 1.0), dist.StudentT(3.0), False),
        (dist.Gamma(1.0, 1.0), dist.Gamma(2.0, 1.0), True),
        (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), dist.Normal(torch.zeros(2), 2.0).to_event(1), True),
        (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), dist.Laplace(torch.zeros(2), 2.0).to_event(1), False),
    ],
)
def test_which_divergences_are_known(q, p, known):
    assert has_analytic_kl(q, p) is known


def test_a_full_covariance_has_a_divergence_from_independent_normals():
    torch.manual_seed(0)
    factor = torch.randn(3, 2, 2, dtype=torch.float64).tril()
    q = dist.MultivariateNormal(torch.randn(3, 2).double(), factor @ factor.mT + 0.1 * torch.eye(2))
    loc, scale = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.7, 2.0]).double()
    mean_of_log_p = dist.Normal(loc, scale).log_prob(q.mean) - 0.5 * q.variance / scale**2
    expected = -q.entropy() - mean_of_log_p.sum(-1)
    torch.testing.assert_close(analytic_kl(q, dist.Normal(loc, scale).to_event(1)), expected)


@pytest.mark.parametrize("entries", [1, 3])
@pytest.mark.parametrize(
    ("q", "p"),
    [
        (lambda a: dist.Beta(a, 2.0), lambda one: dist.Uniform(0 * one, one)),
        (lambda a: dist.Uniform(a, 1.0 + a), lambda one: dist.Uniform(0 * one, 5 * one)),
        (lambda a: dist.Bernoulli(a / 5), lambda one: dist.Bernoulli(0.3 * one)),
        (lambda a: dist.Normal(a, 2.0), lambda one: dist.Normal(0 * one, one)),
    ],
)
def test_the_divergence_of_rows_from_one_prior_is_that_of_each(q, p, entries):
    a = torch.linspace(0.5, 3.0, 4 * entries, dtype=torch.float64).reshape(4, entries)
    prior = p(torch.ones(entries, dtype=torch.float64))
    one_by_one = torch.stack([dist.kl.kl_divergence(q(row), prior).sum() for row in a])
    torch.testing.assert_close(analytic_kl(q(a).to_event(1), prior.to_event(1)), one_by_one)
    more = analytic_kl(q(a[:, None]).to_event(1), prior.expand((2, entries)).to_event(1))  # rows by particles
    torch.testing.assert_close(more, one_by_one[:, None].expand(4, 2))


def test_an_unknown_divergence_falls_back_to_the_draw():
    q, p = dist.Normal(torch.zeros(3), 1.0), dist.StudentT(torch.tensor(3.0)).expand([3])
    z = q.sample()
    sites = Sites({"z": p.log_prob(z)}, {"z": q.log_prob(z)}, {"z": p}, {"z": q}, {"z": z})
    torch.testing.assert_close(elbo(kl="analytic")(sites), p.log_prob(z) - q.log_prob(z))


def test_a_value_that_q_rules_out_costs_nothing():
    logits = torch.tensor([[0.0], [-torch.inf]])
    log_p = torch.tensor([[-1.0], [-torch.inf]], requires_grad=True)
    sites = Sites({"z": log_p}, {"z": logits}, enumerated={"z": -2})
    value = elbo()(sites)
    value.sum().backward()
    assert value.tolist() == [-1.0]
    assert log_p.grad.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("make_it", "message"),
    [(lambda: elbo(kl="exact"), "'exact'"), (lambda: elbo(num_particles=0), "at least 1, got 0")],
)
def test_wrong_objectives_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_free_bits_put_a_floor_under_the_mean_divergence_of_each_unit(kl):
    """Below every unit's divergence the floor is nothing; above, it is what all units cost, and no gradient is left."""
    model, x = make("linear vae")
    sites = model.sites(model.check(x))
    plain = elbo(kl=kl)(sites).mean()
    each = elbo(kl=kl, free_bits=1.0).by_unit(sites, "z")
    assert each.shape == (len(x), 2)
    torch.testing.assert_close(elbo(kl=kl, free_bits=each.mean(0).min().item() / 2)(sites).mean(), plain)
    floor = each.mean(0).max().item() + 1.0
    costly = elbo(kl=kl, free_bits=floor)(sites)
    torch.testing.assert_close(costly.mean(), sites.log_p["x"].mean() - 2 * floor)
    (slope,) = torch.autograd.grad(costly.sum() - sites.log_p["x"].sum(), model.encoder.loc.weight, allow_unused=True,
                                   materialize_grads=True)  # fmt: skip
    assert not slope.any()


PARTS = {
    "diagonal": dict,
    "full covariance": lambda: {"posterior": pv.posteriors.Full()},
    "flow": lambda: {"posterior": pv.posteriors.inverse_autoregressive(3)},
    "mixture prior": lambda: {"prior": pv.priors.Mixture(4, 3)},
    "Vamp prior": lambda: {"prior": pv.priors.Vamp(4, 6)},
    "flow prior": lambda: {"prior": pv.priors.real_nvp(3)},
}


@pytest.mark.parametrize("name", PARTS)
def test_free_bits_are_as_many_nats_whether_or_not_units_can_be_told_apart(name):
    """With more free nats than the divergence has, the objective is E log p(x | z) - d lambda."""
    torch.manual_seed(0)
    encoder = pv.nets.mlp_encoder(6, 5, 3, covariance="full" if name == "full covariance" else "diagonal")
    model = pv.models.VAE(encoder, pv.nets.mlp_decoder(3, 5, 6), **PARTS[name]())
    sites = model.sites(model.check((torch.rand(7, 6) < 0.5).float()))
    costly = elbo(free_bits=40.0)(sites)
    torch.testing.assert_close(costly, sites.log_p["x"] - 3 * 40.0)


def test_a_vector_of_categories_is_a_unit():
    """Each of the N relaxed categories of a GumbelVAE has its own divergence, and they add up to that of z."""
    torch.manual_seed(0)
    nets = pv.nets.mlp_decoder(6, 5, 12), pv.nets.mlp_decoder(12, 5, 6)
    model = pv.models.GumbelVAE(*nets, variables=3, categories=4)
    sites = model.sites(model.check((torch.rand(7, 6) < 0.5).float()))
    units = elbo(free_bits=1.0).by_unit(sites, "z")
    assert units.shape == (7, 3)
    torch.testing.assert_close(units.sum(-1), sites.log_q["z"] - sites.log_p["z"])
    torch.testing.assert_close(elbo(free_bits=40.0)(sites), sites.log_p["x"] - 3 * 40.0)


def test_free_bits_weigh_data_in_their_mean():
    model, x = make("linear vae")
    sites = model.sites(model.check(x))
    objective, w = elbo(free_bits=0.3), torch.arange(float(len(x)), dtype=x.dtype)
    mean = (w / w.sum()) @ objective.by_unit(sites, "z")
    expected = (w * sites.log_p["x"]).sum() - w.sum() * mean.clamp_min(0.3).sum()
    torch.testing.assert_close((w * objective(sites, 1.0, w)).sum(), expected)
