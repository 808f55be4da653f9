"""The tables of VQ-VAEs and of clusterings: measured right, resumed, and shown as stored."""

import argparse
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import ppl_vae as pv

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODULES = ("vae_tables", "vae_vqvae", "vae_clustering", "vae_fashion")


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)


def test_accuracy_is_that_of_the_best_matching(tables):
    truth = torch.arange(10).repeat(4)
    found = tables["vae_clustering"].scores((truth + 3) % 10, truth)
    assert (found["accuracy"], found["ari"], found["nmi"]) == pytest.approx((1.0, 1.0, 1.0))
    one = tables["vae_clustering"].scores(torch.zeros(40, dtype=torch.long), truth)
    assert (one["accuracy"], one["ari"], one["clusters used"]) == pytest.approx((0.1, 0.0, 1))


@pytest.mark.parametrize(
    "name", ["k-means, pixels", "mixture, 10 PCA, full", "two-stage, 5, diagonal", "GMVAE, 5, diagonal"]
)
def test_a_clustering_is_scored_and_then_read_from_its_file(tables, monkeypatch, tmp_path, name):
    table = tables["vae_clustering"]
    x, truth = table.digits()
    monkeypatch.setattr(table, "digits", lambda: (x[:300], truth[:300]))
    monkeypatch.setattr(table, "STARTS", 1)
    given = argparse.Namespace(folder=str(tmp_path), epochs=2, machine=dict)
    record = table.result(name, 0, given)
    assert 0.1 <= record["accuracy"] <= 1
    monkeypatch.setattr(table, "digits", lambda: pytest.fail("computed again"))
    assert table.result(name, 0, given) == record
    assert f"{100 * record['accuracy']:.1f}" in table.text([record])


def test_the_error_is_over_the_variance_of_all_pixels(tables):
    table = tables["vae_vqvae"]

    class Constant:
        def __init__(self, value):
            self.value, self.model = value, self

        def reconstruct(self, x):
            return torch.full_like(x, self.value)

        def perplexity(self, x):
            return torch.tensor(1.0)

        def codes(self, x):
            return torch.zeros(len(x), 49)

        def elbo(self, x, seed):
            return torch.arange(len(x))

    x = torch.rand(50, 784, generator=torch.Generator().manual_seed(0))
    found = table.measure(Constant(x.mean().item()), x, x)
    assert found["error_over_variance"] == pytest.approx(1.0)
    assert found["error_over_variance_by_pixel"] > 1.0
    assert found["mean_squared_error"] == pytest.approx(x.var(correction=0).item())
    assert found["bound"] == 24.5


@pytest.mark.slow
def test_a_vqvae_is_trained_and_its_codes_given_laws(tables, tmp_path):
    table, grey = tables["vae_vqvae"], torch.rand(2560, 784, generator=torch.Generator().manual_seed(0)) ** 3
    given = argparse.Namespace(folder=str(tmp_path), epochs=3, device="cpu", compile="trace", machine=dict)
    record = table.result("moving averages", 0, (grey, grey[:100]), given)
    assert record["bounds"][-1] > record["bounds"][0]
    assert record["code_nats"]["uniform"] == pytest.approx(49 * math.log(512))
    assert record["code_nats"]["autoregressive"] < record["code_nats"]["uniform"]
    assert (tmp_path / "vqvae-moving-averages-0" / "images.png").exists()
    assert table.result("moving averages", 0, (None, None), given) == record


def test_codes_and_encodings_keep_their_places(tables):
    """What the decoder gets at a position is what the encoder said there: one pixel moves one position's patch."""
    table = tables["vae_vqvae"]
    torch.manual_seed(0)
    encoder, decoder = table.Encoder(), table.Decoder()
    x = torch.rand(1, 784)
    e = encoder(x).unflatten(-1, (49, 64))
    x[0, 0] += 1.0
    moved = (encoder(x).unflatten(-1, (49, 64)) - e).abs().sum(-1)[0].reshape(7, 7)
    assert moved[0, 0] > 0
    assert not moved[3:].any()
    e[:, 6 * 7 + 6] += 1.0
    changed = (decoder(e.flatten(1)) - decoder(encoder(x))).abs().reshape(28, 28)
    assert changed[24:, 24:].any()


def test_stored_results_are_shown_and_missing_ones_named(tables, monkeypatch, tmp_path):
    shown, table = tables["vae_tables"], tables["vae_fashion"]
    monkeypatch.setattr(shown, "RESULTS", tmp_path)
    assert shown.stored("fashion").splitlines()[0] == "missing: gaussian, seed 0, 1, 2 (goal: at most 228.7)"
    made = {"date": "2020-01-02", "hardware": "a machine", "gpu": None, "versions": {"torch": "2"}}
    record = {"row": "gaussian", "seed": 0, "nll": 228.5, "epochs": 9, "seconds_training": 60, "seconds_evaluation": 1}
    (tmp_path / "fashion.json").write_text(json.dumps([{**record, **made}]))
    said = shown.stored("fashion")
    assert said.startswith(table.text([record]))
    assert "made on 2020-01-02, a machine, torch 2" in said
    assert "missing: gaussian, seed 1, 2 (goal: at most 228.7)" in said


def test_written_results_join_those_of_other_runs(tables, monkeypatch, tmp_path):
    shown = tables["vae_tables"]
    monkeypatch.setattr(shown, "RESULTS", tmp_path)
    shown.write("fashion", [{"row": "vamp", "seed": 0, "nll": 1}, {"row": "gaussian", "seed": 1, "nll": 2}])
    shown.write("fashion", [{"row": "gaussian", "seed": 0, "nll": 3}, {"row": "vamp", "seed": 0, "nll": 4}])
    records = json.loads((tmp_path / "fashion.json").read_text())
    assert [(r["row"], r["seed"], r["nll"]) for r in records] == [
        ("gaussian", 0, 3),
        ("gaussian", 1, 2),
        ("vamp", 0, 4),
    ]


def test_every_table_that_is_stored_reads(tables):
    for name in tables["vae_tables"].TABLES:
        assert tables["vae_tables"].stored(name)


def test_versions_are_named(tables):
    assert f"ppl_vae {pv.__version__}" in tables["vae_tables"].versions(tables["vae_tables"].machine())
