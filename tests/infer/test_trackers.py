"""Trackers: every row whole and exact, a resumed run continues its file, TensorBoard where it is installed."""

import csv
import json
import os
import sys

import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer import Tracker
from ppl_vae.infer.callbacks import Callbacks, Run


class Memory:
    """A tracker of a user's own."""

    def __init__(self):
        self.told, self.settings, self.flushed = [], None, 0

    def metrics(self, step, values):
        self.told.append((step, dict(values)))

    def parameters(self, settings):
        self.settings = dict(settings)

    def figure(self, name, figure, step):
        self.told.append((step, name))

    def flush(self):
        self.flushed += 1


def rows(path):
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def driven(run, callback, steps, metrics=None):
    """A run of a callback alone."""
    with Callbacks([callback], run) as hooks:
        for step in steps:
            hooks.begin(step)
            hooks.end(step, {"bound": float(step)} if metrics is None else metrics(step))


# track


@pytest.mark.parametrize(
    ("every", "per_epoch", "expected"),
    [
        (None, None, list(range(10))),
        (None, 4, [0, 4, 8, 9]),
        (3, None, [0, 3, 6, 9]),
        (4, 5, [0, 4, 8, 9]),
        (100, None, [0, 9]),
    ],
)
def test_track_tells_of_the_steps_that_are_due_and_of_the_last(every, per_epoch, expected):
    memory = Memory()
    driven(Run("SVI", steps_per_epoch=per_epoch), pv.track(memory, every=every), range(10))
    assert [step for step, _ in memory.told] == expected
    assert memory.flushed == 1


def test_numbers_are_read_only_when_they_are_told():
    read = []

    class Slow:
        def __init__(self, step):
            self.step = step

        def __float__(self):
            read.append(self.step)
            return 1.0

    driven(Run("SVI"), pv.track(Memory(), every=4), range(10), lambda step: {"bound": Slow(step)})
    assert read == [0, 4, 8, 9]


def test_tensors_become_numbers():
    memory = Memory()
    driven(Run("SVI"), pv.track(memory), range(1), lambda step: {"bound": torch.tensor(-0.25, dtype=torch.float64)})
    assert memory.told == [(0, {"bound": -0.25})]


def test_settings_are_told_with_model_and_engine():
    memory = Memory()
    run = Run("SVI", pv.models.GaussianMixture(2, 2), settings={"epochs": 3})
    driven(run, pv.track(memory), range(0))
    assert memory.settings == {"engine": "SVI", "model": "GaussianMixture", "epochs": 3}
    assert memory.told == []


def test_only_the_first_process_tells():
    from ppl_vae.infer.processes import Share

    memory = Memory()
    callback = pv.track(memory)
    run = Run("EM", share=Share(1, 2))
    callback.set_up(run)
    callback.end(run, 0, {"bound": 1.0})
    callback.tear_down(run, None)
    assert (memory.told, memory.settings, memory.flushed) == ([], None, 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pv.track(pv.CSVTracker), "the class CSVTracker"),
        (lambda: pv.track({}), "without metrics"),
        (lambda: pv.track(Memory(), every=0), "got 0"),
    ],
)
def test_what_is_no_tracker_is_refused(call, said):
    with pytest.raises(pv.EngineError, match=said):
        call()


def test_shipped_trackers_are_trackers(tmp_path):
    assert isinstance(pv.CSVTracker(tmp_path / "a.csv"), Tracker)
    assert isinstance(Memory(), Tracker)
    assert issubclass(pv.TensorBoardTracker, Tracker)


# CSV


def test_numbers_come_back_exactly(tmp_path):
    path = tmp_path / "runs" / "a.csv"
    values = [0.1 + 0.2, -1e-308, float("inf"), 1 / 3]
    tracker = pv.CSVTracker(path)
    for step, value in enumerate(values):
        tracker.metrics(step, {"x": value})
    tracker.flush()
    assert rows(path) == [{"step": float(step), "x": value} for step, value in enumerate(values)]


def test_columns_may_come_later(tmp_path):
    path = tmp_path / "a.csv"
    tracker = pv.CSVTracker(path)
    tracker.metrics(0, {"bound": 1.0})
    tracker.metrics(1, {"bound": 2.0, "validation, held out": 3.0})
    tracker.metrics(2, {"validation, held out": 4.0})
    assert rows(path) == [
        {"step": 0, "bound": 1},
        {"step": 1, "bound": 2, "validation, held out": 3},
        {"step": 2, "validation, held out": 4},
    ]


def test_a_resumed_run_drops_what_came_later(tmp_path):
    path = tmp_path / "a.csv"
    driven(Run("SVI"), pv.track(pv.CSVTracker(path)), range(10))
    driven(Run("SVI", first=6), pv.track(pv.CSVTracker(path)), range(6, 9), lambda step: {"bound": -float(step)})
    assert rows(path) == [{"step": s, "bound": s if s < 6 else -s} for s in range(9)]


def test_one_callback_may_serve_several_fits(tmp_path):
    path = tmp_path / "a.csv"
    callback = pv.track(pv.CSVTracker(path))
    driven(Run("EM"), callback, range(5))
    driven(Run("EM"), callback, range(3))
    assert [row["step"] for row in rows(path)] == [0, 1, 2]


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,bound\n0,1.0\n1,2.0\n2,3.")
    pv.CSVTracker(path).metrics(3, {"bound": 4.0})
    assert path.read_text() == "step,bound\n0,1.0\n1,2.0\n3,4.0\n"


def test_every_row_is_one_write(tmp_path, monkeypatch):
    tracker, written = pv.CSVTracker(tmp_path / "a.csv"), []
    tracker.metrics(0, {"bound": 1.0})
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(data) or write(handle, data))
    tracker.metrics(1, {"bound": 2.0})
    assert written == [b"1,2.0\n"]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step,b\nx,2\n", "no table at all\n"])
def test_a_file_of_something_else_is_left_alone(text, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(pv.DataError, match="is not a file of metrics"):
        pv.CSVTracker(path).metrics(0, {"bound": 1.0})
    assert path.read_text() == text


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(pv.DataError, match="is a folder; name a file"):
        pv.CSVTracker(tmp_path)


def test_settings_and_figures_lie_beside_the_file(tmp_path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    tracker = pv.CSVTracker(tmp_path / "new" / "a.csv")
    tracker.figure("prior samples", Figure(), 12)
    tracker.parameters({"epochs": 3, "optimizer": pv.sgd(0.1)})
    tracker.flush()
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"epochs": 3, "optimizer": str(pv.sgd(0.1))}
    image = (tmp_path / "new" / "a-prior samples-000012.png").read_bytes()
    assert image.startswith(b"\x89PNG")


def test_em_s_rows_are_its_trace(tmp_path):
    path, x = tmp_path / "em.csv", pv.data.faithful().values
    em = pv.EM(n_init=2, callbacks=[pv.track(pv.CSVTracker(path))], progress=False)
    fit = em.fit(pv.models.GaussianMixture(2, 2), x)
    found = rows(path)
    assert [row["step"] for row in found] == list(range(len(found)))
    best = [row["bound"] * len(x) for row in found if row["start"] == int(fit.trace["starts"].argmax())]
    torch.testing.assert_close(torch.tensor(best, dtype=torch.float64), fit.trace["bound"], rtol=1e-12, atol=0)


def small_vae():
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4))


def svi(*callbacks, **settings):
    settings = {"epochs": 3, "batch_size": 10, "optimizer": pv.adam(1e-2), "progress": False, **settings}
    return pv.SVI(**settings, callbacks=callbacks)


PIXELS = (torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def test_svi_s_rows_are_its_steps(tmp_path):
    path = tmp_path / "svi.csv"
    fit = svi(pv.track(pv.CSVTracker(path), every=1)).fit(small_vae(), PIXELS)
    bound = torch.tensor([row["bound"] for row in rows(path)], dtype=torch.float64)
    assert len(bound) == 12
    torch.testing.assert_close(bound.reshape(3, 4).mean(1), fit.trace["bound"], rtol=1e-6, atol=0)


def test_a_row_of_an_epoch_has_the_held_out_bound_before_it(tmp_path):
    path = tmp_path / "svi.csv"
    fit = svi(pv.track(pv.CSVTracker(path)), validation=PIXELS[:7], beta=pv.linear(0, 1, 2)).fit(small_vae(), PIXELS)
    found = rows(path)
    assert [row["step"] for row in found] == [0, 4, 8, 11]
    assert [row["beta"] for row in found] == [0, 0.5, 1, 1]
    assert [row.get("validation") for row in found] == [
        None,
        *fit.trace["validation"].tolist()[:2],
        found[2]["validation"],
    ]


class LeaveAt(pv.Callback):
    def __init__(self, step):
        self.step = step

    def end(self, run, step, metrics):
        if step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_svi_run_ends_with_the_same_file(tmp_path):
    straight, broken = tmp_path / "straight.csv", tmp_path / "broken.csv"
    svi(pv.track(pv.CSVTracker(straight), every=1)).fit(small_vae(), PIXELS)
    where = pv.checkpoints(tmp_path / "fit", steps=4, seconds=None)
    with pytest.raises(KeyboardInterrupt):
        svi(pv.track(pv.CSVTracker(broken), every=1), LeaveAt(6), checkpoint=where).fit(small_vae(), PIXELS)
    assert [row["step"] for row in rows(broken)] == list(range(7))
    first = []

    class Look(pv.Callback):
        def set_up(self, run):
            first.append(run.first)

    svi(pv.track(pv.CSVTracker(broken), every=1), Look(), checkpoint=where).fit(small_vae(), PIXELS)
    assert 0 < first[0] < 7, "some steps are made again"
    assert broken.read_text() == straight.read_text()


def test_svi_stops_when_it_is_told_to():
    class Stop(pv.Callback):
        def end(self, run, step, metrics):
            return step == 5

    fit = svi(Stop()).fit(small_vae(), PIXELS)
    assert str(fit.status) == "stopped by a callback: Stop ended the fit after step 5"
    assert torch.isfinite(fit.log_prob(PIXELS)).all()


# TensorBoard


@pytest.fixture
def accumulator():
    reason = "tensorboard is not installed"
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)

    def read(folder):
        found = module.EventAccumulator(str(folder))
        found.Reload()
        return found

    return read


def test_tensorboard_has_scalars_settings_and_figures(tmp_path, accumulator):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    tracker = pv.TensorBoardTracker(tmp_path)
    driven(Run("SVI", settings={"beta": "<one>"}), pv.track(tracker, every=1), range(3))
    tracker.figure("samples", Figure(), 2)
    tracker.flush()
    found = accumulator(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("bound")] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert b"&lt;one&gt;" in found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    assert [event.step for event in found.Images("samples")] == [2]


def test_tensorboard_hides_what_an_interrupted_run_wrote_later(tmp_path, accumulator):
    driven(Run("SVI"), pv.track(pv.TensorBoardTracker(tmp_path), every=1), range(5))
    again = pv.track(pv.TensorBoardTracker(tmp_path), every=1)
    driven(Run("SVI", first=3), again, range(3, 5), lambda step: {"bound": -float(step)})
    found = [(event.step, event.value) for event in accumulator(tmp_path).Scalars("bound")]
    assert found == [(0, 0.0), (1, 1.0), (2, 2.0), (3, -3.0), (4, -4.0)]


def test_without_tensorboard_the_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(pv.EngineError, match=r"python -m pip install 'ppl_vae\[track\]'"):
        pv.TensorBoardTracker(tmp_path)


def test_messages_and_settings_name_the_tracker():
    class Broken(Memory):
        def parameters(self, settings):
            raise OSError("no disk")

    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(pv.EngineError, match=r"callback track\(Broken\) failed in set_up: OSError: no disk"):
        pv.EM(callbacks=[pv.track(Broken())], progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    em = pv.EM(callbacks=[pv.track(Memory())], progress=False)
    assert em.fit(pv.models.GaussianMixture(2, 2), x).settings["callbacks"] == ["track(Memory)"]
