"""Bad and hard data: each a clear error, or a fit that says what is wrong; log-likelihoods never NaN, never falling."""

import math

import numpy as np
import pytest
import torch
from example_models import numbers

import ppl_vae as pv

N, D = 60, 3
X = numbers(N, D, seed=3) + torch.tensor([0.0, 5.0, 0.0]).double()
X[:30] += 4
FORMS = ["full", "tied", "diagonal", "spherical"]


def replaced(row, value, column=slice(None)):
    x = X.clone()
    x[row, column] = value
    return x


def fit(x, K=2, covariance="full", prior=None, weights=None, **options):
    model = pv.models.GaussianMixture(K, x.shape[1], covariance=covariance, prior=prior)
    return pv.EM(**{"n_init": 2, "max_iter": 200, "progress": False, **options}).fit(model, x, weights)


ERRORS = {
    "K > n": (lambda: fit(X[:3], K=5), "5 components need at least 5 data, there are 3"),
    "no rows": (lambda: fit(X[:0]), "empty"),
    "infinite": (lambda: fit(replaced(5, math.inf)), r"row 5 \(counted from 0\) is infinite"),
    "an all-missing feature": (lambda: fit(replaced(slice(None), math.nan, 1)), "feature 1"),
    "all missing": (lambda: fit(X * math.nan), "feature 0, 1, 2"),
    "negative weight": (lambda: fit(X, weights=-torch.ones(N)), "weight 0 is -1"),
    "weights zero": (lambda: fit(X, weights=torch.zeros(N)), "all weights are zero"),
    "weights NaN": (lambda: fit(X, weights=torch.full((N,), math.nan)), "weight 0 is nan"),
    "too few weights": (lambda: fit(X, weights=torch.ones(3)), "60"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_impossible_data_are_named(case):
    call, words = ERRORS[case]
    with pytest.raises(pv.DataError, match=words):
        call()


REPORTED = {
    "K = n": (lambda: fit(X[:4], K=4), "degenerate", "has no bound"),
    "one datum": (lambda: fit(X[:1], K=1), "degenerate", "has no bound"),
    "the same point": (lambda: fit(X[:1].expand(50, D).clone()), "degenerate", "do not spread in 3 of 3"),
    "two points, repeated": (lambda: fit(X[:2].repeat(20, 1)), "degenerate", "has no bound"),
    "weight on two data": (lambda: fit(X, weights=(torch.arange(N) < 2).double()), "degenerate", "has no bound"),
    "an outlier": (lambda: fit(torch.cat([X, torch.full((1, D), 1e6).double()]), K=3), "degenerate", "has no bound"),
    "a constant feature": (lambda: fit(replaced(slice(None), 7.0, 2)), "converged", "do not spread in 1 of 3"),
    "collinear features": (
        lambda: fit(torch.cat([X, X[:, :1] + X[:, 1:2]], 1)),
        "converged",
        "do not spread in 1 of 4",
    ),
    "an all-missing row": (
        lambda: fit(replaced(5, math.nan)),
        "converged",
        "1 row is missing altogether and tells nothing",
    ),
    "one feature": (lambda: fit(X[:, :1]), "converged", "gain below"),
    "one datum of one feature": (lambda: fit(X[:1, :1], K=1), "degenerate", "has no bound"),
    "a component that loses its data": (
        lambda: fit(
            X, start={"components.loc": torch.tensor([[0.0, 5.0, 0.0], [4.0, 9.0, 4.0], [1e7, 1e7, 1e7]])}, K=3
        ),
        "converged",
        "had lost its data and was restarted",
    ),
    "a component on repeated values": (
        lambda: fit(torch.cat([torch.zeros(30), torch.linspace(5, 9, 50)]).double()[:, None], K=2),
        "degenerate",
        "has no bound",
    ),
}


@pytest.mark.parametrize("case", REPORTED)
def test_hard_data_are_reported(case):
    call, code, words = REPORTED[case]
    found = call()
    bound = found.trace["bound"]
    same = found.trace["segment"].diff() == 0
    assert found.status.code == code, found.status
    assert words in str(found.status)
    assert torch.isfinite(bound).all()
    # A matrix of doubles holds a direction of variance 1e-8 to eight digits.
    assert (bound.diff()[same] >= -1e-8 * bound[1:][same].abs().clamp_min(1)).all()


WAYS = {
    "accelerated": {"accelerate": "squarem"},
    "hard": {"assignment": "hard"},
    "drawn": {"assignment": "stochastic", "max_iter": 15},
    "in batches": {"batch_size": 20},
    "annealed": {"temperature": pv.linear(3.0, 1.0, 5)},
}
HARD = {
    "K = n": (X[:4], 4, None),
    "the same point": (X[:1].expand(50, D).clone(), 2, None),
    "weight on two data": (X, 2, (torch.arange(N) < 2).double()),
    "an outlier": (torch.cat([X, torch.full((1, D), 1e6).double()]), 3, None),
    "a constant feature with gaps": (
        torch.where(numbers(N, D, seed=8) < -0.7, math.nan, replaced(slice(None), 7.0, 2)), 2, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", HARD)
def test_no_variation_ends_with_a_nan(case, way):
    x, K, weights = HARD[case]
    found = fit(x, K, weights=weights, **{"max_iter": 40, **WAYS[way]})
    assert bool(found.trace["bound"].isfinite().all())
    assert all(bool(value.isfinite().all()) for value in found.parameters.values())
    if way in ("accelerated", "hard"):  # the others take steps of chance, or change what they climb
        objective, same = found.trace["objective"], found.trace["segment"].diff() == 0
        assert (objective.diff()[same] >= -1e-8 * objective[1:][same].abs().clamp_min(1)).all()
    if case in ("K = n", "the same point", "weight on two data"):
        assert found.status.code == "degenerate" or (way == "in batches" and not found.status.ok)


@pytest.mark.parametrize("covariance", FORMS)
def test_a_prior_mends_what_has_no_bound(covariance):
    for x, K in ((X[:4], 4), (X[:2].repeat(20, 1), 2)):
        assert fit(x, K, covariance, prior="weak").status.code == "converged"


def test_an_unbounded_likelihood_is_left_and_reported():
    """A start on repeated points runs to the floor: the component is taken off them, and the run says so."""
    x = torch.cat([X, X[:1].expand(3, D)])
    runaway = (x == X[0]).all(1).double()
    found = fit(x, start=torch.stack([1 - runaway, runaway], 1))
    assert found.status.code == "converged"
    assert "components[1] had lost its data and was restarted" in str(found.status)
    relative = found.parameters["components.covariance"] / X.var(0).mean()
    assert torch.linalg.eigvalsh(relative).min() > 1e-4, "the point kept its component"


@pytest.mark.parametrize("covariance", FORMS)
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1e-15), (0.0, 1e15), (1e8, 1.0)])
def test_float32_input_keeps_the_answer(covariance, offset, scale):
    """EM computes in float64: of data given in float32 only what float32 itself rounds is lost."""
    single = (X * scale + offset).float()
    a, b = fit(single, covariance=covariance), fit(single.double(), covariance=covariance)
    assert a.trace["bound"][-1] == b.trace["bound"][-1]
    plain = fit((single.double() - offset) / scale, covariance=covariance)
    shift = N * D * math.log(scale)
    assert a.trace["bound"][-1].item() + shift == pytest.approx(plain.trace["bound"][-1].item(), rel=1e-9)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_a_nearly_singular_covariance_keeps_its_digits(eps):
    """Features that differ by a small independent part: the answer of the data with that part magnified."""
    small = torch.cat([X, X[:, :1] + eps * numbers(N, 1, seed=9)], 1)
    large = torch.cat([X, numbers(N, 1, seed=9)], 1)
    r = (torch.arange(N) < 30).double()
    start = torch.stack([r, 1 - r], 1) * 0.8 + 0.1
    a, b = fit(small, start=start), fit(large, start=start)
    assert a.trace["bound"][-1].item() + N * math.log(eps) == pytest.approx(b.trace["bound"][-1].item(), rel=1e-6)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_gaps_do_not_hide_that_features_nearly_agree(eps):
    """The maximum is above log p at the parameters that made the data, row by row over what is seen."""
    a, b, c = numbers(3, N, seed=3)
    whole = torch.stack([a, b, a + eps * c], 1)
    x = whole.masked_fill(numbers(N, D, seed=8) < -1.2, math.nan)
    truth = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1 + eps**2]])
    expected = 0.0
    for row in x.numpy():
        seen = ~np.isnan(row)
        matrix, y = truth[np.ix_(seen, seen)], row[seen]
        expected -= (seen.sum() * np.log(2 * np.pi) + np.linalg.slogdet(matrix)[1] + y @ np.linalg.solve(matrix, y)) / 2
    found = fit(x, K=1, tol=1e-12)
    assert found.status.code == "converged"
    assert expected < found.trace["bound"][-1].item() < expected + 20  # a chi-squared of 9 degrees of freedom, halved


def test_a_variance_of_float32_is_never_negative():
    """Two values far apart: the variance within is what was put there (scikit-learn #30382)."""
    x = torch.tensor([[9999.0], [9999.0], [0.0], [0.0]])
    prior = pv.families.NormalInverseWishartPrior(df=3.0, scale=torch.tensor([[0.1]]), mean=torch.zeros(1))
    found = fit(x, covariance="full", prior=(pv.families.DirichletPrior(), prior))
    assert (found.parameters["components.covariance"] > 0).all()
    assert torch.isfinite(found.trace["bound"]).all()


def test_a_source_that_changes_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X.numpy())
    stream = pv.data.stream(path, rows=16)
    assert fit_stream(stream).status.code == "converged"
    np.save(path, X[:40].numpy())
    with pytest.raises(pv.DataError, match=r"x\.npy"):
        fit_stream(stream)


def test_a_source_that_ends_early_is_refused():
    passes = []

    def source():
        passes.append(1)
        yield from X.split(20)[: 3 if len(passes) < 4 else 2]

    with pytest.raises(pv.DataError, match="40"):
        fit_stream(pv.data.stream(source, rows=20))


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 not a table")
    with pytest.raises(pv.DataError, match=r"x\.parquet"):
        pv.data.stream(path)


def fit_stream(stream):
    return pv.EM(max_iter=50, progress=False).fit(pv.models.GaussianMixture(2, D), stream)
