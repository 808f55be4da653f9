"""One declaration, one number: every engine computes the same log joint, and every engine keeps the common laws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.mixture import GaussianMixture as ScikitMixture

import ppl_vae as pv
from ppl_vae.infer.potential import Potential

FORMS = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


@pytest.fixture(scope="module")
def x():
    return pv.data.faithful().values[::3]


@pytest.mark.param_store
@pytest.mark.parametrize("form", FORMS)
def test_engines_agree(x, form):
    """EM's objective = enumerated log joint = TraceEnum_ELBO = minus NUTS's potential up to the constraint Jacobian."""
    model = pv.models.GaussianMixture(2, 2, form, prior="weak")
    em = pv.EM(progress=False, max_iter=5).fit(model, x)
    values = em.draw(0)
    objective = em.trace["bound"][-1].item()

    direct = em.model.log_prob(x).sum().item() + em.model.log_prior(values).item()
    assert direct == pytest.approx(objective, rel=1e-12)

    # Shared latents fixed to these values, q a point mass: the bound is the enumerated log joint.
    conditioned = pyro.poutine.condition(em.model.model, data=values)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(conditioned, lambda data: None, x)
    assert -loss == pytest.approx(objective, rel=1e-12)

    potential = Potential(em.model, em.model.check(x), torch.ones(len(x), dtype=torch.float64))
    u = potential.layout.unconstrain(values)
    log_jacobian = potential.layout.constrain(u)[1].item()
    assert potential.log_density(u).item() - log_jacobian == pytest.approx(objective, rel=1e-12)

    # Pyro's own NUTS potential, on the same unconstrained point; its bijections are the same ones.
    _, function, transforms, _ = pyro.infer.mcmc.util.initialize_model(
        em.model.model, (x,), initial_params={k: torch.zeros(1) for k in values}, max_plate_nesting=1
    )
    unconstrained = {name: transforms[name](value) for name, value in values.items()}
    jacobian = sum(
        -transforms[name].log_abs_det_jacobian(value, unconstrained[name]).sum() for name, value in values.items()
    )
    assert -function(unconstrained).item() - jacobian.item() == pytest.approx(objective, rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_em_equals_scikit_learn_from_its_start(x, form):
    """T10: the same start, the same number of iterations, the same parameters to 1e-8."""
    spread = torch.cov(x.T)
    start = {
        "mixing.probs": torch.tensor([0.4, 0.6], dtype=torch.float64),
        "components.loc": torch.tensor([[2.5, 60.0], [4.0, 75.0]], dtype=torch.float64),
        "components.covariance": {
            "full": spread.repeat(2, 1, 1),
            "tied": spread,
            "diagonal": spread.diagonal().repeat(2, 1),
            "spherical": torch.full((2,), 20.0, dtype=torch.float64),
        }[form],
    }
    c = start["components.covariance"]
    precisions = torch.linalg.inv(c) if form in ("full", "tied") else 1 / c
    with pytest.warns(match="did not converge"):
        theirs = ScikitMixture(
            2, covariance_type=FORMS[form], reg_covar=0, tol=0, max_iter=6, weights_init=start["mixing.probs"].numpy(),
            means_init=start["components.loc"].numpy(), precisions_init=precisions.numpy(),
        ).fit(x.numpy())  # fmt: skip
    # EM records the objective before each update: six updates are seven records.
    ours = (
        pv.EM(start=start, tol=0, max_iter=7, progress=False).fit(pv.models.GaussianMixture(2, 2, form), x).parameters
    )
    expected = {
        "mixing.probs": theirs.weights_, "components.loc": theirs.means_, "components.covariance": theirs.covariances_
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], torch.as_tensor(value), rtol=1e-8, atol=1e-8)


# The laws: every engine on every model that it claims.


class Rates(pv.LatentVariableModel):
    """Counts with a rate of their own each: a shared latent and a continuous one per datum without a posterior."""

    @pv.latent(shared=True)
    def mean(self):
        return dist.Normal(0.0, 2.0)

    @pv.latent
    def log_rate(self, mean):
        return dist.Normal(mean, 0.5)

    @pv.observed
    def x(self, log_rate):
        return dist.Poisson(log_rate.exp())


def mixture(**options):
    return lambda: pv.models.GaussianMixture(2, 2, **options)


def vae(likelihood, width=1):
    def make():
        encoder, decoder = pv.nets.mlp_encoder(2, 8, 1), pv.nets.mlp_decoder(1, 8, 2 * width)
        return pv.models.VAE(encoder, decoder, likelihood)

    return make


def plane(x):
    return x


def counts(x):
    return x[:, 1].round() % 7


def single(x):
    return ((x - x.mean(0)) / x.std(0)).float()


def bits(x):
    return (single(x) > 0).float()


ENGINES = {
    "EM": lambda: pv.EM(progress=False),
    "SVI": lambda: pv.SVI(4, batch_size=40, optimizer=pv.adam(1e-2), num_draws=8, progress=False),
    "NUTS": lambda: pv.NUTS(6, warmup=10, num_chains=2, progress=False),
    "VB": lambda: pv.VB(num_draws=8, progress=False),
}
MODELS = {
    "mixture": (mixture(), plane, {"EM", "SVI"}),
    "mixture, tied": (mixture(covariance="tied"), plane, {"EM", "SVI"}),
    "mixture, diagonal": (mixture(covariance="diagonal"), plane, {"EM", "SVI"}),
    "mixture, spherical": (mixture(covariance="spherical"), plane, {"EM", "SVI"}),
    "mixture with priors": (mixture(prior="weak"), plane, {"EM", "SVI", "NUTS", "VB"}),
    "mixture with priors, tied": (mixture(prior="weak", covariance="tied"), plane, {"EM", "SVI", "NUTS", "VB"}),
    "mixture with priors, diagonal": (mixture(prior="weak", covariance="diagonal"), plane, {"EM", "SVI", "NUTS", "VB"}),
    "mixture with priors, spherical": (
        mixture(prior="weak", covariance="spherical"),
        plane,
        {"EM", "SVI", "NUTS", "VB"},
    ),
    "vae, bernoulli": (vae("bernoulli"), bits, {"SVI"}),
    "vae, gaussian": (vae("gaussian"), single, {"SVI"}),
    "vae, gaussian-learned": (vae("gaussian-learned"), single, {"SVI"}),
    "vae, gaussian-network": (vae("gaussian-network", 2), single, {"SVI"}),
    "rates": (Rates, counts, {"SVI", "NUTS"}),
}
CLAIMS = [(name, engine) for name, (_, _, engines) in MODELS.items() for engine in sorted(engines)]


def fitted(name, engine, x):
    make, view, _ = MODELS[name]
    torch.manual_seed(0)
    model, data = make(), view(x)
    return model, data, ENGINES[engine]().fit(model, data)


@pytest.mark.parametrize(("name", "engine"), CLAIMS)
def test_law_seed_gives_the_same_fit(x, name, engine):
    _, _, one = fitted(name, engine, x)
    _, _, two = fitted(name, engine, x)
    states = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(torch.equal(one.draws[key], two.draws[key]) for key in one.draws)


@pytest.mark.parametrize(("name", "engine"), CLAIMS)
def test_law_save_and_load(x, name, engine, tmp_path):
    model, data, fit = fitted(name, engine, x)
    again = pv.Fit.load(fit.save(tmp_path / "fit.safetensors"), model)
    assert (again.engine, again.seed, again.status, again.bound) == (fit.engine, fit.seed, fit.status, fit.bound)
    for key, value in fit.draws.items():
        assert torch.equal(again.draws[key], value)
    torch.manual_seed(1)
    expected = fit.elbo(data)
    torch.manual_seed(1)
    torch.testing.assert_close(again.elbo(data), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "engine"), [claim for claim in CLAIMS if claim[0].startswith("mixture")])
def test_law_a_fit_is_not_read_into_another_number_of_components(x, name, engine, tmp_path):
    _, _, fit = fitted(name, engine, x)
    settings = {"covariance": name.partition(", ")[2] or "full", "prior": "weak" if "priors" in name else None}
    with pytest.raises(pv.DataError, match=r"does not fit this GaussianMixture: .* in the file and"):
        pv.Fit.load(fit.save(tmp_path / "fit.safetensors"), pv.models.GaussianMixture(3, 2, **settings))


@pytest.mark.parametrize(("name", "engine"), CLAIMS)
def test_law_fit_leaves_no_trace(x, name, engine):
    make, view, _ = MODELS[name]
    model, data = make(), view(x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    fit = ENGINES[engine]().fit(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert len(pyro.get_param_store()) == 0
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert fit.model is not model


@pytest.mark.parametrize(("name", "engine"), [claim for claim in CLAIMS if claim[1] == "SVI"])
def test_law_every_parameter_moves(x, name, engine):
    make, view, _ = MODELS[name]
    torch.manual_seed(0)
    model, data = make(), view(x)
    short = pv.SVI(1, optimizer=pv.adam(1e-2), num_draws=2, progress=False).fit(model, data)
    longer = pv.SVI(3, optimizer=pv.adam(1e-2), num_draws=2, progress=False).fit(model, data)
    first, last = dict(short.model.named_parameters()), dict(longer.model.named_parameters())
    assert first
    still = [key for key, value in first.items() if torch.equal(value, last[key])]
    assert not still


@pytest.mark.parametrize(("name", "engine"), CLAIMS)
def test_law_answers_are_finite_and_of_the_right_shape(x, name, engine):
    _, data, fit = fitted(name, engine, x)
    n = len(data)
    assert fit.log_predictive(data, 20).shape == (n,)
    assert torch.isfinite(fit.log_predictive(data, 20)).all()
    # The bound is below log p(x), beyond Monte-Carlo noise of the mean over data.
    bound, evidence = fit.elbo(data, 20), fit.log_predictive(data, 200)
    noise = 4 * (bound - evidence).std() / n**0.5 + 1e-6
    assert bound.mean() <= evidence.mean() + noise
    assert fit.sample(5).shape == (5, *data.shape[1:])
    assert fit.reconstruct(data).shape == data.shape


@pytest.mark.parametrize(
    ("name", "engine"),
    [(n, e) for n, (_, _, engines) in MODELS.items() for e in sorted({"EM", "NUTS", "VB"} - engines)],
)
def test_law_what_an_engine_does_not_claim_it_refuses(x, name, engine):
    with pytest.raises(pv.EngineError, match=r"free parameters|finite|VB"):
        fitted(name, engine, x)
