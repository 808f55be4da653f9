"""Errors of an approximation against the posterior: by hand, where they are known, and in words."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.fit import Fit, Status
from ppl_vae.quality import quality, quality_words

NORMAL = NormalDist()


def normal(mean, sd, chains=4, draws=1000):
    return {"mu": mean + sd * torch.randn(chains, draws, 2, dtype=torch.float64)}


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.4), (-0.3, 2.0)])
def test_numbers_of_normals(mean, sd):
    """Q = N(mean, sd^2) for N(0, 1): error is mean, coverage Phi(mean + 1.645 sd) - Phi(mean - 1.645 sd)."""
    found = quality(normal(0.0, 1.0), {"q": normal(mean, sd, chains=1, draws=4000)}).loc["q"]
    assert list(found.index) == ["mu[0]", "mu[1]"]
    assert (found["error"] - mean).abs().max() < 4 * found["mc_error"].max() * (1 + abs(mean))
    np.testing.assert_allclose(found["mc_error"], ((1 + sd**2) / 4000) ** 0.5, rtol=0.1)
    np.testing.assert_allclose(found["sd_ratio"], sd, rtol=4 / 4000**0.5)
    z = NORMAL.inv_cdf(0.95)
    coverage = NORMAL.cdf(mean + z * sd) - NORMAL.cdf(mean - z * sd)
    # The share's own error, and that of the interval's ends, whose density is at most 0.4 and sd about 2 sd / sqrt(S).
    error = (coverage * (1 - coverage) / 4000) ** 0.5 + 2 * 0.4 * 2 * sd / 4000**0.5
    assert (found["coverage"] - coverage).abs().max() < 4 * error


def test_a_point_has_only_an_error():
    found = quality(normal(0.0, 1.0), {"EM": {"mu": torch.full((1, 1, 2), 0.5)}}).loc["EM"]
    assert found["sd_ratio"].isna().all()
    assert found["coverage"].isna().all()
    np.testing.assert_allclose(found["error"], 0.5, atol=4 * 4000**-0.5)


def test_draws_of_one_chain_that_follow_one_another_count_for_fewer():
    """z_t = 0.9 z_{t-1} + noise: worth S (1 - 0.9) / (1 + 0.9) draws."""
    z = [torch.zeros((), dtype=torch.float64)]
    for noise in torch.randn(4000, dtype=torch.float64):
        z.append(0.9 * z[-1] + noise)
    found = quality({"mu": torch.stack(z)[None, 1:]}, {"EM": {"mu": torch.zeros(1, 1, dtype=torch.float64)}})
    np.testing.assert_allclose(found.loc[("EM", "mu"), "mc_error"], (19 / 4000) ** 0.5, rtol=0.3)


@pytest.mark.parametrize(
    ("mean", "sd", "said"),
    [
        (0.0, 1.0, []), (0.9, 1.0, ["above NUTS's", "too sure"]), (0.0, 0.5, ["too sure"]),
        (-2.0, 0.3, ["below", "too sure"]), (0.0, 3.0, ["less sure"]),
    ],
)  # fmt: skip
def test_words(mean, sd, said):
    words = quality_words("NUTS", quality(normal(0.0, 1.0), {"q": normal(mean, sd)}).loc["q"])
    assert len(words) == len(said)
    assert all(expected in sentence for expected, sentence in zip(said, words, strict=True))


def fit_of(engine, draws, model):
    return Fit(model, engine, draws, {}, "none", Status("finished", "drawn"), 0.0, 0)


def test_the_table_holds_approximations_against_healthy_chains():
    x = pv.data.faithful()
    vb = pv.VB(num_draws=1600, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), x)
    chains = {name: value.reshape(4, 400, *value.shape[2:]) for name, value in vb.draws.items()}
    center = {name: value.mean((0, 1)) for name, value in vb.draws.items()}
    sure = {n: center[n] + 0.3 * (v - center[n]) for n, v in vb.draws.items()}
    fits = {"NUTS": fit_of("NUTS", chains, vb.model), "SVI": fit_of("SVI", sure, vb.model)}
    table = pv.compare(fits, x)
    assert any(w.startswith("SVI: it is too sure: its 90% intervals hold") for w in table.warnings)
    found = table.quality()
    np.testing.assert_allclose(found.loc["SVI"].filter(like="components", axis=0)["sd_ratio"], 0.3, rtol=1e-6)
    assert "mean of x[0]" in found.loc["SVI"].index  # what does not depend on labels is held against it too
    # Chains that disagree are no reference: nothing is said of the others.
    chains["components.loc"] = chains["components.loc"].clone()
    chains["components.loc"][0] += 1.0
    table = pv.compare(fits, x)
    assert any(w.startswith("NUTS: R-hat") for w in table.warnings)
    assert not any("too sure" in w for w in table.warnings)


def test_without_draws_from_the_posterior_there_is_no_quality():
    em = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    with pytest.raises(pv.EngineError, match="has draws"):
        pv.compare({"EM": em}).quality()
    with pytest.raises(pv.EngineError, match="two or more fits"):
        pv.compare({"EM": em}).loo()


def test_fits_of_another_model_are_not_held_against_the_reference():
    x = pv.data.faithful().values[:100]
    vb = {K: pv.VB(num_draws=200, progress=False).fit(pv.models.GaussianMixture(K, 2, prior="weak"), x) for K in (1, 2)}
    chains = {name: value.reshape(4, 50, *value.shape[2:]) for name, value in vb[1].draws.items()}
    table = pv.compare({"one": vb[1], "two": vb[2], "NUTS": fit_of("NUTS", chains, vb[1].model)}, x)
    assert set(table.quality().index.get_level_values("fit")) == {"one"}
    assert not any(w.startswith("two") and "NUTS's" in w for w in table.warnings)
