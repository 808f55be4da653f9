"""Every objective on every declared model: finite, with gradients, the same as a graph, or a clear refusal."""

import pyro
import pytest
import torch
from example_models import MODELS, bits, make
from shipped_models import OTHERS, SHIPPED

import ppl_vae as pv
from ppl_vae.errors import EngineError
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import make_batches
from ppl_vae.infer.step import Step
from ppl_vae.objectives import Elbo

OBJECTIVES = {  # elbo and iwae are in tests/infer/test_step.py
    "dreg": pv.iwae(3, gradient="dreg"),
    "infovae": pv.infovae(0.5, 4.0, num_particles=2),
    "tc": pv.tc_elbo(size=20, beta=3.0, num_particles=2),
}
EVERYDAY = [
    "vae", "gaussian vae", "vae with NaN", "conditional vae", "hierarchy", "linear vae", "poisson latent", "local q",
    "mixture vae", "two finite", "finite posterior, partly observed", "mixture, full, prior", "shared by hand", *OTHERS,
]  # fmt: skip
WITHOUT_Q = {
    *(name for name in [*MODELS, *OTHERS] if "mixture" in name and name not in ("mixture vae", "GMVAE, its mixture")),
    *(name for name in OTHERS if "CodePrior" in name),
    *(name for name in MODELS if name.startswith("two finite")),
    "shared by hand",
}
REFUSED = {
    **{("infovae", name): "no latent of this model has a q" for name in WITHOUT_Q},
    **{("tc", name): "no density for each unit" for name in OTHERS if "VQVAE" in name},
    **{("tc", f"VAE, posterior {name}"): "no density for each unit" for name in ("Flow", "inverse_autoregressive")},
    ("infovae", "poisson latent"): "Poisson, has none",
    ("dreg", "poisson latent"): 'Poisson, has none; take gradient="standard"',
}


@pytest.fixture(autouse=True)
def unchecked():
    with pyro.validation_enabled(False):
        yield


def prepared(name, objective):
    return on(*make(name), objective)


def on(model, data, objective):
    batches = make_batches(model, data)
    model.adapt(batches.first)
    if model.shared_laws():
        torch.manual_seed(0)
        model.use_guide("normal")
    with model.numeric():
        model.allocate(batches.first, batches.size)
    climbed = ModelObjective(model.train(), objective, batches.total, annealed=True)
    if not climbed.dense and not climbed.sparse:
        pytest.skip("no parameter")
    return Step(climbed, None, "trace"), next(batches.epoch(0))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in EVERYDAY else [pytest.mark.slow]) for n in (*MODELS, *SHIPPED)],
)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_any_objective_on_any_model(kind, name):
    step, batch = prepared(name, OBJECTIVES[kind])
    if (kind, name) in REFUSED:
        step.run_eagerly()
        with pytest.raises(EngineError, match=REFUSED[kind, name]):
            step.gradient(batch)
        return
    assert step.verify(batch, beta=0.7) < 1e-12
    assert step.mode == "trace"
    result, gradients = step.gradient(batch, beta=0.7)
    assert bool(result.objective.isfinite())
    assert all(bool(g.isfinite().all()) for g in gradients)
    names = [*step.climbed.names, *step.climbed.row_names]
    still = {name for name, g in zip(names, gradients, strict=True) if not g.any()}
    plain, batch = prepared(name, Elbo())
    plain.run_eagerly()
    expected = plain.gradient(batch)[1]
    assert still <= {name for name, g in zip(names, expected, strict=True) if not g.any()}


PRIORS = {
    "mixture": lambda: pv.priors.Mixture(3, 2),
    "VampPrior": lambda: pv.priors.Vamp(3, 6),
    "flow": lambda: pv.priors.real_nvp(2, 2),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_any_objective_with_any_prior(kind, prior):
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(6, 5, 2), pv.nets.mlp_decoder(2, 5, 6), prior=PRIORS[prior]())
    step, batch = on(vae.double(), bits(6, 6), OBJECTIVES[kind])
    assert step.verify(batch, beta=0.7) < 1e-12
    assert step.mode == "trace"
    assert all(bool(g.isfinite().all()) for g in step.gradient(batch, beta=0.7)[1])


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_row_of_weight_zero_counts_for_nothing(kind):
    """The same draws with other values in the rows of weight 0: the same sums and gradients."""
    model, x = make("linear vae")
    objective, w = OBJECTIVES[kind], torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64)

    def value(x):
        torch.manual_seed(3)
        with model.numeric():
            total = w @ objective(model.sites(model.check(x).repeat(objective.num_particles)), 0.7, w)
        return total, *torch.autograd.grad(total, list(model.parameters()))

    other = x.clone()
    other[4:] = x[0]
    for one, two in zip(value(x), value(other), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "kind", [pv.elbo(2), pv.infovae(0.0, 1.0, num_particles=2), pv.tc_elbo(20, 1.0, num_particles=2)]
)
def test_settings_that_are_the_bound_are_it(kind):
    """At the same draws: alpha = 0, lambda = 1 of InfoVAE; three parts of weight 1, whatever the size."""
    model, x = make("hierarchy")
    assert kind.is_bound
    obs = model.check(x).repeat(2)
    with model.numeric():
        sites = model.sites(obs)
    torch.testing.assert_close(kind(sites), pv.elbo(2)(sites), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", [pv.iwae(2, "dreg"), pv.infovae(1.0, 10.0), pv.tc_elbo(40, 4.0)])
def test_the_bound_reported_is_the_true_one(objective):
    """Of a step that does not move, against the model's own bound over many draws."""
    torch.manual_seed(0)
    model, _ = make("linear vae")
    x = model.sample(40)
    fit = pv.SVI(3, optimizer=pv.sgd(1e-12), objective=objective, progress=False, seed=4).fit(model, x)
    with torch.no_grad(), model.numeric():
        draws = pv.elbo().particles(model.sites(model.check(x).repeat(2000))).reshape(2000, -1).mean(1)
    error = draws.std() / fit.model.like.new_tensor(objective.num_particles).sqrt()
    assert bool(((fit.trace["bound"] - draws.mean()).abs() < 4 * error).all())
    assert bool((fit.trace["objective"] != fit.trace["bound"]).all())


def test_t17_without_the_divergence_the_reconstruction_is_trained_and_the_true_bound_reported():
    torch.manual_seed(0)
    model, _ = make("linear vae")
    x = model.sample(60)
    engine = pv.SVI(150, optimizer=pv.adam(0.02), beta=0.0, progress=False, compile="off")
    fit = engine.fit(model, x)
    # Of E_q log p(x | z) alone the best q is a point: its scale shrinks, and the bound falls without limit.
    assert bool((fit.model.encoder(x)[1] < 0.5 * model.encoder(x)[1]).all())
    assert fit.trace["objective"][-1] > fit.trace["objective"][0] + 1
    assert fit.trace["bound"][-1] < fit.trace["objective"][-1] - 1
    bound = fit.elbo(x, 400).mean().item()
    assert fit.trace["bound"][-5:].mean().item() == pytest.approx(bound, abs=0.3)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: pv.iwae(3, gradient="double"), "'double'"),
        (lambda: pv.iwae(0), "at least 1, got 0"),
        (lambda: pv.iwae(2.5), "at least 1, got 2.5"),
        (lambda: pv.elbo(2.5), "at least 1, got 2.5"),
        (lambda: pv.elbo(True), "at least 1, got True"),
        (lambda: pv.infovae(1.5, 2.0), "alpha=1.5"),
        (lambda: pv.infovae(0.0, 0.5), "lambda_=0.5"),
        (lambda: pv.infovae(0.0, 1.0, kernel="linear"), "imq, rbf"),
        (lambda: pv.infovae(0.0, 1.0, scale=0.0), "got 0.0"),
        (lambda: pv.tc_elbo(0), "got 0"),
        (lambda: pv.tc_elbo(10, beta=-1.0), "-1.0"),
    ],
)
def test_wrong_settings_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()
