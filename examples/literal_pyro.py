"""Declared models in Pyro's own hands: pyro.infer.SVI with Trace_ELBO, TraceEnum_ELBO and MCMC(NUTS)."""

import pyro
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO

import ppl_vae as pv


def train_vae(steps=300):
    """The VAE's model and guide are a Pyro pair."""
    digits = pv.data.images("digits", binarize="threshold")
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 64, 4), pv.nets.mlp_decoder(4, 64, 64))
    before = {name: value.clone() for name, value in vae.named_parameters()}
    start = vae.elbo(digits.test).mean().item()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    for _ in range(steps):
        rows = torch.randperm(len(digits.train))[:128]
        svi.step(digits.train[rows], index=rows, size=len(digits.train))
    end = vae.elbo(digits.test).mean().item()
    print(f"VAE, held-out bound: {start:.2f} to {end:.2f} nats per datum")
    assert end > start + 5
    assert all(not torch.equal(value, before[name]) for name, value in vae.named_parameters()), "a parameter stayed"


def fit_mixture(x, steps=400):
    """The mixture's finite latent is enumerated; its parameters are the module's."""
    gmm = pv.models.GaussianMixture(2, 2).double()
    gmm.components.loc = torch.tensor([[2.0, 55.0], [4.3, 80.0]], dtype=torch.float64)
    gmm.components.covariance = torch.cov(x.T).repeat(2, 1, 1) / 4
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(gmm.model, gmm.guide, pyro.optim.Adam({"lr": 2e-2}), loss)
    for _ in range(steps):
        svi.step(x)
    reached = -loss.loss(gmm.model, gmm.guide, x)
    print(f"mixture, log-likelihood: {reached:.3f}")
    assert abs(reached + 1130.264) < 0.5


def sample_mixture(x, draws=60):
    """With priors the same declaration is a target of Pyro's own NUTS."""
    gmm = pv.models.GaussianMixture(2, 2, covariance="diagonal", prior="weak").double()
    gmm.adapt(x)
    em = pv.EM(n_init=3, progress=False).fit(gmm, x)
    start = pyro.infer.autoguide.init_to_value(values=em.draw(0))
    mcmc = MCMC(NUTS(gmm.model, init_strategy=start, max_plate_nesting=1), draws, draws, disable_progbar=True)
    mcmc.run(x)
    mean = mcmc.get_samples()["components.loc"].mean(0)
    print("NUTS, component means:", mean.round(decimals=2).tolist())
    assert torch.allclose(mean, em.parameters["components.loc"], rtol=0.03)


def main():
    x = pv.data.faithful().values
    torch.manual_seed(0)
    pyro.clear_param_store()
    train_vae()
    pyro.clear_param_store()
    fit_mixture(x)
    pyro.clear_param_store()
    sample_mixture(x)
    pyro.clear_param_store()


if __name__ == "__main__":
    main()
