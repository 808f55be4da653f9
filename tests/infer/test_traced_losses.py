"""A pair's traced loss and gradient are Pyro's own, at the same seed."""

from contextlib import contextmanager

import pytest
import torch
from example_models import MODELS, make
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro_pairs import PAIRS
from shipped_models import SHIPPED
from torch.utils._pytree import tree_leaves, tree_map

from ppl_vae.declare import Observations
from ppl_vae.declare.pair import PyroPair
from ppl_vae.infer.pair_step import PairObjective
from ppl_vae.infer.pyro_losses import own_copy
from ppl_vae.infer.tracing import Traced

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}


def name_of(loss):
    """Of a test's parameter."""
    if isinstance(loss, str):
        return loss
    options = {"num_particles": 1, "vectorize_particles": False, "alpha": None}
    own = [f"{getattr(loss, key)}" for key, usual in options.items() if getattr(loss, key, usual) != usual]
    return " ".join([type(loss).__name__, *own])


def traced(objective, mode="trace"):
    """Loss and gradients as a graph of the parameters and the tensor arguments."""
    count = len(objective.dense)

    def function(*tensors):
        leaves = [t.detach().requires_grad_() for t in tensors[:count]]
        value, _ = objective.sums(leaves, tensors[count:])
        return -value.detach(), *torch.autograd.grad(-value, leaves, allow_unused=True, materialize_grads=True)

    return Traced(function, mode)


def pyros_own(pair, loss, parameters, args):
    with pair.parameters_in_place():
        value = loss.loss_and_grads(pair.program, pair.guide, *args)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return torch.as_tensor(value, dtype=gradients[0].dtype), *gradients


def assert_same(found, expected):
    tolerance = TOLERANCE[expected[1].dtype]
    size = max(t.abs().max().item() for t in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * size)


def compare(model, guide, loss, args, mode="trace"):
    """At the first values and at others, with the data as they are and turned round: nothing is baked in."""
    pair = PyroPair(model, guide)
    objective = PairObjective(pair, own_copy(loss), args)
    graph, own = traced(objective, mode), own_copy(objective.loss)  # with the depth of plates found in the first run
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = pyros_own(pair, own, objective.dense, args)
        torch.manual_seed(seed)
        assert_same(graph(*objective.dense, *tree_leaves(args), *objective.around), expected)
        with torch.no_grad():
            for p in objective.dense:
                p.add_(0.2 * torch.randn_like(p))
        args = tree_map(lambda a: a.flip(0) if a.dim() else a + 0.1, args)
    assert graph.mode == mode


@contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def one_by_one(table, often=()):
    """Every (name, loss); of a name's losses the first is tried in everyday runs, all of them where `often`."""
    return [
        pytest.param(name, loss, marks=[] if loss is losses[0] or name in often else [pytest.mark.slow])
        for name, losses in table.items()
        for loss in losses
    ]


TABLE = {name: losses for name, (losses, _) in PAIRS.items()}


@pytest.mark.parametrize(("name", "loss"), one_by_one(TABLE, ["vae with modules", "draws without a path"]), ids=name_of)
def test_pairs(name, loss):
    with default(torch.float64):
        model, guide, args = PAIRS[name][1]()
        compare(model, guide, loss, args)


@pytest.mark.parametrize("name", ["vae with modules", "mixture", "guide in parallel", "auto normal"])
def test_pairs_in_single_precision(name):
    losses, make_pair = PAIRS[name]
    model, guide, args = make_pair()
    compare(model, guide, losses[0], args)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae with modules", "subsampled mixture", "hidden markov model", "nested plates"])
def test_compiled_pairs(name):
    """Inductor takes torch's random numbers, and its compiler can follow the sums over enumerated values."""
    with default(torch.float64):
        losses, make_pair = PAIRS[name]
        model, guide, args = make_pair()
        compare(model, guide, losses[0], args, "inductor")


DECLARED = [*MODELS, *SHIPPED]
FINITE = {name for name in DECLARED if "finite" in name or "mixture" in name or name == "shared by hand"}
DRAWN = {name: (Trace_ELBO(), TraceMeanField_ELBO()) for name in DECLARED if name not in FINITE}
LITERAL = {
    **DRAWN, **{name: (TraceEnum_ELBO(max_plate_nesting=1),) for name in sorted(FINITE)},
    "poisson latent": (Trace_ELBO(),),  # a mean field loss needs draws that have a path
}  # fmt: skip


@pytest.mark.parametrize(("name", "loss"), one_by_one(LITERAL, ["vae"]), ids=name_of)
def test_declared_models_as_literal_pyro_programs(name, loss):
    declared, data = make(name)
    obs = declared.check(data)

    def model(values, missing):
        return declared.model(Observations(values, missing))

    def guide(values, missing):
        return declared.guide(Observations(values, missing))

    compare(model, guide, loss, (obs.values, obs.missing))
