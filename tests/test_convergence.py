"""R-hat, effective draws and divergences, and what is said of them."""

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

import ppl_vae as pv
from ppl_vae.convergence import ESS_PER_CHAIN, MOST, convergence
from ppl_vae.fit import Fit, Status


def fit_of(draws, diverging=None):
    stats = {} if diverging is None else {"diverging": diverging}
    return Fit(
        model=pv.models.GaussianMixture(2, 1), engine="NUTS", draws=draws, trace={}, bound="none",
        status=Status("finished", "drawn"), seconds=0.0, seed=0, sample_stats=stats,
    )  # fmt: skip


def test_independent_draws_pass():
    found = convergence(fit_of({"loc": torch.randn(4, 500, 3), "scale": torch.randn(4, 500)}))
    assert found.ok
    assert found.warnings() == ()
    assert (found.chains, found.transitions, found.divergences) == (4, 2000, 0)


def test_the_worst_parameter_is_named_with_its_own_number():
    """loc[1, 0] differs between chains; loc[0, 1] repeats each draw ten times; ArviZ's numbers of each column."""
    draws = torch.randn(4, 500, 2, 2)
    draws[0, :, 1, 0] += 0.3
    draws[:, :, 0, 1] = draws[:, :50, 0, 1].repeat_interleave(10, 1)
    found = convergence(fit_of({"loc": draws}, torch.arange(2000).reshape(4, 500) < 3))
    columns = {f"loc[{i}, {j}]": draws[:, :, i, j].numpy() for i in range(2) for j in range(2)}
    rhat = {name: array_stats.rhat(c, chain_axis=0, draw_axis=1) for name, c in columns.items()}
    bulk = {name: array_stats.ess(c, chain_axis=0, draw_axis=1, method="bulk") for name, c in columns.items()}
    assert found.worst == max(rhat, key=rhat.get)
    assert found.rhat == rhat[found.worst] > 1.01
    assert found.scarcest == min(bulk, key=bulk.get) == "loc[0, 1]"
    assert found.ess <= bulk["loc[0, 1]"] < ESS_PER_CHAIN * 4
    assert found.divergences == 3
    said = found.warnings()
    assert said[0].startswith("3 of 2000 transitions diverged")
    assert found.worst in said[1]
    assert "loc[0, 1]" in said[2]


def test_limit_is_per_chain():
    """150 effective draws are enough for one chain's worth, not for two."""
    found = pv.diagnostics.Convergence(rhat=1.0, ess=150.0, divergences=0, scarcest="mu", chains=2)
    assert "below 200" in found.warnings()[0]
    assert pv.diagnostics.Convergence(rhat=1.0, ess=250.0, divergences=0, chains=2).ok


def test_a_single_chain_of_a_sampler_is_judged_by_its_halves():
    draws = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    found = convergence(fit_of({"mu": draws}, torch.arange(400)[None] < 5))
    assert found.rhat == array_stats.rhat(draws.numpy().reshape(2, 200), chain_axis=0, draw_axis=1) < 1.02
    assert found.divergences == 5
    said = " ".join(found.warnings())
    assert "5 of 400 transitions diverged" in said
    assert "a single chain was run" in said
    moved = convergence(fit_of({"mu": draws + torch.linspace(0, 5, 400)}, torch.zeros(1, 400)))
    assert "the halves of the chain disagree" in " ".join(moved.warnings())


def test_too_few_draws_are_said_to_be_too_few():
    said = convergence(fit_of({"mu": torch.randn(2, 3)})).warnings()
    assert said == ("6 draws are too few to tell R-hat and effective draws: run longer",)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_do_not_pass(bad):
    assert not pv.diagnostics.Convergence(rhat=bad, ess=1000.0, divergences=0).ok


def test_no_answer_without_several_chains_or_movement():
    assert convergence(fit_of({"loc": torch.randn(1, 50)})) is None
    assert convergence(fit_of({"loc": torch.zeros(2, 50)})) is None


def test_very_many_scalars_are_sampled():
    draws = torch.randn(2, 20, 3 * MOST)
    seen = []
    import ppl_vae.convergence as module

    def numbers(column):
        seen.append(column)
        return 1.0, 1000.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_numbers", numbers)
        convergence(fit_of({"z": draws}))
    assert MOST / 2 < len(seen) <= MOST
    assert np.array_equal(seen[0], draws[..., 0].numpy())


def test_chains_that_stand_still_within_their_halves_are_infinitely_far_apart():
    """Nothing varies within, something between: no warning of numpy's, and a number that says so."""
    draws = torch.zeros(2, 4)
    draws[:, 2:] = 1.0
    found = convergence(fit_of({"mu": draws}))
    assert found.rhat == float("inf")
    assert "R-hat of mu is inf, above 1.01" in found.warnings()[0]
    assert str(found).startswith("R-hat at most inf")
