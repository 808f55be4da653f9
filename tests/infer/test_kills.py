"""Fits that are killed at random moments, also while they write, end with the bits of the uninterrupted fit."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import stat
import sys
import time
from functools import cache
from itertools import count

import pytest
import torch

import ppl_vae as pv

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ppl_vae", "sklearn.cluster", "torch._dynamo"])
SECONDS = 120

# The fits, each of about a second, so that there is something to kill.


def em(checkpoint):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 2, dtype=torch.float64, generator=generator)
    x[::3] += 2.5
    engine = pv.EM(n_init=3, tol=0.0, max_iter=50, start="random", checkpoint=checkpoint, progress=False)
    return engine.fit(pv.models.GaussianMixture(3, 2), x)


def svi(checkpoint):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(700, 32, generator=generator)
    vae = pv.models.VAE(pv.nets.mlp_encoder(32, 24, 3), pv.nets.mlp_decoder(3, 24, 32))
    for parameter in vae.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    engine = pv.SVI(
        epochs=50,
        batch_size=64,
        optimizer=pv.scheduled(pv.adam(1e-2), torch.optim.lr_scheduler.StepLR, step_size=5, gamma=0.9),
        beta=pv.linear(0.0, 1.0, 5),
        validation=(images[:100] > 0.5).float(),
        checkpoint=checkpoint,
        compile="trace",
        progress=False,
    )
    return engine.fit(vae, pv.data.DynamicBinary(images))


FITS = {"EM": em, "SVI": svi}


def bits(fit):
    """Everything of a fit but its times, as a digest for each part."""
    parts = {**fit.model.state_dict(), **fit.draws, **{k: v for k, v in fit.trace.items() if k != "seconds"}}
    found = {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for name, value in parts.items()}
    return {**found, "status": str(fit.status)}


# One process.


def work(name, folder, out, pipe, moment=None, number=0):
    """Fit in a process of its own; `moment` and `number` say at which of its own writes it kills itself."""
    torch.set_num_threads(1)
    errors = open(out.with_suffix(".err"), "w")  # noqa: SIM115
    os.dup2(errors.fileno(), 2)
    sys.stderr = errors
    if moment is not None:
        MOMENTS[moment](count(1), number)
    pipe.send("begun")
    fit = FITS[name](folder if folder is None else pv.checkpoints(folder, steps=7))
    out.write_text(json.dumps(bits(fit)))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(calls, number):
    fsync = os.fsync

    def dies(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(calls) == number:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        fsync(handle)

    os.fsync = dies


def before_the_name(calls, number):
    replace = os.replace

    def dies(source, target):
        if next(calls) == number:
            die()
        replace(source, target)

    os.replace = dies


def after_the_name(calls, number):
    replace = os.replace

    def dies(source, target):
        replace(source, target)
        if next(calls) == number:
            die()

    os.replace = dies


MOMENTS = {one.__name__: one for one in (half_a_file, before_the_name, after_the_name)}


class Attempt:
    """A process that fits."""

    def __init__(self, name, folder, out, moment=None, number=0):
        self.out = out
        here, there = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=work, args=(name, folder, out, there, moment, number))
        self.process.start()
        there.close()
        assert here.poll(SECONDS), "the process does not begin"
        here.recv()

    def signal(self, number):
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)

    def ended(self):
        """The bits of its fit, None where it was killed before its end."""
        self.process.join(SECONDS)
        if self.process.exitcode == -signal.SIGKILL:
            return None
        assert self.process.exitcode == 0, self.out.with_suffix(".err").read_text()
        return json.loads(self.out.read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """By name, the bits of the fit that nobody interrupts, with a checkpoint, and how long it takes."""

    @cache
    def of(name):
        folder = tmp_path_factory.mktemp(name)
        first = Attempt(name, None, folder / "without").ended()
        begin = time.monotonic()
        second = Attempt(name, folder / "run", folder / "with").ended()
        assert first == second, "a checkpoint changes nothing"
        return second, time.monotonic() - begin

    return of


# Kills.


def killed_at_random(name, kills, expected, seconds, folder, seed=0):
    """Kill after random times, start again, and compare what every fit that ends has found."""
    draw, killed, resumed, runs = random.Random(seed), 0, 0, count()
    while killed < kills:
        run, done = folder / f"run{next(runs)}", None
        while done is None:
            resumed += any(run.glob("step-*.safetensors"))
            attempt = Attempt(name, run, folder / "out")
            if killed < kills:
                time.sleep(draw.uniform(0.0, 0.7 * seconds))
                attempt.signal(signal.SIGKILL)
            done = attempt.ended()
            killed += done is None
        assert done == expected
    return resumed


def killed_in_writing(name, kills, expected, folder):
    """Kill in the middle of a write, in a different way and at another write each time."""
    moments = [list(MOMENTS)[number % len(MOMENTS)] for number in range(kills)]
    for number, moment in enumerate(moments):
        assert Attempt(name, folder / "run", folder / "out", moment, 2 + number % 2).ended() is None, moment
        files = [path.name for path in (folder / "run").iterdir()]
        assert any(file.startswith("step-") for file in files)
        assert any(file.startswith(".") for file in files) == (moment != "after_the_name")
    assert Attempt(name, folder / "run", folder / "out").ended() == expected
    assert not any(path.name.startswith(".") for path in (folder / "run").iterdir())


@pytest.mark.parametrize("name", FITS)
def test_three_kills_at_random_moments(name, straight, tmp_path):
    killed_at_random(name, 3, *straight(name), tmp_path)


@pytest.mark.parametrize("name", FITS)
def test_three_kills_in_the_middle_of_writing(name, straight, tmp_path):
    killed_in_writing(name, 3, straight(name)[0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FITS)
def test_twenty_kills_at_random_moments(name, seed, straight, tmp_path):
    resumed = killed_at_random(name, 20, *straight(name), tmp_path, seed)
    assert resumed >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_twenty_kills_in_the_middle_of_writing(name, straight, tmp_path):
    for round_ in range(7):
        (tmp_path / str(round_)).mkdir()
        killed_in_writing(name, 3, straight(name)[0], tmp_path / str(round_))


# Ctrl-C.


@pytest.mark.parametrize("name", FITS)
def test_ctrl_c_ends_with_a_checkpoint_and_a_message(name, straight, tmp_path):
    expected, _ = straight(name)
    run, out = tmp_path / "run", tmp_path / "out"
    attempt = Attempt(name, run, out)
    deadline = time.monotonic() + SECONDS
    while not any(run.glob("step-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    attempt.signal(signal.SIGINT)
    interrupted = attempt.ended()
    assert interrupted["status"].startswith("interrupted: ")
    said = out.with_suffix(".err").read_text()
    assert f"run the same command again: it resumes from {run}" in said
    assert "Traceback" not in said
    assert Attempt(name, run, out).ended() == expected
