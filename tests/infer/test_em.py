"""EM: laws of every run, starts, repairs, weights, generalised steps."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import DataError, EngineError
from ppl_vae.fit import Status
from ppl_vae.infer.climb import Climb

FORMS = ["full", "tied", "diagonal", "spherical"]


def never_falls(fit, rounding=1e-9):
    bound, segment = fit.trace["bound"], fit.trace["segment"]
    same = segment.diff() == 0
    steps = bound.diff()[same]
    return bool((steps >= -rounding * bound.abs().max()).all())


@pytest.fixture(scope="module")
def faithful():
    return pv.data.faithful().values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prior", [None, "weak"])
@pytest.mark.parametrize("start", ["k-means++", "random"])
def test_objective_never_falls(faithful, form, prior, start):
    model = pv.models.GaussianMixture(3, 2, form, prior=prior)
    fit = pv.EM(start=start, max_iter=200, progress=False).fit(model, faithful)
    assert never_falls(fit)
    assert fit.trace["bound"][-1] > fit.trace["bound"][0]


def test_old_faithful_maximum(faithful):
    fit = pv.EM(n_init=5, progress=False).fit(pv.models.GaussianMixture(2, 2), faithful)
    assert fit.log_prob(faithful).sum().item() == pytest.approx(-1130.2640, abs=1e-4)
    assert fit.trace["bound"][-1].item() == pytest.approx(fit.log_prob(faithful).sum().item(), abs=1e-9)
    assert fit.status.code == "converged"


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1.0, 1e15])
@pytest.mark.parametrize("form", FORMS)
def test_answer_scales_with_the_data(faithful, scale, form):
    """log p(c x) = log p(x) - d log c: a floor in absolute units would break this."""
    x = (faithful - faithful.mean(0)) / faithful.std(0)
    model = pv.models.GaussianMixture(2, 2, form)
    one = pv.EM(n_init=2, progress=False).fit(model, x).log_prob(x).mean()
    other = pv.EM(n_init=2, progress=False).fit(model, x * scale).log_prob(x * scale).mean()
    assert other.item() + 2 * np.log(scale) == pytest.approx(one.item(), rel=1e-6)


def test_offset_does_not_cost_digits(faithful):
    model = pv.models.GaussianMixture(2, 2)
    fit = pv.EM(n_init=2, progress=False).fit(model, faithful + 1e8)
    # The data themselves are stored to 1e-8 at this offset.
    assert fit.log_prob(faithful + 1e8).sum().item() == pytest.approx(-1130.2640, abs=1e-2)


def test_estimate_ml_ignores_priors(faithful):
    with_prior = pv.EM(estimate="ml", progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), faithful)
    without = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), faithful)
    for name, value in without.parameters.items():
        torch.testing.assert_close(with_prior.parameters[name], value, rtol=1e-6, atol=1e-8)


def test_weights_count_data(faithful):
    """A weight of 2 is the datum twice; a weight of 0 is its absence."""
    x = faithful[:100]
    w = torch.ones(100)
    w[:30], w[90:] = 2.0, 0.0
    repeated = torch.cat([x[:30], x[:90]])
    for prior in (None, "weak"):
        start = {"components.loc": torch.tensor([[2.0, 55.0], [4.3, 80.0]])}
        model = pv.models.GaussianMixture(2, 2, prior=prior)
        a = pv.EM(start=start, progress=False, tol=1e-13).fit(model, x, weights=w)
        b = pv.EM(start=start, progress=False, tol=1e-13).fit(model, repeated)
        for name, value in b.parameters.items():
            torch.testing.assert_close(a.parameters[name], value, rtol=1e-5, atol=1e-7)


def test_starts_agree(faithful):
    """From parameters, from a fit, and from responsibilities one ends at the same place."""
    model = pv.models.GaussianMixture(2, 2)
    first = pv.EM(n_init=3, progress=False).fit(model, faithful)
    for start in (first, first.parameters, first.responsibilities(faithful)):
        again = pv.EM(start=start, progress=False).fit(model, faithful)
        assert again.trace["bound"][-1].item() == pytest.approx(first.trace["bound"][-1].item(), abs=1e-5)
        assert len(again.trace["bound"]) <= 3


def test_lost_component_is_repaired_and_reported(faithful):
    start = {
        "components.loc": torch.tensor([[2.0, 55.0], [4.3, 80.0], [1e6, 1e6]]),
        "mixing.probs": torch.tensor([0.4, 0.6 - 1e-12, 1e-12]),
    }
    fit = pv.EM(start=start, progress=False).fit(pv.models.GaussianMixture(3, 2), faithful)
    assert fit.status.ok
    assert any("components[2]" in note for note in fit.status.notes)
    assert fit.parameters["mixing.probs"].min() > 0.01
    assert never_falls(fit)
    assert torch.isfinite(fit.log_prob(faithful)).all()


def test_unbounded_likelihood_is_reported():
    """Four components on three distinct points: the likelihood has no maximum."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(4, 1)
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(4, 2), x)
    assert fit.status.code == "degenerate"
    assert "components[" in fit.status.message
    assert torch.isfinite(fit.log_prob(x)).all()


@pytest.mark.parametrize(("form", "few"), [("full", 3), ("diagonal", 2), ("spherical", 2), ("tied", 1)])
def test_a_component_on_few_data_is_named_with_their_number(faithful, form, few):
    """A proper maximum, above the floor of the variance: as many data as a member fits alike wherever they are."""
    apart = torch.tensor([[40.0, 400.0], [40.5, 407.0], [41.0, 401.0]], dtype=torch.float64)
    x, start = torch.cat([faithful, apart[:few]]), {"components.loc": torch.tensor([[3.5, 70.0], [40.3, 402.0]])}
    fit = pv.EM(start=start, progress=False).fit(pv.models.GaussianMixture(2, 2, form), x)
    said = f"components[1] has collapsed onto {few} of the data; it would fit so few as well anywhere: take prior"
    assert fit.status.code == "converged"
    assert [said in note for note in fit.status.notes] == [True]
    held = pv.EM(start=start, progress=False).fit(pv.models.GaussianMixture(2, 2, form, prior="weak"), x)
    more = pv.EM(start=start, progress=False).fit(pv.models.GaussianMixture(2, 2, form), torch.cat([x, apart + 0.3]))
    assert held.status.notes == more.status.notes == ()


def test_a_component_on_one_datum_is_degenerate_and_its_data_are_counted(faithful):
    x, start = torch.cat([faithful, torch.tensor([[40.0, 400.0]])]), torch.tensor([[3.5, 70.0], [40.0, 400.0]])
    fit = pv.EM(start={"components.loc": start}, progress=False).fit(pv.models.GaussianMixture(2, 2), x)
    assert fit.status.code == "degenerate"
    assert "components[1] (on 1 of the data): too few data" in fit.status.message


@pytest.mark.parametrize("form", FORMS)
def test_constant_feature(faithful, form):
    x = faithful.clone()
    x[:, 1] = 7.0
    fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2, form), x)
    assert torch.isfinite(fit.trace["bound"]).all()
    assert torch.isfinite(fit.log_prob(x)).all()


def test_poisson_and_bernoulli_mixtures_recover_the_truth():
    truth = torch.distributions.Poisson(torch.tensor([2.0, 11.0]))
    z = torch.bernoulli(torch.full((4000,), 0.3)).long()
    x = truth.sample((4000,)).gather(1, z[:, None])[:, 0].double()

    class Counts(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.mixing = pv.families.Categorical(2)
            self.counts = pv.families.Poisson(batch=2)

        @pv.latent
        def z(self):
            return self.mixing()

        @pv.observed
        def x(self, z):
            return self.counts(z)

    fit = pv.EM(n_init=3, progress=False).fit(Counts(), x)
    rate, order = fit.parameters["counts.rate"].sort()
    # Standard error of a mean of n_k counts is sqrt(rate / n_k); the overlap of the two adds a little.
    assert abs(rate[0] - 2) < 5 * (2 / 2800) ** 0.5
    assert abs(rate[1] - 11) < 5 * (11 / 1200) ** 0.5
    assert fit.parameters["mixing.probs"][order][1].item() == pytest.approx(z.double().mean().item(), abs=0.03)
    assert never_falls(fit)


class Regressions(pv.LatentVariableModel):
    """Mixture of two lines: no family owns the slopes, so the M-step is a gradient step."""

    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.slope = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
        self.log_scale = torch.nn.Parameter(torch.zeros(2))

    t = pv.given()

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def y(self, z, t):
        return dist.Normal(self.slope[z] * t, self.log_scale[z].exp())


def test_generalised_em_raises_the_likelihood_and_finds_the_lines():
    t = torch.linspace(-2, 2, 400, dtype=torch.float64)
    z = torch.arange(400) % 2
    y = torch.where(z == 0, 2.0, -1.0) * t + 0.1 * torch.randn(400, dtype=torch.float64)
    start = torch.where(torch.stack([z == 0, z == 1], 1), 0.7, 0.3)
    fit = pv.EM(start=start, progress=False, tol=1e-7).fit(Regressions(), {"t": t, "y": y})
    assert never_falls(fit)
    # The least-squares slopes of the two halves, known up to the few points that both lines explain.
    expected = [((t * y)[z == k].sum() / (t * t)[z == k].sum()).item() for k in (0, 1)]
    assert sorted(fit.model.slope.tolist()) == pytest.approx(sorted(expected), abs=0.02)


def test_shared_latent_by_hand_is_a_map_estimate():
    class Rate(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.mixing = pv.families.Categorical(2)

        @pv.latent(shared=True)
        def rate(self):
            return dist.Gamma(torch.tensor([2.0, 2.0]), 1.0).to_event(1)

        @pv.latent
        def z(self):
            return self.mixing()

        @pv.observed
        def x(self, z, rate):
            return dist.Poisson(rate[z])

    x = torch.cat([torch.poisson(torch.full((200,), 1.5)), torch.poisson(torch.full((200,), 9.0))]).double()
    r = torch.cat([torch.tensor([[0.9, 0.1]]).repeat(200, 1), torch.tensor([[0.1, 0.9]]).repeat(200, 1)])
    fit = pv.EM(start=r, progress=False, tol=1e-10).fit(Rate(), x)
    rate = fit.parameters["rate"]
    resp = fit.responsibilities(x)
    # Stationary: each rate is the mode of its Gamma posterior given the responsibilities.
    mode = ((resp * x[:, None]).sum(0) + 1) / (resp.sum(0) + 1)
    torch.testing.assert_close(rate, mode, rtol=1e-3, atol=1e-3)
    assert never_falls(fit)


BAD = {
    "too few data": (lambda x: (pv.models.GaussianMixture(5, 2), x[:3], {}), DataError, "5 components need"),
    "negative weight": (
        lambda x: (pv.models.GaussianMixture(2, 2), x, {"weights": -torch.ones(272)}),
        DataError,
        "non-neg",
    ),
    "zero weights": (lambda x: (pv.models.GaussianMixture(2, 2), x, {"weights": torch.zeros(272)}), DataError, "zero"),
    "wrong weights": (lambda x: (pv.models.GaussianMixture(2, 2), x, {"weights": torch.ones(3)}), DataError, r"\(3,\)"),
    "infinite": (lambda x: (pv.models.GaussianMixture(2, 2), x / 0, {}), DataError, "infinite"),
    "continuous latent": (
        lambda x: (pv.models.VAE(pv.nets.linear_encoder(2, 1), pv.nets.linear_decoder(1, 2), "gaussian"), x, {}),
        EngineError,
        "'z'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(faithful, case):
    make, error, message = BAD[case]
    model, x, options = make(faithful)
    with pytest.raises(error, match=message):
        pv.EM(progress=False).fit(model, x, **options)


KNOWN = torch.tensor([[0.1, 0.0], [0.0, 36.0]], dtype=torch.float64).repeat(2, 1, 1)
ASKED = {
    "nothing": {"start": {}},
    "weights alone": {"start": {"mixing.probs": [0.3, 0.7]}},
    "one covariance for all": {"start": {"components.covariance": KNOWN}},
    "frozen": {"start": {"components.covariance": KNOWN}, "frozen": "components.covariance"},
}


@pytest.mark.parametrize("case", ASKED)
def test_components_that_a_start_leaves_alike_are_told_apart(faithful, case):
    fit = pv.EM(n_init=3, progress=False, **ASKED[case]).fit(pv.models.GaussianMixture(2, 2), faithful)
    assert len(fit.trace["starts"]) == 3
    assert not fit.status.notes
    loc = fit.parameters["components.loc"]
    assert (loc[0] - loc[1]).abs()[1] > 20
    if "frozen" in ASKED[case]:
        torch.testing.assert_close(fit.parameters["components.covariance"], KNOWN, rtol=1e-12, atol=0)
    else:  # where the values are only a start, the end is the maximum
        assert fit.trace["bound"][-1].item() == pytest.approx(-1130.264, abs=1e-3)


@pytest.mark.parametrize("prior", [None, "weak"])
def test_frozen_keeps_what_the_model_was_given(faithful, prior):
    """The maximum under it is that of the same values given as a start."""
    model = pv.models.GaussianMixture(2, 2, prior=prior).double()
    model.fix({"components.covariance": KNOWN})
    fit = pv.EM(frozen="components.covariance", progress=False).fit(model, faithful)
    torch.testing.assert_close(fit.parameters["components.covariance"], KNOWN, rtol=1e-12, atol=0)
    again = pv.EM(progress=False, **ASKED["frozen"]).fit(pv.models.GaussianMixture(2, 2, prior=prior), faithful)
    torch.testing.assert_close(fit.trace["bound"][-1], again.trace["bound"][-1], rtol=1e-10, atol=0)
    free = pv.EM(progress=False).fit(model, faithful)  # what is not frozen is estimated
    assert not torch.equal(free.parameters["components.covariance"], KNOWN)


@pytest.mark.parametrize("prior", [None, "weak"])
def test_frozen_keeps_what_a_fit_from_a_file_has(faithful, prior, tmp_path):
    make = partial(pv.models.GaussianMixture, 2, 2, prior=prior)
    fit = pv.EM(progress=False).fit(make(), faithful)
    fit.save(tmp_path / "fit.safetensors")
    for known in (fit, pv.Fit.load(tmp_path / "fit.safetensors", make())):
        again = pv.EM(frozen="components.covariance", progress=False).fit(known.model, faithful + 1)
        expected = fit.parameters["components.covariance"]
        torch.testing.assert_close(again.parameters["components.covariance"], expected, rtol=1e-10, atol=0)


class Constants(pv.LatentVariableModel):
    """A law that makes its constants, in the dtype that the fit computes in."""

    def __init__(self):
        super().__init__()
        self.register_buffer("origin", torch.zeros(2))

    @pv.latent(shared=True)
    def mu(self):
        return dist.MultivariateNormal(self.origin, torch.eye(2))

    @pv.observed
    def x(self, mu):
        return dist.MultivariateNormal(mu, torch.eye(2))


@pytest.mark.parametrize(
    "engine",
    [
        pv.EM(start={"mu": [0.0, 0.0]}, progress=False),
        pv.SVI(300, optimizer=pv.adam(5e-2), start={"mu": [0.0, 0.0]}, progress=False),
        pv.NUTS(200, warmup=100, num_chains=2, start={"mu": [0.0, 0.0]}, progress=False),
    ],
)
def test_laws_that_make_constants_have_a_start(engine):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double() + 2
    fit = engine.fit(Constants(), x)
    # Posterior N(n mean / (n + 1), 1 / (n + 1)); the mode and the mean of q are exact, 400 draws are off by 0.01.
    torch.testing.assert_close(fit.parameters["mu"].double(), 50 / 51 * x.mean(0), atol=0.05, rtol=0)


def test_a_shared_latent_that_was_given_a_value_stays_when_it_is_frozen():
    class Normals(pv.LatentVariableModel):
        @pv.latent(shared=True)
        def mu(self):
            return dist.Normal(torch.zeros(2), 5.0).to_event(1)

        @pv.latent(shared=True)
        def scale(self):
            return dist.LogNormal(0.0, 1.0)

        @pv.latent
        def z(self):
            return dist.Categorical(torch.full((2,), 0.5))

        @pv.observed
        def x(self, z, mu, scale):
            return dist.Normal(mu[z], scale)

    x = torch.cat([torch.linspace(-3, -1, 20), torch.linspace(1, 3, 20)]).double()
    model = Normals()
    model.fix({"mu": torch.tensor([-2.0, 2.0])})
    fit = pv.EM(frozen="mu", progress=False).fit(model, x)
    assert fit.parameters["mu"].tolist() == [-2.0, 2.0]
    assert 0.4 < fit.parameters["scale"].item() < 0.8  # standard deviation of a cluster: 0.61


def test_a_fit_under_inference_mode_leaves_later_ones_alone(faithful):
    engine, model = pv.EM(max_iter=5, progress=False), pv.models.GaussianMixture(2, 2)
    expected = engine.fit(model, faithful).trace["bound"]
    with torch.inference_mode():
        within = engine.fit(model, faithful)
    torch.testing.assert_close(within.trace["bound"].clone(), expected, rtol=0, atol=0)
    torch.testing.assert_close(engine.fit(model, faithful).trace["bound"], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("kmeans", "k-means"),
        ({"components.mean": torch.zeros(2, 2)}, "components.mean"),
        ({"components.loc": torch.zeros(3, 2)}, r"\(3, 2\)"),
        (torch.ones(272, 3) / 3, r"\(272, 2\)"),
        (torch.ones(272, 2), "sum to 1"),
    ],
)
def test_bad_start_is_named(faithful, start, message):
    with pytest.raises((DataError, EngineError), match=message):
        pv.EM(start=start, progress=False).fit(pv.models.GaussianMixture(2, 2), faithful)


def test_the_declaration_is_left_as_it_was(faithful):
    model = pv.models.GaussianMixture(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    pv.EM(n_init=2, progress=False).fit(model, faithful)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert len(pyro.get_param_store()) == 0


class OwnLocations(pv.LatentVariableModel):
    """A mixture whose locations belong to no family."""

    def __init__(self, loc):
        super().__init__()
        self.mixing = pv.families.Categorical(3)
        self.loc = torch.nn.Parameter(torch.tensor(loc))

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return dist.Normal(self.loc[z], 1.0)


def apart():
    generator = torch.Generator().manual_seed(1)
    return torch.cat([torch.randn(100, generator=generator, dtype=torch.float64) + m for m in (-12.0, 0.0, 12.0)])


@pytest.mark.parametrize("loc", [[-12.0, 0.0, 12.0], [-13.0, -12.0, 6.0], [0.0, 0.0, 0.0]])
def test_starts_are_for_parameters_of_no_family_too(loc):
    x = apart()
    best = pv.EM(progress=False).fit(OwnLocations([-12.0, 0.0, 12.0]), x).trace["bound"][-1]
    found = pv.EM(n_init=5, progress=False).fit(OwnLocations(loc), x).trace["bound"][-1]
    torch.testing.assert_close(found, best)


def test_the_first_start_is_where_the_parameters_are_unless_components_are_alike_there():
    x = apart()
    near = pv.EM(max_iter=1, progress=False).fit(OwnLocations([-13.0, -12.0, 6.0]), x)
    assert near.model.loc[0] < near.model.loc[1] < -5  # as they were, not one in each cluster
    alike = pv.EM(progress=False).fit(OwnLocations([0.0, 0.0, 0.0]), x)
    torch.testing.assert_close(alike.model.loc.sort().values.round(), torch.tensor([-12.0, 0.0, 12.0]).double())


def test_a_fit_whose_components_do_not_differ_says_so():
    x = apart()
    start = {"mixing.probs": torch.tensor([0.2, 0.3, 0.5])}
    fit = pv.EM(start=start, progress=False).fit(OwnLocations([0.0, 0.0, 0.0]), x)
    assert any("every datum has the same responsibilities" in note for note in fit.status.notes)
    assert not pv.EM(progress=False).fit(OwnLocations([-12.0, 0.0, 12.0]), x).status.notes


def test_svi_starts_apart_as_well():
    x = apart()
    best = pv.EM(n_init=5, progress=False).fit(OwnLocations([0.0, 0.0, 0.0]), x).trace["bound"][-1] / len(x)
    fit = pv.SVI(50, progress=False).fit(OwnLocations([0.0, 0.0, 0.0]), x)
    assert fit.trace["bound"][-1] > best - 0.01


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_that_failed_is_kept_only_where_all_did(order, faithful, monkeypatch):
    """Of ends that are higher and higher: converged, degenerate, failed."""
    ends, climb = [("converged", 0.0), ("degenerate", 1e6), ("failed", 1e9)], Climb.run

    def run(self, update):
        found, (code, more) = climb(self, update), coming.pop(0)
        found.objective[-1] += more
        found.status = Status(code, "as told")
        return found

    monkeypatch.setattr(Climb, "run", run)
    for first, best in enumerate(("converged", "degenerate", "failed")):
        coming = ends[first:][::order]
        fit = pv.EM(n_init=len(coming), max_iter=2, progress=False).fit(pv.models.GaussianMixture(2, 2), faithful)
        assert fit.status.code == best
