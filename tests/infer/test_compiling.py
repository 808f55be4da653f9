"""Compiled code: the graph's numbers, errors where the graph has them, and the next process need not compile again."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from ppl_vae.infer.compiling import checks_apart
from ppl_vae.infer.tracing import Traced, graph_of

GOOD = torch.tensor([[[2.0, 0.3], [0.3, 1.0]]]).expand(3, 2, 2).double()
BAD = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]).expand(3, 2, 2).double()


def of_factor(constant):
    def function(matrix, x):
        factor = torch.linalg.cholesky(matrix)
        return torch.linalg.solve_triangular(factor, x, upper=False), constant * factor.diagonal(dim1=-2, dim2=-1)

    return function


def hits():
    return counters["inductor"]["fxgraph_cache_hit"]


@pytest.mark.parametrize("mode", ["trace", "inductor"])
def test_a_matrix_that_is_not_positive_definite_is_an_error_each_time(mode):
    x = torch.ones(3, 2, 1).double()
    traced = Traced(of_factor(1.0), mode)
    for matrix in (GOOD, BAD, GOOD):
        if matrix is BAD:
            with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
                traced(matrix, x)
        else:
            for found, expected in zip(traced(matrix, x), of_factor(1.0)(matrix, x), strict=True):
                torch.testing.assert_close(found, expected)
    assert traced.mode == mode


def test_without_a_compiler_a_graph_with_checks_has_its_own_outputs(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    traced, x = Traced(of_factor(1.0), "inductor"), torch.ones(3, 2, 1).double()
    with pytest.warns(UserWarning, match="the plain graph is used"):
        assert len(traced(GOOD, x)) == 2
    with pytest.raises(torch.linalg.LinAlgError):
        traced(BAD, x)


def test_a_graph_without_checks_is_left_as_it_is():
    graph = graph_of(lambda x: (x.exp(),), torch.zeros(2))
    assert checks_apart(graph) == (graph, [])


CONSTANTS = {
    "number": (2.0, 3.0),
    "scalar": (torch.tensor(2.0), torch.tensor(3.0)),
    "vector": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_what_was_compiled_once_is_read_from_disk_with_its_own_constants(kind):
    x, (one, other) = torch.ones(3, 2, 1).double(), CONSTANTS[kind]
    with fresh_cache():
        before, found = hits(), []
        for constant in (one, one, other):
            found.append(Traced(of_factor(constant), "inductor")(GOOD, x))
            if len(found) == 2:
                assert hits() == before + 1
    for a, b in zip(found[0], found[1], strict=True):
        assert torch.equal(a, b)
    for constant, mine in zip((one, one, other), found, strict=True):
        for a, expected in zip(mine, of_factor(constant)(GOOD, x), strict=True):
            torch.testing.assert_close(a, expected)
