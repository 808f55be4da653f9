"""Checkpoints: an interrupted fit goes on bit for bit, what is not the same is refused, no good file is lost."""

import os
import signal
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass

import hypothesis.strategies as st
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings

import ppl_vae as pv
from ppl_vae.declare.identity import fingerprint
from ppl_vae.infer import runs
from ppl_vae.infer.checkpoint import Checkpoint
from ppl_vae.infer.identity import described
from ppl_vae.records import write_record


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


def test_a_finished_fit_is_returned_as_it_is(tmp_path):
    first = fit("random starts", tmp_path)
    written = contents(tmp_path)
    with at_call(1, interrupt):
        again = fit("random starts", tmp_path)
    same(again, first)
    assert torch.equal(again.trace["seconds"], first.trace["seconds"])
    assert again.settings == first.settings
    assert contents(tmp_path) == written


# Ctrl-C.


def press():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("iteration", [0, 1, 20])
@pytest.mark.parametrize("case", ["priors", "accelerated", "batches"])
def test_ctrl_c_ends_with_a_usable_fit_that_goes_on(case, iteration, tmp_path, caplog):
    with at_call(iteration, press):
        first = fit(case, tmp_path)
    if iteration:
        assert first.status.code == "interrupted"
        assert not first.status.ok
        where = f"run the same command again: it resumes from {tmp_path} at"
        assert where in first.status.message
        assert where in caplog.text
        assert first.log_prob(clusters()).isfinite().all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(fit(case, tmp_path), fit(case))


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def twice():
        press()
        press()

    with at_call(20, twice), pytest.raises(KeyboardInterrupt):
        fit("priors", tmp_path)
    same(fit("priors", tmp_path), fit("priors"))


def test_a_ctrl_c_that_came_too_late_is_not_lost(tmp_path):
    def converges(folder=None):
        return pv.EM(tol=0.1, progress=False, checkpoint=folder).fit(mixture(), clusters())

    with at_call(0, press) as calls:
        straight = converges()
    assert straight.status.code == "converged"
    with at_call(calls[0], press), pytest.raises(KeyboardInterrupt):
        converges(tmp_path)
    with at_call(1, press):
        same(converges(tmp_path), straight)


def test_without_a_checkpoint_ctrl_c_is_a_keyboard_interrupt():
    with at_call(5, press), pytest.raises(KeyboardInterrupt):
        fit("priors")


def test_a_handler_of_the_users_own_stays(tmp_path):
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with at_call(5, press):
            assert fit("priors", tmp_path).status.code != "interrupted"
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


# What must be the same.


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


# The files.


def kept(folder, steps, **settings):
    """A folder in which every one of these steps was kept, with its number as the state."""
    with Checkpoint(pv.checkpoints(folder, **{"steps": 1, **settings})) as checkpoint:
        checkpoint.opened({"n": 1})
        for step in steps:
            checkpoint.keep({"step": step, "x": torch.full((100,), float(step))}, step=step)


def opened(folder, **settings):
    state = Checkpoint(pv.checkpoints(folder, **settings)).opened({"n": 1})
    return None if state is None else state["step"]


def file_of(folder, step):
    return folder / f"step-{step:012d}.safetensors"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_files_are_kept(keep, tmp_path):
    kept(tmp_path, [1, 2, 5, 1000], keep=keep)
    steps = [1, 2, 5, 1000][-keep:]
    assert sorted(tmp_path.iterdir()) == [file_of(tmp_path, step) for step in steps]
    assert opened(tmp_path) == 1000


def test_a_step_without_a_number_follows_the_last(tmp_path):
    kept(tmp_path, [7])
    with Checkpoint(pv.checkpoints(tmp_path, steps=1)) as checkpoint:
        checkpoint.opened({"n": 1})
        checkpoint.keep({"step": "next"})
    assert file_of(tmp_path, 8).is_file()
    assert opened(tmp_path) == "next"


SCORES = [-3.0, -1.0, float("nan"), -2.0, -1.0]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("plan", [{"steps": 1}, {"steps": 2}, {"steps": 100}, {"seconds": None}])
def test_the_best_is_kept(plan, live, tmp_path):
    x = torch.zeros(3)
    with Checkpoint(pv.checkpoints(tmp_path, **plan)) as checkpoint:
        checkpoint.opened({"n": 1})
        assert checkpoint.best() is None
        for step, score in enumerate(SCORES):
            x.fill_(step)
            checkpoint.keep((lambda: {"x": x}) if live else {"x": x.clone()}, score=score, step=step)
        assert checkpoint.best()["x"].tolist() == [1.0, 1.0, 1.0]
    with Checkpoint(pv.checkpoints(tmp_path, **plan)) as checkpoint:
        checkpoint.opened({"n": 1})
        assert checkpoint.best()["x"].tolist() == [1.0, 1.0, 1.0]
        written = contents(tmp_path)["best.safetensors"]
        checkpoint.keep({"x": x}, score=-1.5, step=6, now=True)
        if plan.get("steps") in (1, 2):  # the score is known from the last step that was written
            assert contents(tmp_path)["best.safetensors"] == written
    with pytest.raises(pv.EngineError, match="n was 1 there and is 2 here"):
        Checkpoint(tmp_path).opened({"n": 2})


def test_no_best_where_none_is_asked_for(tmp_path):
    with Checkpoint(pv.checkpoints(tmp_path, best=False)) as checkpoint:
        checkpoint.opened({})
        checkpoint.keep({}, score=1.0, now=True)
        assert checkpoint.best() is None


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync

    def watched(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}")
        fsync(handle)

    def renamed(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", renamed)
    kept(tmp_path, [1])
    size = file_of(tmp_path, 1).stat().st_size
    assert calls == [f"file of {size}", "name", "folder"]


def test_a_crash_while_writing_leaves_the_last_good_file(tmp_path, monkeypatch):
    replaced = []

    def full(source, target):
        replaced.append(source)
        if len(replaced) > 3:
            raise OSError("no space left on device")
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(pv.DataError, match=r"no space.* name the new one in checkpoint="):
            fit("priors", pv.checkpoints(tmp_path, steps=1))
    assert sorted(contents(tmp_path)) == [file_of(tmp_path, step).name for step in (2, 3)]
    with at_call(0, interrupt) as calls:
        again = fit("priors", tmp_path)
    assert calls[0] > 0
    same(again, fit("priors"))


def test_what_a_killed_writer_left_is_removed(tmp_path):
    kept(tmp_path, [3])
    (tmp_path / ".step-000000000004.safetensors.x1y2").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert opened(tmp_path) == 3
    assert sorted(contents(tmp_path)) == ["notes.txt", file_of(tmp_path, 3).name]


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path):
    path.write_bytes(b"")


def edited(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edited_record(path):
    content = path.read_bytes()
    assert content.count(b'\\"step\\": 5') == 1
    path.write_bytes(content.replace(b'\\"step\\": 5', b'\\"step\\": 6'))


def foreign(path):
    path.write_bytes(safetensors.torch.save({"x": torch.ones(2)}))


def another_record(path):
    write_record(path, {"a": 1}, {})


def garbage(path):
    path.write_bytes(b"PK\x03\x04" + bytes(1000))


DAMAGE = {
    cut: "is not a checkpoint, or was cut short",
    emptied: "is not a checkpoint, or was cut short",
    garbage: "is not a checkpoint, or was cut short",
    edited: "was edited or damaged",
    edited_record: "was edited or damaged",
    foreign: "not a checkpoint written by ppl_vae",
    another_record: "not a checkpoint written by ppl_vae",
}


@pytest.mark.parametrize("spoil", DAMAGE, ids=lambda spoil: spoil.__name__)
def test_a_damaged_file_is_refused_and_the_one_before_used_when_asked(spoil, tmp_path):
    kept(tmp_path, [3, 5])
    last = file_of(tmp_path, 5)
    spoil(last)
    with pytest.raises(pv.DataError, match=DAMAGE[spoil]) as error:
        opened(tmp_path)
    assert str(last) in str(error.value)
    assert "delete it to go on from step-000000000003.safetensors, or let" in str(error.value)
    with pytest.warns(UserWarning, match=r"it is now step-000000000005.safetensors.damaged, and step-000000000003"):
        assert opened(tmp_path, recover=True) == 3
    assert opened(tmp_path) == 3
    spoil(file_of(tmp_path, 3)) if spoil is not edited_record else edited(file_of(tmp_path, 3))
    with pytest.raises(pv.DataError, match="delete it to start anew"):
        opened(tmp_path, recover=True)


def test_a_fit_goes_on_exactly_from_the_file_before(tmp_path):
    with at_call(20, interrupt), pytest.raises(KeyboardInterrupt):
        fit("priors", pv.checkpoints(tmp_path, steps=3))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    cut(files[-1])
    with pytest.warns(UserWarning, match="cut short"):
        again = fit("priors", pv.checkpoints(tmp_path, recover=True))
    same(again, fit("priors"))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_writes_after_so_many_steps(steps, tmp_path):
    found = []
    with Checkpoint(pv.checkpoints(tmp_path, steps=steps, seconds=None)) as checkpoint:
        checkpoint.opened({"n": 1})
        for step in range(1, 9):
            due = checkpoint.due(step)
            checkpoint.keep({"step": step}, step=step)
            assert due == (opened(tmp_path) == step)
            found.append(opened(tmp_path))
    assert [step for step in dict.fromkeys(found) if step] == list(range(steps, 9, steps))


@pytest.mark.parametrize(("writing", "expected"), [(0.01, [0, 6, 12]), (0.4, [0, 9])])
def test_writes_after_so_many_seconds_but_never_more_than_a_twentieth_of_the_time(
    writing, expected, tmp_path, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    fsync = os.fsync

    def slow(handle):
        fsync(handle)
        clock[0] += writing / 2  # the file and the folder

    monkeypatch.setattr(os, "fsync", slow)
    found = []
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.opened({"n": 1})
        for second in range(18):
            clock[0] = max(clock[0], second + 0.5)
            checkpoint.keep({"step": second})
            found.append(opened(tmp_path))
    assert list(dict.fromkeys(found)) == expected


BAD = {
    "a file's name": ("fit.safetensors", {}, "is a folder that holds several files"),
    "no step": ("a", {"steps": 0}, "steps must be a whole number, at least 1"),
    "no time": ("a", {"seconds": 0.0}, "seconds must be above 0"),
    "no file": ("a", {"keep": 0}, "keep must be a whole number, at least 1"),
    "a file of ours": (__file__, {}, r"a folder, such as .*test_checkpoint-checkpoint$"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(case):
    folder, settings, message = BAD[case]
    with pytest.raises(pv.EngineError, match=message):
        pv.checkpoints(folder, **settings)


def test_what_is_no_folder_at_all_is_refused():
    with pytest.raises(pv.EngineError, match=r"takes a folder, or pv\.checkpoints"):
        fit("priors", True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("notes")
    with pytest.raises(pv.EngineError, match=r"got the file .*run; name a folder"):
        fit("priors", tmp_path / "run")


# Any state.

TENSORS = [
    torch.tensor(float("nan")),
    torch.zeros(0, 3),
    torch.arange(6).reshape(2, 3).T,
    torch.ones(2, 1).expand(2, 3),
    torch.tensor([True, False]),
    torch.get_rng_state()[:9],
    torch.tensor([1.5, -0.0, float("inf")]),
    torch.tensor([1.5, float("nan"), -float("inf")], dtype=torch.bfloat16),
    torch.tensor([1.5, 2.0], dtype=torch.float16),
    torch.tensor([1 + 2j]),
    torch.tensor([2**63], dtype=torch.uint64),
    torch.tensor([1e-300], dtype=torch.float64, requires_grad=True),
]
numbers = st.integers() | st.floats()
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(TENSORS)
names = st.text("abc/.", max_size=4) | st.sampled_from(["tensor", "dict", "tuple"]) | st.integers(-3, 9)
keys = names | st.tuples(names, names)
trees = st.recursive(
    leaves,
    lambda part: (
        st.lists(part, max_size=3) | st.lists(part, max_size=3).map(tuple) | st.dictionaries(keys, part, max_size=3)
    ),
)


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def equal(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one).equal(bits(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return repr(one) == repr(other)  # NaN and -0.0 too


@settings(deadline=None)  # the disk may be busy
@given(tree=trees)
def test_any_tree_comes_back(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    with Checkpoint(folder) as checkpoint:
        checkpoint.opened({"n": 1})
        checkpoint.keep({"tree": tree}, now=True)
    assert equal(Checkpoint(folder).opened({"n": 1}), {"tree": tree})


def test_what_shares_memory_comes_back(tmp_path):
    x = torch.arange(6.0)
    tree = {"x": x, "again": [x, x.view(2, 3)], "part": x[1:3], "none": x[:0]}
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.opened({})
        checkpoint.keep(tree, now=True)
    found = Checkpoint(tmp_path).opened({})
    assert equal(found, tree)
    assert found["again"][0] is found["x"]
    found["part"].zero_()
    assert found["x"].equal(x)


def test_an_optimizer_goes_on_with_the_same_bits(tmp_path):
    def steps(count, state=None):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2).bfloat16()
        optimizer = torch.optim.Adam([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 0.1}])
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        if state is not None:
            layer.load_state_dict(state["layer"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
        for _ in range(count):
            optimizer.zero_grad()
            layer(torch.ones(3, dtype=torch.bfloat16)).square().sum().backward()
            optimizer.step()
            scheduler.step()
        parts = {"layer": layer, "optimizer": optimizer, "scheduler": scheduler}
        return {name: part.state_dict() for name, part in parts.items()}

    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.opened({})
        checkpoint.keep(lambda: steps(4), now=True)
    again = steps(3, Checkpoint(tmp_path).opened({}))
    assert list(again["optimizer"]["state"]) == [0, 1]
    assert equal(again, steps(7))


def test_what_is_no_state_is_named(tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.opened({})
        with pytest.raises(TypeError, match="holds numbers, strings, None, tensors"):
            checkpoint.keep({"model": torch.nn.Linear(1, 1)}, now=True)
    assert not list(tmp_path.iterdir())


# What a call was.


@dataclass(frozen=True)
class Chosen:
    lr: float
    make: object = None


def scaled(by):
    return lambda parameters: torch.optim.SGD(parameters, lr=by)


def test_a_description_knows_settings_apart():
    def twice(i):
        return i + i

    assert described(lambda i: 2.0 * i) == described(twice)
    assert described(scaled(0.1)) == described(scaled(0.1)) != described(scaled(0.2))
    assert described(Chosen(0.1, scaled(1.0))) == described(Chosen(0.1, scaled(1.0)))
    others = [Chosen(0.1), Chosen(0.2), Chosen(0.1, scaled(1.0)), torch.optim.Adam, torch.optim.SGD, "adam", 1, None]
    assert len({repr(described(one)) for one in others}) == len(others)


def test_a_description_knows_the_networks_of_a_fit():
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(4, 3, 1), pv.nets.mlp_decoder(1, 3, 4))
    fits = [pv.SVI(epochs, progress=False).fit(vae, torch.ones(5, 4)) for epochs in (1, 1, 2)]
    one, same, other = (described(fit) for fit in fits)
    assert one == same != other


def test_a_fingerprint_is_the_same_however_the_data_lie_in_memory():
    x = clusters(1000)
    assert fingerprint({"x": x}) == fingerprint({"x": x.T.contiguous().T}) == fingerprint({"x": x.clone()})
    changed = x.clone()
    changed[17, 0] = -changed[17, 0]
    others = [changed, x.float(), x.reshape(-1), x[torch.randperm(1000)]]
    assert len({fingerprint({"x": value}) for value in [x, *others]}) == 5
    assert fingerprint({"y": x}) != fingerprint({"x": x})
