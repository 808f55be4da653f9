"""EM end to end on mixtures of every family: the truth is found, the likelihood never falls, SVI takes the same."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from example_models import FamilyMixture

import ppl_vae as pv
from ppl_vae import families, given, latent, observed

N = 1200


class Experts(pv.LatentVariableModel):
    """p(z) = Categorical(pi), p(y | t, z) = regression z."""

    t = given()

    def __init__(self, components):
        super().__init__()
        self.mixing = families.Categorical(components.batch)
        self.components = components

    @latent
    def z(self):
        return self.mixing()

    @observed
    def y(self, z, t):
        return self.components(z, t)


def table():
    return families.Product(
        {
            "size": families.Normal(1, batch=2),
            "visits": families.Poisson(batch=2),
            "answers": families.CategoricalVector(3, 2, batch=2),
        }
    )


LINES = {"coef": [[2.0, 0.0], [-1.0, 1.0]], "intercept": [1.0, -1.0]}
ANSWERS = [[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]], [[0.1, 0.1, 0.8], [0.1, 0.2, 0.7]]]
# Name: model, the truth by parameter, absolute error allowed (about four standard errors).
MIXTURES = {
    "bernoulli": (
        lambda: families.Bernoulli(6, batch=2),
        {"probs": [[0.9, 0.9, 0.2, 0.1, 0.8, 0.5], [0.2, 0.1, 0.7, 0.9, 0.1, 0.5]]},
        0.12,
    ),
    "poisson": (lambda: families.Poisson(2, batch=2), {"rate": [[2.0, 7.0], [9.0, 3.0]]}, 0.5),
    "exponential": (lambda: families.Exponential(2, batch=2), {"rate": [[1.0, 0.05], [0.05, 2.0]]}, 0.3),
    "gamma": (
        lambda: families.Gamma(2, batch=2),
        {"concentration": [[3.0, 8.0], [9.0, 2.0]], "rate": [[3.0, 1.0], [1.0, 2.0]]},
        1.8,
    ),
    "categorical vector": (
        lambda: families.CategoricalVector(3, 4, batch=2),
        {"probs": [[[0.8, 0.1, 0.1]] * 4, [[0.1, 0.2, 0.7]] * 4]},
        0.12,
    ),
    "student t": (
        lambda: families.StudentT(2, batch=2),
        {
            "df": [3.0, 6.0],
            "loc": [[-4.0, 0.0], [4.0, 2.0]],
            "scale_matrix": [[[1.0, 0.5], [0.5, 1.0]], [[2.0, 0.0], [0.0, 0.5]]],
        },
        1.5,
    ),
    "student t, diagonal": (
        lambda: families.StudentT(2, batch=2, form="diagonal", df=4.0),
        {"loc": [[-4.0, 0.0], [4.0, 2.0]], "scale_matrix": [[1.0, 1.0], [2.0, 0.5]]},
        0.5,
    ),
    "product": (
        table,
        {
            "size.loc": [[-2.0], [2.0]],
            "size.covariance": [[[1.0]], [[2.0]]],
            "visits.rate": [2.0, 6.0],
            "answers.probs": ANSWERS,
        },
        0.4,
    ),
    "linear regression": (lambda: families.LinearRegression(2, batch=2), {**LINES, "variance": [0.25, 0.04]}, 0.1),
    "logistic regression": (
        lambda: families.LogisticRegression(2, batch=2),
        {"coef": [[4.0, 0.0], [-1.0, 3.0]], "intercept": [1.0, -1.0]},
        2.5,
    ),
}
PLAIN = [name for name in MIXTURES if "regression" not in name]


def model_of(name):
    kind = FamilyMixture if name in PLAIN else Experts
    return kind(MIXTURES[name][0]())


def truth_of(name):
    values = {k: torch.tensor(v, dtype=torch.float64) for k, v in MIXTURES[name][1].items()}
    return {f"components.{k}": v for k, v in values.items()} | {"mixing.probs": torch.tensor([0.4, 0.6]).double()}


def drawn(name, n=N, seed=1):
    """A model at the truth, and data of its own."""
    torch.manual_seed(seed)
    model = model_of(name).double()
    model.fix(truth_of(name))
    if name in PLAIN:
        return model, model.sample(n).double()
    t = 2 * torch.randn(n, 2, dtype=torch.float64)
    return model, {"t": t, "y": model.sample(n, t=t)}


def never_falls(fit, rounding=1e-9):
    bound, segment = fit.trace["bound"], fit.trace["segment"]
    return bool((bound.diff()[segment.diff() == 0] >= -rounding * bound.abs().max()).all())


def with_gaps(x):
    x = x.clone()
    x[::5, 0], x[1::7, -1], x[13] = math.nan, math.nan, math.nan
    return x


def rows(data, index):
    return {k: v[index] for k, v in data.items()} if isinstance(data, dict) else data[index]


@pytest.mark.parametrize("name", MIXTURES)
def test_the_truth_is_found_and_the_likelihood_never_falls(name):
    model, data = drawn(name)
    # Single clicks say little about which expert they come from: few starts end at the best of the maxima.
    near = {k: 0.7 * v if "coef" in k else v for k, v in truth_of(name).items()}
    start = {"start": near} if "logistic" in name else {"n_init": 8 if name not in PLAIN else 2}
    fit = pv.EM(tol=1e-6, max_iter=400, progress=False, **start).fit(model_of(name), data)
    assert fit.status.code == "converged"
    assert never_falls(fit)
    total = model.log_prob(data).sum()
    assert fit.trace["bound"][-1] >= total - 1e-6
    # The maximum exceeds the truth by half the number of parameters on average, and hardly ever by 25 nats.
    assert fit.trace["bound"][-1] < total + 25
    assert fit.trace["bound"][-1].item() == pytest.approx(fit.log_prob(data).sum().item(), rel=1e-10)
    orders = [{k: v[order] for k, v in fit.parameters.items()} for order in ([0, 1], [1, 0])]
    gaps = [max((o[k] - v).abs().max().item() for k, v in truth_of(name).items()) for o in orders]
    assert min(gaps) < MIXTURES[name][2]


@pytest.mark.parametrize("name", MIXTURES)
def test_weights_count_data(name):
    model, data = drawn(name, 150)
    w = torch.ones(150)
    w[:40], w[140:] = 2.0, 0.0
    index = torch.cat([torch.arange(40), torch.arange(140)])
    engine = pv.EM(start=truth_of(name), tol=0, max_iter=15, progress=False)
    one, other = engine.fit(model, data, weights=w), engine.fit(model, rows(data, index))
    for key, value in other.parameters.items():
        torch.testing.assert_close(one.parameters[key], value, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", PLAIN)
def test_missing_entries_are_integrated_out(name):
    model, data = drawn(name, 400)
    x = with_gaps(data)
    fit = pv.EM(start=truth_of(name), max_iter=60, progress=False).fit(model, x)
    assert never_falls(fit)
    # The model's own marginal, by another road than the E-step's.
    assert fit.trace["bound"][-1].item() == pytest.approx(fit.log_prob(x).sum().item(), rel=1e-10)
    assert fit.log_prob(x)[13].item() == pytest.approx(0.0, abs=1e-9)
    assert fit.trace["bound"][-1] > model.log_prob(x).sum()


@pytest.mark.parametrize("name", ["linear regression", "logistic regression"])
def test_a_missing_answer_is_the_absence_of_its_row(name):
    model, data = drawn(name, 150)
    y = data["y"].clone()
    y[:50] = math.nan
    engine = pv.EM(start=truth_of(name), tol=0, max_iter=10, progress=False)
    # The mixing weights see the rows without an answer too, at their prior: they take longer, the lines do not care.
    frozen = pv.EM(start=truth_of(name), tol=0, max_iter=10, frozen=("mixing.probs",), progress=False)
    one = frozen.fit(model, {"t": data["t"], "y": y})
    other = frozen.fit(model, rows(data, slice(50, None)))
    for key, value in other.parameters.items():
        torch.testing.assert_close(one.parameters[key], value, rtol=1e-8, atol=1e-8)
    assert never_falls(engine.fit(model, {"t": data["t"], "y": y}))


@pytest.mark.parametrize("name", MIXTURES)
def test_frozen_parameters_stay(name):
    model, data = drawn(name, 150)
    start = truth_of(name)
    for key in start:
        fit = pv.EM(start=start, max_iter=4, frozen=key, progress=False).fit(model, data)
        assert never_falls(fit)
        torch.testing.assert_close(fit.parameters[key], start[key])
        if len(start) > 2:
            others = [k for k in start if k not in (key, "mixing.probs")]
            assert all(not torch.allclose(fit.parameters[k], start[k], rtol=1e-6) for k in others)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_step_of_svi_moves_every_parameter(name):
    model, data = drawn(name, 60)
    data = rows(data, slice(None))
    fit = pv.SVI(2, optimizer=pv.adam(1e-2), start=None, progress=False).fit(model, data)
    assert bool(torch.isfinite(fit.trace["bound"]).all())
    for key, value in truth_of(name).items():
        assert not torch.equal(fit.parameters[key].double(), value), key
        assert bool(torch.isfinite(fit.parameters[key]).all())


@pytest.mark.parametrize("name", ["product", "student t, diagonal", "linear regression"])
def test_a_fit_is_saved_and_loaded(name, tmp_path):
    model, data = drawn(name, 100)
    fit = pv.EM(start=truth_of(name), max_iter=5, progress=False).fit(model, data)
    again = pv.Fit.load(fit.save(tmp_path / "fit.safetensors"), model_of(name))
    torch.testing.assert_close(again.log_prob(data), fit.log_prob(data), rtol=0, atol=0)


def test_a_product_is_the_model_with_a_node_for_each_block():
    class Nodes(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.mixing = families.Categorical(2)
            self.sizes, self.rates = families.Normal(1, batch=2), families.Poisson(batch=2)
            self.codes = families.CategoricalVector(3, 2, batch=2)

        @latent
        def z(self):
            return self.mixing()

        @observed
        def size(self, z):
            return self.sizes(z)

        @observed
        def visits(self, z):
            return self.rates(z)

        @observed
        def answers(self, z):
            return self.codes(z)

    x = with_gaps(drawn("product", 300)[1])
    engine = pv.EM(start=torch.eye(2).double()[(x[:, 1].nan_to_num() > 3).long()], max_iter=40, progress=False)
    one = engine.fit(model_of("product"), x)
    other = engine.fit(Nodes(), {"size": x[:, :1], "visits": x[:, 1], "answers": x[:, 2:]})
    torch.testing.assert_close(one.trace["bound"], other.trace["bound"], rtol=1e-12, atol=0)
    torch.testing.assert_close(one.parameters["components.size.loc"], other.parameters["sizes.loc"])
    assert len(one.parameters) == len(other.parameters)


def test_blocks_with_priors_are_shared_latents():
    blocks = {
        "size": families.Normal(1, batch=2, prior="weak"),
        "answers": families.CategoricalVector(3, 2, batch=2, prior=families.DirichletPrior(2.0)),
    }
    x = drawn("product", 200)[1][:, [0, 2, 3]]
    fit = pv.EM(progress=False).fit(FamilyMixture(families.Product(blocks)), x)
    assert set(fit.draws) == {"components.size.loc", "components.size.covariance", "components.answers.probs"}
    assert never_falls(fit)
    values = fit.draw(0)
    objective = fit.log_prob(x).sum() + fit.model.log_prior(values)
    assert fit.trace["bound"][-1].item() == pytest.approx(objective.item(), rel=1e-12)


def test_outliers_do_not_move_a_t():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(300, 2), 40 + torch.randn(6, 2)]).double()

    class One(pv.LatentVariableModel):
        def __init__(self, family):
            super().__init__()
            self.family = family

        @observed
        def x(self):
            return self.family()

    robust = pv.EM(progress=False).fit(One(families.StudentT(2, batch=1)), x).parameters
    plain = pv.EM(progress=False).fit(One(families.Normal(2, batch=1)), x).parameters
    assert robust["family.loc"].abs().max() < 0.15
    assert plain["family.loc"].abs().min() > 0.6
    assert robust["family.df"].item() < 3


@pytest.mark.parametrize(("form", "few", "df"), [("full", 4, None), ("full", 4, 4.0), ("diagonal", 2, 4.0)])
def test_a_t_on_few_data_is_named_with_their_number(form, few, df):
    """As many data as it fits alike wherever they are, up to the units: log p + few log|scale| is the same number.

    With df free there is no bound: nu < 1 may sit on one of four data, as 1/4 is more than nu / (nu + d).
    """
    named = f"has collapsed onto {few} of" if df else f"(on {few} of"
    best = []
    for seed in range(2):
        points = torch.randn(few, 3, generator=torch.Generator().manual_seed(seed)).double()
        rest = torch.randn(200, 3, generator=torch.Generator().manual_seed(9)).double()
        r = torch.zeros(200 + few, 2).double()
        r[:200, 0], r[200:, 1] = 1.0, 1.0
        x = torch.cat([rest, points + 60])
        fit = pv.EM(start=r, progress=False).fit(FamilyMixture(families.StudentT(3, batch=2, form=form, df=df)), x)
        assert f"components[1] {named} the data" in str(fit.status)
        assert fit.status.ok == (df is not None)
        alone = pv.EM(tol=1e-12, progress=False).fit(
            FamilyMixture(families.StudentT(3, batch=1, form=form, df=4.0)), points
        )
        if form == "full":
            size = torch.linalg.slogdet(torch.cat([points, torch.ones(few, 1)], 1)).logabsdet
        else:
            size = (points[0] - points[1]).abs().log().sum()
        best.append((alone.trace["bound"][-1] + few * size).item())
    assert best[0] == pytest.approx(best[1], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("exponential", 0.0), ("gamma", 3.0)],
)
def test_an_unbounded_likelihood_is_reported(name, value):
    _, x = drawn(name, 200)
    x[:60] = value
    r = torch.zeros(200, 2).double()
    r[:60, 0], r[60:, 1] = 1.0, 1.0
    fit = pv.EM(start=r, max_iter=50, progress=False).fit(model_of(name), x)
    # The engine restarts the component away from the point, or else calls the fit degenerate; it says either.
    assert any("components[0]" in said for said in (fit.status.message, *fit.status.notes))
    assert fit.status.code == "degenerate" or fit.parameters["components.rate"].max() < 1e6
    assert bool(torch.isfinite(fit.trace["bound"]).all())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("poisson", 1.5, r"Poisson"),
        ("exponential", -1.0, "Exponential"),
        ("gamma", -1.0, "Gamma"),
        ("gamma", 0.0, "positive numbers"),
        ("bernoulli", 0.5, "Bernoulli"),
        ("categorical vector", 3.0, "Categorical"),
        ("student t", math.inf, "infinite"),
        ("product", 2.5, "2.5"),
    ],
)
def test_bad_data_are_named(name, value, message):
    _, x = drawn(name, 50)
    x[7, 1 if name == "product" else 0] = value
    with pytest.raises(pv.DataError, match=message):
        pv.EM(progress=False).fit(model_of(name), x)


@pytest.mark.parametrize("engine", [pv.EM(progress=False), pv.SVI(1, batch_size=20, progress=False)])
@pytest.mark.parametrize("rows", [None, 40])
def test_a_bad_value_is_named_by_its_row_in_the_data_and_its_part_of_the_table(engine, rows):
    _, x = drawn("product", 200)
    x[150, 3] = 3.0
    data = x if rows is None else pv.data.stream(x, rows=rows)
    said = (
        r"part 'answers': 1 values .* Categorical \(0 to 2\), the first is 3 in row 150 \(counted from 0\), entry \[1\]"
    )
    with pytest.raises(pv.DataError, match=said):
        engine.fit(model_of("product"), data)


def test_covariates_of_another_shape_are_named():
    _, data = drawn("linear regression", 50)
    with pytest.raises(pv.DataError, match=r"\[n, 2\] is expected"):
        pv.EM(progress=False).fit(model_of("linear regression"), {**data, "t": data["t"][:, :1]})
    assert np.isfinite(data["y"].numpy()).all()


@pytest.mark.parametrize("family", [families.LinearRegression, families.LogisticRegression])
@pytest.mark.parametrize("n", [1, 2, 300])
def test_a_single_covariate_may_be_a_column_of_numbers(family, n):
    truth = Experts(family(1, batch=2)).double()
    truth.components.fix({"coef": torch.tensor([[5.0], [-5.0]]), "intercept": torch.tensor([1.0, -1.0])})
    t = torch.linspace(-1, 2, n).double()
    y, wide = torch.bernoulli(torch.sigmoid(t)), {"t": t[:, None]}
    frame = pd.DataFrame({"t": t.numpy(), "y": y.numpy()})
    torch.testing.assert_close(truth.log_prob(frame), truth.log_prob({**wide, "y": y}))
    if n > 2:
        engine = pv.EM(n_init=1, max_iter=20, progress=False)
        fits = [engine.fit(Experts(family(1, batch=2)), data) for data in (frame, {**wide, "y": y})]
        torch.testing.assert_close(*(fit.parameters for fit in fits))
        torch.testing.assert_close(fits[0].reconstruct(frame), fits[1].reconstruct({**wide, "y": y}))


@pytest.mark.parametrize("start", ["k-means++", "random"])
def test_a_column_that_nobody_saw_does_not_stop_the_others(start):
    x = torch.poisson(torch.full((40, 2), 3.0, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    x[:, 1] = torch.nan
    fit = pv.EM(start=start, progress=False).fit(FamilyMixture(families.Poisson(2, batch=2)), x)
    assert fit.status.ok
    assert bool(fit.log_prob(x).isfinite().all())
