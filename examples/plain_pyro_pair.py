"""An ordinary Pyro model and guide in the same engines, without a line of this package inside them."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from torch.distributions import constraints

import ppl_vae as pv


@config_enumerate
def model(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([1.5, 4.5]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def guide(x):
    """Everything is enumerated: there is nothing to draw."""


def main():
    x = pv.data.faithful().values[:, 0].float()
    em = pv.EM(progress=False).fit(model, x)
    svi = pv.SVI(600, optimizer=pv.adam(2e-2), progress=False).fit((model, guide), x)
    print(em, svi, sep="\n")
    # Eruptions alone, two components: the maximum is known from the closed-form engine.
    exact = pv.EM(n_init=5, progress=False).fit(pv.models.GaussianMixture(2, 1), x.double())
    best = exact.log_prob(x.double()).sum().item()
    assert abs(em.log_prob(x).sum().item() - best) < 0.01
    assert abs(svi.log_prob(x).sum().item() - best) < 0.01
    assert not list(pyro.get_param_store()), "parameters were left in Pyro's store"


if __name__ == "__main__":
    main()
