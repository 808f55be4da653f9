"""Two lines in one cloud of points, and two kinds of clickers: mixtures of regressions."""

import torch

import ppl_vae as pv
from ppl_vae import families, given, latent, observed


class Experts(pv.LatentVariableModel):
    """p(z) = Categorical(pi), p(y | t, z) = regression z of y on t."""

    t = given()

    def __init__(self, regressions):
        super().__init__()
        self.mixing = families.Categorical(regressions.batch)
        self.experts = regressions

    @latent
    def z(self):
        return self.mixing()

    @observed
    def y(self, z, t):
        return self.experts(z, t)


def lines(n):
    t, z = 4 * torch.rand(n, 1, dtype=torch.float64), torch.arange(n) % 3 == 0
    mean = torch.where(z, 5.0 - t[:, 0], 1.0 + 2.0 * t[:, 0])
    data = {"t": t, "y": mean + 0.3 * torch.randn(n, dtype=torch.float64)}
    fit = pv.EM(n_init=5, progress=False).fit(Experts(families.LinearRegression(1, batch=2)), data)
    return z, data, fit


def clickers(n):
    """Half of the people look at the first of two prices, half at the second; who does which is not known."""
    t = torch.randn(n, 2, dtype=torch.float64)
    y = torch.bernoulli(torch.sigmoid(4.0 * t.gather(1, torch.arange(n)[:, None] % 2)[:, 0]))
    data = {"t": t, "y": y}
    start = {"experts.coef": torch.eye(2)}
    two = pv.EM(start=start, progress=False).fit(Experts(families.LogisticRegression(2, batch=2)), data)
    one = pv.EM(progress=False).fit(Experts(families.LogisticRegression(2, batch=1)), data)
    return one, two


def main(n=1500):
    torch.manual_seed(0)
    z, data, fit = lines(n)
    print(fit)
    for name, value in fit.parameters.items():
        print(name, value.numpy().round(3).tolist())
    # Each line is the least-squares line of its own points, up to the few near the crossing.
    order = fit.parameters["experts.coef"][:, 0].argsort()
    truth = torch.tensor([[5.0, -1.0], [1.0, 2.0]]).double()
    found = torch.stack([fit.parameters["experts.intercept"], fit.parameters["experts.coef"][:, 0]], 1)[order]
    assert (found - truth).abs().max() < 0.15
    assert (fit.labels(data) == order[(~z).long()]).double().mean() > 0.9

    one, two = clickers(2 * n)
    coef, bound = two.parameters["experts.coef"], two.trace["bound"]
    print(f"log-likelihood of one expert {one.trace['bound'][-1]:.1f}, of two {bound[-1]:.1f}")
    print(coef.numpy().round(2).tolist())
    assert (bound.diff() >= -1e-9 * bound.abs().max()).all()
    # Four more parameters are worth half of log n each; the gain is far above that. Each expert has its own price.
    assert bound[-1] - one.trace["bound"][-1] > 2 * torch.log(torch.tensor(2.0 * n))
    assert (coef.diagonal() > 2.5).all()
    assert (coef - coef.diagonal().diag()).abs().max() < 1.5


if __name__ == "__main__":
    main()
