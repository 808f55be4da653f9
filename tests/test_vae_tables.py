"""The table of published VAE numbers: its recipe follows the learning curve that was measured, and resumes."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("vae_fashion")
    sys.modules.pop("vae_fashion")


def arguments(**changed):
    given = {"device": "cpu", "compile": "trace", "epochs": 6, "draws": 30, "machine": dict}
    return argparse.Namespace(**{**given, **changed})


def images(n, seed):
    return (torch.rand(n, 784, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def test_warm_up_goes_by_whole_epochs(table):
    assert [table.warm_up(epoch) for epoch in (0.0, 0.99, 1.0, 98.5, 99.0, 500.0)] == [0.01, 0.01, 0.02, 0.99, 1.0, 1.0]


def test_the_learning_rate_is_constant_and_then_falls_to_zero(table):
    gaussian, vamp, best = table.ROWS.values()
    assert [round(vamp.rate(epoch), 3) for epoch in (0, 450, 475, 499, 500)] == [1.0, 1.0, 0.5, 0.001, 0.0]
    assert [round(gaussian.rate(epoch), 3) for epoch in (0, 500, 525, 549, 550)] == [1.0, 1.0, 0.5, 0.001, 0.0]
    assert [round(best.rate(epoch), 3) for epoch in (0, 20, 39, 40)] == [1.0, 0.5, 0.002, 0.0]


@pytest.mark.parametrize("name", ["gaussian", "vamp", "best", "vamp, wide", "vamp, flow"])
def test_every_model_gives_a_bound(table, name):
    torch.manual_seed(0)
    model = {**table.CANDIDATES, **table.ROWS}[name].model()
    assert bool(model.elbo(images(3, 0)).isfinite().all())


def test_a_run_is_trained_evaluated_and_then_read_from_its_file(table, tmp_path):
    data = (pv.data.DynamicBinary(0.3 * torch.ones(200, 784)), images(20, 1), images(30, 2))
    given = arguments(epochs=2, folder=str(tmp_path), compile="off")
    first = table.result("gaussian", 0, data, given)
    assert first["epochs"] == len(first["validation"]) == 2
    assert first["images"] == "test"
    assert first["nll"] < first["negative_elbo"]
    assert table.result("gaussian", 0, (None, None, None), given) == first
    text = table.text([first, {**first, "seed": 1, "nll": first["nll"] + 2.0}])
    assert f"{first['nll'] + 1:.2f} ± 1.41" in text
    assert "228.70 ± 0.15" in text


def test_each_row_says_whether_its_goal_is_met_and_by_how_much_it_is_missed(table):
    run = {"seed": 0, "epochs": 500, "seconds_training": 1.0, "seconds_evaluation": 1.0}
    values = {"gaussian": 228.718, "vamp": 227.21, "vamp, wide": 227.0}
    text = table.text([{**run, "row": name, "nll": value} for name, value in values.items()])
    gaussian, vamp, wide = text.splitlines()[1:]
    assert "228.7, missed by 0.018" in gaussian
    assert "227.3, met by 0.09" in vamp
    assert "met" not in wide
    assert "missed" not in wide


def test_the_best_row_is_the_training_of_its_candidate_which_goes_on_from_another_row(table, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "PSEUDO_INPUTS", 10)
    data = (pv.data.DynamicBinary(0.3 * torch.ones(100, 784)), images(20, 1), images(30, 2))
    given = arguments(epochs=1, folder=str(tmp_path), compile="off")
    chosen = table.result(table.BEST, 0, data, given)
    best = table.result("best", 0, (None, *data[1:]), given)
    assert (chosen["images"], best["images"]) == ("validation", "test")
    assert chosen["validation"] == best["validation"]
    begun = pv.Fit.load(tmp_path / "vamp-0" / "fit.safetensors", table.ALL["vamp"].model())
    again = table.train(table.BEST, 0, data, given)
    step = pv.SVI(1, table.BATCH, table.ALL[table.BEST].optimizer(), table.ALL[table.BEST].objective, start=begun,
                  compile="off", progress=False)  # fmt: skip
    torch.manual_seed(0)
    expected = step.fit(table.ALL[table.BEST].model(), data[0]).model
    torch.testing.assert_close(again.model.state_dict(), expected.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("gaussian", 6), ("vamp", 3)])
def test_the_recipe_stays_on_the_stored_learning_curve(table, tmp_path, name, epochs):
    try:
        data = table.load(None)
    except pv.DataError:
        pytest.skip("Fashion-MNIST is not installed")
    assert [len(part) for part in data] == [50_000, 10_000, 10_000]
    assert all(set(np.unique(part.numpy())) == {0.0, 1.0} for part in data[1:])
    fit = table.train(name, 0, data, arguments(epochs=epochs, folder=str(tmp_path)))
    records = json.loads((BENCHMARKS.parent / "docs" / "results" / "fashion.json").read_text())
    curve = next(record["validation"] for record in records if (record["row"], record["seed"]) == (name, 0))
    assert fit.trace["validation"].tolist() == pytest.approx(curve[:epochs], abs=1.5)
