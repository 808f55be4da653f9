"""What a fit with many draws of its parameters says is the mean over them of what the model says at each."""

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv

X = pv.data.faithful().values[:40]


class Crossed(pv.LatentVariableModel):
    """Two finite latents: which of two means, which of two scales."""

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(torch.zeros(2), 3.0).to_event(1)

    @pv.latent
    def z(self):
        return dist.Categorical(torch.tensor([0.3, 0.7]))

    @pv.latent
    def wide(self):
        return dist.Bernoulli(0.5)

    @pv.observed
    def x(self, z, wide, loc):
        return dist.Normal(loc[z], 0.5 + wide)


class Branching(Crossed):
    """Its operations depend on the value of a parameter, so that no two draws can be asked at once."""

    @pv.observed
    def x(self, z, wide, loc):
        return dist.Normal(loc[z], 0.5 + wide) if loc[0] > 0 else dist.Laplace(loc[z], 0.5 + wide)


def gaps(x):
    return x.masked_fill(torch.arange(x.numel()).reshape(x.shape) % 7 == 0, torch.nan)


def labelled(x):
    return {"x": x, "z": torch.where(torch.arange(len(x)) % 3 == 0, 1.0, torch.nan)}


MIXTURE = pv.models.GaussianMixture(2, 2, prior="weak")
CASES = {
    "mixture": (MIXTURE, X),
    "missing entries": (MIXTURE, gaps(X)),
    "some labels": (MIXTURE, labelled(X)),
    "two latents": (Crossed(), X[:, 0]),
    "control flow": (Branching(), X[:, 0]),
}


def fit_of(model, x, count):
    """A fit whose draws are those of the prior."""
    data = x["x"] if isinstance(x, dict) else x
    own = pv.EM(max_iter=1, progress=False).fit(model, data).model if model is MIXTURE else model.double()
    shared = set(own.shared_laws())
    drawn = pv.prior_predictive(model, 2, draws=count, data=data)
    return pv.Fit(
        own, "NUTS", {n: v[None] for n, v in drawn.items() if n in shared}, {}, "", pv.Status("finished", ""), 0.0, 0
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [3, 201])
def test_responsibilities_are_the_mean_over_draws(case, count):
    model, x = CASES[case]
    fit = fit_of(model, x, count)
    found, each = fit.responsibilities(x), []
    for s in fit.spaced(min(count, 200)):
        with fit.model.bind(fit.draw(s)):
            each.append(fit.model.responsibilities(x))
    if isinstance(found, dict):
        assert set(found) == {"z", "wide"}
    for name, value in (found if isinstance(found, dict) else {None: found}).items():
        expected = torch.stack([r if name is None else r[name] for r in each]).mean(0)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
