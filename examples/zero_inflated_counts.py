"""A frequency table by its weights: are there too many zeros, or is everything too spread out?"""

import math

import pyro.distributions as dist
import torch

import ppl_vae as pv
from ppl_vae import latent, observed

# Articles that 915 students of biochemistry published in three years (Long 1990), and how many students did.
ARTICLES = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 19])
STUDENTS = torch.tensor([275, 246, 178, 84, 67, 27, 17, 12, 1, 2, 1, 1, 2, 1, 1])


class ZeroInflatedPoisson(pv.LatentVariableModel):
    """p(writes) = Bernoulli(share), p(x | writes) = Poisson(rate) for those who write, else 0."""

    @latent(shared=True)
    def share(self):
        return dist.Beta(1.0, 1.0)

    @latent(shared=True)
    def rate(self):
        return dist.Gamma(1.0, 0.5)

    @latent
    def writes(self, share):
        return dist.Bernoulli(share)

    @observed
    def x(self, writes, rate):
        return dist.Poisson(torch.where(writes == 1, rate, 1e-9))


class GammaPoisson(pv.LatentVariableModel):
    """p(x) = Poisson with a rate from Gamma(shape, shape / mean): the negative binomial."""

    @latent(shared=True)
    def shape(self):
        return dist.Gamma(1.0, 0.5)

    @latent(shared=True)
    def mean(self):
        return dist.Gamma(1.0, 0.5)

    @observed
    def x(self, shape, mean):
        return dist.GammaPoisson(shape, shape / mean)


def maximum_likelihood():
    """The zero-inflated Poisson's maximum: rate / (1 - exp(-rate)) is the mean of those that are not zero."""
    total, writers = float((ARTICLES * STUDENTS).sum()), float(STUDENTS[1:].sum())
    rate = total / writers
    for _ in range(200):
        rate = total / writers * -math.expm1(-rate)
    return writers / float(STUDENTS.sum()) / -math.expm1(-rate), rate


def main(draws=300):
    model = ZeroInflatedPoisson()
    em = pv.EM(tol=1e-12, estimate="ml", progress=False).fit(model, ARTICLES, STUDENTS)
    share, rate = maximum_likelihood()
    assert abs(em.parameters["share"].item() - share) < 1e-4
    assert abs(em.parameters["rate"].item() - rate) < 1e-4

    nuts = pv.NUTS(draws, warmup=draws, num_chains=2, progress=False)
    fits = {
        "zero-inflated": nuts.fit(model, ARTICLES, STUDENTS),
        "spread": nuts.fit(GammaPoisson(), ARTICLES, STUDENTS),
    }
    table = pv.compare(fits)
    print(table)

    # Leave-one-out is over 915 students, not over 15 rows, and prefers students who differ by much.
    loo = table.loo()
    print(loo)
    assert table.elpd["spread"].n_data_points == 915
    assert loo.index[0] == "spread"
    assert loo.loc["zero-inflated", "elpd_diff"] > 2 * loo.loc["zero-inflated", "dse"]

    # The zeros are right in both; what the zero-inflated model does not make is a spread like this one.
    statistics = {"zeros": lambda x: (x == 0).mean(), "spread": lambda x: x.var() / x.mean()}
    checks = {name: pv.predictive_check(fit, statistics=statistics)["p"] for name, fit in fits.items()}
    print(checks)
    assert 0.05 < checks["zero-inflated"]["zeros of x"] < 0.95
    assert checks["zero-inflated"]["spread of x"] < 0.01 < 0.02 < checks["spread"]["spread of x"]


if __name__ == "__main__":
    main()
