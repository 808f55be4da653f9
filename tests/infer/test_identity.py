"""What a checkpoint knows of a call: a changed one is refused, the same one goes on, in every process."""

import json
import os
import subprocess
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import TensorDataset

import ppl_vae as pv

X = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))


class Kept:
    def __init__(self, value):
        self.value = value


class Scaled(pv.LatentVariableModel):
    """A normal with a scale kept in one of many ways."""

    def __init__(self, keep, scale):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(2))
        self.scale, self.kept = KEPT[keep], None
        if keep == "buffer":
            self.register_buffer("k", torch.tensor(scale))
        elif keep == "frozen parameter":
            self.k = torch.nn.Parameter(torch.tensor(scale), requires_grad=False)
        else:
            self.k = {"object": Kept(scale), "function": lambda: scale, "partial": partial(torch.full, (), scale)}[keep]

    @pv.observed
    def x(self):
        return dist.Normal(self.loc, self.scale(self.k)).to_event(1)


KEPT = {
    "buffer": lambda k: k,
    "frozen parameter": lambda k: k,
    "object": lambda k: k.value,
    "function": lambda k: k(),
    "partial": lambda k: k(),
}


class Factory:
    made = 0

    def __init__(self, lr):
        self.lr, self.last = lr, None

    def __call__(self, parameters):
        Factory.made += 1
        self.last = parameters
        return torch.optim.Adam(parameters, lr=self.lr)


def of_a_dictionary(options):
    return lambda parameters: torch.optim.Adam(parameters, **options)


def keyword_only(rate):
    def make(parameters, *, lr=rate):
        return torch.optim.Adam(parameters, lr=lr)

    return make


OPTIMIZERS = {
    "partial": lambda lr: partial(torch.optim.Adam, lr=lr),
    "object": Factory,
    "dictionary": lambda lr: of_a_dictionary({"lr": lr}),
    "keyword-only default": keyword_only,
    "schedule": lambda lr: pv.scheduled(pv.adam(0.1), partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=lr)),
}


def engine(folder, **settings):
    usual = {"epochs": 2, "batch_size": 10, "compile": "off", "progress": False}
    return pv.SVI(**usual | settings, checkpoint=folder)


def refused(first, same, other):
    """The same call gets the finished fit, the other one an error."""
    assert torch.equal(first().trace["seconds"], same().trace["seconds"])
    with pytest.raises(pv.EngineError, match="checkpoint of another call"):
        other()


@pytest.mark.parametrize("keep", KEPT)
def test_what_a_model_holds(keep, tmp_path):
    refused(*[partial(engine(tmp_path).fit, Scaled(keep, scale), X) for scale in (1.0, 1.0, 9.0)])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_an_optimizer_is_told(kind, tmp_path):
    calls = [
        partial(engine(tmp_path, optimizer=OPTIMIZERS[kind](lr)).fit, Scaled("buffer", 1.0), X)
        for lr in (0.1, 0.1, 0.01)
    ]
    refused(*calls)


class Mean(pv.LatentVariableModel):
    @pv.latent(shared=True)
    def m(self):
        return dist.Normal(torch.zeros(2), 3.0).to_event(1)

    @pv.observed
    def x(self, m):
        return dist.Normal(m, 1.0).to_event(1)


def test_what_a_guide_is_told(tmp_path):
    guides = [partial(AutoNormal, init_scale=scale) for scale in (0.1, 0.1, 2.0)]
    refused(*[partial(engine(tmp_path, guide=guide, start=None, num_draws=2).fit, Mean(), X) for guide in guides])


@pytest.mark.parametrize("made", [lambda x: list(x.split(10)), TensorDataset, lambda x: lambda: iter(x.split(10))])
def test_numbers_of_the_first_batch(made, tmp_path):
    settings = {"batch_size": 10 if made is TensorDataset else None}
    refused(*[partial(engine(tmp_path, **settings).fit, Scaled("buffer", 1.0), made(x)) for x in (X, X, X + 5)])


def test_frozen_networks_of_em(tmp_path):
    class Regression(pv.LatentVariableModel):
        def __init__(self, scale):
            super().__init__()
            self.mixing, self.slope = pv.families.Categorical(2), torch.nn.Parameter(torch.tensor([0.5, -0.5]))
            self.spread = torch.nn.Parameter(torch.tensor(scale), requires_grad=False)

        @pv.latent
        def z(self):
            return self.mixing()

        @pv.observed
        def x(self, z):
            return dist.Normal(self.slope[z], self.spread)

    em = pv.EM(max_iter=3, progress=False, checkpoint=tmp_path)
    refused(*[partial(em.fit, Regression(scale), X[:, 0].double()) for scale in (1.0, 1.0, 2.0)])


# Pyro pairs.


def with_code(likelihood):
    def normal(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    def laplace(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Laplace(pyro.param("m", torch.tensor(0.0)) + 5, 1.0), obs=x)

    return {"normal": normal, "laplace": laplace}[likelihood], nothing


def nothing(x):
    """The guide of a model without a latent."""


def helper(scale):
    return dist.Normal(pyro.param("m", torch.tensor(0.0)), scale)


def with_cells(scale):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", helper(scale["of x"]), obs=x)

    return model, nothing


def with_handler(scale):
    return pyro.poutine.scale(with_code("normal")[0], scale=scale), nothing


def with_automatic_guide(scale):
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return model, AutoNormal(model, init_scale=scale)


def with_network(activation):
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), activation())

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0), obs=x)

    return model, nothing


PAIRS = {
    "code": (with_code, "normal", "laplace"),
    "closure": (with_cells, {"of x": 1.0}, {"of x": 2.0}),
    "handler": (with_handler, 1.0, 2.0),
    "guide": (with_automatic_guide, 0.1, 0.5),
    "network": (with_network, torch.nn.Tanh, torch.nn.ReLU),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_programs_of_a_pair(name, tmp_path):
    make, one, other = PAIRS[name]
    svi = engine(tmp_path, batch_size=None, num_draws=2)
    refused(*[partial(svi.fit, make(told), X[:, 0]) for told in (one, one, other)])


def test_the_same_programs_again_are_the_same_call(tmp_path):
    """Training has moved the network in place, and run the guide, when the call is repeated in one process."""
    for name, pair in {"network": with_network(torch.nn.Tanh), "guide": with_automatic_guide(0.1)}.items():
        svi = engine(tmp_path / name, batch_size=None, num_draws=2)
        assert torch.equal(*[svi.fit(pair, X[:, 0]).trace["seconds"] for _ in range(2)])


def test_the_options_of_a_loss(tmp_path):
    losses = [Trace_ELBO(), Trace_ELBO(), Trace_ELBO(num_particles=5)]
    fits = [engine(tmp_path, batch_size=None, objective=loss, num_draws=2).fit for loss in losses]
    refused(*[partial(fit, with_automatic_guide(0.1), X[:, 0]) for fit in fits])


SCRIPT = """
import json, sys, threading, types, torch
import pyro.distributions as dist
from ppl_vae.declare.identity import portrait
names = {"a", "b", "c", "d"}
class Object:
    def __init__(self):
        self.lock, self.names, self.law, self.own = threading.Lock(), names, dist.Normal(0.0, 2.0), self
    def __call__(self, x):
        return x in {"p", "q", "r"}
def make(net, one, names):
    def program(x, *, kind=Object):
        return net(x), one, one(x), names
    return program
def of_itself():
    class Inner(torch.nn.Module):
        def forward(self, x):
            return inner
    inner = Inner()
    return inner
one = Object()
one.others = [Object() for _ in range(30)]
for other in one.others:
    other.others = one.others
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)
    def forward(self, x):
        return net(x)
net = Net()
value = [make(net, one, names), of_itself(), one]
value += [types.SimpleNamespace(a=1, b=names), lambda: one.lock, sys.stdout, object()]
print(json.dumps(portrait(value), sort_keys=True))
"""


def test_a_portrait_is_the_same_in_every_process():
    """Networks draw other weights there, sets come in another order, objects lie at other addresses, in circles too."""
    told = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment
        )
        told.append(json.loads(run.stdout))
    assert told[0] == told[1]
    assert "0x" not in json.dumps(told)
