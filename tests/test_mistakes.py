"""What a user is told who mistakes a model for a fit, a name for an object, or one size for another."""

import re
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.diagnose import diagnose
from ppl_vae.evaluation import evaluate

GMM = pv.models.GaussianMixture(2, 2, prior="weak")
X = torch.arange(12.0).reshape(6, 2)
NET = pv.nets.mlp_decoder


VAE = pv.models.VAE(pv.nets.mlp_encoder(4, 4, 2), pv.nets.mlp_decoder(2, 4, 4))


def point():
    return pv.EM(max_iter=2, progress=False).fit(GMM, pv.data.faithful())


def draws():
    x = pv.data.faithful()
    return pv.VB(num_draws=30, progress=False).fit(GMM, x)


def quantised(prior=None):
    return pv.models.VQVAE(NET(4, 4, 4), NET(4, 4, 4), pv.codebooks.Learned(3, 2), positions=2, prior=prior)


def trained(objective):
    return pv.SVI(1, objective=objective, progress=False).fit(quantised(), torch.zeros(3, 4))


class Hides(pv.LatentVariableModel):
    """Has an attribute in the place of a method that every model has."""

    def __init__(self):
        super().__init__()
        self.sample = 5


class Outcomes(pv.LatentVariableModel):
    """Two observed numbers, and bits."""

    @pv.latent
    def z(self):
        return dist.Categorical(torch.ones(2) / 2)

    @pv.observed
    def x(self, z):
        return dist.Normal(1.0 * z, 1.0)

    @pv.observed
    def bit(self, z):
        return dist.Bernoulli(0.2 + 0.5 * z)


class Counts(pv.LatentVariableModel):
    """A rate with a prior."""

    @pv.latent(shared=True)
    def rate(self):
        return dist.Gamma(2.0, 1.0)

    @pv.observed
    def x(self, rate):
        return dist.Poisson(rate)


class Hidden(pv.LatentVariableModel):
    """A count that is seen with noise."""

    @pv.latent
    def z(self):
        return dist.Poisson(torch.tensor(2.0))

    @pv.observed
    def x(self, z):
        return dist.Normal(z, 1.0)


def forgot():
    """Has no return."""


MISTAKES = {
    "an attribute that hides a method": (Hides, "'sample' would hide the method 'sample' of every model"),
    "leave-one-out of point estimates": (
        lambda: pv.compare({"a": point(), "b": point()}).loo(), "of a, b none does: fit by SVI, VB or NUTS",
    ),
    "labels of other data": (lambda: pv.compare({"a": point()}, labels=[1, 2, 3]), "one class for each of the 272"),
    "a latent of another shape": (
        lambda: VAE.log_joint(torch.zeros(3, 4), z=torch.zeros(5, 2)), "'z' is due as [3, 2], got [5, 2]",
    ),
    "an outcome left out": (lambda: Outcomes().elbo({"x": torch.zeros(3)}), "pass NaN where it was not observed"),
    "classes for bits": (
        lambda: Outcomes().elbo({"x": torch.zeros(2), "bit": torch.tensor([0.0, 2.0])}), "classes from 0 on a Categ",
    ),
    "bytes for real numbers": (lambda: GMM.log_prob(torch.ones(3, 2, dtype=torch.uint8)), r"by x / 255"),
    "relabel a model": (lambda: pv.relabel(GMM), "relabel takes a Fit, got a GaussianMixture"),
    "relabel by a name": (lambda: pv.relabel(draws(), "components.loc"), "pv.Ordering(parameter), got 'comp"),
    "order by a number that is not there": (
        lambda: pv.relabel(draws(), pv.Ordering("components.loc", 5)), "index 5 of 'components.loc', of which each",
    ),
    "calibrate the latents of a model": (lambda: pv.calibrate_latents(GMM), "calibrate_latents takes a Fit"),
    "diagnose a model": (lambda: diagnose(GMM, torch.zeros(3, 2)), "diagnose takes a Fit"),
    "calibrate a fit": (lambda: pv.calibrate(draws(), pv.VB()), "calibrate takes a declared model"),
    "prior predictive of a fit": (lambda: pv.prior_predictive(draws(), 5), "a Fit has fit.model"),
    "objective by name": (lambda: trained("elbo"), "called; got 'elbo'"),
    "objective not called": (lambda: trained(pv.elbo), "called; got <function elbo"),
    "log evidence of an engine": (
        lambda: pv.log_evidence(pv.SVI(1), torch.zeros(3, 4)), "takes a Fit or a declared model, got a SVI: fit first",
    ),
    "ArviZ of a fit, as of Pyro's": (lambda: pv.from_pyro(draws()), "take fit.to_datatree()"),
    "a schedule by name": (
        lambda: pv.BufferSchedules(temperature="linear"), "temperature must be a number that is not negative, or a",
    ),
    "a schedule that ends without a number": (
        lambda: pv.SVI(20, beta=lambda epoch: 1.0 if epoch < 9 else None), "negative at every epoch; at 9 it is None",
    ),
    "a schedule that cools to nothing": (
        lambda: pv.EM(temperature=lambda i: 1 - i / 5), "a positive number at every epoch; at 5 it is 0.0",
    ),
    "iterations in exponents": (lambda: pv.EM(max_iter=1e3), "max_iter must be a whole number, at least 1, got 1000.0"),
    "a part of a batch": (lambda: pv.EM(batch_size=2.5), "batch_size must be a whole number, at least 1, got 2.5"),
    "a batch that is true": (lambda: pv.SVI(1, batch_size=True), "batch_size must be a whole number, at least 1, got"),
    "a part of a chain": (lambda: pv.NUTS(num_chains=1.5), "num_chains must be a whole number, at least 1, got 1.5"),
    "a part of a start": (lambda: pv.VB(n_init=1.5), "n_init must be a whole number, at least 1, got 1.5"),
    "a part of a row": (lambda: pv.data.stream(X, rows=2.5), "rows must be a whole number, at least 1, got 2.5"),
    "rows that are true": (lambda: pv.data.stream(X, rows=True), "rows must be a whole number, at least 1, got True"),
    "a part of a file": (lambda: pv.checkpoints("a", keep=1.5), "keep must be a whole number, at least 1, got 1.5"),
    "a part of a component": (
        lambda: pv.models.GaussianMixture(2.0, 2), "n_components must be a whole number, at least 1, got 2.0",
    ),
    "a number of components as text": (
        lambda: pv.models.GaussianMixture("2", 2), "n_components must be a whole number, at least 1, got '2'",
    ),
    "a part of a feature": (
        lambda: pv.families.Normal(2.5), "n_features must be a whole number, at least 1, got 2.5",
    ),
    **{
        f"a covariance to start {engine} from that is none": (
            lambda own=own: own(start={"components.covariance": -torch.eye(2).expand(2, 2, 2)}).fit(GMM, X),
            "start['components.covariance'] must be symmetric and positive definite; entry [0] is not",
        )
        for engine, own in (("EM", pv.EM), ("VB", pv.VB), ("NUTS", pv.NUTS), ("SVI", partial(pv.SVI, 1)))
    },
    "probabilities to start from that are none": (
        lambda: pv.EM(start={"mixing.probs": torch.tensor([0.5, 0.6])}).fit(GMM, X),
        "start['mixing.probs'] must be probabilities that sum to 1",
    ),
    "a shared latent to start from that cannot be": (
        lambda: pv.SVI(1, start={"rate": -1.0}).fit(Counts(), torch.ones(3)), "start['rate'] must be at least 0",
    ),
    "weights that are objects": (
        lambda: pv.EM().fit(GMM, X, weights=np.ones(6, dtype=object)), "weights are an array of object; pass one",
    ),
    "weights in words": (lambda: pv.EM().fit(GMM, X, weights="w"), "weights are a str; pass one number per datum"),
    "sparse data": (lambda: GMM.log_prob(X.to_sparse()), "sparse tensor (torch.sparse_coo); pass it dense, x.to_d"),
    "a sparse stream": (lambda: pv.data.stream(X.to_sparse()), "sparse tensor (torch.sparse_coo) was given; pass it"),
    "a stream of nothing": (
        lambda: pv.data.stream(forgot), "forgot() returned a NoneType; it must return an iterator of batches",
    ),
    **{
        f"two weights for {engine}": (
            lambda own=own: own.fit(GMM, pv.data.stream(X.repeat(1, 2)[:, :3], weights="x2"), weights=torch.ones(6)),
            "has a column of weights, and weights= were given too",
        )
        for engine, own in (("EM", pv.EM()), ("SVI", pv.SVI(1)))
    },
    "standard errors of a model": (lambda: pv.standard_errors(GMM), "standard_errors takes a Fit, got a Gaussian"),
    "bootstrap of a model": (lambda: pv.bootstrap(GMM), "bootstrap takes a Fit, got a GaussianMixture: fit the model"),
    "a test of fits": (
        lambda: pv.likelihood_ratio_test(point(), point(), X), "takes declarations, which it fits itself, such as pv.m",
    ),
    "a test of the same against the same": (
        lambda: pv.likelihood_ratio_test(GMM, GMM, X), "has 11 free parameters, the alternative 11: the first model is",
    ),
    "a test the wrong way round": (
        lambda: pv.likelihood_ratio_test(GMM, pv.models.GaussianMixture(1, 2), X), "are they exchanged?",
    ),
    "a choice among objects": (
        lambda: pv.select(GMM, X, n_components=[1, 2]), "select takes the class GaussianMixture, got an object of it",
    ),
    **{
        f"a prior of another size, {name}": (
            lambda make=make: pv.models.VAE(VAE.encoder, VAE.decoder, prior=make()),
            f"VAE: z has latent_dim=2 entries; its prior, a {name}, was made with size=3",
        )
        for name, make in (
            ("Mixture", lambda: pv.priors.Mixture(4, 3)),
            ("Normal", lambda: pv.priors.Normal(3)),
            ("Flow", lambda: pv.priors.real_nvp(3)),
        )
    },
    **{
        f"pseudo-inputs of another size, {name}": (
            lambda make=make: pv.models.VAE(VAE.encoder, VAE.decoder, prior=make(pv.priors.Vamp(5, 3))),
            "has input_size=3, and its encoder, a MLPEncoder, takes 4: priors.Vamp(5, 4)",
        )
        for name, make in (("as they are", lambda u: u), ("moved", lambda u: pv.priors.Flow(pv.flows.coupling(2), u)))
    },
    "a decoder of another size": (
        lambda: pv.models.VAE(VAE.encoder, NET(3, 4, 4)).elbo(torch.zeros(2, 4)),
        "VAE: draws of z have 2 entries; its decoder, a MLPDecoder, takes 3",
    ),
    "codes of another size": (
        lambda: pv.models.VQVAE(NET(4, 4, 4), NET(4, 4, 4), pv.codebooks.Learned(3, 5), positions=2),
        "positions=2 of codes of size=5 take an encoder with 10 outputs and a decoder with 10 inputs",
    ),
    "fits of other data": (
        lambda: pv.compare({"a": point(), "b": pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 1), X[:, 0])}),
        "compare holds fits against each other on the same data, and b cannot read those of a: ",
    ),
    "EM of a count that is not seen": (
        lambda: pv.EM(progress=False).fit(Hidden(), torch.ones(3)), "or take a Categorical over as many values",
    ),
    "a stream where data are asked for": (
        lambda: GMM.log_prob(pv.data.stream(torch.zeros(3, 2))), "VB, SVI, evaluate and standard_errors; to everything",
    ),
    "logits of other categories": (
        lambda: pv.models.CategoricalVAE(NET(4, 4, 3), NET(5, 4, 4), 5), "encoder with 5 outputs and a decoder with 5",
    ),
    "logits of other categories, of a network that does not know": (
        lambda: pv.models.CategoricalVAE(torch.nn.Linear(4, 3), NET(5, 4, 4), 5).elbo(torch.zeros(2, 4)),
        "categories=5; its encoder, a Linear, gives 3 logits",
    ),
    "a decoder of other categories": (
        lambda: pv.models.GumbelVAE(NET(4, 4, 6), NET(5, 4, 4), 2, 3), "has 6 and MLPDecoder takes 5",
    ),
    "a prior of other codes": (lambda: quantised(pv.code_priors.Independent(2, 5)), "2 of 3 values, and Independent"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_says_what_was_given_and_what_to_do(mistake):
    call, said = MISTAKES[mistake]
    with pytest.raises((pv.EngineError, pv.DeclarationError, pv.DataError), match=re.escape(said)):
        call()


SEEDED = {
    "EM": lambda seed: pv.EM(seed=seed),
    "VB": lambda seed: pv.VB(seed=seed),
    "SVI": lambda seed: pv.SVI(1, seed=seed),
    "NUTS": lambda seed: pv.NUTS(seed=seed),
    "sample": lambda seed: point().sample(2, seed=seed),
    "evaluate": lambda seed: evaluate(point(), X, seed=seed),
    "predict before data": lambda seed: pv.prior_predictive(GMM, 3, draws=2, seed=seed),
    "log evidence": lambda seed: pv.log_evidence(VAE, torch.zeros(3, 4), seed=seed),
    "bootstrap": lambda seed: pv.bootstrap(point(), seed=seed),
    "diagnose": lambda seed: diagnose(point(), X, seed=seed),
    "rows of a stream": lambda seed: pv.data.stream(X).sample(2, seed=seed),
    "made data": lambda seed: pv.data.gaussian_mixture(3, [1.0], [[0.0]], [[[1.0]]], seed=seed),
}


@pytest.mark.parametrize("seed", [-1, 1.5, None, True, 2**32])
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_a_whole_number(name, seed):
    said = re.escape(f"seed must be a whole number, at least 0 and below 2**32; got {seed!r}")
    with pytest.raises((pv.EngineError, pv.DataError), match=said):
        SEEDED[name](seed)


def test_whole_numbers_of_numpy_are_welcome():
    one, two = np.int64(1), np.int32(2)
    pv.SVI(two, batch_size=two, seed=two, progress=False).fit(VAE, pv.data.stream(torch.zeros(3, 4), rows=two))
    pv.EM(n_init=one, max_iter=two, seed=two, progress=False).fit(pv.models.GaussianMixture(two, two), X)
    assert pv.elbo(two).num_particles == 2
    assert pv.bootstrap(point(), num_samples=two, seed=two, progress=False).num_draws == 2


def test_a_law_of_other_codes_is_not_fitted():
    fit = pv.SVI(1, progress=False).fit(quantised(), torch.randn(6, 4))
    with pytest.raises(pv.DeclarationError, match="pass positions=2, n_codes=3"):
        pv.refit_codes(fit, torch.randn(6, 4), pv.code_priors.Independent(2, 5))


def test_a_parameter_that_is_not_there_is_told_from_those_that_are():
    with pytest.raises(KeyError, match=r"no parameter 'loc'; there are mixing\.probs, .*components\.loc"):
        point().parameters["loc"]
    assert point().parameters.get("loc") is None


def test_one_name_of_parameters_is_one_name():
    assert pv.alternate(parameters="encoder").parameters == ("encoder",)
    assert pv.lagging(parameters=["encoder", "head"]).parameters == ("encoder", "head")


def test_whole_numbers_are_real_ones_from_an_array_as_from_a_table():
    model, x = pv.models.GaussianMixture(2, 2), pv.data.faithful().values.round().long()
    assert torch.equal(model.log_prob(x.numpy()), model.log_prob(x.to(model.like)))


class Negative(Outcomes):
    """A scale that no normal has."""

    @pv.observed
    def x(self, z):
        return dist.Normal(1.0 * z, self.scale)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(-1.0))


def test_em_names_the_node_that_has_no_density():
    status = pv.EM(progress=False).fit(Negative(), {"x": torch.randn(10), "bit": torch.ones(10)}).status
    assert status.code == "failed"
    assert "nan at iteration 0: node x, Normal whose scale is -1" in status.message
