"""NUTS: two samplers, one posterior; known posteriors; steps that leave the domain."""

import contextlib
import dataclasses
import os
import shutil
import threading
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from example_models import NormalMean

import ppl_vae as pv
from ppl_vae.convergence import convergence
from ppl_vae.fit import Status
from ppl_vae.infer import samplers
from ppl_vae.infer.potential import Potential
from ppl_vae.infer.samplers import SAMPLERS
from ppl_vae.infer.target import Target, with_gradient, worth_compiling
from ppl_vae.infer.tracing import Traced
from ppl_vae.infer.watch import Plan, complete


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_conjugate_posterior(sampler):
    x = torch.tensor([0.3, 1.9, 2.2, 0.7, 1.1], dtype=torch.float64)
    w = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    fit = pv.NUTS(400, warmup=200, num_chains=2, sampler=sampler, progress=False).fit(NormalMean(), x, weights=w)
    precision = 1 / 4 + w.sum()
    mean, sd = (w * x).sum() / precision, precision**-0.5
    draws = fit.draws["mu"]
    assert draws.shape == (2, 400)
    # Five standard errors of a mean of 200 effective draws at least, and of a standard deviation.
    assert abs(draws.mean() - mean) < 5 * sd / 200**0.5
    assert abs(draws.std() / sd - 1) < 5 / (2 * 200) ** 0.5


def test_a_step_out_of_the_domain_is_a_divergence_not_a_crash():
    """log p = -u^2/2, and a failed Cholesky beyond 1.5, as a covariance gives far out in the tails."""

    def value_and_gradient(u):
        if u.abs().max() > 1.5:
            raise torch.linalg.LinAlgError("not positive definite")
        return -0.5 * u.square().sum(), -u

    chains = SAMPLERS["nutpie"](Target(value_and_gradient, "trace"), torch.zeros(2, 1), Plan(200, 100, seed=0))
    assert chains.u.shape == (2, 200, 1)
    assert abs(chains.u).max() <= 1.5
    assert int(chains.stats["diverging"].sum()) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_error_of_the_density_is_the_users_to_see(sampler):
    calls = []

    def value_and_gradient(u):
        calls.append(None)
        if len(calls) > 30:
            raise KeyError("a bug of the model")
        return -0.5 * u.square().sum(), -u

    with pytest.raises((pv.EngineError, KeyError), match="a bug of the model"):
        SAMPLERS[sampler](Target(value_and_gradient, "trace"), torch.ones(2, 1), Plan(20, 20, seed=0))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_chains_run_at_the_same_time_where_that_is_quicker(monkeypatch):
    """A gradient whose work is not Python's runs for two chains at once; where they take turns one goes alone."""
    at_once, turn = {}, threading.Lock()

    def alone():
        with turn:
            time.sleep(1e-3)

    def gradient(name, work):
        inside = []

        def value_and_gradient(u):
            inside.append(None)
            at_once[name] = max(at_once.get(name, 0), len(inside))
            work()
            inside.pop()
            return -0.5 * u.square().sum(), -u

        return Target(value_and_gradient, "trace")

    waits = gradient("waits", lambda: time.sleep(1e-3))
    takes_turns = gradient("takes turns", alone)
    # A trial that other programs disturb may come out wrong, several do not.
    assert 2 in {samplers._at_once(waits, torch.ones(1), 2) for _ in range(5)}
    assert 1 in {samplers._at_once(takes_turns, torch.ones(1), 2) for _ in range(5)}
    at_once.clear()
    monkeypatch.setattr(samplers, "_at_once", lambda *arguments: 2)
    assert np.isfinite(SAMPLERS["nutpie"](waits, torch.ones(2, 1), Plan(20, 20, seed=0)).u).all()
    assert at_once == {"waits": 2}


class TwoNormals(pv.LatentVariableModel):
    """pi ~ Dirichlet(2, 2), mu ~ N(0, 3^2) in order of the data, x ~ sum_k pi_k N(mu_k, 1)."""

    @pv.latent(shared=True)
    def weights(self):
        return dist.Dirichlet(2 * torch.ones(2))

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1)

    @pv.latent
    def z(self, weights):
        return dist.Categorical(weights)

    @pv.observed
    def x(self, z, loc):
        return dist.Normal(loc[z], 1.0)


@pytest.fixture(scope="module")
def clusters():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(40, generator=generator, dtype=torch.float64) + torch.tensor([-2.0, 2.0]).repeat(20)


def test_nutpie_and_pyro_sample_one_posterior(clusters):
    """Means and standard deviations agree within five Monte-Carlo errors of the two."""
    engine = pv.NUTS(250, warmup=100, num_chains=2, progress=False)
    fits = [dataclasses.replace(engine, sampler=name).fit(TwoNormals(), clusters) for name in SAMPLERS]
    assert [fit.settings["sampler"] for fit in fits] == list(SAMPLERS)
    for name in ("weights", "loc"):
        (a, b) = (fit.draws[name].flatten(0, 1) for fit in fits)
        # At least 100 effective draws each; the standard error of a standard deviation is sd / sqrt(2 ESS).
        sd = a.std(0)
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * sd * (2 / 100) ** 0.5).all()), name
        assert bool(((b.std(0) / sd).log().abs() < 5 * (2 / 200) ** 0.5).all()), name


def potential_of(x, model=None):
    model = (model or TwoNormals()).double()
    obs = model.check(x)
    return Potential(model, obs, torch.ones(len(obs), dtype=torch.float64))


@pytest.mark.parametrize("mode", ["trace", "inductor"])
def test_graph_is_the_density_and_takes_other_data(clusters, mode, monkeypatch):
    """Value and gradient equal autograd's on the model; another data set of this shape goes through the same graph."""
    if mode == "inductor" and shutil.which("g++") is None:
        pytest.skip("no compiler")
    with pyro.validation_enabled(False):
        here, there = potential_of(clusters), potential_of(3 - clusters)
        graph = Traced(with_gradient(here.log_density), mode, num_threads=1)
        u = torch.tensor([0.3, -1.8, 2.2], dtype=torch.float64)
        graph(u, *here.data)
        monkeypatch.setattr(pv.LatentVariableModel, "log_weights", None)  # the model itself is not run again
        found = [graph(u + 0.1, *potential.data) for potential in (here, there)]
        monkeypatch.undo()
        expected = [with_gradient(potential.log_density)(u + 0.1) for potential in (here, there)]
    assert graph.mode == mode
    assert len(graph.graphs) == 1
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert abs(found[0][0] - found[1][0]) > 1


def test_graph_takes_what_families_keep_of_their_data():
    """A weak prior has the scale of the data: the graph of one data set serves another with another scale."""
    x = pv.data.faithful().values[:30]
    potentials = []
    for data in (x, 5 * x + 1):
        model = pv.models.GaussianMixture(2, 2, prior="weak").double()
        model.adapt(model.check(data))
        potentials.append(potential_of(data, model))
    first, second = potentials
    u = first.layout.unconstrain(first.prior_draw(first.model.family_defaults()))
    graph = Traced(with_gradient(first.log_density))
    with pyro.validation_enabled(False):
        graph(u, *first.data)
        torch.testing.assert_close(graph(u, *second.data), with_gradient(second.log_density)(u), rtol=1e-9, atol=1e-9)


def test_auto_compiles_where_draws_are_many():
    def density():
        potential = potential_of(torch.zeros(5, dtype=torch.float64))
        traced = Traced(with_gradient(potential.log_density))
        traced(torch.zeros(potential.layout.size, dtype=torch.float64), *potential.data)
        return traced

    with pyro.validation_enabled(False):
        traced = density()
    assert not worth_compiling(traced, 100)
    assert worth_compiling(traced, 100_000) is (shutil.which("g++") is not None)


class Branching(NormalMean):
    """Which law x has depends on the value of mu: no graph can follow."""

    @pv.observed
    def x(self, mu):
        return dist.Normal(mu, 1.0) if mu > -50 else dist.Normal(mu, 2.0)


def test_a_model_that_cannot_be_traced_is_sampled_by_pyro_after_one_warning():
    x = torch.tensor([0.3, 1.9, 2.2], dtype=torch.float64)
    with pytest.warns(UserWarning, match="mu > -50") as caught:
        fit = pv.NUTS(150, warmup=100, num_chains=2, progress=False).fit(Branching(), x)
    assert len(caught) == 1
    assert (fit.settings["sampler"], fit.settings["compile"]) == ("pyro", "off")
    precision = 1 / 4 + 3
    assert abs(fit.draws["mu"].mean() - x.sum() / precision) < 5 * (1 / precision / 50) ** 0.5


@pytest.mark.parametrize("wrong", [{"sampler": "gibbs"}, {"compile": "jit"}, {"num_chains": 0}, {"callbacks": 3}])
def test_settings_are_checked(wrong):
    with pytest.raises(pv.EngineError):
        pv.NUTS(**wrong)


def test_status_says_what_speaks_against_the_draws(clusters):
    fit = pv.NUTS(20, warmup=30, num_chains=2, progress=False).fit(TwoNormals(), clusters)
    assert fit.status.ok
    assert any("effective sample size" in note for note in fit.status.notes)
    found = convergence(fit)
    assert fit.status.message == f"2 chains of 30 + 20; {found}"
    assert f"{found.ess:.0f} effective draws at least, {found.divergences} divergences" in repr(fit)


def test_one_chain_says_that_it_is_one(clusters):
    fit = pv.NUTS(20, warmup=30, num_chains=1, progress=False).fit(TwoNormals(), clusters)
    assert fit.status.message == f"1 chain of 30 + 20; {convergence(fit)}"
    assert any("a single chain was run" in note for note in fit.status.notes)


# Somebody ends it.


class Until(pv.Callback):
    """Counts draws and ends the fit after so many."""

    def __init__(self, last):
        self.last, self.steps, self.warm, self.status = last, [], 0, None

    def set_up(self, run):
        self.run = run

    def end(self, run, step, metrics):
        self.steps.append(step)
        self.warm += metrics["warmup"]
        return step == self.last

    def tear_down(self, run, status):
        self.status = status


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callbacks_are_told_of_every_draw(sampler):
    told = Until(None)
    x = torch.tensor([0.3, 1.9], dtype=torch.float64)
    fit = pv.NUTS(30, warmup=20, num_chains=2, sampler=sampler, progress=False, callbacks=[told]).fit(NormalMean(), x)
    assert told.steps == list(range(100)) == list(range(told.run.total))
    assert told.warm == 40
    assert told.run.engine == "NUTS"
    assert fit.draws["mu"].shape == (2, 30)
    assert told.status.code == "finished"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_callback_ends_the_fit_with_what_was_drawn(sampler):
    x = torch.tensor([0.3, 1.9], dtype=torch.float64)
    told = Until(120)
    engine = pv.NUTS(100 if sampler == "pyro" else 1_000_000, 50, 2, sampler=sampler, progress=False, callbacks=[told])
    fit = engine.fit(NormalMean(), x)
    assert told.steps == list(range(121))
    assert fit.status.code == told.status.code == "stopped by a callback"
    chains, draws = fit.draws["mu"].shape
    assert chains >= 1
    assert 1 <= draws < engine.num_samples
    assert bool(fit.draws["mu"].isfinite().all())


def test_a_failing_callback_ends_the_sampler():
    class Broken(pv.Callback):
        def end(self, run, step, metrics):
            raise ValueError("out of paper")

    engine = pv.NUTS(1_000_000, 10, 2, progress=False, callbacks=[Broken()])
    with pytest.raises(pv.EngineError, match="out of paper"):
        engine.fit(NormalMean(), torch.tensor([0.3, 1.9], dtype=torch.float64))


def test_progress_tells_of_divergences_over_all_chains(monkeypatch):
    """Slow chains: the sampler is asked before any draw is kept, and afterwards."""
    said = []
    monkeypatch.setattr(samplers, "progress", lambda *_: contextlib.nullcontext(lambda done, text: said.append(text)))

    def value_and_gradient(u):
        time.sleep(0.005)
        return -0.5 * u.square().sum(), -u

    SAMPLERS["nutpie"](Target(value_and_gradient, "trace"), torch.ones(2, 1), Plan(150, 250, seed=0, show=True))
    assert said[0] == "draws of all chains"
    assert said[-1] == "draws of all chains, 0 diverged"


def test_what_is_left_of_chains_that_were_cut_short():
    """The largest rectangle without gaps: two chains of 5 draws are more than three of 2, or one of 6."""
    u = np.full((4, 8, 1), np.nan)
    for chain, length in enumerate((5, 2, 0, 6)):
        u[chain, :length] = chain
    diverging = torch.zeros(4, 8, dtype=torch.bool)
    kept = complete(u, {"diverging": diverging}, Status("stopped by a callback", "early"))
    assert kept.u[..., 0].tolist() == [[0.0] * 5, [3.0] * 5]
    assert kept.stats["diverging"].shape == (2, 5)
    with pytest.raises(pv.EngineError, match="before any draw"):
        complete(np.full((2, 3, 1), np.nan), {}, Status("stopped by a callback", "early"))


def test_free_parameters_are_named():
    with pytest.raises(pv.EngineError, match=r"components\.loc"):
        pv.NUTS(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
