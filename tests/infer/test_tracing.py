"""Graphs of functions: the same numbers, the same noise, and everything that breaks silently made loud."""

import os
import random
import threading
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.tracing import MOST, Traced, UntraceableError, graph_of, traceable
from ppl_vae.missing import Incomplete


def noisy(p, x):
    """A bound of one draw and its gradient."""
    with torch.enable_grad():
        p = p.detach().requires_grad_()
        z = dist.Normal(p, 1.0).rsample()
        value = (z * x + torch.bernoulli(torch.full_like(x, 0.5))).sum() + nn.functional.dropout(z, 0.5).sum()
        (gradient,) = torch.autograd.grad(value, p)
    return value.detach(), gradient


@pytest.mark.parametrize("mode", ["trace", "inductor"])
def test_noise_replays_from_the_same_generator(mode):
    p, x = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)).unbind()
    traced, found = Traced(noisy, mode), {}
    for name, function in {"model": noisy, "graph": traced}.items():
        torch.manual_seed(3)
        found[name] = [function(p, x) for _ in range(3)], torch.rand(2)
    for expected, got in zip(found["model"][0], found["graph"][0], strict=True):
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert torch.equal(found["model"][1], found["graph"][1])
    assert traced.mode == mode
    assert traced.verify(p, x) < 1e-6


def test_tracing_and_checking_leave_the_generator_where_it_was():
    p, x = torch.zeros(4), torch.ones(4)
    traced = Traced(noisy)
    torch.manual_seed(0)
    first = traced(p, x)[0]
    torch.manual_seed(0)
    traced.verify(p, x)
    assert torch.equal(traced(p, x)[0], first)


def test_a_number_that_changes_between_calls_is_baked_in_and_seen():
    scale = [1.0]
    traced = Traced(lambda x: (scale[0] * x,))
    x = torch.ones(3)
    traced(x)
    scale[0] = 2.0
    assert torch.equal(traced(x)[0], x)
    assert traced.verify(x) == pytest.approx(0.5)


class Drifts(pv.LatentVariableModel):
    """A model with a Python number that its own code changes."""

    def __init__(self):
        super().__init__()
        self.loc, self.calls = nn.Parameter(torch.zeros(1)), 0

    @pv.observed
    def x(self):
        self.calls += 1
        return dist.Normal(self.loc, 1.0 + self.calls / 100).to_event(1)


def test_a_fit_of_a_model_that_drifts_goes_on_eagerly_and_says_so():
    fit = pv.SVI(200, compile="trace", progress=False).fit(Drifts(), torch.randn(20, 1))
    assert fit.settings["compile"] == "off"
    assert any("something that is not a tensor changes between steps" in note for note in fit.status.notes)


class Cooled(pv.LatentVariableModel):
    """A model with a buffer that a callback changes."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))
        self.register_buffer("temperature", torch.ones(()))

    @pv.observed
    def x(self):
        return dist.Normal(self.loc, self.temperature).to_event(1)


class Cool(pv.Callback):
    def end(self, run, step, metrics):
        run.model.temperature.fill_(1 / (1 + step))


def test_a_buffer_that_changes_between_steps_is_read_at_every_step():
    x = torch.randn(20, 1)
    found = {
        mode: pv.SVI(120, compile=mode, callbacks=[Cool()], progress=False).fit(Cooled(), x)
        for mode in ("off", "trace")
    }
    assert found["trace"].settings["compile"] == "trace"
    assert not any("graph" in note for note in found["trace"].status.notes)
    assert torch.equal(found["trace"].model.loc, found["off"].model.loc)


def test_a_loop_of_ones_own_sees_a_model_that_drifts():
    step = pv.svi_step(Drifts(), pv.adam(1e-3), compile="trace")
    step(torch.randn(20, 1))
    with pytest.warns(UserWarning, match="something that is not a tensor changes between steps"):
        step(torch.randn(20, 1))
    assert step.step.mode == "off"


def branches(x):
    if x.sum() > 0:
        return (x,)
    return (-x,)


def test_control_flow_on_values_runs_eagerly_after_one_warning_with_the_line():
    with pytest.raises(
        UntraceableError, match=r'depends on the value of a tensor.*test_tracing.py.*"if x.sum\(\) > 0:"'
    ):
        graph_of(branches, torch.ones(2))
    traced = Traced(branches)
    with pytest.warns(UserWarning, match="runs eagerly.*if x.sum") as caught:
        traced(torch.ones(2))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(traced(-torch.ones(2))[0], torch.ones(2))
    assert traced.mode == "off"


class Branching(pv.LatentVariableModel):
    """A decoder that looks at its values."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(self.net(x), 1.0).to_event(1)

    @pv.observed
    def x(self, z):
        scale = 1.0 if z.abs().max() < 100 else 2.0
        return dist.Normal(self.net(z), scale).to_event(1)


def test_a_model_that_branches_trains_like_any_other():
    x = torch.randn(30, 1)
    with pytest.warns(UserWarning, match="scale = 1.0 if z.abs"):
        fit = pv.SVI(2, compile="trace", progress=False).fit(Branching(), x)
    assert fit.status.ok
    same = pv.SVI(2, compile="off", progress=False).fit(Branching(), x)
    assert fit.settings["compile"] == same.settings["compile"] == "off"


def test_a_refusal_comes_without_a_warning_of_the_tracer():
    def refused(x):
        raise pv.EngineError("take elbo()")

    def writes(x):
        raise UntraceableError("it writes")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(pv.EngineError, match=r"^take elbo\(\)$"):
            Traced(refused)(torch.ones(2))
    with pytest.raises(UntraceableError, match="it writes"), pytest.warns(UserWarning, match="runs eagerly.*it writes"):
        Traced(writes)(torch.ones(2))


def test_anomaly_detection_runs_eagerly_and_says_so():
    x = torch.randn(30, 2)
    net = pv.models.VAE(pv.nets.mlp_encoder(2, 4, 1), pv.nets.mlp_decoder(1, 4, 2), pv.likelihoods.Gaussian(2))
    with torch.autograd.set_detect_anomaly(True), pytest.warns(UserWarning, match="set_detect_anomaly is on") as caught:
        fit = pv.SVI(2, compile="trace", progress=False).fit(net, x)
    assert fit.settings["compile"] == "off"
    assert len([w for w in caught if "Error detected" in str(w.message)]) == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x[x > 0].sum(),),
        lambda x: (torch.nonzero(x > 0).sum(),),
        lambda x: (torch.masked_select(x, x > 0).mean(),),
        lambda x: (x.unique().sum(),),
    ],
)
def test_a_number_of_entries_that_depends_on_values_is_not_baked_in(function):
    traced = Traced(function)
    with pytest.warns(UserWarning, match="runs eagerly"):
        traced(torch.tensor([1.0, -1.0, 2.0]))
    x = torch.tensor([1.0, 3.0, 2.0])
    assert torch.equal(traced(x)[0], function(x)[0])


def test_a_mask_that_is_a_constant_is_no_obstacle():
    mask = torch.tensor([True, False, True])
    traced = Traced(lambda x: (x[mask].sum(), x[torch.tensor([0, 2])]))
    assert traced(torch.arange(3.0))[0].item() == 2.0
    assert traced.mode == "trace"


def test_python_and_numpy_noise_is_seen():
    """Noise that is not torch's is a number to the tracer."""
    traced = Traced(lambda x: (x * random.random(),))
    traced(torch.ones(2))
    assert traced.verify(torch.ones(2)) > 0


def test_more_shapes_than_graphs_run_eagerly():
    traced = Traced(lambda x: (x + 1,))
    for n in range(1, MOST + 4):
        assert torch.equal(traced(torch.zeros(n))[0], torch.ones(n))
    assert len(traced.graphs) == MOST


def test_one_hot_does_not_stop_a_trace():
    graph = graph_of(lambda label: (nn.functional.one_hot(label, 4),), torch.tensor([0, 3]))
    label = torch.tensor([2, 1])
    assert torch.equal(graph(label)[0], nn.functional.one_hot(label, 4))


def test_what_pyro_asks_while_tracing_is_put_back():
    asked, item = torch._C._get_tracing_state, pyro.infer.trace_elbo.torch_item

    def fails():
        with traceable():
            assert torch._C._get_tracing_state()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch._C._get_tracing_state is asked
    assert pyro.infer.trace_elbo.torch_item is item
    assert not torch._C._get_tracing_state()


def test_without_a_compiler_the_plain_graph_runs(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    traced = Traced(noisy, "inductor")
    with pytest.warns(UserWarning, match="no working C"):
        traced(torch.zeros(2), torch.ones(2))
    assert traced.mode == "trace"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by /proc")
def test_compiled_code_keeps_to_the_threads_it_was_made_for():
    """Inductor writes their number into its code: what runs in threads of its own must be made for one."""
    x = torch.randn(200_000)
    grown = {}
    for count in (1, 2):
        traced = Traced(lambda x: ((x.exp() + x.sin()).sum(),), "inductor", num_threads=count)
        traced(x)

        def work(traced=traced, count=count):
            before = len(os.listdir("/proc/self/task"))
            traced(x)
            grown[count] = len(os.listdir("/proc/self/task")) - before

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert grown == {1: 0, 2: 1}


def test_an_unknown_mode_is_refused():
    with pytest.raises(pv.EngineError, match="compile must be one of off, trace, inductor; got 'jit'"):
        Traced(noisy, "jit")
    with pytest.raises(pv.EngineError, match="compile must be auto"):
        pv.SVI(1, compile="jit")


def test_a_graph_serves_every_pattern_of_missing_entries():
    """Traced on one pattern, it integrates out those of other batches."""
    generator = torch.Generator().manual_seed(0)
    factor, loc = torch.randn(3, 4, 4, generator=generator).double(), torch.randn(3, 1, 4, generator=generator).double()
    law = dist.MultivariateNormal(loc, (factor @ factor.mT + torch.eye(4))[:, None])
    x = torch.randn(6, 4, generator=generator).double()
    graph = graph_of(lambda x, gaps: (Incomplete(law, gaps).log_prob(x),), x, torch.zeros(6, 4, dtype=torch.bool))
    for share in (0.1, 0.5, 0.9, 1.0):
        gaps = torch.rand(6, 4, generator=generator) < share
        torch.testing.assert_close(graph(x, gaps)[0], Incomplete(law, gaps).log_prob(x), rtol=1e-12, atol=1e-12)


def test_minibatches_with_gaps_train_traced_as_eagerly():
    x = pv.data.faithful().values[:60].clone()
    x[::7, 0], x[3::11, 1] = torch.nan, torch.nan
    start = {"components.loc": torch.tensor([[2.0, 55.0], [4.3, 80.0]], dtype=torch.float64)}
    gmm = pv.models.GaussianMixture(2, 2)
    found = {
        mode: pv.SVI(3, batch_size=16, compile=mode, start=start, optimizer=pv.sgd(1e-3), progress=False).fit(gmm, x)
        for mode in ("off", "trace")
    }
    assert found["trace"].settings["compile"] == "trace"
    torch.testing.assert_close(found["trace"].trace["bound"], found["off"].trace["bound"], rtol=1e-8, atol=1e-8)
