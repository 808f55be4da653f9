"""Ordinary Pyro programs in every engine."""

from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from scipy.optimize import minimize
from torch.distributions import constraints

import ppl_vae as pv
from ppl_vae.infer.processes import Share


@config_enumerate
def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([1.5, 4.5]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def hierarchy(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.fixture(scope="module")
def x():
    return pv.data.faithful().values[:, 0].float()


@pytest.fixture(scope="module")
def best(x):
    fit = pv.EM(n_init=5, progress=False).fit(pv.models.GaussianMixture(2, 1), x.double())
    return fit.log_prob(x.double()).sum().item()


def test_em_reaches_the_closed_form_answer_and_never_falls(x, best):
    fit = pv.EM(progress=False).fit(mixture, x)
    assert fit.log_prob(x).sum().item() == pytest.approx(best, abs=0.02)
    assert fit.trace["bound"].diff().min() > -1e-3 * abs(best) / 272
    assert fit.responsibilities(x).shape == (272, 2)
    assert fit.labels(x).unique().tolist() == [0, 1]


def test_svi_reaches_it_too(x, best):
    fit = pv.SVI(600, optimizer=pv.adam(2e-2), progress=False).fit((mixture, lambda x: None), x)
    assert fit.log_prob(x).sum().item() == pytest.approx(best, abs=0.05)


def test_automatic_guide_with_a_shared_latent(x):
    fit = pv.SVI(800, optimizer=pv.adam(3e-2), num_draws=500, progress=False).fit((hierarchy, AutoNormal(hierarchy)), x)
    # mu's posterior: precision 1/25 + n / (1 + 0.25), mean close to the data's.
    assert fit.draws["mu"].mean().item() == pytest.approx(x.mean().item(), abs=0.15)
    assert fit.elbo(x).shape == (272,)


def test_nuts_samples_a_plain_model(x):
    fit = pv.NUTS(60, warmup=60, num_chains=1, progress=False).fit(hierarchy, x[:20])
    assert fit.draws["mu"].shape == (1, 60)
    assert fit.draws["z"].shape == (1, 60, 20)
    n = 20
    precision = 1 / 25 + n / 1.25
    mean, sd = (n / 1.25 * x[:20].mean()) / precision, precision**-0.5
    assert abs(fit.draws["mu"].mean() - mean) < 5 * sd / 10**0.5


def test_what_a_pair_cannot_do_is_said(x):
    with pytest.raises(pv.EngineError, match="loc, scale, weights"):
        pv.NUTS(5, warmup=5, num_chains=1, progress=False).fit(mixture, x)
    with pytest.raises(pv.EngineError, match="batch_size, beta are for declared models"):
        pv.SVI(5, beta=0.5, batch_size=3, progress=False).fit((mixture, nothing), x)
    with pytest.raises(pv.EngineError, match="no weights"):
        pv.SVI(5, progress=False).fit((mixture, nothing), x, weights=torch.ones(272))
    with pytest.raises(pv.EngineError, match="no parameter"):
        pv.SVI(5, progress=False).fit((hierarchy, lambda x: hierarchy_draws(x)), x)
    with pytest.raises(pv.EngineError, match="one of Pyro's losses"):
        pv.svi_step((mixture, nothing), pv.adam(1e-3), objective=pv.elbo())


def test_what_a_fit_of_a_pair_cannot_do_is_said_with_what_can(x, tmp_path):
    fit = pv.SVI(2, num_draws=5, progress=False).fit((hierarchy, AutoNormal(hierarchy)), x)
    with pytest.raises(pv.EngineError, match=r"checkpoint=.*torch.save dict\(fit.parameters\)"):
        fit.save(tmp_path / "fit.safetensors")
    with pytest.raises(pv.EngineError, match=r"log_prob\(data\).*to_datatree"):
        fit.diagnose()
    torch.save([dict(fit.parameters), fit.draws], tmp_path / "fit.pt")
    assert torch.load(tmp_path / "fit.pt")[1]["mu"].shape == (1, 5)
    assert fit.log_prob(x, 10).shape == fit.elbo(x).shape == (272,)
    assert fit.to_datatree()["posterior"]["mu"].shape == (1, 5)


IGNORED = {
    "batch_size": 3,
    "guide": "multivariate",
    "beta": 0.5,
    "validation": torch.ones(3),
    "start": {"loc": torch.zeros(2)},
    "accumulate": 2,
    "precision": "bf16",
    "alternate": pv.alternate(),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_means_nothing_for_a_pair_is_refused(name, x):
    with pytest.raises(pv.EngineError, match=f"{name} are for declared models|{name} is for declared models"):
        pv.SVI(5, **{name: IGNORED[name]}, progress=False).fit((mixture, nothing), x)


def nothing(x):
    """The guide of a model in which everything is enumerated."""


def hierarchy_draws(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_pair_takes_a_loss_of_its_own(x):
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    fit = pv.SVI(20, objective=loss, compile="trace", progress=False).fit((mixture, nothing), x)
    assert fit.settings["compile"] == "trace"
    assert fit.bound == "TraceEnum_ELBO, nats per datum"
    assert fit.trace["bound"][-1] > fit.trace["bound"][0]


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_running_statistics_see_every_step_once(x, mode):
    norm = torch.nn.BatchNorm1d(1)

    def model(x):
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(norm(x[:, None])[:, 0], 1.0), obs=x)

    pv.SVI(3, compile=mode, progress=False).fit((model, nothing), x)
    assert norm.num_batches_tracked == 3
    assert norm.running_mean.item() == pytest.approx((1 - 0.9**3) * x.mean().item(), rel=1e-4)


def normalised():
    """A guide with running statistics, and a latent outside the plate, of which a fit keeps draws."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))

    def guide(x):
        pyro.module("net", net)
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 0.5))

    return net, (hierarchy, guide)


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_running_statistics_are_those_of_pyro_and_draws_leave_them(x, mode):
    theirs, (model, guide) = normalised()
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 1e-6}), pyro.infer.Trace_ELBO())
        for _ in range(5):
            svi.step(x)
    ours, pair = normalised()
    pv.SVI(5, optimizer=pv.sgd(1e-6), compile=mode, progress=False).fit(pair, x)
    assert ours[0].num_batches_tracked == theirs[0].num_batches_tracked == 5
    torch.testing.assert_close(ours[0].running_mean, theirs[0].running_mean)


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_running_statistics_go_on_too(x, mode, tmp_path):
    settings = {"compile": mode, "num_draws": 2, "progress": False, "optimizer": pv.adam(1e-2)}

    class PowerCut(pv.Callback):
        def end(self, run, step, metrics):
            if step == 3:
                raise RuntimeError("power cut")

    whole, pair = normalised()
    pv.SVI(6, **settings).fit(pair, x)
    with pytest.raises(RuntimeError, match="power cut"):
        pv.SVI(6, checkpoint=pv.checkpoints(tmp_path, steps=2), callbacks=[PowerCut()], **settings).fit(
            normalised()[1], x
        )
    for _ in range(2):  # resumed, then finished and given back
        again, pair = normalised()
        pv.SVI(6, checkpoint=tmp_path, **settings).fit(pair, x)
        assert all(torch.equal(a, b) for a, b in zip(whole[0].buffers(), again[0].buffers(), strict=True))


def test_an_interrupted_fit_of_a_pair_goes_on(x, tmp_path):
    pair = (hierarchy, AutoNormal(hierarchy))
    settings = {"compile": "trace", "num_draws": 2, "progress": False, "optimizer": pv.adam(1e-2)}
    whole = pv.SVI(6, **settings).fit(pair, x)

    class PowerCut(pv.Callback):
        def end(self, run, step, metrics):
            if step == 3:
                raise RuntimeError("power cut")

    pair = (hierarchy, AutoNormal(hierarchy))
    with pytest.raises(RuntimeError, match="power cut"):
        pv.SVI(6, checkpoint=pv.checkpoints(tmp_path, steps=2), callbacks=[PowerCut()], **settings).fit(pair, x)
    pair = (hierarchy, AutoNormal(hierarchy))
    resumed = pv.SVI(6, checkpoint=tmp_path, **settings).fit(pair, x)
    assert torch.equal(resumed.trace["bound"], whole.trace["bound"])
    assert all(torch.equal(value, whole.parameters[name]) for name, value in resumed.parameters.items())


def test_a_likelihood_that_is_no_number_ends_em_with_the_datum(x):
    bad = x.clone()
    bad[7] = 1e30  # its square is no float32
    fit = pv.EM(progress=False).fit(mixture, bad)
    assert fit.status.code == "failed"
    assert "became -inf at iteration 0: that of datum 7 is -inf" in fit.status.message
    assert len(fit.trace["bound"]) == 0
    assert "failed" in repr(fit)


def test_other_arguments_do_not_go_on(x, tmp_path):
    def scaled(x, scale):
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def at(x, scale):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    engine = pv.SVI(3, checkpoint=tmp_path, num_draws=2, progress=False)
    engine.fit((scaled, at), (x, 2.0))
    with pytest.raises(pv.EngineError, match="arguments"):
        engine.fit((scaled, at), (x, 3.0))


class Second(Share):
    """The second of two processes, which has what the first one has."""

    def agree(self, what, content):
        assert what
        assert isinstance(content, str | dict)

    def sum(self, tree):
        return tree


def test_only_the_first_process_writes_the_checkpoint_of_a_pair(x, tmp_path, monkeypatch):
    shares = iter([Second(1, 2), Share()])
    monkeypatch.setattr("ppl_vae.infer.pairs.joined", lambda device: nullcontext(next(shares)))
    seen = []

    class Sees(pv.Callback):
        def end(self, run, step, metrics):
            seen.append(run.leads)

    engine = pv.SVI(3, checkpoint=tmp_path / "run", callbacks=[Sees()], progress=False)
    second = engine.fit((mixture, nothing), x)
    assert not (tmp_path / "run").exists()
    first = engine.fit((mixture, nothing), x)
    assert any((tmp_path / "run").iterdir())
    assert seen == [False] * 3 + [True] * 3
    assert torch.equal(first.trace["bound"], second.trace["bound"])


def test_em_where_the_model_rules_a_value_out():
    """Data beyond 1 cannot be of the uniform component, whatever the parameters are."""
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([torch.rand(60, generator=draw), 1 + 2 * torch.rand(20, generator=draw)]).double()

    def model(x):
        w = pyro.param("w", torch.tensor(0.5).double(), constraint=constraints.unit_interval)
        rate = pyro.param("rate", torch.tensor(1.0).double(), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(w))
            uniform = torch.where(x < 1, 0.0, -torch.inf).double()
            pyro.factor("x", torch.where(z == 0, uniform, rate.log() - rate * x))

    def loss(free):
        w, rate, y = 1 / (1 + np.exp(-free[0])), np.exp(free[1]), x.numpy()
        return -np.log((1 - w) * (y < 1) + w * rate * np.exp(-rate * y)).sum()

    fit = pv.EM(progress=False, max_iter=300, tol=1e-12).fit(model, x)
    best = minimize(loss, np.zeros(2))
    assert fit.trace["bound"][-1].item() == pytest.approx(-best.fun, abs=1e-4)
    assert fit.parameters["rate"].item() == pytest.approx(np.exp(best.x[1]), rel=1e-2)


COUNTS = torch.tensor([0, 1, 2, 2, 3, 1, 4, 2, 12, 9, 14, 11, 10, 1, 3, 12], dtype=torch.float64)


class Counts(pv.LatentVariableModel):
    """What `counts` says, declared."""

    @pv.latent(shared=True)
    def w(self):
        return dist.Dirichlet(torch.tensor([2.0, 2.0]))

    @pv.latent(shared=True)
    def rate(self):
        return dist.Gamma(torch.tensor([2.0, 2.0]), 0.5).to_event(1)

    @pv.latent
    def z(self, w):
        return dist.Categorical(w)

    @pv.observed
    def x(self, z, rate):
        return dist.Poisson(rate[z])


def counts(x, rates):
    w = pyro.sample("w", dist.Dirichlet(torch.tensor([2.0, 2.0], dtype=x.dtype)))
    rate = rates(x)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(rate[z]), obs=x)


def as_event(x):
    return pyro.sample("rate", dist.Gamma(x.new_tensor([2.0, 2.0]), 0.5).to_event(1))


def in_a_plate(x):
    with pyro.plate("components", 2):
        return pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 0.5))


@pytest.mark.parametrize("rates", [as_event, in_a_plate])
@pytest.mark.parametrize("seed", [0, 1])
def test_em_of_a_program_with_priors_finds_the_mode(rates, seed):
    declared = pv.EM(n_init=3, progress=False).fit(Counts(), COUNTS)
    fit = pv.EM(seed=seed, progress=False, tol=1e-10).fit(lambda x: counts(x, rates), COUNTS)
    assert fit.status.code == "converged"
    assert fit.bound == declared.bound == "log p(X | theta) + log p(theta)"
    assert fit.trace["bound"][-1].item() == pytest.approx(declared.trace["bound"][-1].item(), abs=1e-3)
    assert fit.trace["bound"].diff().min() > -1e-6
    mine, theirs = fit.parameters, declared.parameters
    torch.testing.assert_close(mine["rate"].sort().values, theirs["rate"].sort().values, atol=0.01, rtol=0)
    torch.testing.assert_close(mine["w"].sort().values, theirs["w"].sort().values, atol=0.01, rtol=0)
    torch.testing.assert_close(fit.log_prob(COUNTS), declared.log_prob(COUNTS), atol=0.01, rtol=0)


def test_a_mixed_program_keeps_its_parameters_and_priors():
    def own(x):
        return pyro.param("rate", x.new_tensor([1.0, 8.0]), constraint=constraints.positive)

    fits = [pv.EM(seed=seed, progress=False, tol=1e-10).fit(lambda x: counts(x, own), COUNTS) for seed in range(3)]
    for fit in fits:
        assert fit.trace["bound"][-1].item() == pytest.approx(fits[0].trace["bound"][-1].item(), abs=1e-4)
        assert fit.draws["w"].shape == (1, 1, 2)
    with pytest.raises(pv.EngineError, match=r"it draws w; make them pyro\.param"):
        pv.EM(estimate="ml", progress=False).fit(lambda x: counts(x, own), COUNTS)


GROUP = torch.arange(60) % 5


def varying(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("group", 5):
        alpha = pyro.sample("alpha", dist.Normal(mu, 1.0))
    with pyro.plate("datum", len(y)):
        pyro.sample("y", dist.Normal(alpha[GROUP], 0.5), obs=y)


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal, AutoDelta, AutoLaplaceApproximation])
def test_latents_of_groups_are_shared_ones(guide):
    """Normal given normals: the posterior mean of alpha_j has a closed form, and so has the mode."""
    torch.manual_seed(0)
    y = torch.randn(5)[GROUP] + 0.5 * torch.randn(60)
    fit = pv.SVI(800, optimizer=pv.adam(2e-2), num_draws=400, progress=False).fit((varying, guide(varying)), y)
    weights = torch.eye(5) * (1 + 12 / 0.25)
    precision = torch.cat([torch.cat([torch.tensor([[1 / 9 + 5.0]]), -torch.ones(1, 5)], 1),
                           torch.cat([-torch.ones(5, 1), weights], 1)])  # fmt: skip
    sums = torch.stack([y[j == GROUP].sum() for j in range(5)]) / 0.25
    mean = torch.linalg.solve(precision, torch.cat([torch.zeros(1), sums]))
    torch.testing.assert_close(fit.parameters["alpha"], mean[1:], atol=0.06, rtol=0)
    point = guide in (AutoDelta, AutoLaplaceApproximation)
    assert fit.is_point == point
    assert fit.draws["alpha"].shape == (1, 1 if point else 400, 5)
    tree = fit.to_datatree()
    assert set(tree["posterior"].data_vars) == {"mu", "alpha"}
    assert fit.log_predictive(y).shape == (60,)


SEEN = torch.arange(16) % 3 > 0


def poissons(x, mask=True, scale=1.0, size=None):
    w = pyro.param("w", x.new_tensor([0.5, 0.5]), constraint=constraints.simplex)
    rate = pyro.param("rate", x.new_tensor([1.0, 8.0]), constraint=constraints.positive)
    with pyro.plate("data", len(x), subsample_size=size) as rows, pyro.poutine.scale(scale=scale):
        z = pyro.sample("z", dist.Categorical(w))
        with pyro.poutine.mask(mask=mask):
            pyro.sample("x", dist.Poisson(rate[z]), obs=x[rows])


def test_what_is_masked_is_not_seen():
    masked = pv.EM(progress=False, tol=1e-10).fit(lambda x: poissons(x, SEEN), COUNTS)
    seen = pv.EM(progress=False, tol=1e-10).fit(poissons, COUNTS[SEEN])
    assert masked.trace["bound"][-1].item() == pytest.approx(seen.trace["bound"][-1].item(), abs=1e-6)
    for name in ("w", "rate"):
        torch.testing.assert_close(masked.parameters[name], seen.parameters[name], atol=1e-4, rtol=0)
    assert masked.log_prob(COUNTS)[~SEEN].abs().max() < 1e-6


def a_class_for_all(x):
    g = pyro.sample("g", dist.Categorical(x.new_tensor([0.3, 0.7])))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(x.new_tensor([[0.9, 0.1], [0.4, 0.6]])[g]))
        pyro.sample("x", dist.Poisson(pyro.param("rate", x.new_tensor([1.0, 8.0]))[z]), obs=x)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (lambda x: poissons(x, size=4), "the plate 'data' takes 4 of 16"),
        (lambda x: poissons(x, scale=2.0), "takes no poutine.scale"),
        (a_class_for_all, "'g' is one for all data"),
    ],
)
def test_em_refuses_programs_of_which_it_would_climb_something_else(program, said):
    with pytest.raises(pv.EngineError, match=said):
        pv.EM(progress=False).fit(program, COUNTS)
