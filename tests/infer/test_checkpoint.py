"""Checkpoints: an interrupted fit goes on bit for bit, what is not the same is refused, no good file is lost."""

import multiprocessing
import os
import signal
from contextlib import contextmanager

import hypothesis.strategies as st
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from hypothesis import given

import ppl_vae as pv
from ppl_vae.infer import checkpoint as checkpoints
from ppl_vae.infer import em as runs
from ppl_vae.infer.checkpoint import Checkpoint, fingerprint

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ppl_vae", "sklearn.cluster", "torch._dynamo"])


def clusters(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(3, (n,), generator=generator)
    centers = torch.tensor([[0.0, 0.0], [2.5, 1.0], [0.0, 3.0]], dtype=torch.float64)
    return centers[z] + torch.randn(n, 2, dtype=torch.float64, generator=generator)


class Lines(pv.LatentVariableModel):
    """Two lines; the slopes and scales take gradient steps."""

    t = pv.given()

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.slope = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
        self.log_scale = torch.nn.Parameter(torch.zeros(2))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def y(self, z, t):
        return dist.Normal(self.slope[z] * t, self.log_scale[z].exp())


def mixture(prior=None):
    return pv.models.GaussianMixture(3, 2, prior=prior)


def lines():
    t = torch.linspace(-2, 2, 200, dtype=torch.float64)
    return {"t": t, "y": torch.where(torch.arange(200) % 2 == 0, 2.0, -1.0) * t + 0.3 * t.cos()}


FAR = {
    "components.loc": torch.tensor([[0.0, 0.0], [3.0, 3.0], [1e7, 1e7]]),
    "mixing.probs": torch.tensor([0.5, 0.5 - 1e-12, 1e-12]),
}

CASES = {
    "priors": (lambda: mixture("weak"), clusters, {"n_init": 3}),
    "random starts": (mixture, clusters, {"n_init": 3, "start": "random"}),
    "draws": (mixture, clusters, {"n_init": 2, "assignment": "stochastic"}),
    "annealed": (mixture, clusters, {"n_init": 2, "temperature": pv.linear(3.0, 1.0, 10)}),
    "schedule": (mixture, clusters, {"n_init": 2, "temperature": lambda i: 1 + 2.0 ** (1 - i)}),
    "repaired": (mixture, clusters, {"start": FAR}),
    "gradient steps": (Lines, lines, {"n_init": 2, "max_iter": 10}),
    "accelerated": (mixture, clusters, {"n_init": 2, "accelerate": "squarem"}),
    "batches": (mixture, clusters, {"n_init": 2, "batch_size": 50}),
    "stream": (mixture, lambda: pv.data.stream(clusters(), rows=64), {"n_init": 2}),
}


def fit(case, folder=None):
    model, data, settings = CASES[case]
    return pv.EM(**{"max_iter": 14, "progress": False, **settings}, checkpoint=folder).fit(model(), data())


@contextmanager
def at_call(number, act):
    """Progress that acts when it is told of an iteration for that time."""
    before, calls = runs.progress, [0]

    def told(i, text):
        iteration = ", block " not in text
        calls[0] += iteration
        if iteration and calls[0] == number:
            act()

    @contextmanager
    def watched(*_):
        yield told

    runs.progress = watched
    try:
        yield calls
    finally:
        runs.progress = before


def interrupt():
    raise KeyboardInterrupt


def same(one, other):
    assert str(one.status) == str(other.status)
    for name in ("bound", "segment", "starts"):
        assert torch.equal(one.trace[name], other.trace[name]), name
    states = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(one.draws[name], other.draws[name]) for name in one.draws)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_fit_ends_where_it_would_have_ended(case, part, tmp_path):
    with at_call(0, interrupt) as calls:
        straight = fit(case)
    total = calls[0]
    iteration = 2 + int(part * (total - 2))
    with at_call(iteration, interrupt), pytest.raises(KeyboardInterrupt):
        fit(case, tmp_path)
    with at_call(0, interrupt) as calls:
        again = fit(case, tmp_path)
    # The iterations before the one that was interrupted are not made again.
    assert calls[0] == total - (iteration - 1)
    same(again, straight)


def killed(case, iteration, folder):
    torch.set_num_threads(1)
    with at_call(iteration, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        fit(case, folder)


def test_a_killed_fit_ends_where_it_would_have_ended(tmp_path):
    process = FORKS.Process(target=killed, args=("priors", 20, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with at_call(0, interrupt) as calls:
        again = fit("priors", tmp_path)
    assert 0 < calls[0] < 3 * 14 - 13, "the first start is not made again"
    same(again, fit("priors"))


def test_a_finished_fit_is_returned_as_it_is(tmp_path):
    first = fit("random starts", tmp_path)
    written = (tmp_path / "checkpoint.safetensors").read_bytes()
    with at_call(1, interrupt):
        again = fit("random starts", tmp_path)
    same(again, first)
    assert torch.equal(again.trace["seconds"], first.trace["seconds"])
    assert again.settings == first.settings
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == written


def test_a_file_may_be_named(tmp_path):
    em = pv.EM(max_iter=3, progress=False, checkpoint=tmp_path / "a" / "mixture.safetensors")
    em.fit(mixture(), clusters())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mixture.safetensors"]


# What must be the same.

ROWS = clusters()
CHANGED = ROWS.clone()
CHANGED[123, 1] += 1e-12

OTHER = {
    "tolerance": ({"tol": 1e-6}, {}, r"settings.tol was 1e-09 there and is 1e-06 here"),
    "iterations": ({"max_iter": 5}, {}, r"settings.max_iter was 4 there and is 5 here"),
    "seed": ({"seed": 1}, {}, r"settings.seed was 0"),
    "start": ({"start": torch.full((300, 3), 1 / 3)}, {}, r"settings.start differs"),
    "schedule": ({"temperature": lambda i: 1.0}, {}, r"settings.temperature differs"),
    "covariance": (
        {},
        {"model": pv.models.GaussianMixture(3, 2, "diagonal")},
        r"components.covariance was \[3, 2, 2\]",
    ),
    "components": ({}, {"model": pv.models.GaussianMixture(4, 2)}, r"mixing.probs was \[3\] there and is \[4\] here"),
    "prior": ({}, {"model": mixture("weak")}, r"model.declaration differs"),
    "a digit of one number": ({}, {"data": CHANGED}, r"data differs"),
    "order": ({}, {"data": ROWS.flip(0)}, r"data differs"),
    "fewer rows": ({}, {"data": ROWS[:-1]}, r"rows was 300 there and is 299 here"),
    "a gap": ({}, {"data": ROWS.masked_fill(torch.arange(300)[:, None] == 7, torch.nan)[:, [0, 1]]}, r"data differs"),
    "weights": ({}, {"weights": torch.ones(300).index_fill(0, torch.tensor(4), 2.0)}, r"data differs"),
}


@pytest.mark.parametrize("case", OTHER)
def test_the_checkpoint_of_another_call_is_refused(case, tmp_path):
    pv.EM(tol=1e-9, max_iter=4, progress=False, checkpoint=tmp_path).fit(mixture(), ROWS)
    settings, call, message = OTHER[case]
    em = pv.EM(**{"tol": 1e-9, "max_iter": 4, "progress": False, "checkpoint": tmp_path} | settings)
    with pytest.raises(pv.EngineError, match=message) as error:
        em.fit(**{"model": mixture(), "data": ROWS} | call)
    assert "is the checkpoint of another call" in str(error.value)


def test_progress_and_place_may_change(tmp_path):
    first = pv.EM(max_iter=4, progress=False, checkpoint=tmp_path / "a").fit(mixture(), ROWS)
    (tmp_path / "a").rename(tmp_path / "b")
    same(pv.EM(max_iter=4, progress=True, checkpoint=tmp_path / "b").fit(mixture(), ROWS), first)


def test_a_pyro_model_has_none(tmp_path):
    with pytest.raises(pv.EngineError, match="declared models only"):
        pv.EM(checkpoint=tmp_path).fit(lambda x: None, ROWS)


# The file.


def test_a_crash_while_writing_leaves_the_last_good_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    replaced = []

    def full(source, target):
        replaced.append(source)
        if len(replaced) > 3:
            raise OSError("no space left on device")
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            fit("priors", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    with at_call(0, interrupt) as calls:
        again = fit("priors", tmp_path)
    assert calls[0] > 0
    same(again, fit("priors"))


def test_a_file_cut_short_is_named(tmp_path):
    fit("priors", tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(pv.DataError, match=r"checkpoint\.safetensors is not a checkpoint, or was cut short"):
        fit("priors", tmp_path)
    path.write_bytes(safetensors.torch.save({"x": torch.ones(2)}))
    with pytest.raises(pv.DataError, match="not a checkpoint written by ppl_vae"):
        fit("priors", tmp_path)


@pytest.mark.parametrize(("every", "writes"), [(0.0, [0, 1, 2, 3, 4]), (1e9, [0, 4])])
def test_writes_are_rationed(every, writes, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", every)
    found = []
    with Checkpoint(tmp_path) as kept:
        kept.opened({})
        for step in range(5):
            kept.keep({"step": step}, now=step == 4)
            found.append(Checkpoint(tmp_path).opened({})["step"])
    assert sorted(set(found)) == writes


tensors = st.sampled_from(
    [
        torch.tensor(float("nan")),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([True, False]),
        torch.get_rng_state()[:9],
        torch.tensor([1.5, -0.0, float("inf")], dtype=torch.float32),
    ]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | tensors
names = st.text("abc/.", min_size=1, max_size=4)
trees = st.recursive(leaves, lambda part: st.lists(part, max_size=3) | st.dictionaries(names, part, max_size=3))


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and (one.equal(other) or bool(one.isnan().any()))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


@given(tree=trees)
def test_any_tree_comes_back(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    with Checkpoint(folder) as kept:
        kept.opened({"n": 1})
        kept.keep({"tree": tree}, now=True)
    assert equal(Checkpoint(folder).opened({"n": 1}), {"tree": tree})


def test_a_fingerprint_is_the_same_however_the_data_lie_in_memory():
    x = clusters(1000)
    assert fingerprint({"x": x}) == fingerprint({"x": x.T.contiguous().T}) == fingerprint({"x": x.clone()})
    changed = x.clone()
    changed[17, 0] = -changed[17, 0]
    others = [changed, x.float(), x.reshape(-1), x[torch.randperm(1000)]]
    assert len({fingerprint({"x": value}) for value in [x, *others]}) == 5
    assert fingerprint({"y": x}) != fingerprint({"x": x})
