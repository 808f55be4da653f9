"""InfoVAE's discrepancy: its formula, its expectation, and what it does to a VAE."""

import itertools
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from example_models import make, numbers
from torch import nn

import ppl_vae as pv
from ppl_vae import latent, observed
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
    ones = torch.ones(4000, 5, dtype=torch.float64)
    estimate = lambda a, b, one: discrepancy(a, one, b, one, one[0], lambda squares: torch.exp(-squares / c))  # noqa: E731
    found = torch.stack([estimate(*each) for each in zip(x.split(1), y.split(1), ones.split(1), strict=True)])
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


class Labelled(pv.LatentVariableModel):
    """p(y) p(z | y) p(x | z) with q(y | x) q(z | x, y): y is enumerated, and z has a draw for each of its values."""

    def __init__(self):
        super().__init__()
        self.classifier, self.encoder, self.means = nn.Linear(4, 3), nn.Linear(7, 2), nn.Linear(3, 2)

    def corner(self, y):
        return nn.functional.one_hot(y.long(), 3).to(self.like)

    def of_both(self, x, y):
        return dist.Normal(self.encoder(torch.cat([x, self.corner(y)], -1)), 0.5).to_event(1)

    @latent
    def y(self):
        return dist.Categorical(torch.tensor([0.5, 0.3, 0.2]))

    @latent
    def z(self, y):
        return dist.Normal(self.means(self.corner(y)), 1.0).to_event(1)

    @y.posterior
    def q_y(self, x):
        return dist.Categorical(logits=self.classifier(x))

    @z.posterior
    def q_z(self, x, y):
        return self.of_both(x, y)

    @observed
    def x(self, z):
        return dist.Normal(nn.functional.pad(z, (0, 2)), 1.0).to_event(1)


def test_finite_latents_count_with_all_their_values():
    """MMD^2 of y in closed form, and of (y, z) as a sum over pairs of data and of the values of both."""
    torch.manual_seed(0)
    model, x, w = Labelled().double(), numbers(5, 4), torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    with model.numeric(), torch.no_grad():
        sites = model.sites(model.check(x))
    objective = pv.infovae(0.3, 2.0, scale=1.5)
    torch.manual_seed(1)
    found = objective.batch_discrepancy(sites, w)
    q, p = sites.log_q["y"].exp(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    pairs = w[:, None] * w * (1 - torch.eye(5, dtype=torch.float64))
    # Corners lie 2 scale^2 apart: k = c / (c + 2 scale^2) = 1/2 between them, for c = 2 scale^2.
    of_y = ((q.T - p) @ (q.T - p).T * pairs).sum() / pairs.sum() / 2
    torch.manual_seed(1)
    priors = sites.p["z"].expand((3, 5)).sample()
    kernel = kernel_by_hand("imq", 3, 1.5)  # one unit for y, two for z
    corners = 1.5 * torch.eye(3, dtype=torch.float64)
    of_q, of_p = (
        [[torch.cat([corners[k], draw[k, i]]) for k in range(3)] for i in range(5)]
        for draw in (sites.values["z"], priors)
    )
    of_both = 0.0
    for i, j in itertools.product(range(5), repeat=2):
        for k, m in itertools.product(range(3), repeat=2):
            a, b, c, d = of_q[i][k], of_q[j][m], of_p[i][k], of_p[j][m]
            h = kernel(a, b) + kernel(c, d) - kernel(a, d) - kernel(b, c)
            of_both = of_both + pairs[i, j] * q[k, i] * q[m, j] * h
    torch.testing.assert_close(found, of_y + of_both / pairs.sum())


def test_a_known_label_is_no_discrepancy():
    """Where y is seen its q and its prior, given what is seen, are the same; elsewhere both count."""
    torch.manual_seed(0)
    model, x, known = Labelled().double(), numbers(6, 4), torch.tensor([0.0, 1.0, 2.0, torch.nan, torch.nan, torch.nan])
    with model.numeric(), torch.no_grad():
        sites = model.sites(model.check({"x": x, "y": known}))
        of_y = replace(sites, log_q={"y": sites.log_q["y"]})
        found = [pv.infovae(0.5, 3.0).batch_discrepancy(of_y, w.double()) for w in (~known.isnan(), known.isnan())]
    assert found[0].item() == pytest.approx(0.0, abs=1e-12)
    assert abs(found[1].item()) > 1e-6


def test_a_q_in_another_order_than_the_model_is_refused():
    class Backwards(Labelled):
        @latent
        def z(self):
            return dist.Normal(torch.zeros(2), 1.0).to_event(1)

        @latent
        def y(self, z):
            return dist.Categorical(logits=nn.functional.pad(z, (0, 1)))

        @y.posterior
        def q_y(self, x):
            return dist.Categorical(logits=self.classifier(x))

        @z.posterior
        def q_z(self, x, y):
            return self.of_both(x, y)

    model = Backwards()
    with model.numeric(), pytest.raises(pv.EngineError, match="q of 'z' depends on 'y', which the model draws after"):
        pv.infovae(0.3, 2.0)(model.sites(model.check(torch.randn(5, 4))))


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


@pytest.mark.parametrize("kind", [pv.infovae(0.3, 2.0), pv.tc_elbo(40, 3.0)])
@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_finite_latents_train_in_either_precision_with_labels_and_padding(kind, precision):
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    y = torch.where(torch.arange(40) % 3 == 0, (x[:, 0] > 0).float(), torch.nan)
    engine = pv.SVI(2, batch_size=16, objective=kind, precision=precision, compile="trace", progress=False)
    fit = engine.fit(Labelled(), {"x": x, "y": y})
    assert fit.status.code == "finished"
    assert bool(fit.trace["bound"].isfinite().all())
