"""Floors that keep likelihoods bounded are far below what data have: narrow data are fitted, not clipped."""

import numpy as np
import pytest
import torch
from example_models import FamilyMixture, numbers
from scipy import stats

import ppl_vae as pv
from ppl_vae import families, given, latent, observed


def fit(components, x, **options):
    return pv.EM(**{"n_init": 3, "tol": 1e-11, "progress": False, **options}).fit(FamilyMixture(components), x)


class Lines(pv.LatentVariableModel):
    """p(z) = Categorical(pi), p(y | t, z) = line z."""

    t = given()

    def __init__(self, K):
        super().__init__()
        self.mixing, self.line = families.Categorical(K), families.LinearRegression(1, batch=K)

    @latent
    def z(self):
        return self.mixing()

    @observed
    def y(self, z, t):
        return self.line(z, t)


def never_falls(found):
    gain, same = found.trace["objective"].diff(), found.trace["segment"].diff() == 0
    return bool((gain[same] >= -1e-9 * found.trace["objective"][1:][same].abs()).all())


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
def test_a_gamma_fits_narrow_data(spread):
    """A gamma of a small coefficient of variation c is a normal but for terms of order c."""
    x = 300 + spread * numbers(500, 1)
    found = fit(families.Gamma(1, batch=1), x)
    a, rate = (found.parameters[f"components.{name}"].item() for name in ("concentration", "rate"))
    assert found.status.ok
    assert a / rate == pytest.approx(x.mean().item(), rel=1e-9)
    assert a**0.5 / rate == pytest.approx(x.std(correction=0).item(), rel=3e-3 * spread + 1e-6)
    normal = stats.norm.logpdf(x.numpy(), x.mean().item(), x.std(correction=0).item()).sum()
    assert found.trace["bound"][-1].item() == pytest.approx(normal, abs=500 * spread / 300 + 1e-3)
    assert found.log_prob(x).sum().item() == pytest.approx(found.trace["bound"][-1].item(), abs=1e-3)


def test_a_mixture_of_narrow_gammas_is_no_runaway():
    x = torch.cat([300 + 0.01 * numbers(200, 1), 310 + 0.01 * numbers(200, 1, seed=1)])
    found = fit(families.Gamma(1, batch=2), x)
    a, rate = found.parameters["components.concentration"], found.parameters["components.rate"]
    expected = sorted(part.std(correction=0).item() for part in x.split(200))
    assert found.status.code == "converged"
    assert never_falls(found)
    assert sorted((a.sqrt() / rate).flatten().tolist()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("concentration", [0.05, 1.0, 30.0, 150.0, 1e4])
def test_the_density_of_a_gamma_is_scipys(concentration):
    """Near and far from the data that gave the unit, whose scale is 2."""
    family = families.Gamma(1, batch=1).double()
    family.adapt([(torch.tensor([[1.0], [3.0]]).double(), None)])
    for mean in (1e-4, 1.9, 50.0):
        given = {"concentration": concentration, "rate": concentration / mean}
        family.fix({name: torch.tensor([[value]], dtype=torch.float64) for name, value in given.items()})
        x = torch.tensor([[1e-6], [0.5], [2.0], [400.0]]).double()
        expected = stats.gamma.logpdf(x[:, 0].numpy(), concentration, scale=mean / concentration)
        with torch.no_grad():
            ours = family.log_density(family.features(x))[0], family(torch.tensor(0)).log_prob(x)
        for density in ours:
            np.testing.assert_allclose(density, expected, rtol=1e-9)


@pytest.mark.parametrize("noise", [1e-2, 1e-5, 1e-6])
def test_a_line_with_little_noise_has_the_variance_of_least_squares(noise):
    t = np.linspace(0, 1, 200)
    y = 1 + 2 * t + noise * numbers(200).numpy()
    _, residual, *_ = np.linalg.lstsq(np.column_stack([np.ones(200), t]), y, rcond=None)
    found = pv.EM(progress=False).fit(Lines(1), {"t": torch.as_tensor(t), "y": torch.as_tensor(y)})
    assert found.status.ok
    assert found.parameters["line.variance"].item() == pytest.approx(residual[0] / 200, rel=1e-14 / noise**2 + 1e-6)
    exact = -100 * (np.log(2 * np.pi * residual[0] / 200) + 1)
    assert found.trace["bound"][-1].item() == pytest.approx(exact, abs=1e-4)


def test_a_line_beyond_what_float64_resolves_is_reported():
    t = torch.linspace(0, 1, 200).double()
    found = pv.EM(progress=False).fit(Lines(1), {"t": t, "y": 1 + 2 * t + 1e-9 * numbers(200)})
    assert found.status.code == "degenerate"
    assert "as far as float64 resolves" in str(found.status)


@pytest.mark.parametrize("outlier", [1e3, 999999.0, 1e9])
def test_one_outlier_does_not_set_the_scale_of_a_t(outlier):
    """Against iteratively reweighted least squares by hand: u = (df + 1) / (df + (x - mu)^2 / s^2)."""
    df, x = 4.0, np.append(numbers(200).numpy(), outlier)
    loc, square = np.median(x), 1.0
    for _ in range(500):
        u = (df + 1) / (df + (x - loc) ** 2 / square)
        loc = (u * x).sum() / u.sum()
        square = (u * (x - loc) ** 2).mean()
    found = fit(families.StudentT(1, batch=1, df=df), torch.as_tensor(x)[:, None])
    assert found.status.ok
    assert never_falls(found)
    assert found.parameters["components.scale_matrix"].item() == pytest.approx(square, rel=1e-4)
    assert found.trace["bound"][-1].item() == pytest.approx(stats.t.logpdf(x, df, loc, square**0.5).sum(), abs=1e-6)


def test_a_t_with_tails_without_a_mean_is_not_clipped():
    x = stats.t.rvs(0.3, size=1000, random_state=0)
    found = fit(families.StudentT(1, batch=1), torch.as_tensor(x)[:, None], max_iter=1000)
    df, loc, square = (found.parameters[f"components.{name}"].item() for name in ("df", "loc", "scale_matrix"))
    assert found.status.ok
    assert stats.t.logpdf(x, df, loc, square**0.5).sum() > stats.t.logpdf(x, 0.3).sum()
    assert df == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_a_nearly_singular_t_keeps_its_digits(eps):
    """The answer of the data with the small independent part magnified."""
    x = numbers(300, 2)
    small, large = torch.stack([x[:, 0], x[:, 0] + eps * x[:, 1]], 1), x
    a, b = (fit(families.StudentT(2, batch=1, df=5.0), data) for data in (small, large))
    assert a.status.ok
    assert a.trace["bound"][-1].item() + 300 * np.log(eps) == pytest.approx(b.trace["bound"][-1].item(), rel=1e-6)


def test_units_of_a_t_do_not_depend_on_chunks_nor_on_rows_that_do_not_count():
    x, weights = numbers(20000, 2), (torch.arange(20000) % 3).double()
    made = [families.StudentT(2, batch=1).double() for _ in range(3)]
    made[0].adapt([(x, weights)])
    made[1].adapt([(x[:333], weights[:333]), (x[333:], weights[333:])])
    made[2].adapt([(x[weights > 0], 1e-9 * weights[weights > 0])])
    for other in made[1:]:
        torch.testing.assert_close(other.units, made[0].units, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made[0].units[1], torch.ones(2).double(), rtol=0.05, atol=0)
