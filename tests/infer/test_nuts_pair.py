"""NUTS on ordinary Pyro models: Pyro's own potential, traced, with finite sites summed out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

import ppl_vae as pv
from ppl_vae.declare.pair import Arguments
from ppl_vae.infer.nuts_pair import PairPotential
from ppl_vae.infer.target import with_gradient
from ppl_vae.infer.tracing import Traced


def gaussian(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_an_observation_outside_a_plate_is_no_mistake():
    """Warnings are errors here: Pyro warns of one that is run outside of its inference."""

    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    fit = pv.NUTS(300, warmup=100, num_chains=2, progress=False).fit(model, torch.tensor(2.0))
    assert fit.draws["mu"].mean().item() == pytest.approx(1.0, abs=0.2)  # N(1, 1/2)


def mixture(x, K):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("components", K):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def nested(x):
    """Two plates, one in the other, a finite site in each."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("columns", x.shape[1], dim=-1):
        shift = pyro.sample("shift", dist.Bernoulli(p))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", x.shape[0], dim=-2):
            flip = pyro.sample("flip", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(loc + shift - 2 * flip, 1.0), obs=x)


def hidden_markov(x):
    stay = pyro.sample("stay", dist.Beta(torch.tensor([5.0, 1.0]), torch.tensor([1.0, 5.0])).to_event(1))
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Bernoulli(stay[torch.as_tensor(z, dtype=torch.long)]))
        pyro.sample(f"x_{t}", dist.Normal(2 * z, 1.0), obs=x[t])


MODELS = {
    "gaussian": (gaussian, (torch.linspace(-1, 2, 7),)),
    "mixture": (mixture, (torch.linspace(-1, 2, 7), 3)),
    "nested": (nested, (torch.linspace(-1, 2, 6).reshape(3, 2),)),
    "hidden Markov": (hidden_markov, (torch.tensor([0.1, 1.8, 2.2, -0.3]),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_density_is_minus_pyros_potential(name):
    """Value at two points and gradient, through the graph; and on other data through the same graph."""
    model, args = MODELS[name]
    other = (args[0] * 0.5 + 0.2, *args[1:])
    with pyro.validation_enabled(False):
        potential = PairPotential(model, Arguments(args))
        graph = Traced(with_gradient(potential.log_density))
        start = potential.start
        for point in (start, start + 0.3):
            for data in (args, other):
                value, gradient = graph(point, *[a for a in data if isinstance(a, torch.Tensor)])
                expected, slope = pyros(model, data, potential, point)
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, check_dtype=False)
                torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-4, check_dtype=False)
    assert graph.mode == "trace"


def pyros(model, args, potential, point):
    """Minus Pyro's own potential, and its gradient, in the order of our vector."""
    pyro.set_rng_seed(0)
    _, function, _, _ = initialize_model(pyro.infer.config_enumerate(model), args, max_plate_nesting=2)
    leaves = {}
    for site in potential.layout.sites:
        raw = point[site.start : site.stop].reshape(site.transform.inverse_shape(site.shape))
        leaves[site.name] = raw.to(site.dtype).requires_grad_()
    energy = function(leaves)
    slopes = torch.autograd.grad(energy, list(leaves.values()))
    return -energy.detach(), -torch.cat([slope.reshape(-1) for slope in slopes])


@pytest.mark.parametrize("sampler", ["auto", "pyro"])
def test_conjugate_posterior(sampler):
    x = torch.tensor([0.3, 1.9, 2.2, 0.7, 1.1])
    fit = pv.NUTS(300, warmup=150, num_chains=2, sampler=sampler, progress=False).fit(gaussian, x)
    assert fit.settings["sampler"] == ("nutpie" if sampler == "auto" else "pyro")
    precision = 1 / 4 + 5
    mean, sd = x.sum() / precision, precision**-0.5
    assert abs(fit.draws["mu"].mean() - mean) < 5 * sd / 150**0.5
    assert abs(fit.draws["mu"].std() / sd - 1) < 5 / (2 * 150) ** 0.5


def test_start_and_supports():
    x = torch.cat([torch.randn(30) - 3, torch.randn(30) + 3])
    start = {"weights": torch.tensor([0.5, 0.5]), "loc": torch.tensor([-3.0, 3.0]), "scale": torch.tensor(1.0)}
    fit = pv.NUTS(60, warmup=100, num_chains=2, start=start, progress=False).fit(mixture, (x, 2))
    assert fit.draws["weights"].shape == (2, 60, 2)
    torch.testing.assert_close(fit.draws["weights"].sum(-1), torch.ones(2, 60))
    assert bool((fit.draws["scale"] > 0).all())
    assert (fit.draws["loc"].mean((0, 1)) - start["loc"]).abs().max() < 1


def branching(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    scale = 1.0 if mu > -50 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


def test_a_program_that_branches_on_values_runs_in_pyros_sampler():
    with pytest.warns(UserWarning, match="mu > -50"):
        fit = pv.NUTS(40, warmup=40, num_chains=1, progress=False).fit(branching, torch.tensor([0.3, 1.9]))
    assert fit.settings["sampler"] == "pyro"
    assert fit.draws["mu"].isfinite().all()


def only_finite(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def minibatch(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])


@pytest.mark.parametrize(
    ("model", "said"), [(only_finite, "nothing to sample"), (minibatch, "subsample"), (gaussian, "weights=")]
)
def test_what_it_cannot_do_is_said(model, said):
    x = torch.zeros(4)
    weights = torch.ones(4) if model is gaussian else None
    with pytest.raises(pv.EngineError, match=said):
        pv.NUTS(5, warmup=5, num_chains=1, progress=False).fit(model, x, weights=weights)


def test_gaps_in_the_data_of_a_pyro_model_are_named():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(pv.EngineError, match="the data have NaN, of which a Pyro program knows nothing") as caught:
        pv.NUTS(5, warmup=5, progress=False).fit(model, torch.tensor([0.0, torch.nan]))
    assert "\n" not in str(caught.value)
