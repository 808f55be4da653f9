"""Small declared models with data, one of each kind, in float64: `make(name)` returns (model, data)."""

import math

import pyro.distributions as dist
import torch
from shipped_models import SHIPPED
from torch import nn

import ppl_vae as pv
from ppl_vae import given, latent, observed

NAN = math.nan


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bits(*shape, seed=0):
    return (numbers(*shape, seed=seed) > 0).double()


class Hierarchy(pv.LatentVariableModel):
    """p(top) p(z | top) p(x | z), with q(top | x) q(z | x, top)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4]))
        self.top_net, self.z_net = nn.Linear(3, 2), nn.Linear(5, 2)

    @latent
    def top(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @latent
    def z(self, top):
        return dist.Normal(self.weight * top, 0.5).to_event(1)

    @top.posterior
    def q_top(self, x):
        return dist.Normal(self.top_net(x), 0.6).to_event(1)

    @z.posterior
    def q_z(self, x, top):
        return dist.Normal(self.z_net(torch.cat([x, top], -1)), 0.4).to_event(1)

    @observed
    def x(self, z):
        return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3), 0.8).to_event(1)


class ConditionalVAE(pv.LatentVariableModel):
    """p(z) p(x | z, label) with q(z | x, label); the label is conditioned on."""

    label = given()

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = pv.nets.mlp_encoder(7, 4, 2), pv.nets.mlp_decoder(5, 4, 4)

    def _with(self, value, label):
        one_hot = nn.functional.one_hot(label.long(), 3).to(value.dtype)
        return torch.cat([value, one_hot], -1)

    @latent
    def z(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x, label):
        return dist.Normal(*self.encoder(self._with(x, label))).to_event(1)

    @observed
    def x(self, z, label):
        return dist.Bernoulli(logits=self.decoder(self._with(z, label))).to_event(1)


class TwoFinite(pv.LatentVariableModel):
    """p(a) p(b | a) p(x | a, b), both finite and summed out."""

    def __init__(self):
        super().__init__()
        self.logits_a = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.logits_b = nn.Parameter(torch.tensor([[0.1, 0.5, -0.4], [0.9, 0.0, 0.2]]))
        self.loc = nn.Parameter(torch.tensor([[-1.0, 0.0, 1.0], [2.0, -2.0, 0.5]]))

    @latent
    def a(self):
        return dist.Categorical(logits=self.logits_a)

    @latent
    def b(self, a):
        return dist.Categorical(logits=self.logits_b[a])

    @observed
    def x(self, a, b):
        return dist.Normal(self.loc[a, b], 0.7)


class FinitePosterior(TwoFinite):
    """The same with q(a | x): its expectation is enumerated, b is still summed out."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.8, -0.5]))

    @TwoFinite.a.posterior
    def q_a(self, x):
        return dist.Categorical(logits=x[..., None] * self.slope)


class GaussianMixtureVAE(pv.LatentVariableModel):
    """p(k) p(z | k) p(x | z) with q(k | x) enumerated and q(z | x, k) drawn for every k."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
        self.logits, self.slope = nn.Linear(1, 3), nn.Parameter(torch.tensor([0.4, 0.5, 0.6]))

    @latent
    def k(self):
        return dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))

    @latent
    def z(self, k):
        return dist.Normal(self.loc[k], 1.0)

    @k.posterior
    def q_k(self, x):
        return dist.Categorical(logits=self.logits(x[..., None]))

    @z.posterior
    def q_z(self, x, k):
        return dist.Normal(self.slope[k] * x, 0.7)

    @observed
    def x(self, z):
        return dist.Normal(z, 0.9)


class SharedByHand(pv.LatentVariableModel):
    """A mixture of two normals whose spread is one draw for the whole data set."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.0]))

    @latent(shared=True)
    def scale(self):
        return dist.LogNormal(torch.tensor(0.0), 0.5)

    @latent
    def z(self):
        return dist.Categorical(torch.tensor([0.4, 0.6]))

    @observed
    def x(self, z, scale):
        return dist.Normal(self.loc[z], scale)


class PoissonMixture(pv.LatentVariableModel):
    """Two rates of counts, all parameters with conjugate priors."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2, prior="weak")
        self.counts = pv.families.Poisson(2, batch=2, prior=pv.families.GammaPrior(2.0, 1.0))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.counts(z)


class ZeroInflated(pv.LatentVariableModel):
    """Counts that are zero for certain in the first component, Poisson in two others."""

    @pv.latent(shared=True)
    def probs(self):
        return dist.Dirichlet(torch.ones(3))

    @pv.latent(shared=True)
    def rate(self):
        return dist.Gamma(torch.ones(2), 0.2).to_event(1)

    @pv.latent
    def z(self, probs):
        return dist.Categorical(probs)

    @pv.observed
    def x(self, rate, z):
        return dist.Poisson(torch.cat([rate.new_tensor([1e-4]), rate])[z])


class Chain(pv.LatentVariableModel):
    """A hidden chain of two steps: the table of transitions knows the states by its rows and its columns."""

    @pv.latent(shared=True)
    def start(self):
        return dist.Dirichlet(torch.ones(3))

    @pv.latent(shared=True)
    def moves(self):
        return dist.Dirichlet(torch.ones(3, 3)).to_event(1)

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(torch.zeros(3), 5.0).to_event(1)

    @pv.latent
    def z1(self, start):
        return dist.Categorical(start)

    @pv.latent
    def z2(self, moves, z1):
        return dist.Categorical(moves[z1])

    @pv.observed
    def x1(self, loc, z1):
        return dist.Normal(loc[z1], 1.0)

    @pv.observed
    def x2(self, loc, z2):
        return dist.Normal(loc[z2], 1.0)


class NormalMean(pv.LatentVariableModel):
    """mu ~ N(0, 2^2), x_i ~ N(mu, 1): the posterior of mu is known."""

    @pv.latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 2.0)

    @pv.observed
    def x(self, mu):
        return dist.Normal(mu, 1.0)


class FamilyMixture(pv.LatentVariableModel):
    """p(z) = Categorical(pi), p(x | z) = component z of a family."""

    def __init__(self, components):
        super().__init__()
        self.mixing = pv.families.Categorical(components.batch)
        self.components = components

    @latent
    def z(self):
        return self.mixing()

    @observed
    def x(self, z):
        return self.components(z)


class Nested(pv.LatentVariableModel):
    """mu ~ N(0, 3^2), z ~ N(mu, 1), x ~ N(z, 1): given mu, z is N((mu + x) / 2, 1/2)."""

    @latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 3.0)

    @latent
    def z(self, mu):
        return dist.Normal(mu, 1.0)

    @observed
    def x(self, z):
        return dist.Normal(z, 1.0)


class PoissonLatent(pv.LatentVariableModel):
    """p(z) = Poisson(2), p(x | z) = N(z, 1), q(z | x) = Poisson(exp(a + b x)): no reparameterised draw."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    @latent
    def z(self):
        return dist.Poisson(torch.tensor(2.0))

    @z.posterior
    def q_z(self, x):
        return dist.Poisson((self.a + self.b * x).exp())

    @observed
    def x(self, z):
        return dist.Normal(z, 1.0)


class LinearGaussian(pv.LatentVariableModel):
    """z ~ N(0, I_2), x = W z + b + N(0, s^2 I_3), no posterior: the model's evidence is a normal's."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.decoder, self.noise = pv.nets.linear_decoder(2, 3), scale

    @latent
    def z(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @observed
    def x(self, z):
        return dist.Normal(self.decoder(z), self.noise).to_event(1)

    def exact(self, x):
        """log p(x), in closed form."""
        W, b = self.decoder.weight, self.decoder.bias
        covariance = W @ W.T + self.noise**2 * torch.eye(3, dtype=x.dtype)
        return torch.distributions.MultivariateNormal(b, covariance).log_prob(x)

    def exact_posterior(self, x):
        """p(z | x), in closed form."""
        W, b = self.decoder.weight, self.decoder.bias
        precision = torch.eye(2, dtype=x.dtype) + W.T @ W / self.noise**2
        loc = torch.linalg.solve(precision, ((x - b) @ W / self.noise**2).T).T
        return torch.distributions.MultivariateNormal(loc, precision_matrix=precision)


class LinearVAE(LinearGaussian):
    """The same with an amortised q(z | x) = N(V x + a, diag s^2)."""

    def __init__(self, scale=0.5):
        super().__init__(scale)
        self.encoder = pv.nets.linear_encoder(3, 2)

    @LinearGaussian.z.posterior
    def q_z(self, x):
        return dist.Normal(*self.encoder(x)).to_event(1)


def vae(likelihood="bernoulli"):
    return pv.models.VAE(pv.nets.mlp_encoder(6, 5, 2), pv.nets.mlp_decoder(2, 5, 6), likelihood)


def mixture(covariance="full", prior=None, K=2):
    """A mixture away from its symmetric start, where every gradient is different from zero."""
    model = pv.models.GaussianMixture(K, 2, covariance, prior).double()
    model.adapt(numbers(30, 2, seed=5))
    if prior is None:
        loc = torch.tensor([[0.5, -0.5], [-0.7, 0.3], [1.0, 1.0]], dtype=torch.float64)[:K]
        model.components.fix({"loc": loc})
        model.mixing.fix({"probs": torch.tensor([0.3, 0.7, 1.0], dtype=torch.float64)[:K] / (1.0 if K == 2 else 2.0)})
    return model


def with_nan(x):
    x = x.clone()
    x[0, 0], x[2], x[3, 1] = NAN, NAN, NAN
    return x


LABELS = torch.tensor([1.0, NAN, 0.0, NAN, NAN, 1.0], dtype=torch.float64)

MODELS = {
    "vae": lambda: (vae(), bits(6, 6)),
    "gaussian vae": lambda: (vae("gaussian-learned"), numbers(6, 6)),
    "vae with NaN": lambda: (vae("gaussian-learned"), with_nan(numbers(6, 6))),
    "conditional vae": lambda: (ConditionalVAE(), {"x": bits(6, 4), "label": torch.arange(6) % 3}),
    "hierarchy": lambda: (Hierarchy(), numbers(6, 3)),
    "linear vae": lambda: (LinearVAE(), numbers(6, 3)),
    "poisson latent": lambda: (PoissonLatent(), numbers(6)),
    "local q": lambda: (LinearGaussian(), numbers(6, 3)),
    "two finite": lambda: (TwoFinite(), numbers(6)),
    "two finite, partly observed": lambda: (TwoFinite(), {"x": numbers(6), "a": LABELS}),
    "finite posterior": lambda: (FinitePosterior(), numbers(6)),
    "finite posterior, partly observed": lambda: (FinitePosterior(), {"x": numbers(6), "a": LABELS}),
    "mixture vae": lambda: (GaussianMixtureVAE(), numbers(6)),
    "mixture, partly observed": lambda: (mixture(), {"x": numbers(6, 2), "z": LABELS}),
    "poisson mixture": lambda: (PoissonMixture(), numbers(6, 2).abs().floor()),
    "shared by hand": lambda: (SharedByHand(), numbers(6)),
    "mixture with NaN": lambda: (mixture("full"), with_nan(numbers(6, 2))),
    "diagonal mixture with NaN": lambda: (mixture("diagonal", "weak"), with_nan(numbers(6, 2))),
    **{f"mixture, {c}": lambda c=c: (mixture(c), numbers(6, 2)) for c in ("full", "tied", "diagonal", "spherical")},
    **{
        f"mixture, {c}, prior": lambda c=c: (mixture(c, "weak"), numbers(6, 2))
        for c in ("full", "tied", "diagonal", "spherical")
    },
}


def make(name):
    """A fresh model in float64 and its data."""
    torch.manual_seed(0)
    model, data = (MODELS | SHIPPED)[name]()
    return model.double(), data
