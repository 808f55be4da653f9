"""A likelihood without a bound is found out, whatever the family and the scale of the weights; it is never the best."""

import pyro.distributions as dist
import pytest
import torch
from example_models import FamilyMixture, numbers
from test_floors import Lines

import ppl_vae as pv
from ppl_vae import families

T = torch.arange(10.0).double()
TWICE = torch.cat([T, T])
SPREAD = torch.linspace(5, 9, 50).double()[:, None]
LINES = {
    "one line": {"t": T, "y": 2 * T + 1},
    "no slope, no noise": {"t": T, "y": torch.ones(10).double()},
    "two lines": {"t": TWICE, "y": torch.cat([2 * T + 1, -T])},
    "a line and noise": {"t": TWICE, "y": torch.cat([2 * T + 1, 5 * numbers(10)])},
}


def ones(n, d=1):
    return torch.ones(n, d, dtype=torch.float64)


# Name: family, data, which of them are repeats that a component may sit on.
SPIKES = {
    "gamma": (families.Gamma, torch.cat([ones(30), SPREAD])),
    "exponential": (families.Exponential, torch.cat([0 * ones(30), SPREAD])),
    "student t": (families.StudentT, torch.cat([0 * ones(30), SPREAD])),
}
POINTS = {
    "gamma": (families.Gamma, 7 * ones(10)),
    "exponential": (families.Exponential, 0 * ones(10)),
    "student t": (families.StudentT, 7 * ones(10)),
}


def sit(name):
    """Two components of which the first has the repeated values to itself, without repairs."""
    family, x = SPIKES[name]
    spike = (x == x[0]).all(1).double()
    return FamilyMixture(family(1, batch=2)), x, torch.stack([spike, 1 - spike], 1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", SPIKES)
def test_a_component_on_repeated_values_is_found_out(name, scale):
    """It is restarted, and the run ends elsewhere or is called degenerate."""
    model, x, start = sit(name)
    weights = torch.full((len(x),), scale, dtype=torch.float64)
    found = pv.EM(start=start, max_iter=200, progress=False).fit(model, x, weights)
    assert "components[0]" in str(found.status)
    assert found.status.code == "degenerate" or found.log_prob(x).max() < 5


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("name", POINTS)
def test_data_on_one_point_have_no_maximum(name, K):
    family, x = POINTS[name]
    found = pv.EM(progress=False).fit(FamilyMixture(family(1, batch=K)), x)
    assert found.status.code == "degenerate"
    assert not found.status.ok
    assert "in 1 of 1" in str(found.status)
    assert bool(found.trace["bound"].isfinite().all())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", LINES)
def test_a_line_through_all_its_points_is_found_out(name, scale):
    data = LINES[name]
    weights = torch.full((len(data["t"]),), scale, dtype=torch.float64)
    K = 1 if len(data["t"]) == 10 else 2
    start = (torch.arange(len(data["t"])) < 10).double()
    start = torch.stack([start, 1 - start], 1)[:, :K]
    found = pv.EM(start=start, progress=False).fit(Lines(K), data, weights)
    assert "line[0]" in str(found.status)
    assert (found.status.code == "degenerate") or found.log_prob(data).max() < 5
    assert bool(found.trace["bound"].isfinite().all())
    if K == 1:
        assert "one line goes through all data" in str(found.status)
        assert found.status.code == "degenerate"


@pytest.mark.parametrize("df", [None, 1.0])
def test_a_t_that_sits_on_most_of_its_data_is_found_out(df):
    x = torch.cat([0 * ones(30), SPREAD[:10]])
    found = pv.EM(progress=False).fit(FamilyMixture(families.StudentT(1, batch=1, df=df)), x)
    assert found.status.code == "degenerate"


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_a_constant_feature_is_noted(form):
    x = torch.cat([numbers(60, 1), 3 * ones(60)], 1)
    found = pv.EM(progress=False).fit(FamilyMixture(families.StudentT(2, batch=1, form=form, df=4.0)), x)
    assert found.status.code == "converged"
    assert "do not spread in 1 of 2 directions" in str(found.status)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_as_few_rows_as_features_have_no_maximum(covariance, n):
    """They lie on a plane wherever they are; a prior gives them a mode."""
    x = numbers(n, 3)
    for prior, code in ((None, "degenerate"), ("weak", "converged")):
        model = pv.models.GaussianMixture(1, 3, covariance=covariance, prior=prior)
        assert pv.EM(progress=False).fit(model, x).status.code == code
    assert (
        pv.EM(progress=False).fit(FamilyMixture(families.StudentT(3, batch=1, df=4.0)), x).status.code == "degenerate"
    )


def test_a_spike_is_never_selected():
    data = LINES["a line and noise"]
    found = pv.select(Lines, data, K=[1, 2], progress=False)
    assert all(cell.eligible == (cell.status.code != "degenerate") for cell in found.cells)
    assert found.best.log_prob(data).max() < 5


def test_a_block_of_a_table_says_which_it_is():
    table = families.Product({"size": families.Gamma(2, batch=1), "pets": families.Poisson(batch=1)})
    x = torch.cat([ones(20), numbers(20, 1).exp(), ones(20)], 1)
    found = pv.EM(progress=False).fit(FamilyMixture(table), x)
    assert found.status.ok
    assert "block size: the data do not spread in 1 of 2 features" in str(found.status)


class OneNumber(pv.LatentVariableModel):
    """x ~ Normal(theta, 1), theta ~ the law given."""

    def __init__(self, law):
        super().__init__()
        self.made = law

    @pv.latent(shared=True)
    def theta(self):
        return self.made

    @pv.observed
    def x(self, theta):
        return dist.Normal(theta, 1.0)


@pytest.mark.parametrize("law", [dist.Beta(0.5, 0.5), dist.Gamma(0.5, 1.0)])
def test_a_prior_without_a_highest_density_has_no_mode(law):
    x = torch.linspace(-1.0, 0.4, 20)
    fit = pv.EM(progress=False).fit(OneNumber(law), x)
    assert fit.status.code == "degenerate"
    assert "theta went to an edge of the prior" in fit.status.message


@pytest.mark.parametrize(
    "law", [dist.Beta(1.0, 1.0), dist.Gamma(1.0, 1.0), dist.Normal(0.0, 1e-3), dist.HalfCauchy(1.0)]
)
def test_one_with_a_highest_density_has_one_at_its_edge_too(law):
    assert pv.EM(progress=False).fit(OneNumber(law), torch.linspace(-1.0, 0.4, 20)).status.ok
