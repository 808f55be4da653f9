"""Linear-Gaussian models, whose every quantity is known in closed form."""

import pyro.distributions as dist
import torch
from example_models import LinearGaussian, LinearVAE

import ppl_vae as pv


class Exact(LinearGaussian):
    """q(z | x) = p(z | x)."""

    @LinearGaussian.z.posterior
    def q_z(self, x):
        p = self.exact_posterior(x)
        return dist.MultivariateNormal(p.loc, scale_tril=p.scale_tril)


class Narrow(LinearGaussian):
    """q(z | x) with the posterior's mean, and its scale times `width`."""

    width = 0.2

    @LinearGaussian.z.posterior
    def q_z(self, x):
        p = self.exact_posterior(x)
        return dist.MultivariateNormal(p.loc, scale_tril=self.width * p.scale_tril)


class Shifted(LinearGaussian):
    """q(z | x) = a + b z for z ~ p(z | x), so that the aggregate posterior is N(a, b^2 I)."""

    shift, factor = 0.0, 1.0

    @LinearGaussian.z.posterior
    def q_z(self, x):
        p = self.exact_posterior(x)
        return dist.MultivariateNormal(self.shift + self.factor * p.loc, scale_tril=self.factor * p.scale_tril)


class Offset(LinearGaussian):
    """q(z | x) with the posterior's scale, and its mean off by `by` in each unit."""

    by = 0.0

    @LinearGaussian.z.posterior
    def q_z(self, x):
        p = self.exact_posterior(x)
        return dist.MultivariateNormal(p.loc + self.by, scale_tril=p.scale_tril)


class Diagonal(LinearVAE):
    """q(z | x) = N(V x + a, diag s^2), as the network starts."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()


class Answered(LinearVAE):
    """The encoder ignores its data."""

    def __init__(self):
        super().__init__()
        for parameter in self.encoder.parameters():
            torch.nn.init.zeros_(parameter)


def weighted(model):
    """The model with a decoder of its own."""
    with torch.no_grad():
        model.decoder.weight.copy_(torch.tensor([[1.0, 0.6], [0.2, -0.8], [0.5, 0.9]]))
        model.decoder.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    return model.double()


def data_of(model, n, seed=0):
    """N data that the model makes."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return model.sample(n)


def fitted(model):
    """A Fit of the model as it stands."""
    return pv.Fit(model, "SVI", {}, {}, "ELBO", pv.Status("finished", "as it stands"), 0.0, 0)


def information(model):
    """I(x; z) = (1/2) log det(I + W'W / s^2)."""
    W = model.decoder.weight
    return 0.5 * torch.linalg.slogdet(torch.eye(2, dtype=W.dtype) + W.T @ W / model.noise**2).logabsdet.item()


def best_diagonal(model, x):
    """What the best diagonal normal lacks of log p(x): (sum_j log P_jj - log det P) / 2, P that of p(z | x)."""
    P = model.exact_posterior(x).precision_matrix
    return 0.5 * (P.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.linalg.slogdet(P).logabsdet)
