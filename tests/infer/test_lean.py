"""Lean and quick graphs have the bits of the graphs they are made from, fewer operations, and the same memory rules."""

from copy import deepcopy

import pyro
import pytest
import torch
from test_step import prepared
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.infer.lean import lean, quick
from ppl_vae.infer.tracing import graph_of

NAMES = (
    "vae", "vae with NaN", "hierarchy", "poisson latent", "local q", "finite posterior, partly observed", "mixture vae",
    "mixture, full, prior",
)  # fmt: skip


def traced(function, *tensors):
    return make_fx(function)(*tensors)


def calls(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def answers(function, tensors):
    torch.manual_seed(3)
    with torch.no_grad():
        return function(*[t.clone() for t in tensors])


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_every_model_keep_their_bits(name):
    with pyro.validation_enabled(False):
        step, batches = prepared(name)
        part = step.climbed.pieces(next(batches.epoch(0)), 0.7, 1)[0]
        tensors = (part.weight, *step.dense, *part.rows, *part.rest)
        with step.climbed.model.numeric():
            torch.manual_seed(3)
            expected = step._gradient(*[t.clone() for t in tensors])
        short = graph_of(step._gradient, *tensors)
        found = quick(deepcopy(short))
    for each in (short, found):
        for ours, theirs in zip(answers(each, tensors), expected, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert torch.equal(ours, theirs)
    assert calls(lean(deepcopy(short))) == calls(short)


def test_what_changes_nothing_is_dropped():
    x = torch.randn(3, 2)
    graph = lean(traced(lambda x: ((x.view(3, 2).t().t() * 1.0 + torch.zeros_like(x)).expand(3, 2).exp(),), x))
    assert calls(graph) == [torch.ops.aten.exp.default]


def test_what_changes_shape_or_dtype_stays():
    x = torch.arange(3)
    graph = lean(traced(lambda x: ((x * 1.0).view(3, 1).expand(3, 2).exp(),), x))
    assert len(calls(graph)) == 4
    assert torch.equal(graph(x)[0], x.double().exp()[:, None].expand(3, 2).to(graph(x)[0].dtype))


def test_the_same_is_computed_once_and_noise_is_drawn_anew():
    x = torch.randn(3)
    graph = lean(traced(lambda x: (x.exp() + x.exp(), torch.randn_like(x) - torch.randn_like(x)), x))
    assert calls(graph).count(torch.ops.aten.exp.default) == 1
    assert answers(graph, [x])[1].abs().min() > 0


def test_outputs_keep_memory_of_their_own():
    """Optimisers clip gradients in place: two that are equal must not become one tensor."""
    x = torch.randn(3)
    graph = lean(traced(lambda x: ((y := x.exp()), y * 1.0, x.exp(), x + 0.0), x))
    first, second, third, fourth = quick(graph)(x)
    before = x.clone()
    for output in (first, second, third, fourth):
        output.zero_()
        assert torch.equal(x, before)
    pointers = {output.data_ptr() for output in (first, second, third, fourth)}
    assert len(pointers) == 4


def test_a_graph_that_changes_tensors_keeps_its_order():
    norm = torch.nn.BatchNorm1d(2)

    def both(x, mean):
        before = mean.exp()
        mean.mul_(0.5).add_(x.mean(0))
        return mean.exp() - before, norm(x)

    x, mean = torch.randn(5, 2), torch.ones(2)
    graph = traced(both, x, mean.clone())
    expected = answers(deepcopy(graph), [x, mean])
    found = answers(quick(lean(graph)), [x, mean])
    assert all(map(torch.equal, found, expected))
    assert expected[0].abs().min() > 0


def test_quick_calls_torchs_own_functions():
    x = torch.rand(3, 2)

    def function(x):
        return x.sum(0, keepdim=True), torch.where(x > 0.5, x, 0.0), x.clamp_min(0.2).softmax(-1), x.mean(), x.std()

    graph = traced(function, x)
    expected = graph(x)
    assert all(map(torch.equal, quick(graph)(x), expected))
    assert torch.sum in calls(graph)
    assert torch.where in calls(graph)
