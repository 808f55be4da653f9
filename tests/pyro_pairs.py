"""Ordinary Pyro pairs, mostly in the style of Pyro's own tests of enumeration: `PAIRS[name]` is (losses, make).

`make()` returns (model, guide, arguments) in torch's default dtype; nothing of ppl_vae is used here.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from torch import nn
from torch.distributions import constraints

PARALLEL, SEQUENTIAL = {"enumerate": "parallel"}, {"enumerate": "sequential"}
PAIRS = {}


def pair(*losses):
    def register(make):
        PAIRS[make.__name__.replace("_", " ")] = losses, make
        return make

    return register


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits(*shape, seed=0):
    return (numbers(*shape, seed=seed) > 0).to(torch.get_default_dtype())


def nothing(*args, **kwargs):
    """The guide of a model without a latent that is drawn."""


def positive(name, value):
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def unit(name, value):
    return pyro.param(name, torch.tensor(value), constraint=constraints.unit_interval)


def simplex(name, value):
    return pyro.param(name, torch.tensor(value), constraint=constraints.simplex)


# Drawn latents.


@pair(
    Trace_ELBO(), Trace_ELBO(num_particles=3), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    TraceMeanField_ELBO(), TraceMeanField_ELBO(2), TraceGraph_ELBO(), RenyiELBO(0.5, 3),
    RenyiELBO(0.0, 3, vectorize_particles=True, max_plate_nesting=1), JitTrace_ELBO(),
    TraceEnum_ELBO(strict_enumeration_warning=False),
)  # fmt: skip
def vae_with_modules():
    encoder, decoder = nn.Linear(5, 4), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        spread = positive("spread", 0.9)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), spread).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide, (bits(6, 5),)


@pair(Trace_ELBO(), Trace_ELBO(2), TraceGraph_ELBO(), TraceEnum_ELBO(strict_enumeration_warning=False))
def draws_without_a_path():
    """Score-function gradients, a latent outside the plate and one inside."""

    def model(x):
        rate = pyro.sample("rate", dist.Poisson(positive("prior", 2.0)))
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(unit("p", 0.4)))
            pyro.sample("x", dist.Normal(rate * on, 1.0), obs=x)

    def guide(x):
        pyro.sample("rate", dist.Poisson(positive("q rate", 1.5)))
        with pyro.plate("data", len(x)):
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.7)) * x))

    return model, guide, (numbers(5),)


@pair(Trace_ELBO(), TraceMeanField_ELBO())
def gamma_and_dirichlet():
    def model(counts):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("x", dist.Poisson(rate * p).to_event(1), obs=counts)

    def guide(counts):
        pyro.sample(
            "p", dist.Dirichlet(pyro.param("a", torch.tensor([2.0, 1.0, 3.0]), constraint=constraints.positive))
        )
        pyro.sample("rate", dist.Gamma(positive("b", 3.0), positive("c", 2.0)))

    return model, guide, (torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0]]),)


@pair(Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO())
def subsampled_plate():
    """Indices are drawn inside the step; a parameter has a row for every datum."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, positive("noise", 0.5)), obs=x[rows])

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.tensor(0.2)), positive("s", 0.6)))
        with pyro.plate("data", len(x), subsample_size=4):
            loc = pyro.param("loc", lambda: numbers(len(x), seed=3), event_dim=0)
            pyro.sample("z", dist.Normal(loc, 0.5))

    return model, guide, (numbers(9),)


@pair(Trace_ELBO(), TraceGraph_ELBO())
def sequential_plate():
    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, positive("scale", 1.3)))
            pyro.sample(f"x_{i}", dist.Normal(z, 0.5), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(pyro.param(f"loc_{i}", torch.tensor(0.1)), 0.6))

    return model, guide, (numbers(3),)


@pair(Trace_ELBO(), TraceMeanField_ELBO())
def scale_and_mask():
    def model(x, keep, weight):
        with pyro.plate("data", len(x)), poutine.scale(scale=weight), poutine.mask(mask=keep):
            z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.3)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x, keep, weight):
        with pyro.plate("data", len(x)), poutine.scale(scale=weight), poutine.mask(mask=keep):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, positive("s", 0.8)))

    return model, guide, (numbers(5), torch.tensor([True, False, True, True, False]), torch.tensor(0.3))


@pair(Trace_ELBO(), TraceMeanField_ELBO())
def partly_observed():
    """`obs_mask` imputes what is not observed."""

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, positive("noise", 0.6)), obs=x, obs_mask=seen)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * x, 0.7))
            pyro.sample("x_unobserved", dist.Normal(pyro.param("fill", torch.tensor(0.1)), positive("s", 1.1)))

    return model, guide, (numbers(5), torch.tensor([True, True, False, True, False]))


@pair(Trace_ELBO(), TraceMeanField_ELBO())
def factor_and_deterministic():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        twice = pyro.deterministic("twice", 2 * z)
        pyro.factor("pull", -(twice**2) * positive("strength", 0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.StudentT(5.0, twice, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.3)), positive("s", 0.7)))

    return model, guide, (numbers(4),)


@pair(Trace_ELBO())
def state_space():
    """A hidden Markov model integrated out by its own distribution."""

    def model(x):
        drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
        first = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        move = dist.Normal(drift.reshape(1), positive("q", 0.4)).to_event(1)
        noise = dist.Normal(torch.zeros(1), positive("r", 0.7)).to_event(1)
        one = torch.eye(1)
        pyro.sample("x", dist.GaussianHMM(first, one, move, one, noise, duration=len(x)), obs=x[:, None])

    def guide(x):
        pyro.sample("drift", dist.Normal(pyro.param("m", torch.tensor(0.1)), positive("s", 0.5)))

    return model, guide, (numbers(7),)


# Automatic guides and PyroModules.


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)


def data():
    return numbers(8, 2), numbers(8, seed=1)


@pair(Trace_ELBO(), TraceMeanField_ELBO(), RenyiELBO(0.5, 2))
def auto_normal():
    return regression, AutoNormal(regression), data()


@pair(Trace_ELBO(), Trace_ELBO(2))
def auto_multivariate():
    return regression, AutoMultivariateNormal(regression), data()


@pair(Trace_ELBO())
def auto_diagonal():
    return regression, AutoDiagonalNormal(regression), data()


@pair(Trace_ELBO())
def auto_low_rank():
    return regression, AutoLowRankMultivariateNormal(regression, rank=1), data()


@pair(Trace_ELBO())
def auto_list():
    guide = AutoGuideList(regression)
    guide.append(AutoDelta(poutine.block(regression, expose=["noise"])))
    guide.append(AutoNormal(poutine.block(regression, expose=["weight"])))
    return regression, guide, data()


class Net(PyroModule):
    """A Bayesian layer on a plain one, with a constrained parameter."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(2, 3)
        self.out = PyroModule[nn.Linear](3, 1)
        self.out.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.noise = PyroParam(torch.tensor(0.8), constraints.positive)

    def forward(self, x, y):
        mean = self.out(torch.tanh(self.features(x))).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


@pair(Trace_ELBO())
def pyro_module():
    model = Net()
    return model, AutoDiagonalNormal(model), data()


@pair(TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(2, max_plate_nesting=1))
def auto_normal_around_an_enumerated_site():
    @config_enumerate
    def model(x):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(2)))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(p))
            pyro.sample("x", dist.Normal(loc[z], positive("scale", 0.7)), obs=x)

    return model, AutoNormal(poutine.block(model, hide=["z"])), (numbers(6),)


# Enumeration in the model.


@pair(TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(), JitTraceEnum_ELBO(max_plate_nesting=1))
def mixture():
    @config_enumerate
    def model(x):
        p = simplex("p", [0.3, 0.7])
        loc = pyro.param("loc", torch.tensor([-0.6, 0.8]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(p))
            pyro.sample("x", dist.Normal(loc[z], positive("scale", 0.9)), obs=x)

    return model, nothing, (numbers(6),)


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def subsampled_mixture():
    @config_enumerate
    def model(x):
        p, loc = simplex("p", [0.3, 0.7]), pyro.param("loc", torch.tensor([-0.6, 0.8]))
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            z = pyro.sample("z", dist.Categorical(p))
            pyro.sample("x", dist.Normal(loc[z], 0.9), obs=x[rows])

    return model, nothing, (numbers(8),)


@pair(TraceEnum_ELBO(max_plate_nesting=2), TraceEnum_ELBO(2, max_plate_nesting=2))
def nested_plates():
    """Enumerated outside, in the outer and in the inner plate."""

    @config_enumerate
    def model(x):
        pa, pb, pc = simplex("pa", [0.4, 0.6]), unit("pb", [0.2, 0.7]), unit("pc", [[0.3, 0.8], [0.5, 0.1]])
        a = pyro.sample("a", dist.Categorical(pa))
        with pyro.plate("outer", x.shape[1], dim=-1):
            b = pyro.sample("b", dist.Bernoulli(pb[a])).long()
            with pyro.plate("inner", x.shape[0], dim=-2):
                c = pyro.sample("c", dist.Bernoulli(Vindex(pc)[a, b]))
                pyro.sample("x", dist.Normal(c * 2 - 1 + b, 0.8), obs=x)

    return model, nothing, (numbers(3, 4),)


@pair(TraceEnum_ELBO(max_plate_nesting=2))
def crossed_plates():
    """Two plates side by side, and both at once; a in neither, b and c in one, d in both."""

    @config_enumerate
    def model(x):
        columns, rows = pyro.plate("columns", x.shape[1], dim=-1), pyro.plate("rows", x.shape[0], dim=-2)
        with columns:
            b = pyro.sample("b", dist.Categorical(simplex("pb", [0.3, 0.7])))
        with rows:
            c = pyro.param("c", torch.tensor(0.4))
        with columns, rows:
            d = pyro.sample("d", dist.Bernoulli(Vindex(unit("pd", [0.25, 0.6]))[b]))
            pyro.sample("x", dist.Normal(c * d + b, 1.0), obs=x)

    return model, nothing, (numbers(2, 3),)


@pair(TraceEnum_ELBO(max_plate_nesting=0))
def markov_chain():
    @config_enumerate
    def model(x):
        move = simplex("move", [[0.8, 0.2], [0.3, 0.7]])
        loc, z = pyro.param("loc", torch.tensor([-1.0, 1.0])), 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(move[z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], positive("s", 0.8)), obs=x[t])

    return model, nothing, (numbers(5),)


@pair(TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(2, max_plate_nesting=1, vectorize_particles=True))
def hidden_markov_model():
    """Sequences of different lengths in a plate, masked, with a drawn shared latent."""

    @config_enumerate
    def model(x, lengths):
        move = simplex("move", [[0.8, 0.2], [0.3, 0.7]])
        spread = pyro.sample("spread", dist.LogNormal(0.0, 0.3))
        with pyro.plate("sequences", len(x), dim=-1):
            z = torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(move)[z]))
                    pyro.sample(f"x_{t}", dist.Normal(2.0 * z - 1, spread), obs=x[:, t])

    def guide(x, lengths):
        pyro.sample("spread", dist.LogNormal(pyro.param("m", torch.tensor(0.1)), positive("s", 0.3)))

    return model, guide, (numbers(3, 4), torch.tensor([4, 2, 3]))


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def factorial_hidden_markov_model():
    @config_enumerate
    def model(x):
        a_move, b_move = simplex("a", [[0.8, 0.2], [0.3, 0.7]]), simplex("b", [[0.6, 0.4], [0.1, 0.9]])
        with pyro.plate("sequences", len(x), dim=-1):
            a, b = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                a = pyro.sample(f"a_{t}", dist.Categorical(Vindex(a_move)[a]))
                b = pyro.sample(f"b_{t}", dist.Categorical(Vindex(b_move)[b]))
                pyro.sample(f"x_{t}", dist.Normal(a - 0.5 * b, positive("s", 0.7)), obs=x[:, t])

    return model, nothing, (numbers(2, 3),)


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def scaled_and_masked_mixture():
    @config_enumerate
    def model(x, keep):
        loc = pyro.param("loc", torch.tensor([-0.6, 0.8]))
        with pyro.plate("data", len(x)), poutine.scale(scale=2.5):
            z = pyro.sample("z", dist.Categorical(simplex("p", [0.3, 0.7])))
            with poutine.mask(mask=keep):
                pyro.sample("x", dist.Normal(loc[z], 0.9), obs=x)

    return model, nothing, (numbers(5), torch.tensor([True, False, True, True, False]))


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def annealed_mixture():
    """The scale is a tensor that changes from step to step."""

    @config_enumerate
    def model(x, beta):
        loc = pyro.param("loc", torch.tensor([-0.6, 0.8]))
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Categorical(simplex("p", [0.3, 0.7])))
            pyro.sample("x", dist.Normal(loc[z], 0.9), obs=x)

    return model, nothing, (numbers(5), torch.tensor(0.4))


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def sequential_plate_of_mixtures():
    @config_enumerate
    def model(x):
        p, loc = simplex("p", [0.3, 0.7]), pyro.param("loc", torch.tensor([-0.6, 0.8]))
        for i in pyro.plate("groups", len(x)):
            with pyro.plate(f"data_{i}", x.shape[1]):
                z = pyro.sample(f"z_{i}", dist.Categorical(p))
                pyro.sample(f"x_{i}", dist.Normal(loc[z], 0.9), obs=x[i])

    return model, nothing, (numbers(2, 4),)


# Enumeration in the guide.


def switches(x):
    """Three switches, the last in a plate, that shift a normal."""
    a = pyro.sample("a", dist.Bernoulli(unit("pa", 0.3)))
    b = pyro.sample("b", dist.Bernoulli(unit("pb", 0.6)))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(simplex("pc", [0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(a - b + c, positive("s", 0.9)), obs=x)


def switches_guide(a_infer, b_infer, c_infer):
    def guide(x):
        a = pyro.sample("a", dist.Bernoulli(unit("qa", 0.4)), infer=a_infer)
        pyro.sample("b", dist.Bernoulli(unit("qb", 0.7) * (0.5 + 0.4 * a)), infer=b_infer)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(simplex("qc", [0.3, 0.4, 0.3])), infer=c_infer)

    return guide


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def guide_in_parallel():
    return switches, switches_guide(PARALLEL, PARALLEL, PARALLEL), (numbers(4),)


@pair(TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(2, max_plate_nesting=1))
def guide_partly_enumerated():
    """a is drawn, b enumerated in sequence, c in parallel."""
    return switches, switches_guide({}, SEQUENTIAL, PARALLEL), (numbers(4),)


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def guide_in_sequence():
    """Of a plate in sequence all data take one value together, so c is drawn."""
    return switches, switches_guide(SEQUENTIAL, SEQUENTIAL, {}), (numbers(4),)


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def several_draws_in_parallel():
    several = {"enumerate": "parallel", "num_samples": 4}
    return switches, switches_guide(several, {}, PARALLEL), (numbers(4),)


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def guide_that_rules_values_out():
    """A probability of exactly zero, whose cost must not be multiplied by it."""

    def guide(x):
        pyro.sample("a", dist.Bernoulli(torch.tensor(0.0)), infer=PARALLEL)
        pyro.sample("b", dist.Bernoulli(unit("qb", 0.7)), infer=PARALLEL)
        with pyro.plate("data", len(x)):
            q = torch.cat([torch.zeros(1), simplex("qc", [0.3, 0.7])])
            pyro.sample("c", dist.Categorical(q), infer=PARALLEL)

    return switches, guide, (numbers(4),)


@pair(TraceEnum_ELBO(max_plate_nesting=1))
def guide_outside_and_model_inside():
    @config_enumerate
    def model(x):
        a = pyro.sample("a", dist.Bernoulli(unit("pa", 0.3)))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(simplex("pc", [0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(a + c, positive("s", 0.9)), obs=x)

    @config_enumerate
    def guide(x):
        pyro.sample("a", dist.Bernoulli(unit("qa", 0.4)))

    return model, guide, (numbers(4),)


@pair(TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(2, max_plate_nesting=1))
def semi_supervised():
    """The class is enumerated in the guide, and what depends on it is drawn for each class."""

    encoder = nn.Linear(3, 3)

    def model(x):
        loc = pyro.param("loc", lambda: numbers(3, 2, seed=4))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            z = pyro.sample("z", dist.Normal(Vindex(loc)[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.9).expand_by([]).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        slope = pyro.param("slope", torch.tensor([0.3, 0.5, 0.8]))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=encoder(x)), infer=PARALLEL)
            pyro.sample("z", dist.Normal(slope[y][..., None] * x[:, :2], 0.7).to_event(1))

    return model, guide, (numbers(4, 3),)


@pair(TraceEnum_ELBO(max_plate_nesting=0))
def branch_on_an_enumerated_value():
    """In sequence, the program sees each value as a number, and may branch on it."""

    def model(x):
        on = pyro.sample("on", dist.Bernoulli(unit("p", 0.3)))
        loc = pyro.param("loc", torch.tensor(0.4)) if on else torch.tensor(0.0)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        pyro.sample("on", dist.Bernoulli(unit("q", 0.6)), infer=SEQUENTIAL)

    return model, guide, (torch.tensor(0.7),)
