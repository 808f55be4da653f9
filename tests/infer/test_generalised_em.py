"""Generalised EM: gradient M-steps at the E-step's own responsibilities, in memory that does not grow with the data."""

import weakref
from itertools import pairwise

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.infer import mstep


class Bells(pv.LatentVariableModel):
    """Two normals whose means and log scales belong to no family."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))
        self.log_scale = torch.nn.Parameter(torch.zeros(2))
        self.mixing = pv.families.Categorical(2)

    @latent
    def z(self):
        return self.mixing()

    @observed
    def x(self, z):
        return dist.Normal(self.loc[z], self.log_scale.exp()[z])


HALVES = {"mixing.probs": torch.tensor([0.5, 0.5])}


def bells(n):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.where(torch.arange(n) % 5 < 2, -1.0 + noise, 2.0 + 0.6 * noise)


def fit(data, **settings):
    return pv.EM(**{"start": HALVES, "progress": False, **settings}).fit(Bells(), data)


def by_hand(x, temperature, iterations):
    """Objective of each iteration with M-steps in closed form; temperature None: hard assignments."""
    loc, scale, weight, found = np.array([-1.0, 1.0]), np.ones(2), np.array([0.5, 0.5]), []
    for _ in range(iterations):
        joint = np.log(weight / scale) - 0.5 * np.log(2 * np.pi) - 0.5 * ((x[:, None] - loc) / scale) ** 2
        if temperature is None:
            r = np.eye(2)[joint.argmax(1)]
            found.append(joint.max(1).sum())
        else:
            r = np.exp((joint - joint.max(1, keepdims=True)) / temperature)
            found.append((joint.max(1) + temperature * np.log(r.sum(1))).sum())
            r = r / r.sum(1, keepdims=True)
        count = r.sum(0)
        weight, loc = count / len(x), r.T @ x / count
        scale = np.sqrt((r * (x[:, None] - loc) ** 2).sum(0) / count)
    return found


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 1.0),
        ({"assignment": "hard"}, None),
        ({"temperature": 1.5}, 1.5),
        ({"temperature": 0.5}, 0.5),
    ],
    ids=str,
)
def test_every_assignment_climbs_its_own_objective_to_the_maximum(settings, temperature):
    x = bells(300)
    found = fit(x, tol=1e-13, max_iter=400, **settings)
    objective = found.trace["objective"]
    assert bool((objective.diff() >= -1e-10 * objective.abs().max()).all())
    assert objective[-1].item() == pytest.approx(by_hand(x.numpy(), temperature, 400)[-1], rel=1e-7)


def test_what_is_drawn_is_one_draw_for_all_parameters():
    """The counts that give the weights are those of the rows whose means the gradient steps find."""
    x = bells(300)
    found = fit(x, assignment="stochastic", max_iter=2, seed=3)
    count = 300 * found.parameters["mixing.probs"]
    torch.testing.assert_close(count, count.round(), rtol=0, atol=1e-9)
    torch.testing.assert_close(count @ found.model.loc, x.sum(), rtol=1e-4, atol=0)
    # E_r x is that of soft responsibilities as well, but their counts are other ones.
    soft = fit(x, max_iter=2)
    assert abs(count @ soft.model.loc - x.sum()) > 0.1


class Rays(pv.LatentVariableModel):
    """Lines through the origin; `made` are the means of every call, [K, rows]."""

    t = pv.given()

    def __init__(self, made):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.slope = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
        self.seen = made.append

    @latent
    def z(self):
        return self.mixing()

    @observed
    def y(self, z, t):
        mean = self.slope[z] * t
        self.seen(mean)
        return dist.Normal(mean, 1.0)


class Alive:
    """How many tensors were held at once, by whomever."""

    def __init__(self):
        self.refs, self.most = [], 0

    def append(self, tensor):
        self.refs = [ref for ref in self.refs if ref() is not None] + [weakref.ref(tensor)]
        self.most = max(self.most, len(self.refs))

    def __deepcopy__(self, memo):
        return self


def rays(n):
    generator = torch.Generator().manual_seed(1)
    t, noise = (torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(2))
    return {"t": t, "y": torch.where(torch.arange(n) % 3 == 0, 2.0, -1.0) * t + 0.3 * noise}


def test_the_graph_of_one_chunk_is_held_at_a_time():
    most = []
    for blocks in (3, 30):
        alive = Alive()
        pv.EM(max_iter=3, progress=False).fit(Rays(alive), pv.data.stream(rays(100 * blocks), rows=100))
        most.append(alive.most)
    assert most[0] == most[1]


@pytest.mark.parametrize("assignment", ["soft", "hard", "stochastic"])
def test_responsibilities_made_anew_are_those_that_were_kept(assignment, monkeypatch):
    data = pv.data.stream(rays(300), rows=100)
    engine = pv.EM(max_iter=4, assignment=assignment, progress=False)
    kept = engine.fit(Rays([]), data)
    monkeypatch.setattr(mstep, "KEEP", 0)
    anew = engine.fit(Rays([]), data)
    assert torch.equal(anew.trace["objective"], kept.trace["objective"])
    assert torch.equal(anew.model.slope, kept.model.slope)


def test_passes_of_gradient_steps_are_counted():
    """Between two recorded iterations the source is read as often as the trace says."""
    reads = []

    def batches():
        reads.append(1)
        yield from bells(400).split(100)

    class Watch(pv.Callback):
        def end(self, run, step, metrics):
            counted.append((metrics["e_steps"], len(reads)))

    counted = []
    source = pv.data.stream(batches, rows=100)
    found = fit(source, max_iter=6, tol=0, callbacks=[Watch()])
    assert [passes for passes, _ in counted] == found.trace["e_steps"].tolist()
    between = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(counted)]
    assert len(between) == 5
    for said, made in between:
        assert said == made > 2
