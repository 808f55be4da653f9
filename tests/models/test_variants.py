"""Variants of the VAE: scales from padded batches, a q for every datum, several layers, labels."""

import math
from importlib import util
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import make_batches
from ppl_vae.infer.step import Step
from ppl_vae.objectives import Elbo, trace_sites

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    """An example as a module, for the models it declares."""
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The optimal scale of weighted rows


def optimal_vae():
    """A VAE whose decoder ignores z, so that its errors are known."""
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 2), pv.nets.linear_decoder(2, 3), "gaussian-optimal").double()
    torch.nn.init.zeros_(vae.decoder.weight)
    torch.nn.init.constant_(vae.decoder.bias, 0.5)
    return vae.train()


@pytest.mark.parametrize("mode", ["off", "trace"])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_optimal_scale_does_not_see_the_rows_that_fill_a_batch(mode, particles):
    vae, x = optimal_vae(), torch.randn(5, 3, dtype=torch.float64)
    batches = make_batches(vae, x, batch_size=3, shuffle=False)
    last = list(batches.epoch(0))[-1]
    assert last.weights.tolist() == [1.0, 1.0, 0.0]
    step = Step(ModelObjective(vae, pv.elbo(particles), 1.0), None, mode)
    step.gradient(last)
    squares = (x[3:] - 0.5).square()
    assert vae.likelihood.variance.item() == pytest.approx(squares.mean().item(), rel=1e-12)


def test_the_optimal_scale_counts_rows_by_their_weights_and_gaps_not_at_all():
    vae, x = optimal_vae(), torch.randn(4, 3, dtype=torch.float64)
    x[0, 1] = torch.nan
    w = torch.tensor([2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    (batch,) = make_batches(vae, x, w, shuffle=False).epoch(0)
    Step(ModelObjective(vae, pv.elbo(), 1.0), None, "trace").gradient(batch)
    squares = (x - 0.5).square()
    seen = (~x.isnan()).double() * w[:, None]
    expected = (seen * squares.nan_to_num()).sum() / seen.sum()
    assert vae.likelihood.variance.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_batch_without_weight_leaves_the_optimal_scale_as_it_is():
    likelihood = pv.likelihoods.GaussianOptimal()
    p = likelihood(torch.zeros(2, 3)).weigh(torch.zeros(2))
    assert bool(p.log_prob(torch.full((2, 3), 7.0)).isfinite().all())
    assert likelihood.variance.item() == 1.0


def test_the_optimal_scale_is_refused_where_every_value_of_a_latent_has_an_error_of_its_own():
    """The best s^2 is E_q(z | x) of the error, and the mean over the values of z is not."""
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    nets = pv.nets.mlp_decoder(3, 4, 5), pv.nets.mlp_decoder(5, 4, 3)
    with pytest.raises(pv.DeclarationError, match=r"\[5, 1, 3\], one for each value .* take GaussianLearned"):
        pv.SVI(1, progress=False).fit(pv.models.CategoricalVAE(*nets, 5, "gaussian-optimal"), x)
    fit = pv.SVI(1, progress=False).fit(pv.models.CategoricalVAE(*nets, 5, "gaussian-learned"), x)
    assert fit.log_prob(x).isfinite().all()


# Several layers of latents


class BottomUp(pv.LatentVariableModel):
    """z2 ~ N(0, 1), z1 ~ N(0.8 z2, 0.6^2), x ~ N(z1, 0.5^2); q(z1 | x) q(z2 | z1)."""

    @pv.latent
    def z2(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    @pv.latent
    def z1(self, z2):
        return dist.Normal(0.8 * z2, 0.6).to_event(1)

    @pv.observed
    def x(self, z1):
        return dist.Normal(z1, 0.5).to_event(1)

    @z1.posterior
    def q_z1(self, x):
        return dist.Normal(0.7 * x, 0.5).to_event(1)

    @z2.posterior
    def q_z2(self, z1):
        return dist.Normal(0.9 * z1, 0.5).to_event(1)


class TopDown(BottomUp):
    """The same with q(z2 | x) q(z1 | x, z2)."""

    def q_z2(self, x):
        return dist.Normal(0.6 * x, 0.7).to_event(1)

    def q_z1(self, x, z2):
        return dist.Normal(0.5 * x + 0.3 * z2, 0.4).to_event(1)


class Exact(BottomUp):
    """The same with q the posterior itself: p(z1) = N(0, 1), p(z2 | z1) = N(0.8 z1, 0.6^2)."""

    def q_z1(self, x):
        return dist.Normal(0.8 * x, 0.2**0.5).to_event(1)

    def q_z2(self, z1):
        return dist.Normal(0.8 * z1, 0.6).to_event(1)


X = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)
EVIDENCE = torch.distributions.Normal(0.0 * X, 1.25**0.5).log_prob(X).sum(1)


def draws_of(model, objective, times=4000):
    torch.manual_seed(0)
    obs = model.double().check(X).repeat(times)
    with model.numeric():
        return objective(model.sites(obs)).reshape(times, 3)


@pytest.mark.parametrize("make", [BottomUp, TopDown])
def test_the_closed_form_divergences_of_layers_give_the_same_bound(make):
    """KL(q(z1 | x) || p(z1 | z2)) at a z2 that was drawn from z1 would not: it is taken at the draws there."""
    values = [draws_of(make(), pv.elbo(kl=kl)) for kl in ("sampled", "analytic")]
    error = sum(v.var(0) / len(v) for v in values).sqrt()
    assert bool(((values[0].mean(0) - values[1].mean(0)).abs() < 4 * error).all())
    for value in values:
        assert bool((value.mean(0) < EVIDENCE + 4 * value.std(0) / len(value) ** 0.5).all())


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_layers_reach_the_evidence_with_their_posterior(kl):
    value = draws_of(Exact(), pv.elbo(kl=kl), 2000)
    error = value.std(0) / len(value) ** 0.5
    assert bool(((value.mean(0) - EVIDENCE).abs() < 4 * error + 1e-9).all())


def test_a_pyro_pair_with_layers_takes_them_at_the_draws_too():
    def program(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(len(x)), 1.0))
            z1 = pyro.sample("z1", dist.Normal(0.8 * z2, 0.6))
            pyro.sample("x", dist.Normal(z1, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.7 * x, 0.5))
            pyro.sample("z2", dist.Normal(0.9 * z1, 0.5))

    torch.manual_seed(0)
    sites = trace_sites(program, guide, (X[:, 0].repeat(4000),))
    assert sites.sampled == {"z1"}
    values = [Elbo(kl=kl)(sites).reshape(4000, 3) for kl in ("sampled", "analytic")]
    error = (values[0] - values[1]).std(0) / 4000**0.5
    assert bool(((values[0] - values[1]).mean(0).abs() < 4 * error).all())


def test_layers_train_traced_as_they_do_eagerly():
    module = example("hierarchical_vae")
    x = pv.data.images("digits", binarize="threshold").train[:64]
    for make in (module.TwoLayers, module.Ladder):
        torch.manual_seed(0)
        model = make(hidden=16)
        fits = [
            pv.SVI(3, 32, pv.adam(1e-2), pv.elbo(kl="analytic"), compile=mode, progress=False).fit(model, x)
            for mode in ("off", "trace")
        ]
        torch.testing.assert_close(fits[0].trace["bound"], fits[1].trace["bound"], rtol=1e-5, atol=1e-4)


# Labels: a finite latent that is known for some data


def labelled(n=6):
    """Bits, labels of which half are missing, and which are not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((n, 5), 0.5, dtype=torch.float64), generator=generator)
    y = torch.tensor([0.0, torch.nan, 2.0, torch.nan, 1.0, torch.nan], dtype=torch.float64)
    return {"x": x, "y": y, "labelled": (~y.isnan()).double()}


def semi_supervised(alpha=3.0):
    torch.manual_seed(1)
    model = example("semi_supervised_vae").SemiSupervisedVAE(5, 3, 2, hidden=4, alpha=alpha)
    return model.double()


def test_the_bound_of_partly_labelled_data_is_the_papers():
    """Eq. 6 where y is known, eq. 7 where it is not, at the same draws of z (Kingma et al. 2014)."""
    model, data = semi_supervised(), labelled()
    x, y = data["x"], data["y"]
    obs = model.check(data)
    with model.numeric(), torch.no_grad():
        sites = model.sites(obs)
        bound = Elbo()(sites)
        z = sites.values["z"]
        L = torch.stack([
            model.x(k.expand(6), z[k]).log_prob(x) - math.log(3) + model.z().log_prob(z[k])
            - model.q_z(x, k.expand(6)).log_prob(z[k])
            for k in torch.arange(3)
        ])  # fmt: skip
        q = model.q_y(x).probs.T
        unknown = (q * (L - q.log())).sum(0)
        known = L.gather(0, y.nan_to_num().long()[None])[0]
        torch.testing.assert_close(bound, torch.where(y.isnan(), unknown, known))
        expected = -3.0 * model.q_y(x).log_prob(y.nan_to_num().long())
        torch.testing.assert_close(sites.penalties["mistaken"], torch.where(y.isnan(), 0.0, expected))


def test_the_classifier_learns_from_labels_by_its_own_term_only():
    data = labelled()
    for alpha in (0.0, 2.0):
        model = semi_supervised(alpha)
        obs = model.check(data).rows(torch.tensor([0, 2, 4]))
        sites = model.sites(obs)
        value = Elbo()(sites) - sites.penalties["mistaken"]
        value.sum().backward()
        moved = max(p.grad.abs().max().item() for p in model.classifier.parameters() if p.grad is not None)
        assert (moved > 0) == (alpha > 0)


def test_draws_ask_for_the_inputs_that_they_depend_on_alone():
    """`labelled` is read by the penalty; given or not, of n rows, the draws are the same."""
    model, ones = semi_supervised(), torch.ones(6)
    assert model.inputs == ("labelled",)
    assert model.inputs_of_draws == ()
    fit = pv.SVI(1, compile="off", progress=False).fit(model, labelled())
    drawn = fit.sample(6, seed=3)
    assert drawn.shape == (6, 5)
    assert torch.equal(drawn, fit.sample(6, seed=3, labelled=ones))
    with pytest.raises(pv.DataError, match="n=6 and inputs of 5 rows"):
        fit.sample(6, labelled=ones[:5])
    assert len(pv.plots.prior_samples(fit, (1, 5), count=4).images) == 1


def test_partly_labelled_data_train_traced_as_they_do_eagerly():
    data = labelled()
    fits = [
        pv.SVI(4, 4, pv.adam(1e-2), compile=mode, progress=False).fit(semi_supervised(), data)
        for mode in ("off", "trace")
    ]
    for name in ("bound", "objective", "penalty: mistaken"):
        torch.testing.assert_close(fits[0].trace[name], fits[1].trace[name], rtol=1e-9, atol=1e-9)
    assert bool((fits[0].trace["penalty: mistaken"] > 0).all())


def test_a_conditional_vae_draws_and_scores_by_label():
    torch.manual_seed(0)
    model = example("conditional_vae").ConditionalVAE(5, 3, 2, hidden=4)
    with torch.no_grad():  # a decoder that knows its label alone
        model.decoder.net[-1].weight.zero_()
        model.decoder.net[-1].bias.fill_(2.0)
    label = torch.tensor([0, 1, 2, 2])
    assert model.sample(4, label=label).shape == (4, 5)
    x = torch.ones(4, 5)
    torch.testing.assert_close(
        model.log_prob({"x": x, "label": label}, 4000),
        torch.full((4,), 5 * math.log(torch.tensor(2.0).sigmoid())),
        rtol=0, atol=0.05,
    )  # fmt: skip
    with pytest.raises(pv.DataError, match="needs the input 'label'"):
        model.sample(4)
    with pytest.raises(pv.DataError, match="label"):
        model.log_prob(x)
