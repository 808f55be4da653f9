"""A step of SVI on a small VAE, side by side: Pyro, this package, PyTorch by hand and NumPyro, in one run.

    python benchmarks/svi.py                                    # on scikit-learn's digits, enlarged and shifted
    python benchmarks/svi.py --numpyro-python env/bin/python    # NumPyro from an environment of its own
    python benchmarks/svi.py --data fashion-mnist --root data --target -260   # other images of 28 x 28
    python benchmarks/svi.py --device cuda

All have the same networks (784-400-20 and back, softplus, as in Pyro's VAE example), the same start, the same batches
of 128 binary images, the same one-draw ELBO with a Bernoulli likelihood, and Adam at 1e-3.

Milliseconds a step: medians over interleaved rounds of `--steps` steps each, with quartiles; a ratio is taken within
each round. First step and time to a held-out ELBO: one fresh process each with empty compiler caches, imports not
counted, compilation and tracing counted, evaluations not.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad

import ppl_vae as pv

SEED = 0
PIXELS, HIDDEN, LATENT, BATCH, RATE = 784, 400, 20, 128, 1e-3
BATCHES, WARM, EVERY, MOST = 256, 3, 50, 4000
TARGET = -185.0
"""Held-out ELBO to come to, nats per image: about 1,200 steps on the digits."""


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.loc, self.log_scale = (
            nn.Linear(PIXELS, HIDDEN),
            nn.Linear(HIDDEN, LATENT),
            nn.Linear(HIDDEN, LATENT),
        )

    def forward(self, x):
        h = nn.functional.softplus(self.hidden(x))
        return self.loc(h), self.log_scale(h).exp()


class Decoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))


def networks(device):
    torch.manual_seed(SEED)
    return Encoder().to(device), Decoder().to(device)


# Who takes part: networks to a function of a batch that takes one step.


def pyro_svi(encoder, decoder):
    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            zero = x.new_zeros(len(x), LATENT)
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO()).step


def ours(compile):  # noqa: A002
    def make(encoder, decoder):
        vae = pv.models.VAE(encoder, decoder, latent_dim=LATENT)
        optimizer = torch.optim.Adam(vae.parameters(), lr=RATE, fused=True)
        return pv.svi_step(vae, optimizer, compile=compile)

    return make


def by_hand(compiled):
    def make(encoder, decoder):
        def negative_bound(x):
            loc, scale = encoder(x)
            noise = torch.randn_like(loc)
            z = loc + scale * noise
            log_x = -binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            return -(log_x + (scale.log() + (noise**2 - z**2) / 2).sum()) / len(x)

        if compiled:  # on a GPU with CUDA graphs, its fastest mode there
            mode = "reduce-overhead" if next(encoder.parameters()).is_cuda else None
            negative_bound = torch.compile(negative_bound, mode=mode)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE, fused=True)

        def step(x):
            optimizer.zero_grad(set_to_none=True)
            loss = negative_bound(x)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    return make


PYRO, OURS, TRACED, EAGER = "Pyro's SVI", "ppl_vae, inductor", "ppl_vae, traced", "ppl_vae, eager"
HAND, COMPILED, NUMPYRO = "by hand, eager", "by hand, torch.compile", "NumPyro, jit"
CONTESTANTS = {
    PYRO: pyro_svi,
    OURS: ours("inductor"),
    TRACED: ours("trace"),
    EAGER: ours("off"),
    COMPILED: by_hand(True),
    HAND: by_hand(False),
}
GOALS = {  # (above, below): (which way, goal)
    "cpu": {
        (OURS, COMPILED): ("at most", 1.05),
        (TRACED, HAND): ("at most", 1.25),
        (PYRO, OURS): ("at least", 2.2),
        (NUMPYRO, OURS): ("at least", 0.95),
    },
    "cuda": {(PYRO, TRACED): ("at least", 8.0), (OURS, COMPILED): ("at most", 1.05)},
}
FIRST_STEP = 5.0
"""Seconds that the first traced step may take without a compiler."""


# What they run on.


def images(name, root):
    """Training batches [BATCHES, BATCH, 784] and held-out images [n, 784] of 0 and 1."""
    found = pv.data.images(name, root=root)
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(len(found.train), (BATCHES * BATCH,), generator=generator)
    drawn = [torch.bernoulli(wide(grey, generator), generator=generator) for grey in (found.train[rows], found.test)]
    return drawn[0].reshape(BATCHES, BATCH, PIXELS), drawn[1]


def wide(grey, generator):
    """[n, 64] as [n, 784]: each pixel of 8 x 8 three by three times, at a random place of 28 x 28."""
    if grey.shape[1] == PIXELS:
        return grey
    large = grey.reshape(-1, 8, 8).repeat_interleave(3, 1).repeat_interleave(3, 2)
    places = torch.randint(5, (len(grey), 2), generator=generator).tolist()
    placed = [pad(one, (x, 4 - x, y, 4 - y)) for one, (x, y) in zip(large, places, strict=True)]
    return torch.stack(placed).flatten(1)


def held_out_elbo(encoder, decoder, x):
    """Nats per image, eight draws each, the same noise every time."""
    noise = torch.randn(8, len(x), LATENT, generator=torch.Generator().manual_seed(SEED)).to(x)
    with torch.no_grad():
        loc, scale = encoder(x)
        z = loc + scale * noise
        log_x = -binary_cross_entropy_with_logits(decoder(z), x.expand(8, -1, -1), reduction="none").sum(-1)
        return (log_x + (scale.log() + (noise**2 - z**2) / 2).sum(-1)).mean().item()


class Here:
    """A contestant in this process."""

    def __init__(self, name, train, test, device):
        self.encoder, self.decoder = networks(device)
        self.batches, self.test, self.count = list(train.to(device)), test.to(device), 0
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.begun = time.perf_counter()
        self.step = CONTESTANTS[name](self.encoder, self.decoder)

    def take(self, steps):
        """Seconds that so many steps take."""
        self.wait()
        begin = time.perf_counter()
        for _ in range(steps):
            self.step(self.batches[self.count % BATCHES])
            self.count += 1
        self.wait()
        return time.perf_counter() - begin

    def alone(self, target):
        """Seconds to the first step's end and to the target, steps, the ELBO come to."""
        self.take(1)
        first = seconds = time.perf_counter() - self.begun
        while (bound := held_out_elbo(self.encoder, self.decoder, self.test)) < target and self.count < MOST:
            seconds += self.take(EVERY)
        return {"first": first, "seconds": seconds, "steps": self.count, "elbo": bound}


class There:
    """NumPyro, in a process of its own that answers questions a line at a time."""

    def __init__(self, python, train, test, folder):
        encoder, decoder = networks("cpu")
        start = {f"encoder.{k}": v.numpy() for k, v in encoder.state_dict().items()}
        start |= {f"decoder.{k}": v.numpy() for k, v in decoder.state_dict().items()}
        path = Path(folder) / "svi.npz"
        np.savez(path, batches=train.numpy(), test=test.numpy(), **start)
        command = [python, str(Path(__file__).with_name("svi_numpyro.py")), str(path), str(RATE), str(SEED)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes, preexec_fn=few_cores)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"NumPyro's process ended: exit status {self.process.wait()}")
        return json.loads(line)

    def take(self, steps):
        return self.ask(take=steps)

    def alone(self, target):
        return self.ask(alone=target, every=EVERY, most=MOST)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def few_cores():
    """JAX takes a thread for each core that it may run on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: torch.get_num_threads()])


# Measuring.


def in_rounds(contestants, rounds, steps):
    """Milliseconds a step by contestant, one number a round, each round in another order."""
    for each in contestants.values():
        each.take(2 * WARM)  # compiles
    found = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            contestants[name].take(WARM)  # threads of the one before go to sleep, caches fill
            found[name].append(1e3 * contestants[name].take(steps) / steps)
    return found


def in_a_fresh_process(name, arguments, target):
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
        command = [sys.executable, __file__, "--alone", name, "--target", str(target), "--data", arguments.data]
        command += ["--device", arguments.device, "--threads", str(arguments.threads)]
        command += ["--root", arguments.root] if arguments.root else []
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values, form):
    low, middle, high = statistics.quantiles(values, n=4)
    return format(middle, form), f"{low:{form}} to {high:{form}}"


def print_head(arguments, numpyro):
    machine = platform.processor() or platform.machine()
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{machine}, {os.cpu_count()} cores"
    print(f"date {datetime.date.today()}, seed {SEED}, {device}, {arguments.threads} threads")
    print(f"python {platform.python_version()}, torch {torch.__version__}, pyro {pyro.__version__}, {numpyro}")
    print(f"{arguments.data}, {PIXELS}-{HIDDEN}-{LATENT}, batch {BATCH}, {arguments.rounds} rounds ", end="")
    print(f"of {arguments.steps} steps\n")


def print_goals(found, alone, goals):
    print(f"\n{'ratio':46}{'median':>7}  {'quartiles':>14}  goal")
    for (above, below), (way, goal) in goals.items():
        if above not in found:
            print(f"{above + ' / ' + below:46}{'-':>7}  {'not measured':>14}  {way} {goal}")
            continue
        ratios = [a / b for a, b in zip(found[above], found[below], strict=True)]
        middle, quartiles = spread(ratios, ".2f")
        met = statistics.median(ratios) <= goal if way == "at most" else statistics.median(ratios) >= goal
        print(f"{above + ' / ' + below:46}{middle:>7}  {quartiles:>14}  {way} {goal}: {'met' if met else 'NOT met'}")
    first = alone[TRACED]["first"]
    met = "met" if first < FIRST_STEP else "NOT met"
    print(f"{'first step traced, seconds':46}{first:7.2f}  {'':14}  under {FIRST_STEP:g}: {met}")


def numpyro_python(asked):
    """The interpreter that has NumPyro, or None."""
    return asked or (sys.executable if importlib.util.find_spec("numpyro") else None)


def compare(arguments):
    train, test = images(arguments.data, arguments.root)
    target = arguments.target
    python = numpyro_python(arguments.numpyro_python) if arguments.device == "cpu" else None
    contestants = {name: Here(name, train, test, arguments.device) for name in CONTESTANTS}
    alone = {name: in_a_fresh_process(name, arguments, target) for name in CONTESTANTS}
    versions = "NumPyro not measured"
    with tempfile.TemporaryDirectory() as folder:
        if python:
            fresh = There(python, train, test, folder)
            alone[NUMPYRO] = fresh.alone(target)
            fresh.close()
            contestants[NUMPYRO] = There(python, train, test, folder)
            versions = contestants[NUMPYRO].ask(versions=True)
        print_head(arguments, versions)
        found = in_rounds(contestants, arguments.rounds, arguments.steps)
        if python:
            contestants[NUMPYRO].close()
    print(f"{'':24}{'ms a step':>10}  {'quartiles':>16}{'first step, s':>15}  to {target:g} nats, s  (steps)")
    for name, times in found.items():
        middle, quartiles = spread(times, ".2f")
        one = alone[name]
        reached = f"{one['seconds']:.1f}" if one["elbo"] >= target else f"not reached ({one['elbo']:.1f})"
        print(f"{name:24}{middle:>10}  {quartiles:>16}{one['first']:15.2f}  {reached:>15}  ({one['steps']})")
    print_goals(found, alone, GOALS[arguments.device])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", default="digits", help="of ppl_vae.data.images")
    parser.add_argument("--root", help="folder of the images")
    parser.add_argument("--target", type=float, default=TARGET, help="held-out ELBO to come to, nats per image")
    parser.add_argument("--numpyro-python", help="interpreter of an environment that has numpyro")
    parser.add_argument("--alone", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        one = Here(arguments.alone, *images(arguments.data, arguments.root), arguments.device)
        print(json.dumps(one.alone(arguments.target)))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
