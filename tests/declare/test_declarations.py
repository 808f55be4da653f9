"""What a declaration means: its graph, its inheritance, and its densities against hand-written ones."""

import math

import pyro.distributions as dist
import pytest
import torch
from example_models import (
    LABELS,
    ConditionalVAE,
    FinitePosterior,
    GaussianMixtureVAE,
    LinearVAE,
    PoissonLatent,
    SharedByHand,
    TwoFinite,
    make,
    numbers,
)
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.objectives import Elbo

# The graph


class Backwards(pv.LatentVariableModel):
    """Children are declared before their parents, the shared latent last."""

    @observed
    def x(self, z, y):
        return dist.Normal(z + y, 1.0)

    @latent
    def z(self, y, mu):
        return dist.Normal(y + mu, 1.0)

    @latent
    def y(self):
        return dist.Bernoulli(torch.tensor(0.5))

    @latent(shared=True)
    def mu(self):
        return dist.Normal(torch.tensor(0.0), 1.0)


def test_parents_come_before_children_and_shared_latents_first():
    graph = Backwards().graph()
    assert list(graph) == ["mu", "y", "z", "x"]
    assert [info.kind for info in graph.values()] == ["latent", "latent", "latent", "observed"]
    assert [info.shared for info in graph.values()] == [True, False, False, False]
    assert graph["x"].parents == ("z", "y")


def test_inputs_and_family_parameters_are_in_the_graph():
    assert ConditionalVAE().graph()["label"].kind == "input"
    graph = pv.models.GaussianMixture(2, 2, prior="weak").graph()
    assert {name for name, info in graph.items() if info.shared} == {
        "mixing.probs",
        "components.covariance",
        "components.loc",
    }


def test_nodes_and_posteriors_stay_methods():
    model = LinearVAE()
    assert isinstance(model.z(), dist.Independent)
    assert model.q_z(torch.zeros(4, 3)).batch_shape == (4,)
    assert model.x(torch.zeros(4, 2)).event_shape == (3,)


# Inheritance


class Parent(pv.LatentVariableModel):
    @latent
    def z(self):
        return dist.Normal(torch.tensor(0.0), 1.0)

    @z.posterior
    def q_z(self, x):
        return dist.Delta(0 * x + 0.5)

    @observed
    def x(self, z):
        return dist.Normal(z, 1.0)


class OtherLikelihood(Parent):
    def x(self, z):
        return dist.Normal(z, 2.0)


class OtherPosterior(Parent):
    def q_z(self, x):
        return dist.Delta(0 * x - 1.5)


class RenamedPosterior(Parent):
    @Parent.z.posterior
    def guess(self, x):
        return dist.Delta(0 * x - 1.5)


class Both(OtherLikelihood, OtherPosterior):
    pass


class BothReversed(OtherPosterior, OtherLikelihood):
    pass


class Decorated(Parent):
    @observed
    def x(self, z):
        return dist.Normal(z, 2.0)


@pytest.mark.parametrize(
    ("cls", "scale", "z"),
    [
        (Parent, 1.0, 0.5),
        (OtherLikelihood, 2.0, 0.5),
        (Decorated, 2.0, 0.5),
        (OtherPosterior, 1.0, -1.5),
        (RenamedPosterior, 1.0, -1.5),
        (Both, 2.0, -1.5),
        (BothReversed, 2.0, -1.5),
    ],
)
def test_a_subclass_overrides_what_it_says_and_nothing_else(cls, scale, z):
    x = torch.tensor([0.3, -1.0])
    expected = Normal(0.0, 1.0).log_prob(torch.tensor(z)) + Normal(z, scale).log_prob(x)
    torch.testing.assert_close(cls().elbo(x), expected)


def test_a_subclass_may_add_a_node_its_parents_keep_theirs():
    class WithScale(Parent):
        @latent
        def scale(self):
            return dist.Categorical(torch.tensor([0.5, 0.5]))

        def x(self, z, scale):
            return dist.Normal(z, 1.0 + scale)

    assert list(WithScale().graph()) == ["z", "scale", "x"]
    assert list(Parent().graph()) == ["z", "x"]
    x = torch.tensor([0.3])
    mixture = (Normal(0.5, 1.0).log_prob(x).exp() + Normal(0.5, 2.0).log_prob(x).exp()) / 2
    torch.testing.assert_close(WithScale().elbo(x), mixture.log() + Normal(0.0, 1.0).log_prob(torch.tensor(0.5)))


# Densities


def test_several_finite_latents_are_summed_out():
    model, x = make("two finite")
    prior_a, prior_b = model.logits_a.softmax(0), model.logits_b.softmax(1)
    joint = torch.stack(
        [prior_a[a] * prior_b[a, b] * Normal(model.loc[a, b], 0.7).log_prob(x).exp() for a in (0, 1) for b in (0, 1, 2)]
    ).reshape(2, 3, -1)
    evidence = model.evidence(x)
    assert evidence.method == "exact"
    torch.testing.assert_close(evidence.value, joint.sum((0, 1)).log(), check_dtype=True)
    torch.testing.assert_close(model.elbo(x), joint.sum((0, 1)).log())
    r = model.responsibilities(x)
    torch.testing.assert_close(r["a"], (joint.sum(1) / joint.sum((0, 1))).T)
    torch.testing.assert_close(r["b"], (joint.sum(0) / joint.sum((0, 1))).T)
    torch.testing.assert_close(model.posterior(x)["b"].probs, r["b"])
    a, b = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(model.log_joint(x, a=a, b=b), joint[a, b, torch.arange(6)].log())


def _bound_by_hand(model, x, label=None):
    """E_q(a)[log p(a) + log sum_b p(b | a) p(x | a, b) - log q(a)] for one number x, in plain arithmetic."""
    total, known = 0.0, label is not None and not math.isnan(label)
    q = torch.softmax(x * model.slope, 0) if not known else nn.functional.one_hot(torch.tensor(int(label)), 2)
    for a in (0, 1):
        if q[a] > 0:
            given_a = sum(
                model.logits_b[a].softmax(0)[b] * Normal(model.loc[a, b], 0.7).log_prob(x).exp() for b in range(3)
            )
            total += q[a] * (model.logits_a.softmax(0)[a].log() + given_a.log() - q[a].log())
    return total.item()


def test_the_expectation_under_a_finite_posterior_is_exact():
    model, x = make("finite posterior")
    expected = torch.tensor([_bound_by_hand(model, value) for value in x], dtype=x.dtype)
    torch.testing.assert_close(model.elbo(x), expected)
    assert bool((model.elbo(x) < model.log_prob(x)).all())
    torch.testing.assert_close(model.log_prob(x), TwoFinite.log_prob(model, x))


def test_a_finite_posterior_with_some_labels_known():
    model, data = make("finite posterior, partly observed")
    expected = [_bound_by_hand(model, value, label) for value, label in zip(data["x"], data["a"].tolist(), strict=True)]
    torch.testing.assert_close(model.elbo(data), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("cls", [TwoFinite, FinitePosterior])
def test_evidence_and_responsibilities_with_some_labels_known(cls):
    torch.manual_seed(0)
    model, x = cls().double(), numbers(6)
    data = {"x": x, "a": LABELS}
    r_all, evidence_all = TwoFinite.responsibilities(model, x)["a"], model.log_prob(x)
    known = ~LABELS.isnan()
    seen = LABELS[known].long()
    # log p(x, a) = log p(a | x) + log p(x)
    expected = evidence_all.clone()
    expected[known] += r_all[known].gather(1, seen[:, None])[:, 0].log()
    torch.testing.assert_close(model.log_prob(data), expected)
    expected_r = r_all.clone()
    expected_r[known] = nn.functional.one_hot(seen, 2).double()
    torch.testing.assert_close(model.responsibilities(data)["a"], expected_r)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_labels_known_for_all_data_leave_nothing_to_sum(dtype):
    model, data = make("mixture, partly observed")
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    x = data["x"]
    normal = MultivariateNormal(model.components.loc[labels], model.components.covariance[labels])
    expected = model.mixing.probs[labels].log() + normal.log_prob(x)
    torch.testing.assert_close(model.log_prob({"x": x, "z": labels.to(dtype)}), expected)


def test_inputs_are_conditioned_on():
    model, data = make("conditional vae")
    torch.manual_seed(1)
    found = model.elbo(data)
    torch.manual_seed(1)
    q = model.q_z(data["x"], data["label"])
    z = q.rsample()
    p = model.decoder(torch.cat([z, nn.functional.one_hot(data["label"], 3)], -1)).sigmoid()
    x = data["x"]
    likelihood = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    expected = likelihood + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
    torch.testing.assert_close(found, expected)
    other = model.elbo({"x": x, "label": (data["label"] + 1) % 3})
    assert bool((other != found).all())
    assert model.sample(5, label=torch.zeros(5)).shape == (5, 4)
    assert model.reconstruct(data).shape == (6, 4)


def test_a_shared_latent_declared_by_hand_is_bound_by_name():
    model, x = make("shared by hand")
    with model.bind({"scale": torch.tensor(0.7, dtype=torch.float64)}):
        found = model.log_prob(x)
    each = torch.stack([Normal(loc, 0.7).log_prob(x).exp() for loc in (-1.0, 1.0)])
    torch.testing.assert_close(found, (torch.tensor([0.4, 0.6]).double() @ each).log())
    with model.numeric():
        law = model.log_prior({"scale": torch.tensor(0.7, dtype=torch.float64)})
    expected = Normal(0.0, 0.5).log_prob(torch.tensor(0.7).double().log()) - math.log(0.7)
    assert law.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_fixed_shared_latent_answers_for_good():
    model = SharedByHand()
    model.fix({"scale": torch.tensor(0.7)})
    with model.bind({"scale": torch.tensor(0.7)}):
        expected = model.log_prob(torch.zeros(2))
    torch.testing.assert_close(model.log_prob(torch.zeros(2)), expected)
    assert model.sample(4).shape == (4,)


# Continuous latents, by Monte Carlo against closed forms


def _within(found, expected, standard_error):
    assert bool(((found - expected).abs() < 4 * standard_error + 1e-12).all()), (found, expected, standard_error)


def test_a_latent_that_depends_on_a_latent():
    model, x = make("hierarchy")
    spread = model.weight.square().sum() + 2 * 0.5**2
    exact = MultivariateNormal(torch.zeros(3).double(), spread * torch.ones(3, 3) + 0.64 * torch.eye(3)).log_prob(x)
    with torch.no_grad():  # a q near the posterior: z sits near the mean of x, top near 0
        model.top_net.weight.zero_(), model.top_net.bias.zero_()
        model.z_net.weight.copy_(torch.tensor([[1 / 6] * 3 + [0.0] * 2] * 2)), model.z_net.bias.zero_()
    evidence = model.evidence(x, num_particles=20_000)
    assert evidence.method == "importance"
    assert bool((evidence.standard_error < 0.1).all())
    _within(evidence.value, exact, evidence.standard_error)


def test_latents_drawn_for_every_finite_value_keep_their_weight():
    model, x = make("mixture vae")
    prior = torch.tensor([0.2, 0.3, 0.5]).double()
    joint = prior * Normal(model.loc, math.sqrt(1 + 0.9**2)).log_prob(x[:, None]).exp()
    evidence = model.evidence(x, num_particles=20_000)
    _within(evidence.value, joint.sum(1).log(), evidence.standard_error)
    torch.testing.assert_close(model.responsibilities(x), model.q_k(x).probs)


def test_what_has_no_mean_is_not_reconstructed():
    model, x = pv.models.CodePrior(pv.code_priors.Autoregressive(3, 4, hidden=5)), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(pv.EngineError, match=r"reconstruct gives means, and 'codes', a .*, has none"):
        model.reconstruct(x)


def test_the_reconstruction_of_a_mixture_is_the_posterior_mean():
    model, x = make("mixture, full")
    torch.testing.assert_close(model.reconstruct(x), (model.responsibilities(x) @ model.components.loc).detach())


def test_a_q_for_every_datum_reaches_the_best_factorised_normal():
    model, x = make("local q")
    exact = model.exact(x).detach()
    W = model.decoder.weight.detach()
    precision = torch.eye(2) + W.T @ W / model.noise**2
    # The best diagonal q has precision diag(P): KL = (sum log P_ii - log |P|) / 2, the same for every datum.
    gap = (precision.diagonal().log().sum() - precision.logdet()) / 2
    torch.testing.assert_close(model.elbo(x, num_particles=5000), exact - gap, rtol=0, atol=0.06)
    assert not model.local_posteriors, "local optimisation left its q in the model"


def test_a_q_for_every_datum_serves_as_importance_proposal_and_is_the_same_each_time():
    model, x = make("local q")
    evidence = model.evidence(x, num_particles=2000)
    _within(evidence.value, model.exact(x).detach(), evidence.standard_error)
    first, second = model.posterior(x).mean, model.posterior(x).mean
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    exact = model.exact_posterior(x)
    assert bool(((first - exact.mean).abs() < 0.5 * exact.stddev).all())


class VampVAE(LinearVAE):
    """The prior is the mean of q over learned pseudo-inputs (Tomczak and Welling 2018)."""

    def __init__(self):
        super().__init__()
        self.pseudo_inputs = nn.Parameter(numbers(4, 3, seed=8))

    def z(self):
        weights = dist.Categorical(torch.ones(len(self.pseudo_inputs)))
        return dist.MixtureSameFamily(weights, self.q_z(self.pseudo_inputs))


def test_a_prior_may_call_the_posterior():
    torch.manual_seed(0)
    model, x = VampVAE().double(), numbers(6, 3)
    obs = model.check(x)
    with model.numeric():
        sites = model.sites(obs)
        z = sites.values["z"]
        loc, scale = model.encoder(model.pseudo_inputs)
        expected = torch.logsumexp(Normal(loc, scale).log_prob(z[:, None]).sum(-1), 1) - math.log(4)
        torch.testing.assert_close(sites.log_p["z"], expected)
        Elbo()(sites).sum().backward()
    assert bool((model.pseudo_inputs.grad != 0).all())
    assert model.sample(7).shape == (7, 3)


# Numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_have_the_models_dtype(dtype):
    model = LinearVAE().to(dtype)
    assert {model.elbo(x).dtype for x in (torch.zeros(3, 3), torch.zeros(3, 3).double())} == {dtype}
    assert model.sample(2).dtype == dtype
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.param_store
def test_two_models_of_one_class_keep_their_own_parameters():
    one, other = (PoissonLatent() for _ in range(2))
    with torch.no_grad():
        other.a.fill_(1.0)
    x = torch.zeros(3)
    before = one.q_z(x).mean.clone()
    other.guide(x)
    one.guide(x)
    torch.testing.assert_close(one.q_z(x).mean, before)
    torch.testing.assert_close(other.q_z(x).mean, torch.tensor(math.e).expand(3))


def test_rows_in_chunks_are_rows_at_once(monkeypatch):
    model, x = make("mixture, full")
    whole = model.log_prob(x), model.responsibilities(x)
    monkeypatch.setattr("ppl_vae.declare.of_data.ROWS_AT_ONCE", 4)
    torch.testing.assert_close(model.log_prob(x), whole[0])
    torch.testing.assert_close(model.responsibilities(x), whole[1])


def test_a_mixture_vaes_particles_survive_chunks(monkeypatch):
    model, x = make("mixture vae")
    assert isinstance(model, GaussianMixtureVAE)
    monkeypatch.setattr("ppl_vae.declare.of_data.ROWS_AT_ONCE", 4000)
    evidence = model.evidence(x, num_particles=2000)
    assert evidence.value.shape == (6,)
    joint = torch.tensor([0.2, 0.3, 0.5]).double() * Normal(model.loc, math.sqrt(1.81)).log_prob(x[:, None]).exp()
    _within(evidence.value, joint.sum(1).log(), evidence.standard_error)


def test_what_stands_still_goes_on_where_it_did():
    vae = pv.models.VAE(pv.nets.mlp_encoder(4, 3, 2), pv.nets.mlp_decoder(2, 3, 4)).train()
    vae.decoder.eval()  # frozen by the user
    with vae.standing():
        assert not any(module.training for module in vae.modules())
    assert vae.training
    assert vae.encoder.training
    assert not vae.decoder.training
