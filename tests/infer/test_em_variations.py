"""Variations of EM: acceleration, batches, annealing, hard assignments, warm starts."""

import math
from copy import deepcopy

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.errors import DataError, EngineError
from ppl_vae.infer.climb import Climb
from ppl_vae.infer.squarem import Squarem


def never_falls(trace, rounding=1e-12):
    steps = trace["objective"].diff()[trace["segment"].diff() == 0]
    return bool((steps >= -rounding * trace["objective"].abs().max()).all())


def fit(model, x, weights=None, **settings):
    return pv.EM(**{"progress": False, **settings}).fit(model, x, weights)


class Slopes(pv.LatentVariableModel):
    def __init__(self):
        super().__init__()
        self.mixing = pv.families.Categorical(2)
        self.slope = torch.nn.Parameter(torch.tensor([0.5, -0.5]))

    t = pv.given()

    @latent
    def z(self):
        return self.mixing()

    @observed
    def y(self, z, t):
        return dist.Normal(self.slope[z] * t, 1.0)


def passes(fit, bound):
    """Passes over the data until the bound is reached."""
    return next(int(e) for b, e in zip(fit.trace["bound"], fit.trace["e_steps"], strict=True) if b >= bound)


@pytest.fixture(scope="module")
def faithful():
    return pv.data.faithful().values


def three(n, seed=0):
    """Three normals of one covariance, about two standard deviations apart."""
    locs, covariance = torch.tensor([[0.0, 0.0], [1.5, 1.0], [-1.5, 1.5]]), torch.tensor([[1.0, 0.3], [0.3, 1.0]])
    return pv.data.gaussian_mixture(n, [0.3, 0.3, 0.4], locs, covariance.expand(3, 2, 2), seed=seed)[0]


@pytest.fixture(scope="module")
def overlapping():
    return three(1000, seed=1)


# SQUAREM


def pair(n, seed=0):
    """Two normals in one dimension, two standard deviations apart."""
    return pv.data.gaussian_mixture(n, [0.4, 0.6], [[0.0], [2.0]], torch.ones(2, 1, 1), seed=seed)[0]


@pytest.mark.parametrize(("draw", "K"), [(three, 3), (pair, 2)])
def test_squarem_needs_a_third_of_the_e_steps(draw, K):
    x = draw(2000, seed=1)
    model = pv.models.GaussianMixture(K, x.shape[1])
    plain = fit(model, x, tol=0, max_iter=450, seed=1)
    fast = fit(model, x, tol=0, max_iter=200, seed=1, accelerate="squarem")
    best = max(plain.trace["bound"].max().item(), fast.trace["bound"].max().item())
    assert passes(plain, best - 1e-3) > 100, "the problem is not a slow one"
    assert 3 * passes(fast, best - 1e-3) <= passes(plain, best - 1e-3)
    assert never_falls(fast.trace)
    for name, value in fast.parameters.items():
        torch.testing.assert_close(plain.parameters[name], value, rtol=1e-2, atol=1e-2)


def test_squarem_counts_the_e_steps_that_it_makes(overlapping):
    fast = fit(pv.models.GaussianMixture(3, 2), overlapping, max_iter=40, tol=0, accelerate="squarem")
    steps = fast.trace["e_steps"]
    assert bool((steps.diff() >= 1).all())
    assert bool((steps.diff() > 1).any()), "nothing was extrapolated"
    assert steps[-1] <= 40


def test_squarem_does_not_depend_on_units(overlapping):
    model = pv.models.GaussianMixture(3, 2)
    one = fit(model, overlapping, accelerate="squarem", max_iter=60)
    units = torch.tensor([1e-3, 1e6], dtype=torch.float64)
    other = fit(model, overlapping * units, accelerate="squarem", max_iter=60)
    shift = len(overlapping) * units.log().sum()
    torch.testing.assert_close(other.trace["e_steps"], one.trace["e_steps"])
    torch.testing.assert_close(other.trace["bound"] + shift, one.trace["bound"], rtol=1e-7, atol=1e-5)


PROBLEMS = {
    "prior": {"prior": "weak"},
    "spherical": {"covariance": "spherical"},
    "diagonal": {"covariance": "diagonal"},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_squarem_never_falls_and_ends_at_a_maximum(faithful, name):
    model = pv.models.GaussianMixture(3, 2, **PROBLEMS[name])
    fast = fit(model, faithful, accelerate="squarem")
    assert fast.status.code == "converged"
    assert never_falls(fast.trace)
    again = fit(model, faithful, start=fast, max_iter=300)
    assert again.trace["bound"][-1] - fast.trace["bound"][-1] < 0.05


def test_squarem_with_weights_gaps_and_frozen_parameters(faithful):
    x, weights = faithful.clone(), torch.linspace(0, 2, len(faithful), dtype=torch.float64)
    x[::7, 0], x[3::11, 1] = torch.nan, torch.nan
    loc = torch.tensor([[2.0, 55.0], [4.3, 80.0]], dtype=torch.float64)
    settings = {"start": {"components.loc": loc}, "frozen": "components.loc", "tol": 1e-12}
    plain = fit(pv.models.GaussianMixture(2, 2), x, weights, **settings)
    fast = fit(pv.models.GaussianMixture(2, 2), x, weights, accelerate="squarem", **settings)
    assert torch.equal(fast.parameters["components.loc"], loc)
    assert never_falls(fast.trace)
    for name, value in plain.parameters.items():
        torch.testing.assert_close(fast.parameters[name], value, rtol=1e-4, atol=1e-6)


def test_squarem_repairs_a_lost_component(faithful):
    start = {
        "components.loc": torch.tensor([[2.0, 55.0], [4.3, 80.0], [1e6, 1e6]]),
        "mixing.probs": torch.tensor([0.4, 0.6 - 1e-12, 1e-12]),
    }
    found = fit(pv.models.GaussianMixture(3, 2), faithful, start=start, accelerate="squarem")
    assert any("components[2]" in note for note in found.status.notes)
    assert found.status.ok
    assert never_falls(found.trace)


def test_squarem_keeps_the_variance_floor():
    """Four components on three distinct points run to the floor, where an extrapolation would go through it."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(4, 1)
    found = fit(pv.models.GaussianMixture(4, 2, "diagonal"), x, accelerate="squarem", max_iter=100, seed=1)
    assert found.status.code == "degenerate"
    assert torch.isfinite(found.trace["bound"]).all()
    variances = found.parameters["components.covariance"] / x.var(0, correction=0)
    assert variances.min() >= 1e-8 * (1 - 1e-9)


@pytest.mark.parametrize("form", ["full", "tied", "diagonal", "spherical"])
def test_squarem_on_data_near_a_line(form):
    generator = torch.Generator().manual_seed(4)
    t, noise = (torch.randn(60, size, generator=generator, dtype=torch.float64) for size in (1, 3))
    x = t * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 1e-3 * noise
    found = fit(pv.models.GaussianMixture(4, 3, form), x, accelerate="squarem", max_iter=150)
    assert never_falls(found.trace, 1e-11)
    assert torch.isfinite(found.log_prob(x)).all()


def test_an_extrapolated_covariance_that_is_singular_is_refused(overlapping, monkeypatch):
    expect, met = Climb.expect, []

    def singular(self, *args, **kwargs):
        if self.acceleration.leapt and len(met) < 3:
            met.append(self.iteration)
            raise torch.linalg.LinAlgError("not positive-definite")
        return expect(self, *args, **kwargs)

    monkeypatch.setattr(Climb, "expect", singular)
    found = fit(pv.models.GaussianMixture(3, 2), overlapping, accelerate="squarem", max_iter=60)
    assert len(met) == 3
    assert never_falls(found.trace)
    monkeypatch.setattr(Climb, "expect", expect)
    model = pv.models.GaussianMixture(3, 2)
    assert found.trace["bound"][-1] > fit(model, overlapping, max_iter=60).trace["bound"][-1]


def test_squarem_beside_gradient_steps_never_falls(monkeypatch):
    """Lines that are near each other, whose slopes take gradient steps while the weights are extrapolated."""
    generator = torch.Generator().manual_seed(1)
    t, noise = (torch.randn(300, generator=generator, dtype=torch.float64) for _ in range(2))
    data = {"t": t, "y": torch.where(torch.arange(300) % 3 == 0, 1.0, -0.5) * t + noise}
    expect, leaps = Climb.expect, []

    def watched(self, *args, **kwargs):
        leaps.append(self.acceleration.leapt)
        return expect(self, *args, **kwargs)

    monkeypatch.setattr(Climb, "expect", watched)
    fast = fit(Slopes(), data, accelerate="squarem", tol=1e-12, max_iter=80)
    assert any(leaps), "nothing was extrapolated"
    assert never_falls(fast.trace)
    torch.testing.assert_close(fast.trace["bound"][-1], fast.log_prob(data).sum(), rtol=1e-10, atol=0)


def rule_of(names, **values):
    model = pv.models.GaussianMixture(2, 1)
    start = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    frozen = {"mixing.probs", "components.covariance", "components.loc"} - {names}
    return Squarem(model, {names: start["value"]}, frozen)


def test_three_points_lead_to_the_limit_which_may_be_refused():
    """Points on a line that halve their way to 4 lead there; what falls or is no number goes back to the third."""
    name, first = "components.loc", torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    rule = rule_of(name, value=first)
    rule.limit = math.inf
    points = [{name: first + 4 * (1 - 0.5**k)} for k in range(3)]
    for point in points:
        proposed = rule.propose(point, 1.0)
    assert rule.leapt
    torch.testing.assert_close(proposed[name], first + 4)
    assert not rule.rejects(1.0)
    assert rule.rejects(math.nan)
    assert torch.equal(rule.fallback[name], points[2][name])
    assert not rule.leapt


def test_on_a_boundary_nothing_is_extrapolated():
    """A probability of zero has no coordinate."""
    rule = rule_of("mixing.probs", value=[0.5, 0.5])
    for share in (1.0, 0.9, 0.8, 1.0, 0.7, 0.6):
        values = {"mixing.probs": torch.tensor([share, 1 - share], dtype=torch.float64)}
        assert rule.propose(values, 1.0) is values
    assert not rule.leapt


# Online EM


def apart(n, seed=0):
    locs, covariance = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]]), torch.tensor([[1.0, 0.3], [0.3, 1.0]])
    return pv.data.gaussian_mixture(n, [0.5, 0.3, 0.2], locs, covariance.expand(3, 2, 2), seed=seed)[0]


VARIANTS = {
    "plain": {},
    "decay 0.8": {"decay": 0.8},
    "hard": {"assignment": "hard"},
    "stochastic": {"assignment": "stochastic"},
    "tempered": {"temperature": 1.001},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_online_em_reaches_the_maximum_of_well_separated_data(name):
    """To 1e-3 nats per datum: the noise of batches of 100 rows at the last steps."""
    x, model = apart(2000), pv.models.GaussianMixture(3, 2)
    best = fit(model, x).trace["bound"][-1]
    online = fit(model, x, batch_size=100, max_iter=8, **VARIANTS[name])
    # Hard assignments cut the tails of the components off: their likelihood is lower wherever one looks for it.
    slack = {"hard": 3e-3}.get(name, 1e-3)
    assert abs(online.trace["bound"][-1] - best) / len(x) < slack
    torch.testing.assert_close(online.trace["bound"][-1], online.log_prob(x).sum(), rtol=1e-10, atol=0)


def test_online_em_is_ahead_of_em_after_three_times_the_passes():
    x = three(50_000)
    model = pv.models.GaussianMixture(3, 2)
    online = fit(model, x, batch_size=250, max_iter=3)
    assert online.trace["e_steps"].tolist() == [1, 3, 5]
    full = fit(model, x, max_iter=15)
    assert online.trace["bound"][-1] > full.trace["bound"][-1]


@pytest.mark.parametrize("prior", [None, "weak"])
def test_online_em_takes_weights_gaps_and_streams(prior):
    x, weights = apart(3000), torch.linspace(0, 2, 3000, dtype=torch.float64)
    x[::7, 0] = torch.nan
    model = pv.models.GaussianMixture(3, 2, prior=prior)
    full = fit(model, x, weights)
    held = fit(model, x, weights, batch_size=150, max_iter=6)
    table = torch.cat([x, weights[:, None]], 1)
    stream = pv.data.stream(table, weights="x2", rows=500)
    streamed = fit(model, stream, batch_size=150, max_iter=6)
    for online in (held, streamed):
        assert abs(online.trace["bound"][-1] - full.trace["bound"][-1]) / 3000 < 2e-3
        weight, order = full.parameters["mixing.probs"].sort()
        found, place = online.parameters["mixing.probs"].sort()
        torch.testing.assert_close(found, weight, rtol=0.05, atol=0)
        torch.testing.assert_close(
            online.parameters["components.loc"][place], full.parameters["components.loc"][order], rtol=0, atol=0.1
        )


def test_a_weight_of_zero_is_no_datum_in_a_batch_either():
    x = apart(1000)
    junk = torch.cat([x, torch.full((1000, 2), 1e3, dtype=torch.float64)])
    weights = torch.cat([torch.ones(1000), torch.zeros(1000)]).double()
    found = fit(pv.models.GaussianMixture(3, 2), junk, weights, batch_size=100, max_iter=4)
    assert found.parameters["components.loc"].max() < 20


def test_online_em_is_repeatable_and_its_seed_orders_the_rows():
    x, model = apart(1000), pv.models.GaussianMixture(3, 2)
    start = fit(model, x, max_iter=2)
    one, same, other = (fit(model, x, start=start, batch_size=100, max_iter=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.trace["bound"], same.trace["bound"])
    assert not torch.equal(one.trace["bound"], other.trace["bound"])


def test_one_batch_of_all_rows_forgets_towards_em():
    """With B = everything and decay 1, the first sums are those of an E-step, so nothing changes at a fixed point."""
    x, model = apart(500), pv.models.GaussianMixture(3, 2)
    done = fit(model, x, tol=1e-14)
    online = fit(model, x, start=done, batch_size=10_000, max_iter=5)
    torch.testing.assert_close(online.trace["bound"], done.trace["bound"][-1].expand(4), rtol=1e-12, atol=0)
    assert online.status.code == "converged"


# Annealing and hard assignments


def hidden_pair():
    """Two small components side by side and a large one far away: seeds by k-means++ split the large one."""
    locs = torch.tensor([[0.0, 0.0], [0.0, 4.0], [30.0, 0.0]])
    covariances = torch.eye(2) * torch.tensor([1.0, 1.0, 9.0])[:, None, None]
    return pv.data.gaussian_mixture(600, [0.1, 0.1, 0.8], locs, covariances, seed=0)[0]


def test_annealing_finds_what_most_starts_miss():
    x, model = hidden_pair(), pv.models.GaussianMixture(3, 2)
    plain = [fit(model, x, seed=seed).trace["bound"][-1].item() for seed in range(6)]
    annealed = [fit(model, x, seed=seed, temperature=pv.linear(5.0, 1.0, 20)) for seed in range(6)]
    ends = [one.trace["bound"][-1].item() for one in annealed]
    best = max(plain + ends)
    assert sum(end > best - 0.1 for end in plain) <= 2
    assert sum(end > best - 0.1 for end in ends) >= 5
    assert all(one.status.code == "converged" for one in annealed)


def test_the_bound_of_a_tempered_fit_is_the_true_likelihood(faithful):
    model = pv.models.GaussianMixture(2, 2)
    tempered = fit(model, faithful, temperature=1.5)
    assert never_falls(tempered.trace)
    assert tempered.status.code == "converged"
    torch.testing.assert_close(tempered.trace["bound"][-1], tempered.log_prob(faithful).sum(), rtol=1e-10, atol=0)
    probs, components = tempered.parameters["mixing.probs"], tempered.model.components
    joint = probs.log() + torch.stack([components(torch.tensor(k)).log_prob(faithful) for k in range(2)], 1)
    energy = 1.5 * torch.logsumexp(joint / 1.5, 1).sum()
    torch.testing.assert_close(tempered.trace["objective"][-1], energy, rtol=1e-10, atol=0)


def test_a_schedule_ends_a_run_only_at_its_last_temperature(faithful):
    """Twenty iterations at each temperature are enough to stand still there."""
    schedule = [3.0] * 20 + [2.0] * 20 + [1.0]
    annealed = fit(pv.models.GaussianMixture(2, 2), faithful, temperature=lambda i: schedule[min(i, 40)])
    assert annealed.status.code == "converged"
    assert len(annealed.trace["bound"]) > 40
    assert torch.equal(annealed.trace["objective"][40:], annealed.trace["bound"][40:])
    assert never_falls(annealed.trace)
    # At T = 3 the two components lie on each other, and the noise has kept them from staying there.
    one = fit(pv.models.GaussianMixture(1, 2), faithful).trace["bound"][-1]
    assert annealed.trace["bound"][20] < one + 1
    assert annealed.trace["bound"][-1].item() == pytest.approx(-1130.264, abs=1e-2)


def test_hard_em_climbs_the_classification_likelihood(faithful):
    hard = fit(pv.models.GaussianMixture(3, 2), faithful, assignment="hard", tol=0)
    assert never_falls(hard.trace)
    labels, model = hard.labels(faithful), hard.model
    probs = hard.parameters["mixing.probs"]
    classification = (probs[labels].log() + model.components(labels).log_prob(faithful)).sum()
    torch.testing.assert_close(hard.trace["objective"][-1], classification.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(hard.trace["bound"][-1], hard.log_prob(faithful).sum(), rtol=1e-10, atol=0)
    assert bool((hard.trace["bound"] >= hard.trace["objective"]).all())


def test_stochastic_em_is_near_the_maximum(faithful):
    best = fit(pv.models.GaussianMixture(2, 2), faithful).trace["bound"][-1]
    drawn = fit(pv.models.GaussianMixture(2, 2), faithful, assignment="stochastic", max_iter=60)
    assert drawn.status.ok
    assert str(drawn.status) == "finished: 60 iterations"
    # Labels that are drawn move each of 11 parameters by less than a standard error: about a nat each.
    assert abs(drawn.trace["bound"][20:] - best).mean() < 11


# Warm starts


@pytest.mark.parametrize("settings", [{}, {"accelerate": "squarem"}, {"assignment": "hard"}, {"temperature": 1.3}])
@pytest.mark.parametrize("prior", [None, "weak"])
def test_a_fit_from_a_finished_fit_stops_at_once(faithful, settings, prior):
    model = pv.models.GaussianMixture(2, 2, prior=prior)
    first = fit(model, faithful, tol=1e-9, **settings)
    assert first.status.code == "converged"
    for start in (first, first.parameters):
        again = fit(model, faithful, start=start, **settings)
        assert len(again.trace["bound"]) <= 2
        ends = [one.trace["objective"][i].item() for one, i in ((first, -1), (again, 0), (again, -1))]
        assert ends[1] == pytest.approx(ends[0], rel=1e-12)
        assert ends[2] == pytest.approx(ends[0], abs=1e-5)


def test_a_fit_from_a_fit_takes_its_networks_too():
    """Slopes that no family owns are not among a fit's parameters by name, and are taken over all the same."""
    t = torch.linspace(-2, 2, 200, dtype=torch.float64)
    data = {"t": t, "y": torch.where(torch.arange(200) % 2 == 0, 2.0, -1.0) * t}
    first = fit(Slopes(), data, tol=1e-10)
    again = fit(Slopes(), data, start=first)
    assert len(again.trace["bound"]) <= 2
    assert again.trace["bound"][0].item() == pytest.approx(first.trace["bound"][-1].item(), rel=1e-12)
    other = deepcopy(first)
    del other.model.slope
    with pytest.raises(DataError, match="no such parameter for slope"):
        fit(Slopes(), data, start=other)


def test_the_networks_of_a_fits_model_move_on():
    """They ask for no gradient any more, which does not say that they are to stay; `frozen` does."""
    t = torch.linspace(-2, 2, 200, dtype=torch.float64)
    data = {"t": t, "y": torch.where(torch.arange(200) % 2 == 0, 2.0, -1.0) * t}
    model = fit(Slopes(), data, max_iter=1).model
    assert not torch.equal(fit(model, data, max_iter=4).model.slope, model.slope)
    assert torch.equal(fit(model, data, max_iter=4, frozen="slope").model.slope, model.slope)


def test_a_fit_from_responsibilities_takes_one_m_step_first(faithful):
    model = pv.models.GaussianMixture(2, 2)
    first = fit(model, faithful, tol=1e-12)
    again = fit(model, faithful, start=first.responsibilities(faithful))
    assert len(again.trace["bound"]) <= 2
    assert again.trace["bound"][0] >= first.trace["bound"][-1] - 1e-9


def test_a_start_by_some_parameters_keeps_the_defaults_of_the_rest(faithful):
    loc = faithful[:2]
    found = fit(pv.models.GaussianMixture(2, 2), faithful, start={"components.loc": loc}, max_iter=1)
    assert torch.equal(found.parameters["components.loc"], loc)
    torch.testing.assert_close(found.parameters["mixing.probs"], torch.full((2,), 0.5, dtype=torch.float64))
    spread = torch.cov(faithful.T, correction=0)
    torch.testing.assert_close(found.parameters["components.covariance"], spread.expand(2, 2, 2))


# Checkpoints and settings


@pytest.mark.parametrize(
    "settings", [{"accelerate": "squarem"}, {"batch_size": 50}, {"temperature": pv.linear(4.0, 1.0, 20)}]
)
def test_an_interrupted_variation_goes_on_exactly(faithful, settings, tmp_path, monkeypatch):
    model, settings = pv.models.GaussianMixture(3, 2), {"max_iter": 30, "tol": 0, **settings}
    whole = fit(model, faithful, **settings)
    step = Climb.expect

    def dies(self, *args, **kwargs):
        if self.iteration == 12:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Climb, "expect", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(model, faithful, checkpoint=pv.checkpoints(tmp_path, steps=1), **settings)
    monkeypatch.setattr(Climb, "expect", step)
    resumed = fit(model, faithful, checkpoint=tmp_path, **settings)
    for name in ("bound", "objective", "e_steps", "segment"):
        assert torch.equal(resumed.trace[name], whole.trace[name]), name


BAD = {
    "unknown acceleration": ({"accelerate": "aitken"}, "squarem"),
    "acceleration of hard assignments": ({"accelerate": "squarem", "assignment": "hard"}, "soft"),
    "acceleration of batches": ({"accelerate": "squarem", "batch_size": 10}, "batch_size"),
    "no batch": ({"batch_size": 0}, "at least 1"),
    "decay too slow": ({"batch_size": 10, "decay": 0.5}, "above 0.5"),
    "temperature of hard assignments": ({"assignment": "hard", "temperature": 2.0}, "soft"),
    "temperature zero": ({"temperature": 0.0}, "positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_setting_is_named(case):
    settings, message = BAD[case]
    with pytest.raises(EngineError, match=message):
        pv.EM(**settings)


def test_batches_need_an_m_step_in_closed_form():
    t = torch.linspace(-1, 1, 50, dtype=torch.float64)
    with pytest.raises(EngineError, match="no family owns"):
        fit(Slopes(), {"t": t, "y": t}, batch_size=10)


def test_a_pyro_model_has_no_variations():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(EngineError, match="accelerate, weights for declared models only"):
        fit(model, torch.zeros(5), torch.ones(5), accelerate="squarem")


def test_a_restart_does_not_depend_on_the_scale_of_weights():
    """Three groups, one component far away: weights that sum to 1 lead where weights of 1 do."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(300, 2, generator=generator).double() + 8 * k for k in range(3)])
    loc = torch.tensor([[0.0, 0.0], [12.0, 12.0], [1e6, 1e6]], dtype=torch.float64)
    start = {
        "mixing.probs": torch.full((3,), 1 / 3),
        "components.loc": loc,
        "components.covariance": 9 * torch.eye(2).expand(3, 2, 2),
    }
    ends = []
    for scale in (1.0, 1 / 900):
        fit = pv.EM(start=start, progress=False).fit(pv.models.GaussianMixture(3, 2), x, torch.full((900,), scale))
        assert any("restarted" in note for note in fit.status.notes)
        ends.append(fit.log_prob(x).mean().item())
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)
    assert fit.parameters["mixing.probs"].tolist() == pytest.approx([1 / 3] * 3, abs=1e-2)
