"""`model` and `guide` are ordinary Pyro programs: the direct bound is Pyro's own, in value and in gradient."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from example_models import MODELS, make, mixture, numbers
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.inspect import get_model_relations

from ppl_vae.objectives import Elbo, max_plate_nesting, trace_sites

pytestmark = pytest.mark.param_store

ENUMERATED = ["finite posterior", "mixture", "two finite", "shared"]
CONTINUOUS = [name for name in MODELS if not any(word in name for word in ENUMERATED)]


def enumerated(max_plate_nesting):
    return TraceEnum_ELBO(max_plate_nesting=max_plate_nesting, strict_enumeration_warning=False)


# Pyro leaves the term E_q[grad log q] = 0 out of a score-function gradient, so that only its expectation is the same
# (see test_objectives.py).
PATHWISE = [name for name in MODELS if name != "poisson latent"]
CASES = [
    *((Trace_ELBO, "sampled", name) for name in CONTINUOUS),
    *((enumerated, "sampled", name) for name in PATHWISE),
    *((TraceMeanField_ELBO, "analytic", name) for name in PATHWISE if name in CONTINUOUS),
]


def gradients(total, model):
    model.zero_grad()
    total.backward()
    return {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}


def direct(model, data, kl, index=None, scale=1.0):
    obs = model.check(data)
    shared, log_q = model.draw_shared()
    with model.bind(shared), model.numeric():
        local = Elbo(kl=kl)(model.sites(obs, index)).sum()
        return scale * local + model.log_prior(shared) - log_q


def warmed(name):
    """The model after its first call, which allocates automatic guides and draws their start."""
    model, data = make(name)
    model.guide(data)
    with torch.no_grad():
        for p in model.local_posteriors.parameters():
            p.add_(0.3 * numbers(*p.shape, seed=3))
    return model, model.check(data)


@pytest.mark.parametrize(("loss", "kl", "name"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_direct_bound_is_pyros_bound(loss, kl, name):
    model, data = warmed(name)
    pyro.set_rng_seed(7)
    ours = direct(model, data, kl)
    our_gradients = gradients(ours, model)
    pyro.set_rng_seed(7)
    theirs = loss(max_plate_nesting=1).differentiable_loss(model.model, model.guide, data)
    their_gradients = gradients(-theirs, model)
    torch.testing.assert_close(ours, -theirs, rtol=1e-10, atol=1e-10)
    assert set(our_gradients) == set(their_gradients) == {name for name, _ in model.named_parameters()}
    for parameter, gradient in our_gradients.items() if name in PATHWISE else ():
        torch.testing.assert_close(gradient, their_gradients[parameter], rtol=1e-8, atol=1e-9, msg=parameter)
    pyro.set_rng_seed(7)
    reported = loss(max_plate_nesting=1).loss(model.model, model.guide, data)
    assert reported == pytest.approx(-ours.item(), rel=1e-10)


@pytest.mark.parametrize("name", ["vae", "conditional vae", "mixture, full", "mixture, diagonal, prior", "local q"])
def test_minibatch_is_scaled_by_n_over_m(name):
    model, data = warmed(name)
    rows = torch.tensor([1, 4])
    batch = data.rows(rows)
    loss = enumerated(max_plate_nesting=1)
    pyro.set_rng_seed(3)
    ours = direct(model, batch, "sampled", rows, scale=6 / 2)
    pyro.set_rng_seed(3)
    theirs = loss.loss(model.model, model.guide, batch, index=rows, size=6)
    assert theirs == pytest.approx(-ours.item(), rel=1e-10)


def test_size_without_index_scales_too():
    model, data = warmed("mixture, full")
    loss = enumerated(max_plate_nesting=1)
    alone = loss.loss(model.model, model.guide, data)
    assert loss.loss(model.model, model.guide, data, size=60) == pytest.approx(10 * alone, rel=1e-10)


@pytest.mark.parametrize("name", ["vae", "conditional vae", "hierarchy", "mixture, full", "mixture, tied, prior"])
def test_a_literal_svi_step_moves_every_parameter(name):
    model, data = make(name)
    model.guide(data)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    loss = enumerated(max_plate_nesting=1) if "mixture" in name else Trace_ELBO()
    SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), loss).step(data)
    unmoved = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert before
    assert not unmoved


def test_literal_svi_on_a_mixture_climbs_to_the_fixed_point_of_em():
    model = mixture("spherical")
    x = torch.cat([numbers(40, 2) - 3, 0.5 * numbers(20, 2, seed=1) + 3])
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.05}), enumerated(max_plate_nesting=1))
    for _ in range(300):
        svi.step(x)
    with torch.no_grad():
        r = model.responsibilities(x)
    torch.testing.assert_close(model.mixing.probs, r.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(model.components.loc, (r.T @ x) / r.sum(0)[:, None], rtol=0, atol=1e-2)


@pytest.mark.parametrize(("name", "features"), [("vae", 6), ("conditional vae", 4), ("hierarchy", 3)])
def test_predictive_draws_from_the_posterior(name, features):
    model, data = warmed(name)
    drawn = Predictive(model.model, guide=model.guide, num_samples=3)(data)
    assert drawn["z"].shape == (3, 6, 2)
    assert drawn["x"].shape == (3, 6, features)
    assert not torch.equal(drawn["z"][0], drawn["z"][1])


def test_predictive_of_no_data_draws_from_the_prior():
    model, _ = make("vae")
    drawn = Predictive(model.model, num_samples=2)(None, size=5)
    assert (drawn["z"].shape, drawn["x"].shape) == ((2, 5, 2), (2, 5, 6))


def test_predictive_has_the_mixtures_mean():
    model = mixture("full")
    x = Predictive(model.model, num_samples=1)(None, size=20_000)["x"][0]
    mean = model.mixing.probs @ model.components.loc
    spread = x.std(0) / len(x) ** 0.5
    assert bool(((x.mean(0) - mean).abs() < 4 * spread).all())


@pytest.mark.parametrize("name", MODELS)
def test_trace_sites_of_the_programs_are_the_direct_sites(name):
    model, data = warmed(name)
    pyro.set_rng_seed(2)
    sites = trace_sites(model.model, model.guide, (data,))
    pyro.set_rng_seed(2)
    max_plate_nesting(model.model, model.guide, (data,))  # trace_sites counts the plates first, and draws for it
    shared, log_q = model.draw_shared()
    with model.bind(shared), model.numeric():
        expected = model.sites(data)
        torch.testing.assert_close(Elbo()(sites), Elbo()(expected), rtol=1e-10, atol=1e-10)
        log_p = model.log_prior(shared)
    assert (set(sites.summed), set(sites.enumerated)) == (set(expected.summed), set(expected.enumerated))
    if shared:
        torch.testing.assert_close((sites.shared_log_p, sites.shared_log_q), (log_p, log_q))


def test_trace_sites_of_a_plain_pair_is_the_hand_written_bound():
    x = numbers(5)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7]).double()), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Delta(torch.tensor(0.4, dtype=torch.float64)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 0.8))

    sites = trace_sites(model, guide, (x,))
    z = sites.values["z"]
    normal = torch.distributions.Normal
    likelihood = torch.stack([normal(z + k, 1.0).log_prob(x) for k in (0, 1)])
    weights = torch.tensor([0.3, 0.7]).double().log()
    expected = torch.logsumexp(likelihood + weights[:, None], 0) + normal(0.4, 1.0).log_prob(z)
    torch.testing.assert_close(Elbo()(sites), expected - normal(0.5 * x, 0.8).log_prob(z))
    torch.testing.assert_close(sites.shared_log_p, normal(0.0, 1.0).log_prob(torch.tensor(0.4, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("name", "parents"),
    [
        ("vae", {"z": [], "x": ["z"]}),
        ("hierarchy", {"top": [], "z": ["top"], "x": ["z"]}),
        ("two finite", {"b": ["a"]}),
    ],
)
def test_pyro_reads_the_graph_that_render_model_draws(name, parents):
    model, data = make(name)
    found = get_model_relations(model.model, (model.check(data),))
    for child, own in parents.items():
        assert [p for p in found["sample_sample"][child] if p != child] == own
    assert found["observed"] == ["x"]
    assert found["plate_sample"] == {"data": list(found["sample_sample"])}
