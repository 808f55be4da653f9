"""Other units of a feature change an answer by a factor and nothing else."""

import math

import pytest
import torch

import ppl_vae as pv

X = pv.data.faithful().values
FACTORS = torch.tensor([1e-3, 1e4], dtype=torch.float64)
OFFSET = torch.tensor([-50.0, 3e6], dtype=torch.float64)
SQUARES, PRODUCTS = FACTORS.square(), FACTORS.outer(FACTORS)
GMM = pv.models.GaussianMixture


class Robust(pv.LatentVariableModel):
    """A mixture of Student-t laws."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.components = pv.families.StudentT(2, batch=2, df=4.0)

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.components(z)


CASES = {
    "prior": (GMM(2, 2, prior="weak"), PRODUCTS, {}),
    "full q": (GMM(2, 2, "diagonal", prior="weak"), SQUARES, {"guide": "multivariate"}),
    "tied": (GMM(2, 2, "tied", prior="weak"), PRODUCTS, {}),
    "maximum likelihood": (GMM(2, 2), PRODUCTS, {"batch_size": 64}),
    "Student-t": (Robust(), PRODUCTS, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_units_of_a_feature_do_not_matter(name):
    model, square, options = CASES[name]
    y, jacobian = X * FACTORS + OFFSET, math.log(FACTORS.prod())

    def rescaled(values):
        changed = {"components.loc": FACTORS * values["components.loc"] + OFFSET}
        for key in set(values) & {"components.covariance", "components.scale_matrix"}:
            changed[key] = square * values[key]
        return values | changed

    def fitted(data, start):
        engine = pv.SVI(40, optimizer=pv.adam(1e-2), start=start, progress=False, **options)
        return engine.fit(model, data)

    start = pv.EM(max_iter=5, progress=False).fit(model, X).parameters
    one, other = fitted(X, start), fitted(y, rescaled(start))
    torch.testing.assert_close(other.trace["bound"] + jacobian, one.trace["bound"], rtol=1e-6, atol=0.0)
    expected = rescaled(one.parameters)
    for key, value in other.parameters.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=0.0, msg=key)
    torch.testing.assert_close(other.log_predictive(y) + jacobian, one.log_predictive(X), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("family", [pv.families.Normal(2, batch=3), pv.families.StudentT(2, batch=3)])
def test_means_keep_their_values_when_a_family_sees_data(family):
    loc = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    family.fix({"loc": loc})
    family.double().adapt([(1e3 * X, None)])
    torch.testing.assert_close(family.loc, loc.double())
