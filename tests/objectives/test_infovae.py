"""InfoVAE's discrepancy: its formula, its expectation, and what it does to a VAE."""

import pyro.distributions as dist
import pytest
import torch
from example_models import make, numbers

import ppl_vae as pv
from ppl_vae.objectives import Sites, discrepancy


def by_hand(x, y, w, kernel):
    """The estimate as a double loop over pairs."""
    total, pairs = 0.0, 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                h = kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
                total, pairs = total + w[i] * w[j] * h, pairs + w[i] * w[j]
    return total / pairs


def kernel_by_hand(name, d, scale):
    c = 2 * d * scale**2
    square = lambda a, b: ((a - b) ** 2).sum()  # noqa: E731
    return {"imq": lambda a, b: c / (c + square(a, b)), "rbf": lambda a, b: torch.exp(-square(a, b) / c)}[name]


def sites_at(z, q, p):
    return Sites(
        {"z": p.log_prob(z), "x": torch.zeros(len(z), dtype=z.dtype)}, {"z": q.log_prob(z)}, {"z": p}, {"z": q},
        {"z": z},
    )  # fmt: skip


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_discrepancy_of_a_batch_is_the_double_sum(kernel):
    z, w = numbers(7, 3), torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    p = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.3).to_event(1)
    q = dist.Normal(torch.zeros(7, 3, dtype=torch.float64), 1.0).to_event(1)
    objective = pv.infovae(0.25, 3.0, kernel=kernel, scale=1.3)
    torch.manual_seed(5)
    found = objective.batch_discrepancy(sites_at(z, q, p), w)
    torch.manual_seed(5)
    prior = p.sample((7,))
    expected = by_hand(z, prior, w, kernel_by_hand(kernel, 3, 1.3))
    torch.testing.assert_close(found, expected)


def test_the_objective_is_its_formula_and_its_weighted_sum_counts_the_discrepancy_once_for_each_weight():
    model, x = make("linear vae")
    w = torch.arange(6.0, dtype=torch.float64)
    objective = pv.infovae(0.25, 3.0)
    sites = model.sites(model.check(x))
    torch.manual_seed(2)
    mmd = objective.batch_discrepancy(sites, w)
    torch.manual_seed(2)
    found = (w * objective(sites, 0.5, w)).sum()
    divergence = sites.log_q["z"] - sites.log_p["z"]
    expected = (w * (sites.log_p["x"] - 0.5 * 0.75 * divergence)).sum() - w.sum() * 0.5 * 2.25 * mmd
    torch.testing.assert_close(found, expected)


def test_the_estimate_is_unbiased():
    """Against the closed form for N(m, s^2) and N(0, 1) with the Gaussian kernel exp(-(x - y)^2 / c)."""
    m, s, c = 0.8, 0.6, 2.0

    def mean_kernel(mean, variance):  # E exp(-u^2 / c), u ~ N(mean, variance)
        return (1 + 2 * variance / c) ** -0.5 * torch.exp(-(mean**2) / (c + 2 * variance))

    zero, mean = torch.tensor(0.0).double(), torch.tensor(m).double()
    exact = mean_kernel(zero, 2 * s**2) + mean_kernel(zero, 2.0) - 2 * mean_kernel(mean, s**2 + 1)
    generator = torch.Generator().manual_seed(0)
    x = m + s * torch.randn(4000, 5, 1, dtype=torch.float64, generator=generator)
    y = torch.randn(4000, 5, 1, dtype=torch.float64, generator=generator)
    ones = torch.ones(5, dtype=torch.float64)
    found = torch.stack(
        [discrepancy(x[i : i + 1], y[i : i + 1], ones, lambda squares: torch.exp(-squares / c)) for i in range(4000)]
    )
    assert abs(found.mean() - exact) < 4 * found.std() / 4000**0.5
    assert bool((found < 0).any())  # as an unbiased estimate of a small number must be


def test_layers_of_latents_are_compared_jointly():
    """q(a, b) with the marginals of the prior but a = b: each latent alone looks right, together they do not."""
    a = numbers(300, 1)
    normal = dist.Normal(torch.zeros(300, 1, dtype=torch.float64), 1.0).to_event(1)
    log = normal.log_prob(a)
    sites = Sites({"a": log, "b": log}, {"a": log, "b": log}, {"a": normal, "b": normal}, {"a": normal, "b": normal},
                  {"a": a, "b": a})  # fmt: skip
    independent = Sites(**{**vars(sites), "values": {"a": a, "b": numbers(300, 1, seed=9)}})
    objective = pv.infovae(0.0, 2.0)
    assert objective.batch_discrepancy(sites) > 0.03
    assert abs(objective.batch_discrepancy(independent)) < 0.01


def test_a_batch_of_one_row_has_no_discrepancy_and_no_nan():
    model, x = make("linear vae")
    w = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    sites = model.sites(model.check(x))
    objective = pv.infovae(1.0, 5.0)
    assert objective.batch_discrepancy(sites, w).item() == 0.0
    gradients = torch.autograd.grad((w * objective(sites, 1.0, w)).sum(), list(model.parameters()), allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)


def test_t22_the_discrepancy_keeps_information_where_the_bound_collapses():
    """A decoder of much noise pays for no code under the bound; with alpha = 1 only the aggregate posterior costs."""
    torch.manual_seed(0)
    x = numbers(400, 3)
    model = pv.models.VAE(
        pv.nets.linear_encoder(3, 1), pv.nets.linear_decoder(1, 3), pv.likelihoods.Gaussian(3.0)
    ).double()
    options = {"epochs": 60, "batch_size": 100, "optimizer": pv.adam(0.05), "progress": False, "compile": "trace"}
    bound = pv.SVI(**options).fit(model, x).model
    info = pv.SVI(**options, objective=pv.infovae(1.0, 20.0)).fit(model, x).model

    def variance_of_means(fitted):
        return fitted.posterior(x).mean.var(0).item()

    assert variance_of_means(bound) < 0.01
    assert variance_of_means(info) > 0.1
    spread = info.posterior(x).sample()
    assert abs(spread.mean().item()) < 0.3
    assert spread.std().item() == pytest.approx(1.0, abs=0.3)
