"""EM's way is kept: the parameters that each bound belongs to, few of them, through files and checkpoints."""

import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.history import MOST, History


@pytest.fixture(scope="module")
def fit():
    return pv.EM(n_init=2, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), pv.data.faithful())


def test_history_holds_the_parameters_of_each_bound(fit):
    steps = fit.history["iteration"].tolist()
    assert steps == list(range(len(fit.trace["bound"])))
    for at in (0, 1, steps[-1]):
        values = {name: value[at] for name, value in fit.history.items() if name != "iteration"}
        with fit.model.bind(values):
            bound = fit.model.log_prob(fit.data).sum() + fit.model.log_prior(values)
        assert bound.item() == pytest.approx(fit.trace["bound"][at].item(), abs=1e-8)
    for name, value in fit.parameters.items():
        assert torch.equal(value, fit.history[name][-1])


def test_history_is_saved(fit, tmp_path):
    loaded = pv.Fit.load(fit.save(tmp_path / "f.safetensors"), pv.models.GaussianMixture(2, 2, prior="weak"))
    assert loaded.history.keys() == fit.history.keys()
    assert all(torch.equal(value, loaded.history[name]) for name, value in fit.history.items())


def test_history_is_bounded_and_even():
    history = History()
    for iteration in range(10 * MOST):
        history.add(iteration, {"a": torch.tensor(float(iteration))})
    kept = history.tensors()
    assert MOST // 2 <= len(kept["iteration"]) <= MOST
    assert kept["iteration"].diff().unique().numel() == 1
    assert torch.equal(kept["iteration"].float(), kept["a"])


def test_large_parameters_are_not_kept():
    history = History()
    history.add(0, {"a": torch.zeros(1_000_000)})
    assert history.tensors() == {}


def test_a_state_goes_on_as_the_history():
    whole, first = History(), History()
    for iteration in range(3 * MOST):
        whole.add(iteration, {"a": torch.tensor([float(iteration)])})
    for iteration in range(200):
        first.add(iteration, {"a": torch.tensor([float(iteration)])})
    second = History(first.state())
    for iteration in range(200, 3 * MOST):
        second.add(iteration, {"a": torch.tensor([float(iteration)])})
    assert {n: v.tolist() for n, v in second.tensors().items()} == {n: v.tolist() for n, v in whole.tensors().items()}
