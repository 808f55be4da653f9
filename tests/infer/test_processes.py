"""EM in several processes: the same fit as in one, and a clear end when a process is lost."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import distributed

import ppl_vae as pv
from ppl_vae.infer import processes, runs
from ppl_vae.infer.processes import Share

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "em_torchrun.py"
SECONDS = 120
"""A process that is not done by then hangs."""

# A server that has imported everything once forks the processes: they start in no time, without the threads of here.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ppl_vae", "sklearn.cluster", "torch._dynamo"])


def in_processes(world, work, *args, heard=None):
    """work(*args) in so many processes, under torchrun's variables: what each of them (the first `heard`) gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [FORKS.Pipe(duplex=False) for _ in range(world)]
    started = [
        FORKS.Process(target=_one, args=(pipes[rank][1], rank, world, port, work, args)) for rank in range(world)
    ]
    for process in started:
        process.start()
    for _, end in pipes:
        end.close()
    deadline = time.monotonic() + SECONDS
    found = []
    for there, _ in pipes[:heard]:
        try:
            found.append(there.recv() if there.poll(max(0.0, deadline - time.monotonic())) else "hangs")
        except EOFError:
            found.append("died")
    for process in started:
        process.kill()
        process.join()
    return found


def _one(pipe, rank, world, port, work, args):
    here = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    torch.set_num_threads(1)
    try:
        pipe.send(work(*args))
    except pv.EngineError as error:
        pipe.send(f"EngineError: {error}")


def plain(fit):
    """What of a fit must be the same, without tensors: those would travel by shared memory."""
    named = {
        **fit.parameters,
        **dict(fit.model.named_parameters()),
        "bound": fit.trace["bound"],
        "starts": fit.trace["starts"],
    }
    return {name: value.tolist() for name, value in named.items()}, str(fit.status)


def clusters(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.tensor([[0.0, 0.0], [3.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
    z = torch.randint(3, (n,), generator=generator)
    return centers[z] + torch.randn(n, 2, dtype=torch.float64, generator=generator)


class Lines(pv.LatentVariableModel):
    """Two lines whose slopes take gradient steps, under a prior."""

    t = pv.given()

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.log_scale = torch.nn.Parameter(torch.zeros(2))

    @pv.latent(shared=True)
    def slope(self):
        return dist.Normal(torch.tensor([1.0, -1.0]), 2.0).to_event(1)

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def y(self, z, slope, t):
        return dist.Normal(slope[z] * t, self.log_scale[z].exp())


def starts_with_gaps():
    x = clusters(9_000)
    x[::5, 0] = torch.nan
    return pv.EM(n_init=2, max_iter=12, progress=False).fit(pv.models.GaussianMixture(3, 2, prior="weak"), x)


def drawn_assignments():
    em = pv.EM(assignment="stochastic", max_iter=15, progress=False)
    return em.fit(pv.models.GaussianMixture(3, 2), clusters(9_000))


def accelerated():
    em = pv.EM(accelerate="squarem", max_iter=25, progress=False)
    return em.fit(pv.models.GaussianMixture(3, 2), clusters(9_000))


def in_batches():
    em = pv.EM(batch_size=1_000, max_iter=4, progress=False)
    return em.fit(pv.models.GaussianMixture(3, 2), clusters(9_000))


def variational():
    x = clusters(9_000)
    x[::5, 0] = torch.nan
    return pv.VB(n_init=2, max_iter=12, progress=False).fit(pv.models.GaussianMixture(3, 2, prior="weak"), x)


def weighted_blocks():
    """A stream of two blocks: a third process has none."""
    table = torch.cat([clusters(900), clusters(900, 1).square()[:, :1]], 1)
    data = pv.data.stream(table, weights="x2", rows=500)
    return pv.EM(max_iter=15, progress=False).fit(pv.models.GaussianMixture(3, 2, "tied"), data)


def lost_component():
    """One component far from all data, so that the worst rows of all processes are looked for."""
    x = torch.cat([clusters(6_000), 30 + clusters(6_000, 1)])
    start = {
        "components.loc": torch.tensor([[0.0, 0.0], [3.0, 3.0], [1e7, 1e7]]),
        "mixing.probs": torch.tensor([0.5, 0.5 - 1e-12, 1e-12]),
    }
    fit = pv.EM(start=start, max_iter=15, progress=False).fit(pv.models.GaussianMixture(3, 2), x)
    assert fit.status.notes
    return fit


def gradient_steps():
    t = torch.linspace(-2, 2, 1000, dtype=torch.float64)
    noise = 0.2 * torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.where(torch.arange(1000) % 2 == 0, 2.0, -1.0) * t + noise
    data = pv.data.stream({"t": t, "y": y}, rows=600)
    return pv.EM(max_iter=6, progress=False).fit(Lines(), data)


CASES = [
    starts_with_gaps,
    drawn_assignments,
    accelerated,
    in_batches,
    variational,
    weighted_blocks,
    lost_component,
    gradient_steps,
]


def every_case():
    """Several fits in one script, each in a group of its own."""
    found = {case.__name__: plain(case()) for case in CASES}
    assert not distributed.is_initialized()
    return found


@pytest.fixture(scope="module")
def three():
    return in_processes(3, every_case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_process_ends_with_the_fit_of_one(case, three):
    alone, status = plain(case())
    for found in three:
        assert isinstance(found, dict), found
        assert found[case.__name__] == three[0][case.__name__]
    together, ended = three[0][case.__name__]
    assert ended == status
    for name, value in alone.items():
        scale = torch.tensor(value).abs().max().item()
        torch.testing.assert_close(
            torch.tensor(together[name], dtype=torch.float64),
            torch.tensor(value, dtype=torch.float64),
            rtol=1e-10,
            atol=1e-10 * scale,
        )


def test_torchrun_runs_the_script_as_it_is():
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the answer is right") == 1


# What goes wrong.


@contextmanager
def at_iteration(number, act):
    """Progress that acts once an iteration is told of."""
    before = runs.progress

    @contextmanager
    def watched(*_):
        yield lambda i, text: act() if i == number and ", block " not in text else None

    runs.progress = watched
    try:
        yield
    finally:
        runs.progress = before


def slow_fit(folder=None):
    em = pv.EM(tol=0.0, max_iter=12, checkpoint=folder, progress=False)
    return em.fit(pv.models.GaussianMixture(3, 2), clusters(9_000))


def killed(rank, iteration, folder):
    mine = os.environ["RANK"] == str(rank)
    with at_iteration(iteration, lambda: os.kill(os.getpid(), signal.SIGKILL) if mine else None):
        return plain(slow_fit(folder))


def resumed(folder):
    return plain(slow_fit(folder))


@pytest.fixture(scope="module")
def uninterrupted():
    return in_processes(2, resumed, None)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_ends_the_job_and_the_checkpoint_goes_on(rank, tmp_path, uninterrupted):
    found = in_processes(2, killed, rank, 3, tmp_path)
    assert found[rank] == "died"
    message = found[1 - rank]
    assert message.startswith("EngineError: EM stopped in iteration 4 of start 1: another process has ended"), message
    assert f"run the same command again: it resumes from {tmp_path}" in message
    # The leading process knows what it has written.
    assert ("at iteration 4 of start 1" in message) == (rank == 1)
    again = in_processes(2, resumed, tmp_path)
    assert again == uninterrupted


def silent():
    processes.TIMEOUT = timedelta(seconds=2)
    mine = os.environ["RANK"] == "1"
    with at_iteration(2, lambda: time.sleep(2 * SECONDS) if mine else None):
        return plain(slow_fit())


def test_a_silent_process_is_not_waited_for_without_end():
    (message,) = in_processes(2, silent, heard=1)
    assert message.startswith(
        "EngineError: EM stopped in iteration 3 of start 1: another process has ended or does not"
    )
    assert "with a checkpoint it would go on" in message


def own_rows():
    x = clusters(600).chunk(2)[int(os.environ["RANK"])]
    return plain(pv.EM(progress=False).fit(pv.models.GaussianMixture(3, 2), x))


def own_settings():
    em = pv.EM(tol=10.0 ** -int(os.environ["RANK"]), progress=False)
    return plain(em.fit(pv.models.GaussianMixture(3, 2), clusters(600)))


@pytest.mark.parametrize(
    ("work", "what", "where"), [(own_rows, "the data", ""), (own_settings, "the call", " in settings.tol")]
)
def test_processes_that_disagree_are_told(work, what, where):
    for message in in_processes(2, work):
        assert message.startswith(f"EngineError: {what} of process 1 differs from that of process 0{where};"), message


def in_a_group_of_ours():
    distributed.init_process_group("gloo")
    share = Share(distributed.get_rank(), distributed.get_world_size())
    summed = share.sum({"a": torch.tensor([1, 2]), "b": [torch.tensor(0.5), torch.zeros(0)]})
    fit = plain(weighted_blocks())
    still = distributed.is_initialized()
    same = share.same(torch.tensor([7.0 + share.rank])).tolist()
    rows = share.stacked(torch.tensor([share.rank, 5])).tolist()
    distributed.destroy_process_group()
    return fit, still, summed["a"].tolist(), str(summed["a"].dtype), [part.tolist() for part in summed["b"]], same, rows


def test_a_group_that_is_there_is_used_and_left():
    for fit, still, *sums in in_processes(2, in_a_group_of_ours):
        assert still
        assert sums == [[2, 4], "torch.int64", [1.0, []], [7.0], [[0, 5], [1, 5]]]
        assert fit[0]["bound"][-1] == pytest.approx(plain(weighted_blocks())[0]["bound"][-1], rel=1e-12)
