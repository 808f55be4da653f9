"""From plain Pyro to ArviZ: marginal likelihoods by hand, plates as dimensions, every kind of result."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal

import ppl_vae as pv

X = torch.tensor([-1.5, 0.2, 1.0, 2.5])
N = torch.distributions.Normal


@config_enumerate
def mixture(x, width=None):
    """Two normals with a common scale; the component is summed out."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    scale = 1.0 if width is None else width
    with pyro.plate("datum", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(loc[z.long()], scale), obs=x)


def mixture_by_hand(loc, p, x):
    return torch.logsumexp(
        torch.stack([(1 - p).log() + N(loc[0], 1.0).log_prob(x), p.log() + N(loc[1], 1.0).log_prob(x)]), 0
    )


def draws(**shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(*shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def sampled():
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(mixture), num_samples=12, warmup_steps=12, disable_progbar=True, num_chains=1)
    mcmc.run(X)
    return mcmc


def test_a_sampler_with_an_enumerated_site(sampled):
    tree = pv.from_pyro(sampled)  # the sampler remembers its arguments
    assert tree["posterior"]["loc"].shape == (1, 12, 2)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "datum")
    values = sampled.get_samples()
    expected = torch.stack([mixture_by_hand(a, b, X) for a, b in zip(values["loc"], values["p"], strict=True)])
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0], expected, rtol=1e-5)
    prior = N(0.0, 2.0).log_prob(values["loc"]).sum(-1)
    np.testing.assert_allclose(tree["log_prior"]["loc"].values[0], prior, rtol=1e-5)
    assert tree["sample_stats"]["diverging"].dtype == bool
    np.testing.assert_array_equal(tree["observed_data"]["x"].values, X)
    assert tree["posterior_predictive"]["x"].shape == (1, 12, 4)
    assert tree["prior"]["p"].shape == (1, 500)
    assert tree["prior_predictive"]["x"].shape == (1, 500, 4)
    assert tree["log_likelihood"]["x"].attrs["datum"] == "an element of datum; z summed out"


def test_divergences_are_marked(sampled):
    before = sampled._diagnostics
    sampled._diagnostics = [{"divergences": [2, 7], "acceptance rate": 0.9}]
    try:
        tree = pv.from_pyro(sampled, X)
    finally:
        sampled._diagnostics = before
    assert np.flatnonzero(tree["sample_stats"]["diverging"].values[0]).tolist() == [2, 7]
    assert tree.attrs["acceptance_rate_by_chain"] == [0.9]


def test_a_pair_after_svi():
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    guide = AutoNormal(pyro.poutine.block(mixture, hide=["z"]))
    svi = SVI(mixture, guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(5):
        svi.step(X)
    tree = pv.from_pyro((mixture, guide), X, num_samples=40)
    posterior = tree["posterior"]
    assert set(posterior.data_vars) == {"loc", "p"}
    loc, p = torch.as_tensor(posterior["loc"].values[0, 7]), torch.as_tensor(posterior["p"].values[0, 7])
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0, 7], mixture_by_hand(loc, p, X), rtol=1e-5)
    # The draws are those of the guide: its means are the means of loc.
    expected = guide.median()["loc"].detach()
    scale = pyro.param("AutoNormal.scales.loc").detach()
    error = 4 * scale / 40**0.5
    assert (torch.as_tensor(posterior["loc"].values[0].mean(0)) - expected).abs().le(error).all()
    pyro.clear_param_store()


def test_draws_of_predictive_keep_their_predictions():
    samples = {"loc": draws(a=(6, 2))["a"], "p": torch.full((6,), 0.4)}
    predicted = Predictive(mixture, samples)(X)
    tree = pv.from_pyro({**samples, "x": torch.zeros(6, 4)}, X, model=mixture)
    assert "x" in predicted  # Pyro's own holds the data there
    np.testing.assert_array_equal(tree["posterior_predictive"]["x"].values, np.zeros((1, 6, 4)))
    np.testing.assert_allclose(
        tree["log_likelihood"]["x"].values[0, 2], mixture_by_hand(samples["loc"][2], samples["p"][2], X), rtol=1e-5
    )


def documents(words):
    """A topic for each document is summed out; words of a document are one datum."""
    probs = pyro.sample("probs", dist.Dirichlet(torch.ones(2, 3)).to_event(1))
    with pyro.plate("documents", words.shape[1], dim=-1):
        topic = pyro.sample("topic", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("words", words.shape[0], dim=-2):
            pyro.sample("word", dist.Categorical(pyro.ops.indexing.Vindex(probs)[topic.long()]), obs=words)


def test_words_of_a_document_are_one_datum():
    words = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 2], [1, 0, 2, 2]])
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    tree = pv.from_pyro({"probs": probs.expand(3, 2, 3)}, words, model=documents)
    each = probs.log()[:, words].sum(1)  # [topic, documents]
    expected = torch.logsumexp(torch.tensor([0.7, 0.3]).log()[:, None] + each, 0)
    assert tree["log_likelihood"]["word"].dims == ("chain", "draw", "documents")
    np.testing.assert_allclose(tree["log_likelihood"]["word"].values[0, 1], expected, rtol=1e-5)
    assert tree["observed_data"]["word"].dims == ("words", "documents")


def test_plates_without_enumeration_keep_every_cell():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 2, dim=-2):
                pyro.sample("x", dist.Normal(mu + shift, 1.0), obs=x)
                pyro.sample("y", dist.Poisson(mu.exp()), obs=x.abs().round())

    x = torch.arange(6.0).reshape(2, 3)
    values = {"mu": torch.tensor([0.1, 0.2]), "shift": draws(a=(2, 3))["a"]}
    tree = pv.from_pyro(values, x, model=model)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "rows", "columns")
    expected = N(0.2 + values["shift"][1], 1.0).log_prob(x)
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0, 1], expected, rtol=1e-5)
    assert tree["posterior"]["shift"].dims == ("chain", "draw", "columns")
    assert tree["log_likelihood"]["y"].shape == (1, 2, 2, 3)


def test_states_of_a_chain_are_summed_out_together():
    """A hidden Markov model against the forward recursion; several observed sites make one datum."""

    @config_enumerate
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("sequences", len(x)):
            z = 0
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Bernoulli(torch.stack([p, 1 - p])[torch.as_tensor(z).long()]))
                pyro.sample(f"x_{t}", dist.Normal(2 * z, 1.0), obs=x[:, t])

    x = torch.tensor([[0.1, 1.8, 2.2], [-0.4, 0.3, 1.9]])
    p = torch.tensor(0.3)
    tree = pv.from_pyro({"p": p.expand(2)}, x, model=model)
    transition = torch.stack([torch.stack([1 - p, p]), torch.stack([p, 1 - p])])
    alpha = torch.stack([1 - p, p]).log() + N(torch.tensor([0.0, 2.0]), 1.0).log_prob(x[:, :1])
    for t in (1, 2):
        step = torch.logsumexp(alpha[:, :, None] + transition.log(), 1)
        alpha = step + N(torch.tensor([0.0, 2.0]), 1.0).log_prob(x[:, t : t + 1])
    np.testing.assert_allclose(tree["log_likelihood"]["joint"].values[0, 0], alpha.logsumexp(1), rtol=1e-5)
    assert "x_0, x_1, x_2 together" in tree["log_likelihood"]["joint"].attrs["datum"]


def test_a_drawn_latent_under_a_summed_one_is_given():
    """log p(x | u, theta) = log p(x, u | theta) - log p(u | theta)."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            u = pyro.sample("u", dist.Normal(mu + z, 1.0))
            pyro.sample("x", dist.Normal(u + z, 1.0), obs=x)

    mu, u = torch.tensor([0.3]), torch.tensor([[0.1, -0.2, 0.8, 1.1]])
    tree = pv.from_pyro({"mu": mu, "u": u}, X, model=model)
    log_pz = torch.tensor([0.6, 0.4]).log()[:, None]
    z = torch.tensor([0.0, 1.0])[:, None]
    of_u = log_pz + N(mu + z, 1.0).log_prob(u)
    expected = torch.logsumexp(of_u + N(u + z, 1.0).log_prob(X), 0) - torch.logsumexp(of_u, 0)
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(tree["log_prior"]["u"].values[0, 0], torch.logsumexp(of_u, 0).sum(), rtol=1e-5)


def test_scales_masks_and_inputs():
    def model(x, slope, keep):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", len(x)), pyro.poutine.scale(scale=3.0), pyro.poutine.mask(mask=keep):
            pyro.sample("x", dist.Normal(w * slope, 1.0), obs=x)

    slope, keep = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([True, True, False, True])
    tree = pv.from_pyro({"w": torch.tensor([0.5])}, X, slope, keep, model=model)
    expected = torch.where(keep, N(0.5 * slope, 1.0).log_prob(X), 0.0)
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0, 0], expected, rtol=1e-5)
    assert set(tree["constant_data"].data_vars) == {"slope", "keep"}
    assert tree["constant_data"]["slope"].dims == ("datum",)


def test_names_of_ones_own():
    values = {"loc": torch.zeros(3, 2), "p": torch.full((3,), 0.5)}
    tree = pv.from_pyro(values, X, model=mixture, dims={"loc": ["side"]}, coords={"side": ["left", "right"]})
    assert tree["posterior"]["side"].values.tolist() == ["left", "right"]


def test_a_plate_named_like_a_site():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("x", len(x)):
            pyro.sample("x_site", dist.Normal(mu, 1.0), obs=x)
        with pyro.plate("mu_", 1):
            pass

    tree = pv.from_pyro({"mu": torch.zeros(2)}, X, model=model)
    assert tree["log_likelihood"]["x_site"].dims == ("chain", "draw", "x")


def test_what_cannot_be_read_is_told():
    with pytest.raises(pv.EngineError, match="pass model="):
        pv.from_pyro({"loc": torch.zeros(2, 2)}, X)
    with pytest.raises(pv.EngineError, match="lack the latent 'p'"):
        pv.from_pyro({"loc": torch.zeros(2, 2)}, X, model=mixture)
    with pytest.raises(pv.EngineError, match="got list"):
        pv.from_pyro([1], X, model=mixture)

    def minibatch(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])

    with pytest.raises(pv.EngineError, match="subsample_size"):
        pv.from_pyro({"mu": torch.zeros(2)}, X, model=minibatch)


def test_control_flow_on_values_runs_draw_by_draw():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = 1.0 if mu > 0 else 2.0
        with pyro.plate("datum", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    mu = torch.linspace(-1, 1, 20)
    tree = pv.from_pyro({"mu": mu}, X, model=model)
    expected = torch.stack([N(m, 1.0 if m > 0 else 2.0).log_prob(X) for m in mu])
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0], expected, rtol=1e-5)


def test_fits_of_a_pyro_pair():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("datum", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    fit = pv.NUTS(20, warmup=30, num_chains=2, progress=False).fit(model, X)
    tree = fit.to_datatree()
    mu = fit.draws["mu"]
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values, N(mu[..., None], 1.0).log_prob(X), rtol=1e-5)
    assert {"energy", "tree_depth", "lp", "step_size", "acceptance_rate"} <= set(tree["sample_stats"].data_vars)


def test_latents_of_each_datum_are_integrated_out_of_a_fit():
    """x ~ N(0, 2) when z ~ N(0, 1): the fit's importance weights against the closed form."""

    def model(x):
        with pyro.plate("datum", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("datum", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

    fit = pv.SVI(1, optimizer=pv.adam(1e-9), progress=False).fit((model, guide), X)
    tree = fit.to_datatree()
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0, 0], N(0.0, 2**0.5).log_prob(X), rtol=1e-3)
    plain = pv.SVI(1, objective=Trace_ELBO(), optimizer=pv.adam(1e-9), progress=False).fit((model, guide), X)
    assert plain.to_datatree()["posterior"]["slope"].shape == (1, 1)
