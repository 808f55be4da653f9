"""One step on a Pyro pair is the step of pyro.infer.SVI, whatever the programs are made of."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

import ppl_vae as pv
from ppl_vae.infer import pair_step as module

RATE = 1e-2


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoencoder():
    """Networks with what changes while it runs: dropout, batch normalisation, and an LSTM."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
    recurrent, decoder = nn.LSTM(2, 2, batch_first=True), nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        spread = pyro.param("spread", torch.tensor(0.9), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), spread).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("recurrent", recurrent)
        with pyro.plate("data", len(x)):
            loc = encoder(x)
            loc = loc + recurrent(loc[:, None])[0][:, 0]
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return model, guide, [*encoder.parameters(), *recurrent.parameters(), *decoder.parameters(), *encoder.buffers()]


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.features, self.out = nn.Linear(3, 2), PyroModule[nn.Linear](2, 1)
        self.out.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.noise = PyroParam(torch.tensor(0.8), constraints.positive)

    def forward(self, x):
        mean = self.out(torch.tanh(self.features(x))).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=x.sum(-1))


def bayesian_regression():
    torch.manual_seed(0)
    model = Regression()
    guide = AutoNormal(model)
    with pyro.get_param_store().scope():
        guide(torch.zeros(2, 3))  # Pyro's first step would also draw numbers for the guide's making
    return model, guide, [*model.parameters(), *guide.parameters()]


def shared_network():
    """One network under two names, as Pyro moves it: once."""
    torch.manual_seed(0)
    net = nn.Linear(3, 3)

    def model(x):
        pyro.module("decoder", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 0.5).to_event(1))

    return model, guide, list(net.parameters())


def autoregressive():
    """Pyro's automatic guide that registers one of its layers' tensors twice."""
    torch.manual_seed(0)

    def model(x):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=x.sum(-1))

    guide = AutoIAFNormal(model, hidden_dim=[6], num_transforms=1)
    with pyro.get_param_store().scope():
        guide(torch.zeros(2, 3))
    return model, guide, list(guide.parameters())


def normalising_flow():
    """Statistics of a transform, which is no network that is called."""
    norm = dist.transforms.BatchNorm(3)

    def model(x):
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
            pyro.sample("x", dist.TransformedDistribution(base, [norm]), obs=x)

    return model, lambda x: None, [*norm.parameters(), *norm.buffers()]


def branching():
    """What is computed depends on a drawn value."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, pyro.param("spread", torch.tensor(1.1))))
            scale = 1.0 if z.mean() > 0 else 2.0
            pyro.sample("x", dist.Normal(z, scale), obs=x.sum(-1))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))

    return model, guide, []


def baseline():
    """Pyro's decaying average baseline is a parameter that the loss itself writes."""

    def model(x):
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(torch.sigmoid(pyro.param("p", torch.tensor(0.2)))))
            pyro.sample("x", dist.Normal(on, 1.0), obs=x.sum(-1))

    def guide(x):
        with pyro.plate("data", len(x)):
            options = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}}
            q = torch.sigmoid(pyro.param("q", torch.tensor(-0.3)))
            pyro.sample("on", dist.Bernoulli(q), infer=options)

    return model, guide, []


class OwnLoss(pyro.infer.ELBO):
    """A user's loss, which knows nothing of tracing: Pyro's simplest, as its documentation writes one."""

    def _get_trace(self, model, guide, args, kwargs):
        guide_trace = pyro.poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return model_trace, guide_trace

    def loss(self, model, guide, *args, **kwargs):
        raise NotImplementedError

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            particle = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
            (particle / self.num_particles).backward()
            loss += pyro.infer.util.torch_item(particle) / self.num_particles
        return loss


TRACED = {
    "autoencoder": (autoencoder, Trace_ELBO()),
    "autoencoder, own loss": (autoencoder, OwnLoss(num_particles=2)),
    "PyroModule": (bayesian_regression, Trace_ELBO()),
    "statistics of a flow": (normalising_flow, Trace_ELBO()),
    "a network under two names": (shared_network, Trace_ELBO()),
    "a tensor under two names": (autoregressive, Trace_ELBO()),
}
EAGER = {
    "branching": (branching, Trace_ELBO(), 'z.mean() > 0 else 2.0"'),
    "baseline": (baseline, TraceGraph_ELBO(), "writes its parameters __baseline_avg_downstream_cost_on"),
}
X = numbers(6, 3)


def pyros_steps(make, loss, count=4):
    """Losses, parameters by name and the modules' tensors after steps of pyro.infer.SVI."""
    model, guide, tensors = make()
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.SGD({"lr": RATE}), loss)
        torch.manual_seed(1)
        losses = [svi.step(X) for _ in range(count)]
        values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return losses, values, tensors


def own_steps(make, loss, count=4, mode="trace"):
    model, guide, tensors = make()
    step = pv.svi_step((model, guide), sgd, objective=loss, compile=mode)
    torch.manual_seed(1)
    bounds = [step(X).item() for _ in range(count)]
    assert not list(pyro.get_param_store()), "parameters were left in Pyro's store"
    return step, [-bound for bound in bounds], step.pair.values, tensors


def assert_equal_runs(ours, theirs):
    torch.testing.assert_close(torch.tensor(ours[0]), torch.tensor(theirs[0]), rtol=1e-5, atol=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for a, b in zip([*ours[1].values(), *ours[2]], [*theirs[1].values(), *theirs[2]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("mode", ["trace", "off"])
def test_steps_are_those_of_pyro(name, mode):
    make, loss = TRACED[name]
    step, *ours = own_steps(make, loss, mode=mode)
    assert_equal_runs(ours, pyros_steps(make, loss))
    assert next(iter(step.steps.values())).mode == mode


@pytest.mark.parametrize("name", EAGER)
def test_what_cannot_be_traced_runs_eagerly_after_one_warning(name):
    make, loss, reason = EAGER[name]
    with pytest.warns(UserWarning, match="runs eagerly") as caught:
        _, *ours = own_steps(make, loss)
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert_equal_runs(ours, pyros_steps(make, loss))


def test_the_warning_names_file_and_line():
    with pytest.warns(UserWarning, match=r'test_pair_steps.py, line \d+: "scale = 1.0 if z.mean\(\) > 0 else 2.0"'):
        own_steps(branching, Trace_ELBO(), 1)


def test_every_kind_of_parameter_moves():
    for make in (autoencoder, bayesian_regression):
        model, guide, _ = make()
        step = pv.svi_step((model, guide), sgd)
        step(X)
        before = {name: value.clone() for name, value in step.pair.state_dict().items()}
        step(X)
        # An LSTM of one time step does not use its recurrent weights.
        still = [n for n, v in step.pair.state_dict().items() if torch.equal(v, before[n]) and "weight_hh" not in n]
        assert not still


def semi_supervised():
    """The classifier is not used where the labels are known."""
    torch.manual_seed(0)
    classifier, decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def model(x, label=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            label = pyro.sample("label", dist.OneHotCategorical(torch.ones(2) / 2), obs=label)
            pyro.sample("x", dist.Normal(decoder(label), 1.0).to_event(1), obs=x)

    def guide(x, label=None):
        pyro.module("classifier", classifier)
        with pyro.plate("data", len(x)):
            if label is None:
                pyro.sample("label", dist.OneHotCategorical(logits=classifier(x)))

    return model, guide


@pytest.mark.parametrize("mode", ["inductor", "trace", "off"])
def test_parameters_that_a_step_does_not_use_move_as_in_pyro(mode):
    """Adam's moments and counts of the classifier: labelled batches, the first among them, have no gradient for it."""
    label = nn.functional.one_hot(torch.arange(6) % 2, 2).float()
    batches = [(X, label), (X,), (X, label), (X,), (X,), (X, label), (X,)]
    with pyro.get_param_store().scope():
        svi = SVI(*semi_supervised(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        torch.manual_seed(1)
        theirs = [svi.step(*batch) for batch in batches]
    step = pv.svi_step(semi_supervised(), pyro.optim.Adam({"lr": 0.1}), compile=mode)
    torch.manual_seed(1)
    ours = [-step(*batch).item() for batch in batches]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert {one.mode for one in step.steps.values()} == {mode}


# What is given.


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_values_in_pyros_store_are_the_start(mode, tmp_path):
    """A script that loads the store and trains on, as Pyro's documentation has it."""

    def model(x):
        pyro.module("net", net)
        spread = pyro.param("spread", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], spread), obs=x.sum(-1))

    with pyro.get_param_store().scope():
        net = nn.Linear(3, 1)
        svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(50):
            svi.step(X)
        want, weight, saved = -svi.evaluate_loss(X), net.weight.detach().clone(), pyro.get_param_store().get_state()
        saved = {**saved, "params": {name: value.detach().clone() for name, value in saved["params"].items()}}
    net = nn.Linear(3, 1)
    with pyro.get_param_store().scope(saved):
        step = pv.svi_step((model, lambda x: None), sgd, compile=mode)
        assert step(X).item() == pytest.approx(want, rel=1e-5)
        torch.testing.assert_close(net.weight, weight, rtol=0.1, atol=0.1)
        left = {name: value.detach() for name, value in pyro.get_param_store().named_parameters()}
        fit = pv.SVI(1, compile=mode, progress=False).fit((model, lambda x: None), X)
        assert fit.trace["bound"][0].item() == pytest.approx(want / len(X), rel=1e-5)
    assert all(torch.equal(left[name], value) for name, value in saved["params"].items())


def test_a_value_of_another_shape_in_pyros_store_is_refused():
    with pyro.get_param_store().scope():
        pyro.param("loc", torch.zeros(4))
        with pytest.raises(pv.EngineError, match=r"has loc of shape \(4,\).*clear_param_store"):
            pv.svi_step(location(), sgd)(X[:, 0])


def location():
    def model(x, scale=1.0):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    return model, lambda x, scale=1.0: None


def exact(x, loc, scale=1.0):
    return dist.Normal(loc, scale).log_prob(x).sum().item()


def test_arguments_may_change():
    """Tensors are inputs of the graph, and other values have graphs of their own."""
    step, x = pv.svi_step(location(), lambda p: torch.optim.SGD(p, lr=0.0)), X[:, 0]
    for data, scale in ((x, 1.0), (x + 1, 1.0), (x, 2.0), (x[:3], torch.tensor(3.0)), (x, torch.tensor(0.7))):
        assert step(data, scale=scale).item() == pytest.approx(exact(data, 0.5, scale), rel=1e-5)
    assert len(step.steps) == 3


def temperature_of_a_network():
    class Cooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.5))
            self.register_buffer("changing", torch.tensor(1.0))

    net = Cooled()

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net.loc, net.changing), obs=x)

    return (model, lambda x: None), net.changing


def scale_of_a_handler():
    changing = torch.tensor(1.0)

    def model(x):
        with pyro.poutine.scale(scale=changing), pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0), obs=x)

    return (model, lambda x: None), changing


def weights_of_another_network():
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(1.0)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)), net(x[:, None])[:, 0].exp()), obs=x)

    return (model, lambda x: None), net.weight


@pytest.mark.parametrize("make", [temperature_of_a_network, scale_of_a_handler, weights_of_another_network])
@pytest.mark.parametrize("mode", ["trace", "off"])
def test_tensors_around_the_programs_are_read_at_every_step(make, mode):
    torch.manual_seed(0)
    (model, guide), changing = make()
    step = pv.svi_step((model, guide), lambda p: torch.optim.SGD(p, lr=0.0), compile=mode)
    for i in range(6):
        with torch.no_grad():
            changing.fill_(0.5 + 0.3 * i)
        with pyro.get_param_store().scope():
            want = -Trace_ELBO().loss(model, guide, X[:, 0])
        assert step(X[:, 0]).item() == pytest.approx(want, rel=1e-5)
    assert next(iter(step.steps.values())).mode == mode


def test_a_number_that_changes_every_time_is_pointed_out():
    step = pv.svi_step(location(), lambda p: torch.optim.SGD(p, lr=0.0))
    for i in range(1, module.MOST + 1):
        assert step(X[:, 0], float(i)).item() == pytest.approx(exact(X[:, 0], 0.5, float(i)), rel=1e-5)
    with pytest.warns(UserWarning, match=r"types \['float'\] change between steps.*pass tensors"):
        assert step(X[:, 0], 0.1).item() == pytest.approx(exact(X[:, 0], 0.5, 0.1), rel=1e-5)


def test_what_is_no_argument_and_changes_is_found():
    scale = [1.0]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)), scale[0]), obs=x)

    step = pv.svi_step((model, lambda x: None), lambda p: torch.optim.SGD(p, lr=0.0))
    step(X[:, 0])
    scale[0] = 2.0
    with pytest.warns(UserWarning, match="differed from the program"):
        assert step(X[:, 0]).item() == pytest.approx(exact(X[:, 0], 0.5, 2.0), rel=1e-5)


OPTIMIZERS = {
    "factory": lambda: pv.adam(1e-2),
    "Pyro's": lambda: pyro.optim.Adam({"lr": 1e-2}),
    "Pyro's ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "clip_norm": 1e6}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    step = pv.svi_step(location(), OPTIMIZERS[name]())
    step(X[:, 0])
    assert step.pair.values["loc"].item() == pytest.approx(0.5 + 1e-2 * (1 if X[:, 0].mean() > 0.5 else -1), rel=1e-4)


def test_an_optimizer_over_the_modules_parameters():
    model, guide, tensors = autoencoder()
    with pytest.raises(pv.EngineError, match="does not have the parameters spread"):
        pv.svi_step((model, guide), sgd([t for t in tensors if t.requires_grad]))(X)
    with pytest.raises(pv.EngineError, match="clipped"):
        pv.svi_step(location(), pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 1.0}))(X[:, 0])


# What goes wrong.


def test_a_bound_that_is_not_finite_moves_nothing():
    step = pv.svi_step(location(), sgd)
    step(X[:, 0])
    before = step.pair.values["loc"].clone()
    with pytest.raises(pv.EngineError, match="the objective became nan at site x; the parameters were not moved"):
        step(torch.full((6,), torch.nan))
    assert torch.equal(step.pair.values["loc"], before)


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_gradient_that_is_not_finite_moves_nothing(mode):
    """x ~ N(w sqrt(t + 0 w), 1): at t = 0 its value is a number, and its gradient by w is none."""

    def model(t):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(t)):
            pyro.sample("x", dist.Normal(w * torch.sqrt(t + 0 * w), 1.0), obs=torch.ones(len(t)))

    step = pv.svi_step((model, lambda t: None), pv.adam(1e-2), compile=mode)
    step(torch.ones(3))
    before = step.pair.values["w"].clone()
    for _ in range(2):
        with pytest.raises(pv.EngineError, match="the gradient of w became not finite; the parameters were not moved"):
            step(torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(step.pair.values["w"], before)
    step(torch.ones(3))
    assert step.pair.values["w"].isfinite()


def test_a_parameter_that_torch_does_not_show_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.jit.script(nn.Linear(3, 1))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x).squeeze(-1), 1.0), obs=x.sum(-1))

    with pytest.raises(pv.EngineError, match="TorchScript"):
        pv.svi_step((model, lambda x: None), sgd, compile="off")(X)


def test_a_parameter_that_comes_late_is_refused():
    calls = []

    def model(x):
        calls.append(1)
        late = pyro.param("late", torch.tensor(0.1)) if len(calls) > 1 else 0.0
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)) + late, 1.0), obs=x.mean())

    with pytest.raises(pv.EngineError, match="late appeared after the first run"):
        pv.svi_step((model, lambda x: None), sgd, compile="off")(X)


def test_an_argument_may_choose_among_the_parameters():
    def model(x, k):
        loc = [pyro.param(f"loc{j}", torch.tensor(0.5)) for j in range(2)][k]
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x.mean())

    step = pv.svi_step((model, lambda x, k: None), sgd)
    for k in (0, 1, 1):
        step(X, k)
    gain = (X.mean() - 0.5) * RATE
    torch.testing.assert_close(step.pair.values["loc0"], 0.5 + gain)
    torch.testing.assert_close(step.pair.values["loc1"], 0.5 + gain * (2 - RATE))


def test_parameters_that_other_arguments_bring_are_refused_by_name():
    def model(x, k):
        pyro.sample("x", dist.Normal(pyro.param(f"loc{k}", torch.tensor(0.5)), 1.0), obs=x.mean())

    step = pv.svi_step((model, lambda x, k: None), sgd)
    step(X, 0)
    for _ in range(2):
        with pytest.raises(pv.EngineError, match="did not have before, loc1: make all parameters in every run"):
            step(X, 1)
    step(X, 0)
    assert list(step.pair.values) == ["loc0"]


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_every_argument_has_the_statistics_of_the_network_it_chooses(mode):
    def make():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2)]

        def model(x, k):
            for j in range(2):
                pyro.module(f"net{j}", nets[j])
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(nets[k](x), 1.0).to_event(1), obs=x)

        return nets, model

    chosen = (0, 1, 0, 0, 1, 0)
    ours, model = make()
    step = pv.svi_step((model, lambda x, k: None), sgd, compile=mode)
    theirs, same = make()
    with pyro.get_param_store().scope():
        svi = SVI(same, lambda x, k: None, pyro.optim.SGD({"lr": RATE}), Trace_ELBO())
        for k in chosen:
            step(X, k)
            svi.step(X, k)
    for a, b in zip(ours, theirs, strict=True):
        assert a[1].num_batches_tracked == b[1].num_batches_tracked
        torch.testing.assert_close(a[1].running_mean, b[1].running_mean)
        torch.testing.assert_close(a[0].weight, b[0].weight)


def test_eager_steps_run_the_programs_once():
    calls = []

    def model(x, k):
        calls.append(k)
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0), obs=x.mean() + k)

    step = pv.svi_step((model, lambda x, k: None), sgd)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(3 * module.MOST):
            step(X, float(k))
    assert [calls.count(k) for k in range(2 * module.MOST, 3 * module.MOST)] == [1] * module.MOST


def test_indices_of_a_subsampled_plate_are_drawn_at_every_step():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    step = pv.svi_step((model, lambda x: None), lambda p: torch.optim.SGD(p, lr=0.0))
    bounds = torch.stack([step(X[:, 0]) for _ in range(60)])
    assert len(bounds.unique()) > 8  # of 15 pairs of rows
    assert bounds.mean().item() == pytest.approx(exact(X[:, 0], 0.5), abs=4 * bounds.std().item() / 60**0.5)


def test_an_enumerated_step_is_that_of_pyro():
    def make():
        @pyro.infer.config_enumerate
        def model(x):
            loc = pyro.param("loc", torch.tensor([-0.6, 0.8]))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
                pyro.sample("x", dist.Normal(loc[z], 0.9), obs=x.sum(-1))

        return model, lambda x: None, []

    _, *ours = own_steps(make, TraceEnum_ELBO(max_plate_nesting=1))
    assert_equal_runs(ours, pyros_steps(make, TraceEnum_ELBO(max_plate_nesting=1)))
