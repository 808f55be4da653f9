"""Callbacks: four hooks in order, a stop that leaves a usable fit, errors that name the callback."""

import multiprocessing
import os

import pyro
import pyro.distributions as dist
import pytest
import torch
from example_models import NormalMean

import ppl_vae as pv
from ppl_vae.fit import Status
from ppl_vae.infer.callbacks import Callbacks, Run
from ppl_vae.infer.processes import Share

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ppl_vae", "sklearn.cluster", "torch._dynamo"])


def clusters(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(3, (n,), generator=generator)
    centers = torch.tensor([[0.0, 0.0], [2.5, 1.0], [0.0, 3.0]], dtype=torch.float64)
    return centers[z] + torch.randn(n, 2, dtype=torch.float64, generator=generator)


def mixture():
    return pv.models.GaussianMixture(3, 2)


def em(*callbacks, **settings):
    return pv.EM(**{"max_iter": 12, "progress": False, **settings}, callbacks=callbacks)


class Diary(pv.Callback):
    """Writes everything down."""

    def __init__(self, name="", pages=None):
        self.name, self.pages = name, [] if pages is None else pages

    def set_up(self, run):
        self.run = run
        self.pages.append((f"{self.name}set up", run.first))

    def begin(self, run, step):
        self.pages.append((f"{self.name}begin", step))

    def end(self, run, step, metrics):
        self.pages.append((f"{self.name}end", step, dict(metrics)))

    def tear_down(self, run, status):
        self.pages.append((f"{self.name}tear down", status))

    def named(self, name):
        return [page[1:] for page in self.pages if page[0] == name]


class StopAt(pv.Callback):
    def __init__(self, step):
        self.step = step

    def end(self, run, step, metrics):
        return step == self.step


class Careless(pv.Callback):
    """Fails in one hook."""

    def __init__(self, hook):
        setattr(self, hook, self.fail)
        self.calls = []

    def fail(self, run, *_):
        raise ValueError("no ink")

    def begin(self, run, step):
        """Overridden, so that it is called."""

    def end(self, run, step, metrics):
        """Overridden, so that it is called."""

    def tear_down(self, run, status):
        self.calls.append(status)


def test_the_hooks_of_em_see_every_iteration():
    diary, x = Diary(), clusters()
    fit = em(diary, n_init=2).fit(mixture(), x)
    steps = [page[1] for page in diary.pages if page[0] in ("begin", "end")]
    count = len(steps) // 2
    assert steps == [step for i in range(count) for step in (i, i)]
    assert [page[0] for page in diary.pages] == ["set up", *["begin", "end"] * count, "tear down"]
    assert diary.named("tear down") == [(fit.status,)]
    seen = [metrics for _, metrics in diary.named("end")]
    best = int(fit.trace["starts"].argmax())
    bound = torch.tensor([one["bound"] for one in seen if one["start"] == best], dtype=torch.float64)
    torch.testing.assert_close(bound * len(x), fit.trace["bound"], rtol=1e-12, atol=0)
    assert [one["e_steps"] for one in seen if one["start"] == best] == fit.trace["e_steps"].tolist()
    assert {one["start"] for one in seen} == {0, 1}


def program(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def guide(x):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.5))


POINTS = torch.tensor([0.3, 1.9, 2.2], dtype=torch.float64)
SHORT = {"num_samples": 5, "warmup": 5, "num_chains": 2, "progress": False}
SVI = {"epochs": 3, "batch_size": 2, "num_draws": 5, "progress": False}
# Engine: the fit, and how many steps it has.
ENGINES = {
    "EM": (lambda *own: em(*own, tol=0).fit(mixture(), clusters()), 12),
    "SVI": (lambda *own: pv.SVI(**SVI, callbacks=own).fit(NormalMean(), POINTS), 6),
    "SVI of a pair": (
        lambda *own: pv.SVI(7, num_draws=5, progress=False, callbacks=own).fit((program, guide), POINTS),
        7,
    ),
    "NUTS by nutpie": (lambda *own: pv.NUTS(**SHORT, callbacks=own).fit(NormalMean(), POINTS), 20),
    "NUTS by Pyro": (lambda *own: pv.NUTS(**SHORT, sampler="pyro", callbacks=own).fit(NormalMean(), POINTS), 20),
    "NUTS of a program": (lambda *own: pv.NUTS(**SHORT, callbacks=own).fit(program, POINTS), 20),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_four_hooks_of_every_engine(engine, tmp_path):
    fit, count = ENGINES[engine]
    diary, path = Diary(), tmp_path / "run.csv"
    found = fit(diary, pv.track(pv.CSVTracker(path), every=1))
    assert [page[0] for page in diary.pages] == ["set up", *["begin", "end"] * count, "tear down"]
    assert [step for (step,) in diary.named("begin")] == [step for step, _ in diary.named("end")] == list(range(count))
    ((status,),) = diary.named("tear down")
    assert status.code == found.status.code
    assert diary.run.engine == engine.split()[0]
    assert diary.run.total == count
    header, *rows = path.read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == [str(step) for step in range(count)]
    assert set(header.split(",")[1:]) == set(diary.named("end")[0][1])


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "EM"])
@pytest.mark.parametrize("hook", ["set_up", "begin", "end", "tear_down"])
def test_an_error_in_a_hook_of_every_engine(engine, hook):
    diary = Diary()
    with pytest.raises(pv.EngineError, match=f"callback Careless failed in {hook}.*ValueError: no ink"):
        ENGINES[engine][0](diary, Careless(hook))
    ((status,),) = diary.named("tear down")
    assert status.code == ("finished" if hook == "tear_down" else "failed")


def test_a_run_is_told_of():
    diary, model = Diary(), mixture()
    fit = em(diary, n_init=2, tol=1e-3).fit(model, clusters())
    run = diary.run
    assert (run.engine, run.total, run.steps_per_epoch, run.first, run.leads) == ("EM", 24, None, 0, True)
    assert run.model is fit.model is not model
    assert run.settings["tol"] == 1e-3
    assert run.settings["callbacks"] == fit.settings["callbacks"] == ["Diary"]


class Likelihood(pv.Callback):
    """Compares the bound with that of the model it is given."""

    def __init__(self, x):
        self.x, self.largest, self.calls = x, 0.0, 0

    def end(self, run, step, metrics):
        found = run.model.log_prob(self.x).mean().item()
        self.largest, self.calls = max(self.largest, abs(found - metrics["bound"])), self.calls + 1


@pytest.mark.parametrize("settings", [{}, {"accelerate": "squarem"}, {"batch_size": 50}], ids=str)
def test_the_model_has_the_values_of_the_step(settings):
    x = clusters()
    watch = Likelihood(x)
    fit = em(watch, max_iter=30, **settings).fit(mixture(), x)
    assert watch.calls == len(fit.trace["bound"])
    assert watch.largest < 1e-12


def test_accelerated_iterations_are_numbered_as_they_are_recorded():
    diary = Diary()
    fit = em(diary, max_iter=40, accelerate="squarem").fit(mixture(), clusters())
    recorded = len(fit.trace["bound"])
    assert fit.trace["e_steps"][-1] > recorded, "some E-steps were on the way"
    assert [step for step, _ in diary.named("end")] == list(range(recorded))
    assert [step for (step,) in diary.named("begin")][:recorded] == list(range(recorded))


def test_a_fit_with_callbacks_is_the_fit_without():
    class Noisy(pv.Callback):
        def begin(self, run, step):
            torch.randn(100)

        def end(self, run, step, metrics):
            run.model.sample(3)

    x, settings = clusters(), {"assignment": "stochastic", "n_init": 2}
    plain, watched = (em(*own, **settings).fit(mixture(), x) for own in ((), (Noisy(),)))
    assert torch.equal(plain.trace["bound"], watched.trace["bound"])
    assert torch.equal(plain.model.components.loc, watched.model.components.loc)


def test_true_ends_the_fit():
    x = clusters()
    diary = Diary()
    fit = em(StopAt(4), diary, n_init=3).fit(mixture(), x)
    assert str(fit.status) == "stopped by a callback: StopAt ended the fit after step 4"
    assert fit.status.ok
    assert len(fit.trace["bound"]) == len(diary.named("end")) == 5, "the others are still told of the last step"
    assert diary.named("tear down") == [(fit.status,)]
    five = em(max_iter=5).fit(mixture(), x)
    assert torch.equal(fit.model.components.loc, five.model.components.loc)
    assert fit.log_prob(x).mean().item() * len(x) == pytest.approx(fit.trace["bound"][-1].item(), rel=1e-12)


def test_a_stop_in_a_later_start_keeps_the_best_one():
    x = clusters()
    one = em(max_iter=12, n_init=1).fit(mixture(), x)
    count = len(one.trace["bound"])
    fit = em(StopAt(count), max_iter=12, n_init=3).fit(mixture(), x)
    assert fit.status.code == "stopped by a callback"
    assert len(fit.trace["starts"]) == 2
    assert torch.equal(fit.model.components.loc, one.model.components.loc), "one iteration of the second is worse"


def test_a_stop_at_a_degenerate_end_is_called_that():
    x = torch.cat([clusters(50), torch.full((1, 2), 1e3, dtype=torch.float64)])
    start = {"components.loc": torch.stack([x[0], x[1], x[-1]])}
    fit = em(StopAt(9), start=start, max_iter=40).fit(mixture(), x)
    straight = em(start=start, max_iter=10).fit(mixture(), x)
    assert straight.status.code == fit.status.code == "degenerate"


@pytest.mark.parametrize("hook", ["set_up", "begin", "end", "tear_down"])
def test_an_error_names_the_callback(hook):
    diary = Diary()
    with pytest.raises(pv.EngineError, match=f"callback Careless failed in {hook}.*ValueError: no ink") as caught:
        em(diary, Careless(hook)).fit(mixture(), clusters())
    assert isinstance(caught.value.__cause__, ValueError)
    ((status,),) = diary.named("tear down")
    assert status.code == ("max_iter" if hook == "tear_down" else "failed")
    if hook in ("begin", "end"):
        assert "at step 0" in str(caught.value)


def test_everything_set_up_is_torn_down_in_reverse_after_an_error():
    pages = []
    callbacks = [Diary("a ", pages), Diary("b ", pages), Careless("set_up"), Diary("c ", pages)]
    with pytest.raises(pv.EngineError, match="Careless failed in set_up"):
        em(*callbacks).fit(mixture(), clusters())
    assert [page[0] for page in pages] == ["a set up", "b set up", "b tear down", "a tear down"]
    assert [status.code for status in callbacks[2].calls] == ["failed"]


def test_an_error_while_tearing_down_does_not_hide_another():
    with pytest.raises(KeyboardInterrupt) as caught, Callbacks([Careless("tear_down")], Run()):
        raise KeyboardInterrupt
    assert "Careless failed in tear_down" in caught.value.__notes__[0]


def test_an_interruption_is_told_of():
    diary = Diary()

    class CtrlC(pv.Callback):
        def end(self, run, step, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        em(diary, CtrlC()).fit(mixture(), clusters())
    assert diary.named("tear down") == [(Status("interrupted", "KeyboardInterrupt"),)]


@pytest.mark.parametrize(
    ("given", "said"),
    [([Diary], "the class Diary"), (lambda *a: None, "function"), (["x"], "'x'"), (3, "got 3"), ("ab", "'ab'")],
    ids=["class", "function", "list", "number", "text"],
)
def test_what_is_no_callback_is_refused(given, said):
    with pytest.raises(pv.EngineError, match=f"callbacks= takes objects.*{said}"):
        pv.EM(callbacks=given)


def test_one_callback_needs_no_list():
    assert len(pv.EM(callbacks=Diary()).callbacks) == 1


def test_a_pyro_model_is_refused_with_callbacks():
    with pytest.raises(pv.EngineError, match="EM has callbacks for declared models only"):
        em(Diary()).fit(lambda x: None, clusters())


def test_hooks_that_are_not_overridden_cost_nothing():
    calls = []

    class OnlyEnd(pv.Callback):
        def end(self, run, step, metrics):
            calls.append(step)

    hooks = Callbacks([OnlyEnd()], Run())
    assert hooks.begins == []
    with hooks:
        hooks.begin(0)
        assert not hooks.end(0, {})
    assert calls == [0]
    assert not Callbacks()


# Checkpoints and processes.


def interrupted_at(number, folder, *callbacks, **settings):
    """A fit that is left in the iteration of this number, between its record and its checkpoint."""

    class Leave(pv.Callback):
        def end(self, run, step, metrics):
            if step == number:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        em(*callbacks, Leave(), checkpoint=folder, **settings).fit(mixture(), clusters())


def test_a_resumed_fit_goes_on_with_the_next_step(tmp_path):
    settings = {"n_init": 2, "tol": 0}
    straight, before, after = Diary(), Diary(), Diary()
    em(straight, **settings).fit(mixture(), clusters())
    interrupted_at(15, tmp_path, before, **settings)
    em(after, checkpoint=tmp_path, **settings).fit(mixture(), clusters())
    assert after.run.first == 15
    assert [step for step, _ in after.named("end")] == list(range(15, 24))
    assert before.named("end")[:15] + after.named("end") == straight.named("end")


def test_a_stopped_fit_is_returned_as_it_is(tmp_path):
    settings = {"n_init": 3, "checkpoint": tmp_path}
    one = em(StopAt(14), **settings).fit(mixture(), clusters())
    diary = Diary()
    again = em(diary, **settings).fit(mixture(), clusters())
    assert [page[0] for page in diary.pages] == ["set up", "tear down"]
    assert str(again.status) == str(one.status)
    assert len(again.trace["starts"]) == 2
    assert torch.equal(one.model.components.loc, again.model.components.loc)


class StopInProcess(pv.Callback):
    """Only process 1 wants to stop."""

    def end(self, run, step, metrics):
        return run.share.rank == 1 and step == 3


def one_process(rank, port, results):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    diary = Diary()
    fit = em(diary, StopInProcess(), n_init=2).fit(mixture(), clusters())
    results.put((rank, str(fit.status), len(fit.trace["bound"]), diary.run.leads, diary.run.share.rank))


class Others(Share):
    """The other processes: one of them wants to stop at the second step."""

    asked = 0

    def sum(self, tree):
        Others.asked += 1
        return tree + (Others.asked == 2)


def test_a_stop_in_another_process_is_heard():
    with Callbacks([Diary()], Run(share=Others(0, 2))) as hooks:
        assert [hooks.end(step, {}) for step in range(2)] == [False, True]
    assert hooks.stopped.message == "a callback of another process ended the fit after step 1"


@pytest.mark.slow
def test_a_stop_in_one_process_stops_all():
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    port, results = store.port, FORKS.SimpleQueue()
    del store
    processes = [FORKS.Process(target=one_process, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    found = sorted(results.get() for _ in range(2))
    code = "stopped by a callback: "
    assert found == [
        (0, f"{code}a callback of another process ended the fit after step 3", 4, True, 0),
        (1, f"{code}StopInProcess ended the fit after step 3", 4, False, 1),
    ]


class Lines(pv.LatentVariableModel):
    """Two lines; the slopes take gradient steps."""

    t = pv.given()

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.slope = torch.nn.Parameter(torch.tensor([0.5, -0.5]))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def y(self, z, t):
        return dist.Normal(self.slope[z] * t, 0.3)


def test_parameters_that_no_family_owns_are_those_of_the_step():
    t = torch.linspace(-2, 2, 100, dtype=torch.float64)
    data = {"t": t, "y": torch.where(torch.arange(100) % 2 == 0, 2.0, -1.0) * t}
    watch = Likelihood(data)
    em(watch, max_iter=5).fit(Lines(), data)
    assert watch.calls == 5
    assert watch.largest < 1e-12
