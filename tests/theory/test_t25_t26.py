"""T25 and T26: what maximum likelihood is, and what a tight bound is not."""

import math

import pyro.distributions as dist
import pytest
import torch
from example_models import numbers

import ppl_vae as pv
from ppl_vae import latent, observed


class FiniteMixture(pv.LatentVariableModel):
    """p(z) p(x | z), both finite, with parameters that families own."""

    def __init__(self):
        super().__init__()
        self.mixing, self.table = pv.families.Categorical(2), pv.families.Categorical(4, batch=2)

    @latent
    def z(self):
        return self.mixing()

    @observed
    def x(self, z):
        return self.table(z)


X = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
DATA = torch.bincount(X).double() / len(X)


def _at(seed):
    model = FiniteMixture().double()
    model.mixing.fix({"probs": numbers(2, seed=seed).softmax(0)})
    model.table.fix({"probs": numbers(2, 4, seed=seed + 1000).softmax(1)})
    return model


def _divergence(model):
    law = model.log_prob(torch.arange(4))  # the model's distribution on the whole sample space
    assert law.exp().sum().item() == pytest.approx(1.0)
    return (DATA * (DATA.log() - law)).sum().item()


def test_t25_the_mean_log_likelihood_is_minus_entropy_minus_divergence():
    entropy = -(DATA * DATA.log()).sum().item()
    pairs = []
    for seed in range(20):
        model = _at(seed)
        likelihood = model.log_prob(X).mean().item()
        pairs.append((likelihood, -_divergence(model)))
        assert likelihood == pytest.approx(-entropy + pairs[-1][1], abs=1e-12)
    assert max(range(20), key=lambda i: pairs[i][0]) == max(range(20), key=lambda i: pairs[i][1])
    assert max(pairs)[0] - min(pairs)[0] > 0.1


def test_t25_the_maximum_likelihood_estimate_has_divergence_zero_where_the_family_holds_the_data():
    family = pv.families.Categorical(4).double()
    best = family.maximize(family.expect(family.features(X), torch.ones(1, len(X)).double()), "ml")["probs"]
    torch.testing.assert_close(best, DATA)
    model = _at(0)
    model.table.fix({"probs": best.expand(2, 4)})
    assert _divergence(model) == pytest.approx(0.0, abs=1e-12)
    assert all(_divergence(_at(seed)) > 0.01 for seed in range(20))


class PointMass(pv.LatentVariableModel):
    """Two values of z, and a q that may put its mass on one of them only."""

    def __init__(self, prior, likelihood, at):
        super().__init__()
        self.register_buffer("prior", torch.tensor(prior, dtype=torch.float64))
        self.register_buffer("likelihood", torch.tensor(likelihood, dtype=torch.float64))
        self.at = at

    @latent
    def z(self):
        return dist.Categorical(self.prior)

    @z.posterior
    def q_z(self, x):
        return dist.Categorical(torch.eye(2)[self.at].expand(len(x), 2))

    @observed
    def x(self, z):
        return dist.Bernoulli(self.likelihood[z])


def test_t26_a_tight_bound_is_not_maximum_likelihood():
    x = torch.ones(1)
    models = {
        "A": lambda at: PointMass([1.0, 0.0], [0.3, 0.3], at),  # all of z in one place: a point mass is exact
        "B": lambda at: PointMass([0.5, 0.5], [0.5, 0.5], at),  # z spread evenly: no point mass is near the posterior
    }
    evidence = {name: make(0).log_prob(x).item() for name, make in models.items()}
    bound = {name: max(make(at).elbo(x).item() for at in (0, 1)) for name, make in models.items()}
    assert evidence == pytest.approx({"A": math.log(0.3), "B": math.log(0.5)})  # -1.204, -0.693
    assert bound == pytest.approx({"A": math.log(0.3), "B": math.log(0.25)})  # -1.204, -1.386
    assert bound["A"] == pytest.approx(evidence["A"]), "the bound is tight at A"
    assert max(bound, key=bound.get) == "A"
    assert max(evidence, key=evidence.get) == "B"
