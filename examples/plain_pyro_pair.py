"""An ordinary Pyro model and guide: made fast by one line, and in this package's engines, which it knows nothing of."""

import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from torch import nn
from torch.distributions import constraints

import ppl_vae as pv

STEPS = 100


class VAE(nn.Module):
    """A variational autoencoder as Pyro's own example writes it."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 50), nn.Softplus(), nn.Linear(50, 10))
        self.decoder = nn.Sequential(nn.Linear(5, 50), nn.Softplus(), nn.Linear(50, 64))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 5), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(make, batches):
    """Losses and seconds of the training loop, with the same parameters and noise whatever takes the steps."""
    torch.manual_seed(0)
    vae = VAE()
    step = make(vae)
    first = float(step(batches[0]))
    begin = time.perf_counter()
    losses = [first] + [float(step(batch)) for batch in batches[1:]]
    return torch.tensor(losses), time.perf_counter() - begin


def one_line():
    """The same steps, from Pyro and from a graph of the same loss."""
    digits = pv.data.images("digits", binarize="threshold").train
    batches = [digits[torch.randperm(len(digits))[:64]] for _ in range(STEPS)]
    adam = pyro.optim.Adam({"lr": 1e-3})

    theirs, slow = train(lambda vae: SVI(vae.model, vae.guide, adam, Trace_ELBO()).step, batches)
    pyro.clear_param_store()
    bounds, fast = train(lambda vae: pv.svi_step((vae.model, vae.guide), adam, objective=Trace_ELBO()), batches)

    print(f"{STEPS} steps: pyro.infer.SVI {slow:.2f} s, pv.svi_step {fast:.2f} s")
    torch.testing.assert_close(-bounds, theirs, rtol=1e-4, atol=0.0)
    assert not list(pyro.get_param_store()), "parameters were left in Pyro's store"


@config_enumerate
def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([1.5, 4.5]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def nothing(x):
    """The guide of a model in which everything is enumerated."""


def every_engine():
    """EM and SVI on a Pyro model; eruptions alone, two components: the maximum is known from the closed-form EM."""
    x = pv.data.faithful().values[:, 0].float()
    em = pv.EM(progress=False).fit(mixture, x)
    svi = pv.SVI(600, optimizer=pv.adam(2e-2), progress=False).fit((mixture, nothing), x)
    print(em, svi, sep="\n")
    exact = pv.EM(n_init=5, progress=False).fit(pv.models.GaussianMixture(2, 1), x.double())
    best = exact.log_prob(x.double()).sum().item()
    assert abs(em.log_prob(x).sum().item() - best) < 0.01
    assert abs(svi.log_prob(x).sum().item() - best) < 0.01


def main():
    one_line()
    every_engine()


if __name__ == "__main__":
    main()
