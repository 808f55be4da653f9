"""A table of measurements, counts and answers, with outliers and gaps, in one mixture."""

import torch
from sklearn.metrics import adjusted_rand_score

import ppl_vae as pv
from ppl_vae import families, latent, observed


class Customers(pv.LatentVariableModel):
    """p(z) = Categorical(pi), p(row | z) = t(spending) Poisson(visits) Categorical(answers), given z."""

    def __init__(self, K):
        super().__init__()
        self.mixing = families.Categorical(K)
        self.groups = families.Product(
            {
                "spending": families.StudentT(2, batch=K, df=4.0),  # columns 0 and 1: robust
                "visits": families.Poisson(batch=K),  # column 2
                "answers": families.CategoricalVector(3, 2, batch=K),  # columns 3 and 4
            }
        )

    @latent
    def z(self):
        return self.mixing()

    @observed
    def row(self, z):
        return self.groups(z)


def customers(n):
    """Two groups, a hundredth of outliers, a fifth of the entries missing."""
    z = torch.arange(n) % 2
    spending = torch.tensor([[10.0, 4.0], [14.0, 9.0]])[z] + torch.randn(n, 2)
    spending[::100] += 50 * torch.randn(len(spending[::100]), 2)
    visits = torch.poisson(torch.tensor([2.0, 5.0])[z])
    answers = torch.multinomial(torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])[z], 2, replacement=True)
    rows = torch.cat([spending, visits[:, None], answers], 1).double()
    return z, rows.masked_fill(torch.rand(rows.shape) < 0.2, torch.nan)


def main(n=2000):
    torch.manual_seed(0)
    z, rows = customers(n)
    fit = pv.EM(n_init=3, progress=False).fit(Customers(2), rows)
    print(fit)
    for name, value in fit.parameters.items():
        print(name, value.numpy().round(2).tolist())

    # The groups are found; a normal in the place of the t would follow the outliers instead.
    agreement = adjusted_rand_score(z, fit.labels(rows))
    print(f"adjusted Rand index with the true groups: {agreement:.3f}")
    assert agreement > 0.85
    order = fit.parameters["groups.visits.rate"].argsort()
    found = fit.parameters["groups.spending.loc"][order]
    assert (found - torch.tensor([[10.0, 4.0], [14.0, 9.0]])).abs().max() < 0.2
    # The bound never falls, and at its end is the log-likelihood of the entries that were seen.
    bound = fit.trace["bound"]
    assert (bound.diff() >= -1e-9 * bound.abs().max()).all()
    assert abs(bound[-1] - fit.log_prob(rows).sum()) < 1e-8 * abs(bound[-1])


if __name__ == "__main__":
    main()
