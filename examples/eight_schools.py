"""A hierarchy on eight data: the same model by SVI and NUTS, centred and not, against quadrature."""

import pyro.distributions as dist
import torch

import ppl_vae as pv
from ppl_vae import given, latent, observed

# Gains in a test after coaching in eight schools, and their standard errors (Rubin 1981).
SCHOOLS = {
    "gain": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "error": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}


class Centred(pv.LatentVariableModel):
    """p(effect) = N(mu, tau), p(gain | effect) = N(effect, error)."""

    error = given()

    @latent(shared=True)
    def mu(self):
        return dist.Normal(0.0, 5.0)

    @latent(shared=True)
    def tau(self):
        return dist.HalfCauchy(5.0)

    @latent
    def effect(self, mu, tau):
        return dist.Normal(mu, tau)

    @observed
    def gain(self, effect, error):
        return dist.Normal(effect, error)


class NonCentred(Centred):
    """The same law of the gains, by effects in units of tau."""

    @latent
    def effect(self):
        return dist.Normal(0.0, 1.0)

    @observed
    def gain(self, mu, tau, effect, error):
        return dist.Normal(mu + tau * effect, error)


def quadrature():
    """Posterior means of mu and tau: given both, gain ~ N(mu, sqrt(tau^2 + error^2))."""
    mu = torch.linspace(-25.0, 30.0, 400, dtype=torch.float64)[:, None]
    log_tau = torch.linspace(-8.0, 7.0, 1500, dtype=torch.float64)
    tau = log_tau.exp()
    log_p = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau) + log_tau
    for gain, error in zip(SCHOOLS["gain"], SCHOOLS["error"], strict=True):
        log_p = log_p + dist.Normal(mu, (tau.square() + error.double().square()).sqrt()).log_prob(gain.double())
    p = (log_p - log_p.max()).exp()
    return {"mu": ((p * mu).sum() / p.sum()).item(), "tau": ((p * tau).sum() / p.sum()).item()}


def main(draws=1000):
    exact = quadrature()
    engines = {"SVI": pv.SVI(300, progress=False), "NUTS": pv.NUTS(draws, num_chains=2, progress=False)}
    fits = {
        f"{name} {type(model).__name__}": engine.fit(model, SCHOOLS)
        for model in (Centred(), NonCentred())
        for name, engine in engines.items()
    }
    for name, fit in fits.items():
        found = ", ".join(f"{k} {fit.parameters[k].item():.2f} ({value:.2f})" for k, value in exact.items())
        print(f"{name:<16}{found}; {fit.status}")

    # In the funnel of the centred form the sampler diverges and says so; without it, it reaches the exact answer.
    best = fits["NUTS NonCentred"]
    assert pv.diagnostics.convergence(best).divergences <= 10
    assert abs(best.parameters["mu"].item() - exact["mu"]) < 0.5
    assert abs(best.parameters["tau"].item() - exact["tau"]) < 0.6
    # Both forms have one law of the gains, so SVI's bounds can be compared: that of the better q is higher.
    bound = {name: fit.trace["bound"][-100:].mean().item() for name, fit in fits.items() if "SVI" in name}
    print(bound)
    assert bound["SVI NonCentred"] > bound["SVI Centred"]


if __name__ == "__main__":
    main()
