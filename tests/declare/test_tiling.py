"""Copies of the same data share one run of their posterior, which changes no number."""

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from example_models import make, numbers
from torch import nn
from torch.distributions import AffineTransform, ExpTransform

import ppl_vae as pv
from ppl_vae.codebooks import Learned, Quantized
from ppl_vae.declare.tiling import tile, tiled
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import make_batches
from ppl_vae.infer.step import Step
from ppl_vae.relaxed import LogConcrete

N, COPIES = 4, 3
A, B = numbers(N, 2, seed=1), numbers(N, 2, seed=2).exp()
TRIL = torch.diag_embed(B) + numbers(N, 2, 2, seed=3).tril(-1)
P = torch.softmax(A, -1)
FLOW = pv.flows.autoregressive(2).double()

LAWS = {
    "normal": lambda: dist.Normal(A, B).to_event(1),
    "one scale": lambda: dist.Normal(A, torch.tensor(0.7).double()).to_event(1),
    "scalar": lambda: dist.Normal(A[:, 0], B[:, 0]),
    "lognormal": lambda: dist.LogNormal(A, B).to_event(1),
    "laplace": lambda: dist.Laplace(A, B).to_event(1),
    "student": lambda: dist.StudentT(B + 1, A, B).to_event(1),
    "gamma": lambda: dist.Gamma(B, B + 1).to_event(1),
    "beta": lambda: dist.Beta(B, B + 1).to_event(1),
    "dirichlet": lambda: dist.Dirichlet(B),
    "poisson": lambda: dist.Poisson(B).to_event(1),
    "full": lambda: dist.MultivariateNormal(A, scale_tril=TRIL),
    "one covariance": lambda: dist.MultivariateNormal(A, TRIL[0] @ TRIL[0].mT),
    "low rank": lambda: dist.LowRankMultivariateNormal(A, TRIL[..., :1], B),
    "bernoulli": lambda: dist.Bernoulli(logits=A).to_event(1),
    "logits": lambda: dist.Categorical(logits=A),
    "probs": lambda: dist.Categorical(P),
    "a class ruled out": lambda: dist.Categorical(torch.tensor([[0.0, 1.0]]).double().expand(N, 2)),
    "one-hot": lambda: dist.OneHotCategorical(P),
    "relaxed": lambda: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=A),
    "relaxed bernoulli": lambda: dist.RelaxedBernoulli(torch.tensor(0.5), probs=P).to_event(1),
    "concrete": lambda: LogConcrete(torch.tensor(0.5), logits=TRIL).to_event(1),
    "point": lambda: dist.Delta(A, event_dim=1),
    "flow": lambda: FLOW(dist.Normal(A, B).to_event(1)),
    "transformed": lambda: dist.TransformedDistribution(dist.Normal(A, B), [ExpTransform(), AffineTransform(1.0, 2.0)]),
}


def seeded(law):
    torch.manual_seed(0)
    return law.sample()


@pytest.mark.parametrize("name", LAWS)
def test_a_tiled_law_is_that_of_each_copy(name):
    law, found = LAWS[name](), tiled(LAWS[name](), COPIES)
    assert type(found) is type(law)
    assert found.batch_shape == (COPIES * N, *law.batch_shape[1:])
    assert found.event_shape == law.event_shape
    z = seeded(found)
    expected = torch.cat([law.log_prob(each) for each in z.chunk(COPIES)])
    torch.testing.assert_close(found.log_prob(z.clone()), expected)


@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("one scale", "one covariance")])
def test_it_draws_what_the_law_of_repeated_parameters_draws(name, monkeypatch):
    found = seeded(tiled(LAWS[name](), COPIES))
    for parameter in ("A", "B", "TRIL", "P"):
        monkeypatch.setitem(globals(), parameter, tile(globals()[parameter], COPIES))
    monkeypatch.setitem(globals(), "N", COPIES * N)
    torch.testing.assert_close(found, seeded(LAWS[name]()), rtol=1e-12, atol=1e-12)


def conditional():
    flow = transforms.conditional_affine_autoregressive(2, 2, hidden_dims=[4]).double()
    return dist.TransformedDistribution(dist.Normal(A, B).to_event(1), [flow.condition(A)])


@pytest.mark.parametrize(
    "make_it",
    [
        conditional,
        lambda: dist.TransformedDistribution(dist.Normal(A, B), [AffineTransform(A, 1.0)]),
        lambda: dist.RelaxedOneHotCategorical(B[:, 0], logits=A),
        lambda: Quantized(A[:, None], Learned(3, 2).double()),
        lambda: dist.VonMises(A, B).to_event(1),
    ],
)
def test_a_law_that_may_hold_more_of_a_datum_is_left_alone(make_it):
    assert tiled(make_it(), COPIES) is None


class Hooked(pv.LatentVariableModel):
    """q(y | x) q(z | x) q(u | z), y finite, with a note of how many rows the encoder of z sees."""

    def __init__(self, conditional=False):
        super().__init__()
        torch.manual_seed(0)
        self.conditional, self.seen = conditional, []
        self.encoder, self.classes = pv.nets.mlp_encoder(3, 8, 2), nn.Linear(3, 2)
        self.upper, self.decoder = nn.Linear(2, 1), nn.Linear(4, 3)
        self.context = transforms.conditional_planar(2, 3, [4])
        self.encoder.register_forward_hook(lambda module, args, out: self.seen.append(len(args[0])))

    @pv.latent
    def y(self):
        return dist.Categorical(torch.ones(2))

    @y.posterior
    def q_y(self, x):
        return dist.Categorical(logits=self.classes(x))

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x):
        q = dist.Normal(*self.encoder(x)).to_event(1)
        return dist.TransformedDistribution(q, [self.context.condition(x)]) if self.conditional else q

    @pv.latent
    def u(self):
        return dist.Normal(0.0, 1.0)

    @u.posterior
    def q_u(self, z):
        return dist.Normal(self.upper(z)[..., 0], 0.5)

    @pv.observed
    def x(self, z, u, y):
        return dist.Normal(self.decoder(torch.cat([z, u[..., None], y[..., None].to(z)], -1)), 0.8).to_event(1)


X = numbers(9, 3, seed=4)  # more than the few rows on which a declaration is tried
OBJECTIVES = {
    "elbo": pv.elbo(5), "analytic": pv.elbo(5, "analytic"), "free bits": pv.elbo(5, "analytic", 0.2),
    "iwae": pv.iwae(5), "dreg": pv.iwae(5, "dreg"), "tc": pv.tc_elbo(6, num_particles=5),
}  # fmt: skip


def models(conditional=False):
    """The model, and one whose posteriors are all run on every copy."""
    own, copied = Hooked(conditional).double(), Hooked(conditional).double()
    copied._untiled = {"q_y", "q_z", "q_u"}
    return own, copied


def climbed(model, objective, mode):
    """Objective and gradients of a step on all data at a seed, and the rows that the encoder saw in it."""
    batches = make_batches(model, X)
    step = Step(ModelObjective(model.train(), objective, batches.total), None, mode)
    batch = next(batches.epoch(0))
    step.climbed.pieces(batch, 1.0, 1)  # looks at the data
    model.seen.clear()
    torch.manual_seed(1)
    result, gradients = step.gradient(batch)
    return [result.objective, result.bound, *gradients], list(model.seen)


@pytest.mark.parametrize("mode", ["off", "trace"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_runs_the_encoder_once_for_all_particles(name, mode):
    own, copied = models()
    found, seen = climbed(own, OBJECTIVES[name], mode)
    expected, every = climbed(copied, OBJECTIVES[name], mode)
    assert set(seen) == {len(X)}
    assert max(every) == 5 * len(X)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


ASKED = {
    "elbo": lambda model: model.elbo(X, 7),
    "log_prob": lambda model: model.log_prob(X, 7),
    "responsibilities": lambda model: model.responsibilities(X, 7),
    "reconstruct": lambda model: model.reconstruct(X, 7),
}


@pytest.mark.parametrize("name", ASKED)
def test_so_does_what_is_asked_of_many_draws(name):
    found = []
    for model in models():
        torch.manual_seed(1)
        found.append((ASKED[name](model), max(model.seen)))
    (value, rows), (expected, every) = found
    assert (rows, every) == (len(X), 7 * len(X) if name != "responsibilities" else len(X))
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


def test_rows_of_repeated_data_are_no_copies_of_all():
    obs = Hooked().double().check(X).repeat(2)
    assert obs.repeat(3).once is obs.once
    assert obs.rows(slice(0, 5)).once is None


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_flow_with_a_context_is_run_on_every_copy_and_only_there(mode):
    own, copied = models(conditional=True)
    found, seen = climbed(own, pv.iwae(5), mode)
    expected, every = climbed(copied, pv.iwae(5), mode)
    assert seen == every == [5 * len(X)] * len(seen)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["conditional vae", "vae with NaN", "mixture vae", "hierarchy", "poisson latent"])
def test_inputs_gaps_and_parents_are_those_of_each_copy(name):
    values = []
    for untiled in (set(), set(make(name)[0]._graph.posteriors)):
        model, data = make(name)
        names = {q.name for n, q in model._graph.posteriors.items() if n in untiled}
        model._untiled = names
        torch.manual_seed(2)
        values.append(model.log_prob(data, 6))
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_network_in_training_sees_each_datum_once(conditional):
    """Its draws share one mask of dropout, and batch normalisation counts one batch a step, as where copies are run."""
    model = Hooked(conditional).double()
    model.encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), model.encoder).double()
    batches = make_batches(model, X)
    step = Step(ModelObjective(model.train(), pv.iwae(5), batches.total), None, "off")
    for batch in (*batches.epoch(0), *batches.epoch(1)):
        step.gradient(batch)
    assert model.encoder[0].num_batches_tracked == 2
    with model.numeric():
        q = model.sites(model.check(X).repeat(5)).q["z"]
    base = q.base_dist if not conditional else q.base_dist.base_dist
    same = [torch.equal(each, base.loc[: len(X)]) for each in base.loc.chunk(5)]
    assert all(same) is not conditional
