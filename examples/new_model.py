"""A model this package does not ship: counts with too many zeros, declared in 20 lines and fitted by three engines."""

import pyro.distributions as dist
import torch

import ppl_vae as pv
from ppl_vae import latent, observed


class ZeroInflatedPoisson(pv.LatentVariableModel):
    """p(active) = Bernoulli(pi), p(x | active) = Poisson(rate) if active, else 0."""

    @latent(shared=True)
    def pi(self):
        return dist.Beta(1.0, 1.0)

    @latent(shared=True)
    def rate(self):
        return dist.Gamma(2.0, 0.5)

    @latent
    def active(self, pi):
        return dist.Bernoulli(pi)

    @observed
    def x(self, active, rate):
        return dist.Poisson(torch.where(active == 1, rate, 1e-9))


def main(draws=500):
    torch.manual_seed(0)
    active = torch.bernoulli(torch.full((500,), 0.6, dtype=torch.float64))
    x = torch.poisson(3.0 * active)
    model = ZeroInflatedPoisson()
    fits = {
        "EM (MAP)": pv.EM(progress=False).fit(model, x),
        "SVI": pv.SVI(800, optimizer=pv.adam(2e-2), progress=False).fit(model, x),
        "NUTS": pv.NUTS(draws, warmup=draws // 2, num_chains=2, progress=False).fit(model, x),
    }
    print(pv.compare(fits))
    for name, fit in fits.items():
        pi, rate = fit.parameters["pi"].item(), fit.parameters["rate"].item()
        # Standard errors of about 0.02 and 0.1 at 500 counts.
        assert abs(pi - 0.6) < 0.08, (name, pi)
        assert abs(rate - 3.0) < 0.4, (name, rate)


if __name__ == "__main__":
    main()
