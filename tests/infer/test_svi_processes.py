"""SVI in several processes: the gradient of one, the same bits in all, a clear end and a resumed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from test_processes import SECONDS, clusters, in_processes
from torch import nn

import ppl_vae as pv

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "svi_torchrun.py"


def numbers(fit):
    """Parameters by name and the bound, without tensors: those would travel by shared memory."""
    named = {**dict(fit.model.named_parameters()), "bound": fit.trace["bound"]}
    return {name: value.tolist() for name, value in named.items()}, str(fit.status)


def mixture(**options):
    """A mixture climbs its likelihood itself: an objective without noise."""
    torch.manual_seed(0)
    apart = {"components.loc": torch.tensor([[0.5, 0.0], [2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)}
    engine = pv.SVI(3, batch_size=48, optimizer=pv.adam(2e-2), start=apart, progress=False, **options)
    return numbers(engine.fit(pv.models.GaussianMixture(3, 2), clusters(200)))


def vae(*callbacks, checkpoint=None, **options):
    torch.manual_seed(0)
    x = (torch.rand(150, 8, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    model = pv.models.VAE(pv.nets.mlp_encoder(8, 8, 2), pv.nets.mlp_decoder(2, 8, 8))
    engine = pv.SVI(5, batch_size=32, compile="trace", checkpoint=checkpoint, callbacks=callbacks, progress=False,
                    validation=x[:20], **options)  # fmt: skip
    return numbers(engine.fit(model, x))


def vae_in_turns():
    return vae(alternate=pv.lagging(window=2, most=6, patience=2, rows=50))


class Normed(pv.LatentVariableModel):
    """A VAE whose encoder keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.net, self.decoder = nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(1, 3)

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x):
        loc, log_scale = self.net(self.norm(x)).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    @pv.observed
    def x(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(1)


def normed():
    torch.manual_seed(0)
    x = 3 + torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    fit = pv.SVI(3, batch_size=16, compile="trace", validation=x[:10], progress=False).fit(Normed(), x)
    return numbers(fit), fit.trace["validation"].tolist(), fit.model.norm.running_mean.tolist()


class Dies(pv.Callback):
    def end(self, run, step, metrics):
        if step == 13 and run.share.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def lost(folder):
    return vae(Dies(), checkpoint=pv.checkpoints(folder, steps=5, seconds=None))


def resumed(folder):
    return vae(checkpoint=folder)


class Root(pv.LatentVariableModel):
    """x ~ N(w sqrt(t + 0 z), 1): at t = 0 the gradient by z, whose q is that of a single datum, is not a number."""

    t = pv.given()

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    @pv.latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @pv.observed
    def x(self, z, t):
        return dist.Normal(self.w * torch.sqrt(t + 0 * z), 1.0)


def root():
    torch.manual_seed(0)
    data = {"x": torch.ones(12), "t": torch.ones(12).index_fill(0, torch.tensor([5]), 0.0)}
    fit = pv.SVI(2, batch_size=4, compile="trace", progress=False).fit(Root(), data)
    return [bool(p.isfinite().all()) for p in fit.model.parameters()], str(fit.status)


def test_a_gradient_that_only_one_process_has_ends_all():
    (finite, first), (_, second) = in_processes(2, root)
    assert first == second
    assert first.startswith("failed: the objective became nan at step")
    assert all(finite)
    finite, alone = root()
    assert alone.startswith("failed: the gradient of local_posteriors.z")
    assert all(finite)


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_two_processes_climb_as_one(mode):
    """Every global batch is the same, so every step is, to rounding."""
    alone, _ = mixture(compile=mode)
    for found, status in in_processes(2, mixture_in, mode):
        assert status.startswith("finished")
        for name, value in alone.items():
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value), rtol=1e-9, atol=1e-11)


def mixture_in(mode):
    return mixture(compile=mode)


def test_every_process_ends_with_the_same_bits():
    """Each has noise of its own, and the same parameters; the bound is near that of one process."""
    (first, _), (second, _) = in_processes(2, vae)
    assert first == second
    alone, _ = vae()
    assert first["bound"] != alone["bound"]
    # The mean over 150 data of bounds with a standard deviation of about 1, five epochs of Adam's small steps.
    assert first["bound"][-1] == pytest.approx(alone["bound"][-1], abs=0.4)


def test_turns_are_the_same_in_every_process():
    """They follow the objective of the whole batch and the mean information over the processes."""
    first, second = in_processes(2, vae_in_turns)
    assert first == second
    assert first[0]["bound"][1:] != vae()[0]["bound"][1:]


def test_a_lost_process_ends_the_others_and_the_job_goes_on_from_its_checkpoint(tmp_path):
    whole = in_processes(2, vae)
    (left,) = in_processes(2, lost, str(tmp_path), heard=1)
    assert left.startswith("EngineError: SVI stopped after 14 steps: another process has ended or does not"), left
    assert left.endswith(f"run the same command again: it resumes from {tmp_path} at step 10")
    assert sorted(path.name for path in tmp_path.glob("step-*"))[-1] == "step-000000000010.safetensors"
    assert in_processes(2, resumed, str(tmp_path)) == whole


def test_running_statistics_are_those_of_the_first_process():
    first, second = in_processes(2, normed)
    assert first == second


class Stops(pv.Callback):
    def end(self, run, step, metrics):
        if step == 12:
            raise RuntimeError("enough")


def stopped(folder):
    return vae(Stops(), checkpoint=pv.checkpoints(folder, steps=5, seconds=None))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_same_batches(before, after, tmp_path):
    in_processes(before, stopped, str(tmp_path))
    found = in_processes(after, resumed, str(tmp_path))
    assert all(one == found[0] for one in found)
    named, status = found[0]
    assert status == "finished: 5 epochs"
    assert named["bound"][-1] == pytest.approx(vae()[0]["bound"][-1], abs=0.4)


def strayed():
    """The script forgot to seed its networks, which start as those of the first process."""
    torch.manual_seed(int(os.environ["RANK"]))
    model = pv.models.VAE(pv.nets.mlp_encoder(8, 8, 2), pv.nets.mlp_decoder(2, 8, 8))
    x = (torch.rand(60, 8, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    return numbers(pv.SVI(2, batch_size=20, progress=False).fit(model, x))


def test_networks_start_alike():
    first, second = in_processes(2, strayed)
    assert first == second


def own_rows():
    rank = int(os.environ["RANK"])
    return numbers(pv.SVI(2, progress=False).fit(pv.models.GaussianMixture(3, 2), clusters(200).chunk(2)[rank]))


def own_settings():
    engine = pv.SVI(2, optimizer=pv.adam(10.0 ** -int(os.environ["RANK"])), progress=False)
    return numbers(engine.fit(pv.models.GaussianMixture(3, 2), clusters(200)))


@pytest.mark.parametrize(
    ("work", "what", "where"), [(own_rows, "the data", ""), (own_settings, "the call", " in optimizer")]
)
def test_processes_that_disagree_are_told(work, what, where):
    for message in in_processes(2, work):
        assert message.startswith(f"EngineError: {what} of process 1 differs from that of process 0{where}"), message


def torchrun(*args):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_torchrun_trains_and_writes_one_checkpoint(tmp_path):
    done = torchrun(EXAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the answer is right in 2 processes") == 1
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 2


DIES_ONCE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_svi_processes import Dies, vae, pv

dies = [Dies()] if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else []
print(vae(*dies, checkpoint=pv.checkpoints(sys.argv[2], steps=5))[1])
"""


@pytest.mark.slow
def test_torchrun_starts_a_lost_job_again_and_it_goes_on(tmp_path):
    script = tmp_path / "dies_once.py"
    script.write_text(DIES_ONCE)
    told = []
    for number in range(4):  # a store that remembers the lost processes fails in one of three
        done = torchrun("--max-restarts", 1, script, Path(__file__).parent, tmp_path / str(number))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("finished: 5 epochs") == 2
        told.append("SVI stopped after 14 steps" in done.stderr)
    assert any(told)  # the launcher may end the process that is left before it has spoken
