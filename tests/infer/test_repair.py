"""A lost component begins anew from some of the data, each row for its weight."""

import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.expectation import Plan
from ppl_vae.infer.mstep import each_chunk
from ppl_vae.infer.parts import make_parts
from ppl_vae.infer.repair import Found, first_rows, fit_badly, given_away, in_random_order

K = 4


def data(n=300):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x = noise + torch.where(torch.arange(n) % 3 == 0, 5.0, 0.0)[:, None].double()
    return x, (torch.arange(n) % 4).double() % 3  # 0, 1, 2, 0


def parts_of(x, weights):
    return make_parts(pv.models.GaussianMixture(K, 2).double(), x, weights)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("lost", [1, 2])
def test_weight_two_is_the_row_twice_where_a_component_is_restarted(lost, missing):
    x, weights = data()
    if missing:
        x[::5, 0] = torch.nan
    far = torch.tensor([[0.0, 0.0], [5.0, 5.0], [1e7, 1e7], [-1e7, 1e7]])[: 2 + lost]
    probs = torch.tensor([0.5, 0.5, 1e-12, 1e-12])[: 2 + lost]
    start = {"components.loc": far, "mixing.probs": probs / probs.sum()}
    model = pv.models.GaussianMixture(2 + lost, 2, "tied")
    engine = pv.EM(start=start, max_iter=20, tol=0, progress=False)
    weighted = engine.fit(model, x, weights)
    twice = engine.fit(model, x.repeat_interleave(weights.long(), 0))
    assert sum("was restarted" in note for note in weighted.status.notes) == lost
    assert weighted.status.notes == twice.status.notes
    torch.testing.assert_close(weighted.trace["bound"], twice.trace["bound"], rtol=1e-11, atol=0)


def test_the_worst_rows_are_those_of_least_density():
    x, weights = data()
    parts = parts_of(x, weights)
    model = parts.model
    with model.bind(model.family_defaults()), torch.no_grad():
        found = first_rows(parts, fit_badly(Plan(model, parts.obs)), 7.0)
    # At the defaults all components are one normal.
    loc, covariance = (model.family_defaults()[f"components.{name}"][0] for name in ("loc", "covariance"))
    squares = ((x - loc) @ covariance.inverse() * (x - loc)).sum(1)
    order = [i for i in squares.argsort(descending=True).tolist() if weights[i] > 0]
    assert found.rows.tolist() == order[: len(found.rows)]
    assert found.weights.sum() >= 7.0 > found.weights[:-1].sum()
    assert torch.equal(found.weights, weights[found.rows])


def test_random_rows_come_as_often_as_they_weigh():
    x, weights = data()
    parts = parts_of(x, weights)
    first = torch.cat([first_rows(parts, in_random_order(1, draw), 1e-9).rows for draw in range(1500)])
    drawn = weights[first]
    assert bool((drawn > 0).all())
    # Row by row in proportion to w: half of the weight is on the rows of weight 2, a third would be of the rows.
    share = 2 * (weights == 2).sum() / weights.sum()
    assert abs((drawn == 2).double().mean() - share) < 4 * (share * (1 - share) / 1500).sqrt()
    whole = first_rows(parts, in_random_order(1, 0), float(weights.sum()))
    assert sorted(whole.rows.tolist()) == weights.nonzero()[:, 0].tolist()


def test_each_component_is_given_its_weight():
    """Weights 1, 2, 3 and shares of 2.5: row 7 and 3/4 of 3 to one, 1/4 of 3 and 2/3 of 5 to the other."""
    found = Found(torch.tensor([7, 3, 5]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    x, weights = data(10)
    weights[found.rows] = found.weights
    r = torch.full((K, 10), 1 / K, dtype=torch.float64)
    (chunk,) = each_chunk(parts_of(x, weights))
    new = given_away(found, [1, 3], K, 2.5)(chunk, r)
    expected = r.clone()
    expected[:, 7] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    expected[:, 3] = torch.tensor([0.0, 0.75, 0.0, 0.25])
    expected[:, 5] = torch.tensor([0.0, 0.0, 0.0, 2 / 3]) + (1 / 3) / K
    torch.testing.assert_close(new, expected)
