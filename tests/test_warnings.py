"""What a comparison says when something is wrong: each shown on purpose, in words."""

import html
import io
import re

import pyro.distributions as dist
import pytest
import torch
from rich.console import Console

import ppl_vae as pv
from ppl_vae.diagnostics import elbo_total, khat, leave_one_out, log_densities
from ppl_vae.invariants import invariants, remarks


def fit_of(model, data, draws, engine="NUTS", **stats):
    """A fit with these draws, judged as the engine judges its own."""
    obs = model.check(data)
    fit = pv.Fit(model, engine, draws, {}, "none", pv.Status("finished", ""), 0.0, 0, data=obs, sample_stats=stats)
    fit.status = pv.Status("finished", "", remarks(fit, obs))
    return fit


class Means(pv.LatentVariableModel):
    """Two components of equal weight with unknown means."""

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(torch.zeros(2), 10.0).to_event(1)

    @pv.latent
    def z(self):
        return dist.Categorical(torch.ones(2) / 2)

    @pv.observed
    def x(self, loc, z):
        return dist.Normal(loc[z], 1.0)


def data():
    return torch.cat([torch.randn(40) - 2, torch.randn(40) + 2]).double()


def draws(centers, count=300, sd=0.15):
    """Chains around the given means, [chain, draw, 2]."""
    return {"loc": torch.tensor(centers).double()[:, None] + sd * torch.randn(len(centers), count, 2).double()}


def said(fit, x):
    """Sentences of the table, which a terminal prints as well."""
    table = pv.compare({"NUTS": fit}, x)
    console = Console(file=io.StringIO(), width=400)
    console.print(repr(table), markup=False, soft_wrap=True)
    printed = " ".join(console.file.getvalue().split())
    assert all(" ".join(w.split())[:70] in printed for w in table.warnings)
    return " ".join(table.warnings)


def test_nothing_is_said_of_chains_that_agree():
    x = data()
    fit = fit_of(Means(), x, draws([[-2.0, 2.0]] * 4))
    assert said(fit, x) == ""


def test_labels_that_are_not_identified():
    """Chains as drawn, two of them with switched labels: the density is the same, single components are not."""
    x = data()
    fit = fit_of(Means(), x, draws([[-2.0, 2.0], [2.0, -2.0]] * 2))
    text = said(fit, x)
    assert "R-hat of loc[" in text
    assert "labels are not identified here" in text
    assert "several modes" not in text
    assert said(pv.relabel(fit), x).count("R-hat") == 0


class Idle(pv.LatentVariableModel):
    """One parameter says nothing of x, and no component has a label."""

    @pv.latent(shared=True)
    def idle(self):
        return dist.Normal(0.0, 1.0)

    @pv.observed
    def x(self, idle):
        return dist.Normal(0.0 * idle, 2.0)


def test_a_model_without_components_has_no_labels():
    x = data()
    centers = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None]
    fit = fit_of(Idle(), x, {"idle": centers + 0.1 * torch.randn(4, 300).double()})
    text = said(fit, x)
    assert "R-hat of idle" in text
    assert "labels" not in text


def test_several_modes():
    """One chain has both components on the same half of the data: no relabelling mends that."""
    x = data()
    fit = pv.relabel(fit_of(Means(), x, draws([[-2.0, 2.0], [-2.0, 2.0], [0.0, 8.0], [2.0, -2.0]])))
    text = said(fit, x)
    assert "the posterior has several modes, and chains sit in different ones" in text
    assert "chains 1, 2, 4 at -" in text
    assert "chain 3 at -" in text
    assert "labels are not identified" not in text


def test_chains_that_disagree_a_little_are_not_called_modes():
    x = data()
    fit = fit_of(Means(), x, draws([[-2.0, 2.0], [-2.0, 2.0], [-1.9, 2.0], [-2.0, 1.9]]))
    text = said(fit, x)
    assert "R-hat" in text
    assert "modes" not in text


def test_few_effective_draws_and_divergences():
    x = data()
    sticky = {"loc": draws([[-2.0, 2.0]] * 4, 30)["loc"].repeat_interleave(10, 1)}
    diverging = torch.zeros(4, 300, dtype=torch.bool)
    diverging[1, :7] = True
    text = said(fit_of(Means(), x, sticky, diverging=diverging), x)
    assert "effective sample size of loc[" in text
    assert "7 of 1200 transitions diverged" in text


@pytest.mark.slow
def test_a_real_sampler_diverges_at_a_wall():
    """Above zero the density falls at once: no step that suits the rest foresees that."""

    class Wall(pv.LatentVariableModel):
        @pv.latent(shared=True)
        def edge(self):
            return dist.Normal(0.0, 10.0)

        @pv.observed
        def x(self, edge):
            return dist.Normal(torch.where(edge > 0, 1e4 * edge, 0.0 * edge), 1.0)

    x = torch.zeros(3).double()
    start = {"edge": torch.tensor(-1.0)}
    fit = pv.NUTS(60, warmup=40, num_chains=2, start=start, compile="trace", progress=False).fit(Wall(), x)
    assert "of 120 transitions diverged: do not trust the tails" in said(fit, x)


def approximate(sd, count=1000, shift=0.0):
    """Draws of a normal q around the exact posterior of a mean, sd as multiples of the true one."""

    class Mean(pv.LatentVariableModel):
        @pv.latent(shared=True)
        def mu(self):
            return dist.Normal(0.0, 3.0)

        @pv.observed
        def x(self, mu):
            return dist.Normal(mu, 1.0)

    x = torch.randn(50).double()
    variance = 1 / (1 / 9 + 50)
    exact = dist.Normal(variance * x.sum(), torch.tensor(variance**0.5).double())
    q = dist.Normal(exact.loc + shift * exact.scale, sd * exact.scale)
    mu = q.sample((1, count))
    model = Mean().double()
    stats = {"log_q": q.log_prob(mu), "log_prior": dist.Normal(0.0, 3.0).log_prob(mu)}
    fit = pv.Fit(
        model, "SVI", {"mu": mu}, {}, "ELBO", pv.Status("finished", ""), 0.0, 0, data=model.check(x), sample_stats=stats
    )
    v = 1 / (1 / 9 + 49)
    loo = dist.Normal(v * (x.sum() - x), (1 + v) ** 0.5).log_prob(x).sum().item()
    return fit, x, loo


@pytest.mark.parametrize(("sd", "expected"), [(1.0, None), (0.7, 1 - 0.7**2), (0.4, 1 - 0.4**2), (1.5, None)])
def test_pareto_k_of_a_normal_q(sd, expected):
    """p / q of N(0, 1) over N(0, s^2) has a tail of index k = 1 - s^2; none where q is wider, k = 0 where it is p."""
    fit, _, _ = approximate(sd, 20_000)
    found = khat(fit)
    if sd == 1.0:
        assert found == 0.0
    elif expected is None:
        assert found < 0.3
    else:
        # The estimate's bias shrinks slowly: log terms in the tail. Its sd is about (1 + k) / sqrt(3 sqrt(S)).
        assert abs(found - expected) < 4 * (1 + expected) / (3 * 20_000**0.5) ** 0.5


def test_a_q_that_is_far_from_the_posterior_is_worded():
    fit, x, _ = approximate(0.25, shift=1.5)
    table = pv.compare({"SVI": fit}, x)
    assert table.rows["SVI"].khat > 0.7
    assert any("too far from the posterior: the Pareto k" in w for w in table.warnings)
    assert any("a Pareto k above 0.7" in w for w in table.warnings)


def test_a_heavy_tail_of_weights_that_hardly_vary_is_no_danger():
    """Weights 1 + c h, h of a Pareto law with k = 0.9: that is their shape, and for small c they hardly vary."""
    fit, x, _ = approximate(1.0, 2000)
    log_q, u = log_densities(fit)[1], torch.rand(1, 2000).double()
    size = (0.05 / (u**-0.9).var()) ** 0.5  # an effective sample size of about 95%
    fit.sample_stats["log_q"] = log_q - (1 + size * u**-0.9).log()
    table = pv.compare({"SVI": fit}, x)
    assert table.rows["SVI"].khat > 0.7
    assert 0.9 < elbo_total(fit)[2] < 0.99
    assert not any("the Pareto k of its importance weights" in w for w in table.warnings)
    fit.sample_stats["log_q"] = log_q - (u**-0.9).log()
    table = pv.compare({"SVI": fit}, x)
    assert elbo_total(fit)[2] < 0.9
    assert any("the Pareto k of its importance weights" in w for w in table.warnings)


def test_loo_of_a_q_is_that_of_the_posterior():
    """Weights turn draws of a wide and shifted q into leave-one-out posteriors, whose density is known."""
    fit, _, exact = approximate(1.4, 4000, shift=0.5)
    found = leave_one_out(fit)
    naive = leave_one_out(pv.Fit(**{**vars(fit), "sample_stats": {}}))
    assert abs(float(found.elpd) - exact) < 0.1
    assert abs(float(naive.elpd) - exact) > 2 * abs(float(found.elpd) - exact)


def test_even_weights_of_leave_one_out_are_no_danger():
    """One normal law has its leave-one-out in closed form; q is not its posterior, yet the weights hardly vary."""
    prior = pv.families.NormalInverseWishartPrior(
        mean=torch.tensor([20.0]), strength=0.1, df=4.0, scale=torch.tensor([[10.0]])
    )
    gmm = pv.models.GaussianMixture(1, 1, prior=(pv.families.DirichletPrior(1.0), prior))
    x = pv.data.galaxies()
    fit = pv.SVI(1000, optimizer=pv.adam(1e-2), guide="normal", progress=False).fit(gmm, x)
    table = pv.compare({"SVI": fit})
    assert table.rows["SVI"].elpd_loo == pytest.approx(-243.158, abs=0.2)
    assert table.rows["SVI"].bad_k == 0
    assert not any("a Pareto k above 0.7" in w for w in table.warnings)


def test_a_datum_that_alone_carries_a_parameter_has_a_bad_pareto_k():
    """Without the outlier the variance would be a hundredth: the draws cannot be weighted into that."""
    x = torch.tensor([0.0, 0.1, -0.1, 0.05, 8.0]).double()
    fit = pv.VB(num_draws=1000, progress=False).fit(pv.models.GaussianMixture(1, 1, prior="weak"), x)
    table = pv.compare({"VB": fit})
    assert table.rows["VB"].bad_k > 0
    assert any("a Pareto k above 0.7" in w for w in table.warnings)


def test_invariants_of_a_mixture_by_hand_and_under_a_switch():
    """Mean sum_k w_k m_k; variance sum_k w_k (C_k + m_k m_k') - m m'; the log density of the mixture."""
    x = pv.data.faithful()
    fit = pv.VB(num_draws=20, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), x)
    found = invariants(fit.model, fit.data, fit.draws)
    w, m, c = (fit.draws[f"{n}"][0] for n in ("mixing.probs", "components.loc", "components.covariance"))
    mean = (w[..., None] * m).sum(1)
    square = (w[..., None] * (c.diagonal(dim1=-2, dim2=-1) + m.square())).sum(1)
    torch.testing.assert_close(found["mean of x"][0], mean)
    torch.testing.assert_close(found["variance of x"][0], square - mean.square())
    name = next(n for n in found if n.startswith("log p"))
    row = int(name.removeprefix("log p(x[").removesuffix("])"))
    torch.testing.assert_close(found[name][0], fit.pointwise(fit.data)[0, :, row])
    switched = {n: v.flip(2) for n, v in fit.draws.items()}
    for n, value in invariants(fit.model, fit.data, switched).items():
        torch.testing.assert_close(value, found[n])


def unidentified():
    x = data()
    return {"NUTS": fit_of(Means(), x, draws([[-2.0, 2.0], [2.0, -2.0]] * 2))}, x, "labels are not identified here"


def two_modes():
    x = data()
    fit = pv.relabel(fit_of(Means(), x, draws([[-2.0, 2.0], [-2.0, 2.0], [0.0, 8.0], [2.0, -2.0]])))
    return {"NUTS": fit}, x, "the posterior has several modes"


def far_off():
    fit, x, _ = approximate(0.25, shift=1.5)
    return {"SVI": fit}, x, "too far from the posterior: the Pareto k"


def lone_datum():
    x = torch.tensor([0.0, 0.1, -0.1, 0.05, 8.0]).double()
    fit = pv.VB(num_draws=1000, progress=False).fit(pv.models.GaussianMixture(1, 1, prior="weak"), x)
    return {"VB": fit}, x, "a Pareto k above 0.7"


def one_parameter():
    x = data()
    centers = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None]
    return {"NUTS": fit_of(Idle(), x, {"idle": centers + 0.1 * torch.randn(4, 300).double()})}, x, "R-hat of idle"


@pytest.mark.parametrize(
    "case", [unidentified, two_modes, far_off, lone_datum, one_parameter], ids=lambda case: case.__name__
)
def test_the_page_says_it_before_the_table(case, tmp_path):
    fits, x, words = case()
    page = pv.compare(fits, x).report(tmp_path / "r.html").read_text()
    body = html.unescape(re.sub(r"<(style|script)\b.*?</\1>|<[^>]+>", "", page, flags=re.DOTALL))
    assert words in body[: body.index("Comparison")]
