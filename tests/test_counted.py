"""A weight is a count: a frequency table and the data it stands for get the same answers."""

import copy

import numpy as np
import pytest
import torch
from test_predictive import NormalMean, posterior

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.counted import counted_mean
from ppl_vae.diagnostics import leave_one_out

VALUES = torch.tensor([-1.0, 0.2, 0.9, 2.5, 4.0], dtype=torch.float64)
COUNTS = torch.tensor([3.0, 1.0, 4.0, 2.0, 0.0], dtype=torch.float64)


@pytest.fixture
def fits():
    """The same draws twice: on distinct values with weights, and on every datum."""
    torch.manual_seed(0)
    full = posterior(torch.repeat_interleave(VALUES, COUNTS.long()))
    table = copy.copy(full)
    table.data, table.weights = full.model.check(VALUES), COUNTS
    return table, full


def variational(fit):
    """The draws as those of a q, a little off the posterior."""
    log_q = -torch.linspace(0, 1, fit.num_draws).reshape(4, -1).double()
    found = copy.copy(fit)
    found.engine = "SVI"
    found.sample_stats = {"log_q": log_q, "log_prior": torch.zeros_like(log_q)}
    return found


@pytest.mark.parametrize("draws_of", [lambda fit: fit, variational], ids=["posterior", "q"])
def test_leave_one_out_is_that_of_every_datum(fits, draws_of):
    table, full = (leave_one_out(draws_of(fit)) for fit in fits)
    for name in ("elpd", "se", "p", "n_data_points"):
        assert getattr(table, name) == pytest.approx(getattr(full, name), rel=1e-10), name
    np.testing.assert_allclose(table.elpd_i, full.elpd_i)
    np.testing.assert_allclose(table.pareto_k, full.pareto_k)


def test_the_table_is_that_of_every_datum(fits):
    rows = [pv.compare({"fit": fit}).rows["fit"] for fit in fits]
    for name in ("log_predictive", "log_predictive_se", "elpd_loo", "elpd_se", "bad_k"):
        assert getattr(rows[0], name) == pytest.approx(getattr(rows[1], name), rel=1e-10), name


def test_every_fit_of_a_table_is_judged_under_the_same_weights(tmp_path):
    x, w = torch.cat([VALUES, VALUES + 9.0]), torch.cat([COUNTS, COUNTS.flip(0)])
    gmm = pv.models.GaussianMixture(2, 1)
    weighted = pv.EM(progress=False, n_init=3).fit(gmm, x, w)
    loaded = pv.Fit.load(weighted.save(tmp_path / "fit"), gmm)
    plain = pv.EM(progress=False, n_init=3).fit(gmm, x)

    def scores(*fits, **options):
        table = pv.compare({str(i): fit for i, fit in enumerate(fits)}, x, **options)
        return [row.log_predictive for row in table.rows.values()], table.warnings

    means = [fit.log_prob(x).mean().item() for fit in (weighted, weighted, plain)]
    by_weight = [counted_mean(fit.log_prob(x), w)[0] for fit in (weighted, weighted, plain)]
    found, said = scores(weighted, loaded)
    assert found == pytest.approx(by_weight[:2])
    assert said == []
    found, said = scores(weighted, loaded, plain)
    assert found == pytest.approx(means)
    assert any("0, 2 were fitted to these data under different weights" in one for one in said)
    assert any("2 was fitted under other weights than 0" in one for one in said)
    found, _ = scores(weighted, loaded, plain, weights=w)
    assert found == pytest.approx(by_weight)
    with pytest.raises(pv.DataError, match="one non-negative number per datum"):
        scores(plain, weights=w[1:])


def test_other_data_of_the_same_number_are_told():
    gmm = pv.models.GaussianMixture(1, 1)
    fits = {name: pv.EM(progress=False).fit(gmm, x) for name, x in {"a": VALUES, "b": VALUES + 1}.items()}
    assert any("b was fitted to other data than a" in said for said in pv.compare(fits).warnings)


def test_checks_draw_as_many_data_as_the_weights_say(fits):
    checks = [pv.predictive_check(fit, statistics={"size": len, "mean": np.mean}, draws=20) for fit in fits]
    assert checks[0].loc["size of x", "observed"] == 10
    np.testing.assert_allclose(*[check.to_numpy() for check in checks])
    line = plots.predictive_check(fits[0], statistic=len, draws=3).lines[0]
    assert line.get_xdata()[0] == 10


def test_weights_that_are_no_counts_have_no_leave_one_out_and_no_replicates(fits):
    table = fits[0]
    table.weights = COUNTS + 0.5
    assert leave_one_out(table) is None
    assert "no leave-one-out: the weights are no whole numbers" in "; ".join(pv.compare({"fit": table}).warnings)
    with pytest.raises(pv.EngineError, match=r"no whole numbers.*pass data="):
        pv.predictive_check(table)
    assert len(pv.predictive_check(table, VALUES, draws=5)) == 4


def test_mean_without_weights_is_the_plain_one():
    mean, error = counted_mean(VALUES)
    assert mean == pytest.approx(VALUES.mean().item())
    assert error == pytest.approx(VALUES.std().item() / 5**0.5)
    assert np.isnan(counted_mean(VALUES[:1])[1])


def test_a_fit_of_a_frequency_table_predicts_as_one_of_every_datum():
    """NUTS on 10 data, told by weights or row by row: 4 standard errors of the elpd by Monte Carlo are below 0.1."""
    x = torch.repeat_interleave(VALUES, COUNTS.long())
    nuts = pv.NUTS(400, warmup=200, num_chains=2, compile="trace", progress=False)
    found = pv.compare({"table": nuts.fit(NormalMean(), VALUES, COUNTS), "rows": nuts.fit(NormalMean(), x)}).to_frame()
    assert abs(found["elpd_loo"].diff().iloc[1]) < 0.1
