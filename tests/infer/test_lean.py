"""Lean and quick graphs have the bits of the graphs they are made from, fewer operations, and the same memory rules."""

from copy import deepcopy
from functools import partial

import pyro
import pytest
import torch
from test_step import prepared
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.infer.lean import LARGE, lean, products, quick
from ppl_vae.infer.tracing import Traced, graph_of

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
        gradient = partial(step._gradient, names=part.names)
        with step.climbed.model.numeric():
            torch.manual_seed(3)
            expected = gradient(*[t.clone() for t in tensors])
        short = graph_of(gradient, *tensors)
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


def test_views_that_are_given_out_keep_memory_of_their_own():
    x = torch.randn(4)

    def function(x):
        same = x * 1.0, x + 0.0, x[torch.arange(4)], x.view(4, 1).sum(1)
        return *(each.view(2, 2) for each in same), *(x * 1.0).unbind(), *(x + 0.0).split(2)

    graph, before = graph_of(function, x), x.clone()
    for _ in range(2):
        for output, expected in zip(graph(x), function(before), strict=True):
            assert torch.equal(output, expected)
            output.mul_(2)
    assert torch.equal(x, before)


def test_operations_in_place_on_what_nothing_uses_later_make_new_tensors():
    """So that clamped values, whose gradients have one, do not keep a graph from being made lean."""

    def clamped(x):
        leaf = x.detach().requires_grad_()
        value = (leaf.clamp(0.0, 1.0) * 1.0 + leaf.exp() + leaf.exp()).sum()
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    x = torch.tensor([-1.0, 0.5, 2.0])
    graph = graph_of(clamped, x)
    assert not any(target._schema.is_mutable for target in calls(graph))
    assert calls(graph).count(torch.ops.aten.exp.default) == 1
    for found, expected in zip(graph(x), clamped(x), strict=True):
        assert torch.equal(found, expected)


def test_what_is_used_later_is_still_changed_in_place():
    def function(x):
        y = x.exp()
        z = y * 2
        part = y[:2]
        y.add_(z)
        return (part.clone(), y.sum())

    x = torch.randn(3)
    for found, expected in zip(graph_of(function, x)(x), function(x), strict=True):
        assert torch.equal(found, expected)


def test_large_tensors_from_outside():
    """They stay constants of the graph, of which only the graph knows the shape."""
    large = torch.randn(1 << 17, 1)
    every = torch.arange(len(large))

    def function(x):
        return (x * large.sum(1) + large[every][:, 0],)

    x = torch.randn(())
    assert torch.equal(graph_of(function, x)(x)[0], function(x)[0])


def test_all_places_in_order_are_no_index():
    """x[0, ..., n - 1] and its gradient, with a column of indices too; another order stays one."""
    column = torch.arange(3)[:, None]

    def function(x, index):
        leaf = x.detach().requires_grad_()
        value = (leaf[index] ** 2 * torch.arange(1.0, 4.0)[:, None, None]).sum()
        return value.detach(), torch.autograd.grad(value, leaf)[0].exp()

    x = torch.randn(3, 2)
    indexed = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default)
    for index, remain in ((column, False), (column.flip(0), True), (column * 0, True)):
        graph = graph_of(partial(function, index=index), x)
        assert any(target in indexed for target in calls(graph)) == remain
        for found, expected in zip(graph(x), function(x, index), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("spans", "apart"),
    [([(0, 2), (2, 5)], True), ([(3, 5), (0, 2)], True), ([(1, 2), (3, 4)], True), ([(0, 3), (2, 5)], False)],
)
@pytest.mark.parametrize("dim", [0, -1])
def test_gradients_of_slices_lie_side_by_side(spans, apart, dim):
    """In any order, with what no slice has left zero; where slices overlap they are added."""

    def function(x):
        leaf = x.detach().requires_grad_()
        value = sum(leaf.narrow(dim, a, b - a).exp().sum() * (a + 1) for a, b in spans)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    x = torch.randn(5, 5)
    graph = graph_of(function, x)
    assert (torch.ops.aten.cat.default in calls(graph)) == apart
    for found, expected in zip(graph(x), function(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


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


# Matrix products by oneDNN.

avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available(),
    reason="the processor has no AVX-512",
)


def matrices(rows=256, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((256,), (rows, 512), (512, 256))]


def by_onednn(graph):
    return [str(target) for target in calls(graph) if str(target).startswith("ppl_vae.")]


@avx512
def test_large_products_are_onednns():
    tensors = matrices()
    graph = products(traced(lambda bias, a, b: (a @ b, torch.addmm(bias, a, b), b.T @ a.T), *tensors))
    assert by_onednn(graph) == [
        "ppl_vae.product.default",
        "ppl_vae.product_and_bias.default",
        "ppl_vae.product.default",
    ]
    bias, a, b = tensors
    exact = [
        value.float()
        for value in (a.double() @ b.double(), bias + a.double() @ b.double(), b.T.double() @ a.T.double())
    ]
    for found, expected in zip(graph(*tensors), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@avx512
def test_tensors_that_do_not_lie_side_by_side():
    bias, a, b = matrices()
    graph = products(traced(lambda bias, a, b: (torch.addmm(bias, a, b),), bias, a, b))
    assert by_onednn(graph)
    others = (torch.randn(512)[::2], torch.randn(1, 512).expand(256, 512), torch.randn(300, 512)[:256].T)
    for layout in ((others[0], a, b), (bias, others[1], b), (bias, b.T.contiguous(), others[2])):
        torch.testing.assert_close(graph(*layout)[0], torch.addmm(*layout), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("rows", "dtype"), [(256, torch.float64), (4, torch.float32), (256, torch.bfloat16)])
def test_other_products_are_torchs(rows, dtype):
    tensors = matrices(rows, dtype)
    graph = products(traced(lambda bias, a, b: (torch.addmm(bias, a, b),), *tensors))
    assert calls(graph) == [torch.ops.aten.addmm.default]
    assert 4 * 512 * 256 < LARGE <= 256 * 512 * 256


@pytest.mark.parametrize("mode", ["trace", "inductor"])
def test_a_gradient_with_large_products(mode):
    def function(bias, a, b):
        leaves = [t.detach().requires_grad_() for t in (bias, a, b)]
        value = torch.addmm(*leaves).tanh().sum()
        return value.detach(), *torch.autograd.grad(value, leaves)

    step = Traced(function, mode)
    tensors = matrices()
    assert step.verify(*tensors) < 1e-4
    assert step.mode == mode
