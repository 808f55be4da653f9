"""The total-correlation decomposition: its parts by hand, and what the estimate of q(z) is worth."""

import pyro.distributions as dist
import pytest
import torch
from example_models import make, numbers

import ppl_vae as pv
from ppl_vae.objectives import Sites


def example(n, d=2, seed=0, spread=1.0):
    loc, scale = spread * numbers(n, d, seed=seed), numbers(n, d, seed=seed + 1).mul(0.3).exp()
    q = dist.Normal(loc, scale).to_event(1)
    p = dist.Normal(torch.zeros(d, dtype=torch.float64), 1.0).to_event(1)
    torch.manual_seed(seed)
    z = q.sample()
    zeros = torch.zeros(n, dtype=torch.float64)
    return Sites({"z": p.log_prob(z), "x": zeros}, {"z": q.log_prob(z)}, {"z": p}, {"z": q}, {"z": z}), loc, scale


def test_with_all_data_in_the_batch_the_parts_are_exact():
    """q(z) is the mixture of all q(z | x_k), here written out; each part at the same draws."""
    sites, loc, scale = example(7)
    z = sites.values["z"]
    log = torch.distributions.Normal(loc, scale).log_prob(z[:, None])
    q_z = log.sum(-1).exp().mean(1).log()
    q_units = log.exp().mean(1).log().sum(-1)
    parts = pv.tc_elbo(size=7).parts(sites, "z")
    torch.testing.assert_close(parts.information, sites.log_q["z"] - q_z)
    torch.testing.assert_close(parts.total_correlation, q_z - q_units)
    torch.testing.assert_close(parts.dimension_wise, q_units - sites.log_p["z"])
    found = pv.tc_elbo(size=7, beta=5.0, alpha=2.0, gamma=0.5)(sites, 0.7)
    by_hand = 2.0 * parts.information + 5.0 * parts.total_correlation + 0.5 * parts.dimension_wise
    torch.testing.assert_close(found, sites.log_p["x"] - 0.7 * by_hand)


@pytest.mark.parametrize("size", [7, 50, 1e6])
def test_the_parts_add_up_to_the_divergence_whatever_the_size(size):
    sites, *_ = example(7)
    w = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    parts = pv.tc_elbo(size=size).parts(sites, "z", w)
    torch.testing.assert_close(sum(parts), sites.log_q["z"] - sites.log_p["z"])


def test_a_q_that_is_given_a_finite_latent_is_decomposed_for_each_of_its_values():
    """q(z_j | k) is the mixture over the data that may be of class k, by w q(k | x); means are over q(k | x)."""
    torch.manual_seed(0)
    n, K, w = 5, 3, torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    y = torch.rand(K, n, dtype=torch.float64)
    y[1, 3] = 0.0
    y = y / y.sum(0)
    loc = torch.randn(K, n, 2, dtype=torch.float64)
    q, p = dist.Normal(loc, 0.7).to_event(1), dist.Normal(torch.zeros(K, 1, 2, dtype=torch.float64), 1.0).to_event(1)
    z = q.sample()
    sites = Sites({"y": y.log(), "z": p.log_prob(z)}, {"y": y.log(), "z": q.log_prob(z)}, {"z": p}, {"z": q}, {"z": z},
                  {}, {"y": -2})  # fmt: skip
    parts = pv.tc_elbo(size=w.sum().item()).parts(sites, "z", w)
    expected = torch.zeros(3, n, dtype=torch.float64)
    for k in range(K):
        density = torch.distributions.Normal(loc[k], 0.7).log_prob(z[k][:, None]).exp()  # [n, n, units]
        share = w * y[k] / (w * y[k]).sum()
        all_z, units = (density.prod(-1) @ share).log(), torch.einsum("iku,k->iu", density, share).log().sum(-1)
        terms = q.log_prob(z)[k] - all_z, all_z - units, units - p.log_prob(z)[k]
        expected += torch.stack([torch.where(y[k] > 0, y[k] * term, 0.0) for term in terms])
    counts = w > 0  # a row without weight stands for nothing, and its parts are of no use
    torch.testing.assert_close(torch.stack(parts)[:, counts], expected[:, counts])
    whole = pv.tc_elbo(size=100, num_particles=1).parts(sites, "z", w)
    divergence = torch.where(y > 0, y * (q.log_prob(z) - p.log_prob(z)), 0.0).sum(0)
    torch.testing.assert_close(sum(whole)[counts], divergence[counts])


def test_rows_of_weight_0_and_values_without_a_share_bring_no_nan():
    """The gradient in q(y | x) where shares are exactly 0: a weight of 0, a known label."""
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    known = torch.tensor([[True, True, True, True], [True, False, True, True], [True, False, True, True]])
    log_y = torch.where(known, logits, -torch.inf).log_softmax(0)
    q = dist.Normal(torch.randn(3, 4, 2, dtype=torch.float64), 0.7).to_event(1)
    p = dist.Normal(torch.zeros(3, 1, 2, dtype=torch.float64), 1.0).to_event(1)
    z = q.sample()
    log_q = {"y": log_y, "z": q.log_prob(z)}
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    sites = Sites({"y": zeros, "z": p.log_prob(z)}, log_q, {"z": p}, {"z": q}, {"z": z}, {}, {"y": -2})
    w = torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    objective = pv.tc_elbo(size=50, beta=3.0)
    (gradient,) = torch.autograd.grad((w * objective(sites, 1.0, w)).sum(), [logits])
    assert bool(gradient.isfinite().all())
    assert bool(gradient[:, [0, 3]].any())


def test_weights_count_data_as_often():
    """Weight 2 is a row given twice, in the mixture that q(z) is."""
    sites, loc, scale = example(4)
    w = torch.tensor([1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    log = torch.distributions.Normal(loc, scale).log_prob(sites.values["z"][:, None]).sum(-1)
    expected = (log.exp() @ w / 4).log()
    found = pv.tc_elbo(size=4).parts(sites, "z", w)
    torch.testing.assert_close((sites.log_q["z"] - found.information)[:3], expected[:3])


def test_the_estimate_of_the_aggregate_posterior_is_unbiased_over_batches():
    """At a fixed draw of datum 0: the mean over all batches of 3 that hold it, against the mixture of all 6."""
    from itertools import combinations

    sites, loc, scale = example(6, spread=0.5)
    z = 0.1 * sites.values["z"]  # where all of them have some density
    exact = torch.distributions.Normal(loc, scale).log_prob(z[:1, None]).sum(-1).exp().mean()
    estimates = []
    for others in combinations(range(1, 6), 2):
        rows = torch.tensor([0, *others])
        q = dist.Normal(loc[rows], scale[rows]).to_event(1)
        batch = Sites({"z": sites.log_p["z"][rows]}, {"z": q.log_prob(z[rows])}, sites.p, {"z": q}, {"z": z[rows]})
        parts = pv.tc_elbo(size=6).parts(batch, "z")
        estimates.append((batch.log_q["z"] - parts.information)[0].exp())
    torch.testing.assert_close(torch.stack(estimates).mean(), exact)
    assert torch.stack(estimates).std() > 1e-3


def test_units_that_move_together_have_a_total_correlation():
    """Codes near a line: the total correlation is that of a normal with correlation r, -log(1 - r^2) / 2."""
    n, r = 800, 0.9
    u = numbers(n, 2)
    loc = torch.stack([u[:, 0], r * u[:, 0] + (1 - r**2) ** 0.5 * u[:, 1]], 1) * 3
    q = dist.Normal(loc, 1.0).to_event(1)  # codes have variance 9 + 1 and covariance 9 r
    p = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    torch.manual_seed(0)
    z = q.sample()
    sites = Sites({"z": p.log_prob(z)}, {"z": q.log_prob(z)}, {"z": p}, {"z": q}, {"z": z})
    found = pv.tc_elbo(size=n).parts(sites, "z").total_correlation
    correlation = 9 * r / 10
    expected = -0.5 * torch.log(torch.tensor(1 - correlation**2, dtype=torch.float64))
    assert abs(found.mean() - expected) < 4 * found.std() / n**0.5 + 0.03  # the codes' own mixture is not quite normal


def test_a_flow_is_refused():
    vae = pv.models.VAE(
        pv.nets.mlp_encoder(6, 4, 2), pv.nets.mlp_decoder(2, 4, 6), posterior=pv.posteriors.inverse_autoregressive(2)
    ).double()
    with vae.numeric():
        sites = vae.sites(vae.check(numbers(5, 6).gt(0).double()))
    with pytest.raises(pv.EngineError, match="q of 'z', a TransformedDistribution, has no density for each unit"):
        pv.tc_elbo(5)(sites)


@pytest.mark.parametrize(
    ("size", "weights", "told"),
    [
        (10, None, "size=10 data in the whole set, and 40 were given to fit: pass size=40"),
        (400, None, "pass size=40"),
        (40, None, None),
        (38, None, None),  # some were held out
        (40, 2.5, None),
        (100, 2.5, None),  # their total weight
        (250, 2.5, "size=250 data in the whole set, and 100 were given"),
    ],
)
def test_a_size_that_is_not_that_of_the_data_is_refused(size, weights, told):
    model, _ = make("linear vae")
    w = None if weights is None else torch.full((40,), weights, dtype=torch.float64)
    engine = pv.SVI(1, batch_size=20, objective=pv.tc_elbo(size), compile="off", progress=False)
    if told is None:
        assert engine.fit(model, numbers(40, 3), w).status.code == "finished"
    else:
        with pytest.raises(pv.EngineError, match=told):
            engine.fit(model, numbers(40, 3), w)


def test_a_score_function_gradient_is_unbiased_too():
    """A Poisson latent has no reparameterised draws: against summation over its values, for a batch of one datum."""
    model, x = make("poisson latent")
    x = x[:1]
    z = torch.arange(60, dtype=torch.float64)[:, None]
    q = torch.distributions.Poisson((model.a + model.b * x).exp())
    log_p = torch.distributions.Poisson(torch.tensor(2.0).double()).log_prob(z)
    log_x = torch.distributions.Normal(z, 1.0).log_prob(x)
    # One datum of one: q(z) = q(z | x), so that only the last part is left.
    value = (q.log_prob(z).exp() * (log_x - 2.0 * (q.log_prob(z) - log_p))).sum()
    expected = torch.stack(torch.autograd.grad(value, (model.a, model.b)))
    objective, obs = pv.tc_elbo(size=1, gamma=2.0), model.check(x)
    with model.numeric():
        values = [objective(model.sites(obs)).sum() for _ in range(500)]
    found = torch.stack([torch.stack(torch.autograd.grad(v, (model.a, model.b))) for v in values])
    assert bool(((found.mean(0) - expected).abs() < 4 * found.std(0) / len(found) ** 0.5).all())


def test_a_full_posterior_has_the_total_correlation_of_its_normal():
    """One q for all data: q(z) is that normal, TC = -log det R / 2 with R its correlations, and I(x; z) = 0."""
    n, C = 4000, torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
    q = dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), C)
    p = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    torch.manual_seed(0)
    draws = q.sample((n,))
    found = []
    for z in draws.split(100):
        law = q.expand([len(z)])
        sites = Sites({"z": p.log_prob(z)}, {"z": law.log_prob(z)}, {"z": p}, {"z": law}, {"z": z})
        parts = pv.tc_elbo(size=100).parts(sites, "z")
        torch.testing.assert_close(sum(parts), sites.log_q["z"] - sites.log_p["z"])
        torch.testing.assert_close(parts.information, torch.zeros_like(parts.information))
        found.append(parts.total_correlation)
    each, s = torch.cat(found), C.diagonal().sqrt()
    expected = -torch.linalg.slogdet(C / s / s[:, None]).logabsdet / 2
    assert abs(each.mean() - expected) < 4 * each.std() / n**0.5
