"""Labels, all or some of them known, beside families whose parameters have a prior."""

import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import families, given, latent, observed


class Counts(pv.LatentVariableModel):
    """p(z) = Dirichlet-distributed shares, p(x | z) = Poisson with a Gamma prior."""

    def __init__(self):
        super().__init__()
        self.mixing = families.Categorical(2, prior=families.DirichletPrior(2.0))
        self.components = families.Poisson(batch=2, prior=families.GammaPrior(3.0, 2.0))

    @latent
    def z(self):
        return self.mixing()

    @observed
    def x(self, z):
        return self.components(z)


X = torch.tensor([0.0, 2.0, 1.0, 7.0, 9.0, 6.0, 8.0])
Z = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])


def test_the_mode_with_every_label_is_the_conjugate_one():
    """Shares (n_k + a - 1) / (n + K (a - 1)), rates (sum x + a - 1) / (n_k + b) (000 (8))."""
    found = pv.EM(progress=False).fit(Counts(), {"x": X, "z": Z}).parameters
    assert found["mixing.probs"].tolist() == pytest.approx([4 / 9, 5 / 9])
    assert found["components.rate"].tolist() == pytest.approx([5 / 5, 32 / 6])


@pytest.mark.parametrize(
    "engine",
    [
        pv.EM(progress=False),
        pv.VB(progress=False, num_draws=20),
        pv.SVI(epochs=5, progress=False),
        pv.NUTS(30, warmup=30, num_chains=1, progress=False),
    ],
    ids=lambda engine: type(engine).__name__,
)
def test_every_engine_takes_some_labels(engine):
    z = torch.where(torch.tensor([True, False, True, True, False, True, False]), Z, torch.nan)
    fit = engine.fit(Counts(), {"x": X, "z": z})
    r = fit.responsibilities({"x": X})
    assert bool((r[:3, 0] > 0.5).all())
    assert bool((r[3:, 1] > 0.5).all())


class Scaled(Counts):
    """The same beside a latent declared by hand, which a second outcome depends on."""

    @latent(shared=True)
    def s(self):
        return dist.Gamma(2.0, 2.0)

    @observed
    def y(self, s, z):
        return dist.Exponential(s.expand(z.shape))


def test_labels_beside_a_shared_latent_declared_by_hand():
    """EM's s is the mode of its Gamma posterior, (n + a - 1) / (sum y + b)."""
    y = torch.tensor([0.5, 1.0, 0.2, 0.1, 2.0, 0.4, 0.8])
    found = pv.EM(max_iter=100, tol=1e-12, progress=False).fit(Scaled(), {"x": X, "y": y, "z": Z}).parameters
    assert found["s"].item() == pytest.approx((7 + 1) / (y.sum().item() + 2), rel=1e-4)
    assert found["mixing.probs"].tolist() == pytest.approx([4 / 9, 5 / 9])


class Sloped(pv.LatentVariableModel):
    """A regression on what a shared latent makes of an input."""

    t = given()

    def __init__(self):
        super().__init__()
        self.line = families.LinearRegression(1, batch=1)

    @latent(shared=True)
    def s(self):
        return dist.Gamma(2.0, 2.0)

    @observed
    def y(self, t, s):
        return self.line(None, (t * s)[..., None])


def test_inputs_of_a_family_that_depend_on_a_shared_latent_are_refused():
    t = torch.linspace(0, 1, 20)
    with pytest.raises(pv.DeclarationError, match="inputs that depend on s"):
        pv.EM(progress=False).fit(Sloped(), {"t": t, "y": 2 * t + 1 + 0.1 * torch.randn(20)})


class Networked(pv.LatentVariableModel):
    """A regression on what a network makes of an input."""

    t = given()

    def __init__(self):
        super().__init__()
        self.net, self.line = torch.nn.Linear(1, 2), families.LinearRegression(2, batch=1)

    @observed
    def y(self, t):
        return self.line(None, self.net(t[..., None]).tanh())


def test_inputs_of_a_family_that_a_network_makes_are_for_svi_or_frozen():
    torch.manual_seed(0)
    data = {"t": torch.linspace(-1, 1, 40), "y": torch.linspace(-1, 1, 40).sin()}
    model = Networked()
    with pytest.raises(pv.EngineError, match="fit it by SVI, or freeze the network"):
        pv.EM(progress=False).fit(model, data)
    assert pv.SVI(3, progress=False).fit(model, data).status.code == "finished"
    model.net.requires_grad_(False)
    fit = pv.EM(progress=False).fit(model, data)
    features = torch.cat([model.net(data["t"][:, None]).tanh(), torch.ones(40, 1)], 1).double()
    residual = data["y"].double() - features @ torch.linalg.lstsq(features, data["y"].double()).solution
    assert fit.parameters["line.variance"].item() == pytest.approx(residual.square().mean().item(), rel=1e-3)
