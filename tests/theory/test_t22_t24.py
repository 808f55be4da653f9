"""T22 to T24: each failure of the VAE is made to happen, its diagnostic sees it, and the mend moves it back."""

import pytest
import torch
from torch import nn

import ppl_vae as pv


def four_kinds(n, seed):
    """Binary images of 4 x 4 pixels with one bright row."""
    generator = torch.Generator().manual_seed(seed)
    p = 0.9 * torch.eye(4).repeat_interleave(4, 1) + 0.05
    return torch.bernoulli(p[torch.randint(4, (n,), generator=generator)], generator=generator)


X, NEW = four_kinds(400, 1), four_kinds(400, 2)


def vae(size=2, hidden=(32,), prior=None):
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(16, *hidden, size), pv.nets.mlp_decoder(size, *hidden, 16), prior=prior)


def diagnosed(fit, data=NEW):
    return fit.diagnose(data, gap_data=0, num_particles=20)


# T22


def deep(**mend):
    engine = pv.SVI(60, 100, pv.adam(3e-3), compile="trace", progress=False, **mend)
    return engine.fit(vae(6, (128, 128)), X)


@pytest.fixture(scope="module")
def collapsed():
    return deep()


def test_t22_a_collapsed_vae_is_seen_where_the_gap_shows_nothing(collapsed):
    found = diagnosed(collapsed)
    assert found["active units"].value == 0
    assert found["mutual information"].value < 0.05
    assert not found["active units"].ok
    assert not found["mutual information"].ok
    assert found["gap"].value < 0.1, "the bound is tight, and says nothing"
    assert any("docs/collapse" in sentence for sentence in found.advice)


def test_t22_the_advice_is_the_warm_up_that_mends_it(collapsed):
    said = diagnosed(collapsed).advice[0]
    assert "beta=pv.linear(0, 1, epochs=45)" in said  # the warm-up of MENDS
    assert "this fit had 0 epochs of warm-up" in said


MENDS = {
    "warm-up": {"beta": pv.linear(0, 1, epochs=45)},
    "free bits": {"objective": pv.elbo(free_bits=0.3)},
    "infovae": {"objective": pv.infovae(0.8, 2.0)},
}


@pytest.mark.parametrize(
    "name", ["warm-up", *(pytest.param(n, marks=pytest.mark.slow) for n in ("free bits", "infovae"))]
)
def test_t22_its_mends_bring_units_and_information_back(name, collapsed):
    fit = deep(**MENDS[name])
    found = diagnosed(fit)
    assert found["active units"].value >= 2
    assert found["mutual information"].value > 0.7  # of log 4 = 1.39 nats that tell the kinds apart
    gain = (fit.log_prob(NEW, 100) - collapsed.log_prob(NEW, 100)).double()
    assert gain.mean() > 4 * gain.std() / len(NEW) ** 0.5


# T23


@pytest.fixture(scope="module")
def holed():
    return pv.SVI(60, 100, pv.adam(1e-2), beta=0.1, compile="trace", progress=False).fit(vae(), X)


def test_t23_a_hole_is_seen(holed):
    found = diagnosed(holed)
    assert found["prior in holes"].value > 0.1
    assert found["KL(q(z) || p), at least"].value > 1
    assert not found["prior in holes"].ok
    assert any("prior-hole" in sentence or "docs/hole" in sentence for sentence in found.advice)


def test_t23_a_refitted_prior_closes_it(holed):
    before, after = (diagnosed(fit) for fit in (holed, pv.refit_prior(holed, X, n_components=6)))
    for name in ("prior in holes", "KL(q(z) || p)", "KL(q(z) || p), at least", "MMD"):
        assert after[name].value < 0.5 * before[name].value, name
    assert after["prior in holes"].ok
    # Only the prior has changed: what the codes say of their data is what it was.
    assert after["mutual information"].value == pytest.approx(before["mutual information"].value, abs=0.15)


def test_t23_the_bound_loses_the_divergence_of_all_codes_together(holed):
    """Mean KL(q(z | x) || p) = I(x; z) + KL(q(z) || p): exact over the n data that make up q(z)."""
    found = diagnosed(holed)
    total = found["mutual information"].value + found["KL(q(z) || p)"].value
    error = found["mutual information"].standard_error + found["KL(q(z) || p)"].standard_error
    assert abs(found["KL"].value - total) < 4 * error


# T24


def normal_fit(likelihood, x):
    """A decoder that ends in a sigmoid gets as near to a pixel that is always 0 as it likes."""
    torch.manual_seed(0)
    decoder = nn.Sequential(pv.nets.mlp_decoder(2, 32, x.shape[1]), nn.Sigmoid())
    model = pv.models.VAE(pv.nets.mlp_encoder(x.shape[1], 32, 2), decoder, likelihood)
    return pv.SVI(160, 100, pv.adam(3e-2), compile="trace", progress=False).fit(model, x)


def grey(n, seed):
    """Grey pixels of which the last is always 0."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator)
    w = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    x = torch.sigmoid(z @ w) + 0.1 * torch.randn(n, 7, generator=generator)
    return torch.cat([x, torch.zeros(n, 1)], 1)


def test_t24_a_scale_that_runs_to_zero_is_seen_and_a_floor_bounds_it():
    x, new = grey(400, 1), grey(200, 2)
    found, bound = {}, {}
    for floor in (1e-12, 3e-2):
        fit = normal_fit(pv.likelihoods.GaussianLearned(0.5, floor, 8), x)
        found[floor], bound[floor] = diagnosed(fit, new)["smallest decoder scale"], fit.trace["bound"][-1].item()
        smallest = fit.model.likelihood.scale.min() / x.var(0, correction=0).mean().sqrt()
        assert smallest >= floor * (1 - 1e-5)
        assert found[floor].value == pytest.approx(smallest.item(), rel=0.2)  # the new data have a spread of their own
    assert not found[1e-12].ok
    assert found[1e-12].value < 2e-4
    assert found[3e-2].ok
    assert bound[1e-12] > bound[3e-2] + 5, "the bound rises with nothing learned"


def test_t24_codes_that_run_away_from_the_prior_are_seen_and_the_optimal_scale_holds_them():
    x, new = grey(400, 1), grey(200, 2)
    name = "variance over the prior's"
    narrow, optimal = (
        diagnosed(normal_fit(law, x), new) for law in (pv.likelihoods.Gaussian(0.0005), "gaussian-optimal")
    )
    assert narrow[name].value > 4
    assert not narrow[name].ok
    assert optimal[name].ok
    assert optimal[name].value < 0.5 * narrow[name].value
    assert narrow["KL"].value > optimal["KL"].value + 2
    assert optimal["smallest decoder scale"].value > 0.1
