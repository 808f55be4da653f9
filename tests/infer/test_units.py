"""Other units of a feature change an answer by a factor and nothing else."""

import math

import pytest
import torch

import ppl_vae as pv

X = pv.data.faithful().values
FACTORS = torch.tensor([1e-3, 1e4], dtype=torch.float64)
OFFSET = torch.tensor([-50.0, 3e6], dtype=torch.float64)


def svi(**options):
    return pv.SVI(40, optimizer=pv.adam(1e-2), progress=False, **options)


ENGINES = {
    "prior": ("full", "weak", svi),
    "full q": ("diagonal", "weak", lambda start: svi(start=start, guide="multivariate")),
    "tied": ("tied", "weak", svi),
    "maximum likelihood": ("full", None, lambda start: svi(start=start, batch_size=64)),
}


def rescaled(values, covariance):
    """Parameters of data as those of the same data in other units."""
    square = FACTORS.square() if covariance == "diagonal" else FACTORS.outer(FACTORS)
    return values | {
        "components.loc": FACTORS * values["components.loc"] + OFFSET,
        "components.covariance": square * values["components.covariance"],
    }


@pytest.mark.parametrize("name", ENGINES)
def test_units_of_a_feature_do_not_matter(name):
    covariance, prior, engine = ENGINES[name]
    model, y = pv.models.GaussianMixture(2, 2, covariance, prior=prior), X * FACTORS + OFFSET
    start = pv.EM(max_iter=5, progress=False).fit(model, X).parameters
    fits = engine(start=start).fit(model, X), engine(start=rescaled(start, covariance)).fit(model, y)
    jacobian = math.log(FACTORS.prod())
    torch.testing.assert_close(fits[1].trace["bound"] + jacobian, fits[0].trace["bound"], rtol=1e-6, atol=0.0)
    expected = rescaled(fits[0].parameters, covariance)
    for key, value in fits[1].parameters.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=0.0, msg=key)
    torch.testing.assert_close(fits[1].log_predictive(y) + jacobian, fits[0].log_predictive(X), rtol=1e-5, atol=0.0)


def test_means_keep_their_values_when_a_family_sees_data():
    family = pv.families.Normal(2, batch=3)
    loc = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    family.fix({"loc": loc})
    family.double().adapt([(1e3 * X, None)])
    torch.testing.assert_close(family.loc, loc.double())
