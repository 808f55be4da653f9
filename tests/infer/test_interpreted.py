"""torch's interpreter gives a graph's own bits, keeps its checks, and is done without where torch has none."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import ppl_vae as pv
from ppl_vae.infer.interpreted import at_data, interpreted
from ppl_vae.infer.potential import Potential
from ppl_vae.infer.target import make_target, with_gradient


def graph_of(function, x):
    return make_fx(function)(x)


def logistic(x):
    """A value and a gradient with what potentials consist of: pads, sums, cumulative products, an index."""
    u = x.detach().requires_grad_()
    weights = torch.nn.functional.pad(u.sigmoid().cumprod(0), (0, 1), value=1.0).log_softmax(0)
    value = torch.logsumexp(weights[torch.tensor([1, 0, 1])] - u.square().sum(), 0)
    return value.detach(), *torch.autograd.grad(value, u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_the_graphs_own(dtype):
    x = torch.linspace(-2, 2, 7, dtype=dtype)
    graph = graph_of(logistic, x)
    run = interpreted(graph, [x])
    for shift in (0.0, 0.3, -5.0):
        with torch.no_grad():
            found, expected = run(x + shift), graph(x + shift)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_the_data_decide_is_computed_once():
    def function(x, data, weights):
        u = x.detach().requires_grad_()
        value = (weights * (data.square().sum(1) - u).square()).sum()
        return value.detach(), torch.autograd.grad(value, u)[0]

    x, data, weights = torch.randn(3), torch.randn(3, 4), torch.rand(3)
    graph = make_fx(function)(x, data, weights)
    run = at_data(graph, [x, data, weights])
    for shift in (0.0, 0.3):
        found, expected = run(x + shift, data, weights), graph(x + shift, data, weights)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    data.zero_()
    assert not torch.equal(run(x, data, weights)[0], function(x, data, weights)[0])


def factor(x):
    return torch.linalg.cholesky(x), x.sum()


def singular_values(x):
    return torch.linalg.svdvals(x), x.sum()


@pytest.mark.parametrize(("function", "wrong"), [(factor, -torch.eye(2)), (singular_values, torch.eye(2) * torch.nan)])
def test_a_matrix_without_a_factor_is_the_same_error_as_in_torch(function, wrong):
    run = interpreted(graph_of(function, torch.eye(2)), [torch.eye(2)])
    assert len(run(torch.eye(2))) == 2
    for call in (function, run):
        with pytest.raises(torch.linalg.LinAlgError):
            call(wrong)


def test_without_an_interpreter_python_runs_the_graph(monkeypatch):
    def refused(*args, **settings):
        raise RuntimeError("not on this Python")

    monkeypatch.setattr(torch.jit, "trace", refused)
    run = interpreted(graph_of(factor, torch.eye(2)), [torch.eye(2)])
    assert torch.equal(run(4 * torch.eye(2))[0], 2 * torch.eye(2))
    with pytest.raises(torch.linalg.LinAlgError):
        run(-torch.eye(2))


def test_a_potential_and_its_gradient_are_autograds(recwarn):
    x = pv.data.faithful().values[:40].double()
    model = pv.models.GaussianMixture(2, 2, prior="weak").double()
    obs = model.check(x)
    model.adapt(obs)
    potential = Potential(model, obs, torch.ones(40, dtype=torch.float64))
    u = potential.layout.unconstrain(potential.prior_draw(model.family_defaults()))
    target = make_target(potential, u, 100, "trace")
    for shift in (0.0, 0.1):
        expected = with_gradient(potential.log_density)(u + shift)
        torch.testing.assert_close(target.value_and_gradient(u + shift), expected, rtol=1e-9, atol=1e-9)
    assert not recwarn.list


PROGRAM = """
import ctypes
import threading
import torch
import ppl_vae as pv
from ppl_vae.infer import samplers

# torch itself would not tell: asked for its threads it sets them.
count = ctypes.CDLL(None).omp_get_max_threads
seen, model, own = [], samplers._nutpie_model, threading.get_ident()

def noted(target, starts, watch):
    def value_and_gradient(u):
        if threading.get_ident() != own:
            seen.append(count())
        return target.value_and_gradient(u)
    return model(samplers.Target(value_and_gradient, target.mode), starts, watch)

samplers._nutpie_model = noted
gmm = pv.models.GaussianMixture(2, 2, prior="weak")
pv.NUTS(5, warmup=5, num_chains=2, compile="trace", progress=False).fit(gmm, pv.data.faithful())
print(set(seen))
"""


def test_chains_take_one_thread_each():
    """OpenMP would give every new thread of the sampler's all cores, which then wait for each other."""
    if not hasattr(ctypes.CDLL(None), "omp_get_max_threads"):
        pytest.skip("no OpenMP to ask")
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{1}", done.stderr
