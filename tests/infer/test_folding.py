"""Constants of a graph are computed once; what is written to in place, or random, is not."""

import pyro.distributions as dist
import torch

from ppl_vae.infer.folding import INDEXED
from ppl_vae.infer.tracing import Traced, graph_of


def targets(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_what_depends_on_no_input_is_a_constant():
    def function(x):
        return ((x + (torch.arange(3.0) * 2).exp().cumsum(0)),)

    graph = graph_of(function, torch.zeros(3))
    assert len(targets(graph)) == 1
    torch.testing.assert_close(graph(torch.ones(3)), function(torch.ones(3)))


def test_checks_of_constants_are_made_once():
    graph = graph_of(lambda x: (torch.linalg.cholesky(2 * torch.eye(3)) * x,), torch.zeros(3))
    assert targets(graph) == ["aten.mul.Tensor"]
    torch.testing.assert_close(graph(torch.ones(3))[0], 2**0.5 * torch.eye(3))


def test_memory_that_is_written_to_is_made_anew():
    def function(x):
        total = torch.zeros(4)
        total[:2].add_(x)
        return (total.clone(),)

    graph = graph_of(function, torch.zeros(2))
    for value in (1.0, 2.0):
        torch.testing.assert_close(graph(torch.full((2,), value)), function(torch.full((2,), value)))


def test_random_numbers_stay_random():
    graph = graph_of(lambda x: (x + torch.randn(3),), torch.zeros(3))
    assert not torch.equal(*[graph(torch.zeros(3))[0] for _ in range(2)])


def test_shapes_are_known():
    """What is made like a tensor depends on none of its numbers."""

    def function(x):
        return (x * (torch.ones_like(x) + x.new_full((3,), 2.0)).cumsum(0),)

    graph = graph_of(function, torch.zeros(3))
    assert targets(graph) == ["aten.mul.Tensor"]
    torch.testing.assert_close(graph(torch.ones(3)), function(torch.ones(3)))


def test_outputs_may_be_changed_in_place():
    """A constant that is given out, by itself or as part of another shape, is made anew: gradients are clipped."""

    def function(x):
        ones = torch.ones_like(x) * 3
        return ones, (torch.ones_like(x) * 5).view(2, 2), ones.sum() + x

    graph = graph_of(function, torch.zeros(4))
    for _ in range(2):
        for found, expected in zip(graph(torch.arange(4.0)), function(torch.arange(4.0)), strict=True):
            assert torch.equal(found, expected)
            found.mul_(7)


def test_masks_become_positions():
    """x[mask], and its gradient, by integers; the graph of a triangular prior has no mask that inductor cannot take."""
    mask = torch.tensor([[True, False], [True, True]])

    def function(x):
        leaf = x.detach().requires_grad_()
        value = (leaf[..., mask] ** 2).sum()
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    graph = graph_of(function, torch.zeros(3, 2, 2))
    x = torch.randn(3, 2, 2)
    for found, expected in zip(graph(x), function(x), strict=True):
        torch.testing.assert_close(found, expected)
    for node in graph.graph.nodes:
        if node.target in INDEXED:
            sources = [getattr(graph, source.target) for source in node.args[1] if source is not None]
            assert all(source.dtype == torch.long for source in sources)


def test_correlations_are_traced():
    def function(u):
        law = dist.LKJCholesky(3, torch.tensor(2.0))
        value = torch.distributions.biject_to(law.support)(u)
        return (law.log_prob(value),)

    u = torch.tensor([0.1, -0.4, 0.7])
    traced = Traced(function)
    traced(torch.zeros(3))
    torch.testing.assert_close(traced(u), function(u))
    assert traced.mode == "trace"
