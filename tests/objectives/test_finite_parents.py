"""Objectives where the prior of a drawn latent depends on a finite one: p(c) p(z | c) p(x | z)."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.errors import EngineError
from ppl_vae.objectives import Sites
from ppl_vae.over_classes import OverClasses

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Summed(pv.LatentVariableModel):
    """Two clusters, c summed out exactly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = pv.nets.mlp_encoder(3, 4, 2), nn.Linear(2, 3)

    @pv.latent
    def c(self):
        return dist.Categorical(torch.tensor([0.3, 0.7]))

    @pv.latent
    def z(self, c):
        return dist.Normal(torch.tensor([[-1.0, 0.0], [2.0, 1.0]])[c], 0.7).to_event(1)

    @z.posterior
    def q_z(self, x):
        loc, scale = self.encoder(x)
        return dist.Normal(loc, scale).to_event(1)

    @pv.observed
    def x(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(1)


class Enumerated(Summed):
    """The same with q(c | x), under which expectations are sums."""

    c, z = Summed.c, Summed.z

    @c.posterior
    def q_c(self, x):
        return dist.Categorical(logits=x[..., :2])


class Labelled(Enumerated):
    """M2: p(c) p(z) p(x | z, c), with q(c | x) and q(z | x, c)."""

    c = Enumerated.c

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x, c):
        loc, scale = self.encoder(x)
        return dist.Normal(loc * torch.tensor([[1.0, 3.0], [-2.0, 0.1]])[c], scale).to_event(1)

    @pv.observed
    def x(self, z, c):
        return dist.Normal(self.decoder(z) + c[..., None], 1.0).to_event(1)


def value(model, objective, seed=1, beta=1.0):
    with torch.no_grad(), model.numeric():
        torch.manual_seed(seed)
        return objective(model.sites(model.check(X)), beta)


def test_a_summed_parent_leaves_the_bound_what_it_is():
    # -KL(q || p(z | c)) inside of log sum_c is another, lower bound: not the expectation that "analytic" promises.
    assert torch.equal(value(Summed(), pv.elbo(kl="analytic")), value(Summed(), pv.elbo()))


class Given(Summed):
    """The same with the prior of z written out: sum_c p(c) N(z; mu_c, 0.7)."""

    @pv.latent
    def z(self):
        components = dist.Normal(torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), 0.7).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), components)

    @z.posterior
    def q_z(self, x):
        return Summed.q_z.function(self, x)

    c = None

    @pv.observed
    def x(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(1)


class Branched(Summed):
    """p(c) p(z | c) p(x | z, c): the data depend on the class as well."""

    c, z = Summed.c, Summed.z

    @pv.observed
    def x(self, z, c):
        return dist.Normal(self.decoder(z) + 3.0 * c[..., None], 1.0).to_event(1)


OBJECTIVES = [
    pv.elbo(free_bits=0.1),
    pv.elbo(free_bits=50.0),
    pv.tc_elbo(size=8),
    pv.tc_elbo(size=8, alpha=0.0, beta=2.0, gamma=3.0),
    pv.infovae(0.3, 0.7),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_prior_whose_class_is_summed_out_is_a_mixture(objective):
    """log p(z) = log sum_c p(c) p(z | c): what the objective is for the declaration that writes the sum out."""
    torch.testing.assert_close(value(Summed(), objective, beta=0.6), value(Given(), objective, beta=0.6))


def test_the_discrepancy_is_to_the_mixture():
    """Draws of the two priors differ; means over many batches of the unbiased estimate do not."""
    objective, found = pv.infovae(1.0, 5.0), []
    for model in (Summed(), Given()):
        with torch.no_grad(), model.numeric():
            torch.manual_seed(0)
            sites = [model.sites(model.check(X)).collapsed() for _ in range(800)]
            found.append(torch.stack([objective.batch_discrepancy(one) for one in sites]))
    (a, b), error = found, (found[0].var() / 800 + found[1].var() / 800).sqrt()
    assert abs(a.mean() - b.mean()) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize("make", [Summed, Branched])
def test_what_is_left_of_the_joint_is_the_law_of_the_data_given_z(make):
    """log p(x, z) = log p(z) + log p(x | z), also where x depends on the class: by the sum over c, by hand."""
    model = make()
    with torch.no_grad(), model.numeric():
        sites = model.sites(model.check(X))
        one, z = sites.collapsed(), sites.values["z"]
        each = [(p, model.z(torch.tensor([k])), k) for k, p in enumerate((0.3, 0.7))]
        prior = torch.stack([torch.tensor(p).log() + law.log_prob(z) for p, law, _ in each]).logsumexp(0)
        shift = 3.0 if make is Branched else 0.0
        likelihood = [dist.Normal(model.decoder(z) + shift * k, 1.0).to_event(1).log_prob(X) for *_, k in each]
        joint = [torch.tensor(p).log() + law.log_prob(z) + likelihood[k] for p, law, k in each]
    torch.testing.assert_close(one.log_p["z"], prior)
    torch.testing.assert_close(one.p["z"].log_prob(z), prior)
    torch.testing.assert_close(one.joint(), torch.stack(joint).logsumexp(0))


class Siblings(Summed):
    """Two latents that share a class."""

    c, z = Summed.c, Summed.z

    @pv.latent
    def y(self, c):
        return dist.Normal(c.double().float(), 1.0)

    @y.posterior
    def q_y(self, x):
        return dist.Normal(x[..., 0], 1.0)

    @pv.observed
    def x(self, z, y):
        return dist.Normal(self.decoder(z) + y[..., None], 1.0).to_event(1)


@pytest.mark.parametrize("objective", [pv.elbo(free_bits=0.1), pv.tc_elbo(size=8)])
def test_no_divergence_of_each_of_two_with_one_summed_parent(objective):
    with pytest.raises(EngineError, match=r"prior of '[zy]' depends on c, which is summed out"):
        value(Siblings(), objective)


def test_an_enumerated_parent_is_averaged_over():
    bound = value(Enumerated(), pv.elbo())
    torch.testing.assert_close(value(Enumerated(), pv.tc_elbo(size=8, beta=1.0)), bound)
    # Free bits that no unit lacks: the mean over the batch is the bound's.
    floored = value(Enumerated(), pv.elbo(free_bits=1e-9))
    torch.testing.assert_close(floored.mean(), bound.mean())


def divergences(model):
    """E_q(c | x) KL(q(z_j | x, c) || p(z_j | c)) of two normals, by hand and one class after the other, [n, 2]."""
    found = torch.zeros(len(X), 2)
    with torch.no_grad():
        share = torch.softmax(X[:, :2], -1)
        for k in range(2):
            c = torch.tensor([k])
            q, p = (model.q_z(X, c), model.z()) if isinstance(model, Labelled) else (model.q_z(X), model.z(c))
            (m, s), (a, b) = [(d.base_dist.loc, d.base_dist.scale) for d in (q, p)]
            kl = (b / s).log() + (s.square() + (m - a).square()) / (2 * b.square()) - 0.5
            found += share[:, k, None] * kl
    return found


@pytest.mark.parametrize("make", [Enumerated, Labelled])
def test_free_bits_are_of_each_unit_averaged_over_the_classes(make):
    """sum_j max(lambda, E_q(c) KL_j): with a floor over all units, over one of them, and under both."""
    model = make()
    each = divergences(model).mean(0)
    rest = value(model, pv.elbo(kl="analytic")).mean() + each.sum()
    assert each.min() + 0.01 < each.max()
    for floor in (50.0, each.mean().item(), each.min().item() / 2):
        floored = value(model, pv.elbo(kl="analytic", free_bits=floor)).mean()
        torch.testing.assert_close(floored, rest - each.clamp_min(floor).sum())
    drawn = value(model, pv.elbo(free_bits=50.0)).mean()
    torch.testing.assert_close(drawn, rest - 100.0)


@pytest.mark.parametrize("make", [Enumerated, Labelled])
def test_the_units_divergences_at_draws_have_the_closed_form_as_their_mean(make):
    model, many = make(), 4000
    with torch.no_grad(), model.numeric():
        torch.manual_seed(0)
        each = pv.elbo(free_bits=1.0).by_unit(model.sites(model.check(X).repeat(many)), "z").reshape(many, len(X), 2)
    assert bool(((each.mean(0) - divergences(model)).abs() < 5 * each.std(0) / many**0.5).all())


def test_the_discrepancy_moves_a_prior_whose_class_is_summed_out():
    """The mean gradient over draws is that of MMD^2 in closed form, for normals in one dimension and a Gaussian kernel.

    E k(x, y) = sum_c r_c g(x - m_c, 1) and E k(y, y') = sum_cd r_c r_d g(m_c - m_d, 2), where g(u, v) is the mean of
    exp(-(u + e)^2 / 2), e ~ N(0, v); kernel "rbf" has c = 2 here.
    """
    torch.manual_seed(0)
    m = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    z, zeros = torch.randn(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    g = lambda u, v: (1 + v) ** -0.5 * torch.exp(-(u**2) / (2 * (1 + v)))  # noqa: E731
    r, pairs = logits.softmax(0), 1 - torch.eye(4, dtype=torch.float64)
    y_y = (r[:, None] * r * g(m[:, None] - m, 2.0)).sum()
    exact = (torch.exp(-((z - z.T) ** 2) / 2) * pairs).sum() / 12 + y_y - 2 * (r * g(z - m, 1.0)).sum(1).mean()
    expected = torch.autograd.grad(exact, [m, logits])
    objective, found = pv.infovae(1.0, 1.0, kernel="rbf"), []
    for _ in range(4000):
        law = OverClasses(dist.Normal(m[:, None, None], 1.0).to_event(1), logits.softmax(0)[:, None])
        q = dist.Normal(z, 1.0).to_event(1)
        sites = Sites({"z": zeros}, {"z": zeros}, {"z": law}, {"z": q}, {"z": z})
        found.append(torch.cat(torch.autograd.grad(objective.batch_discrepancy(sites), [m, logits])))
    found, expected = torch.stack(found), torch.cat(expected)
    assert bool(((found.mean(0) - expected).abs() < 4 * found.std(0) / 4000**0.5).all())
    assert bool((expected.abs() > 4 * found.std(0) / 4000**0.5).all())
