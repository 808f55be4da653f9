"""E-steps over candidates: the fit is that over all components, the bounds hold, an interruption changes no bit."""

import pytest
import torch
from torch.distributions import MultivariateNormal

import ppl_vae as pv
from ppl_vae.families.distances import Mahalanobis, Scaled
from ppl_vae.families.kernels import inverse_factor
from ppl_vae.infer import candidates
from ppl_vae.infer.callbacks import Callback
from ppl_vae.infer.groups import Groups, Margins, Mixture, Part

FORMS = ["full", "tied", "diagonal", "spherical"]
K = 6


@pytest.fixture(autouse=True)
def _groups_of_few_rows(monkeypatch):
    monkeypatch.setattr(candidates, "WORTH", 1)


@pytest.fixture
def over_groups(monkeypatch):
    """Shares of the pairs that each E-step over groups computed."""
    shares = []
    whole = Groups.expect

    def noted(self, near):
        shares.append(float(self.work(near) / (self.sizes.sum() * near.shape[1])))
        return whole(self, near)

    monkeypatch.setattr(Groups, "expect", noted)
    return shares


def clusters(d, n=3000, apart=6.0):
    """K clusters, the last of which overlaps the one before."""
    generator = torch.Generator().manual_seed(d)
    centres = apart * torch.randn(K, d, dtype=torch.float64, generator=generator)
    centres[-1] = centres[-2] + 2 / d**0.5
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return centres[torch.randint(K, (n,), generator=generator)] + x * torch.linspace(0.7, 1.3, d)


def fit(x, form="full", weights=None, **settings):
    model = pv.models.GaussianMixture(K, x.shape[1], form)
    settings = {"max_iter": 40, "tol": 0, "progress": False, **settings}
    return pv.EM(**settings).fit(model, x, weights=weights)


def over_all(monkeypatch, *args, **settings):
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "FIRST", 10**9)
        return fit(*args, **settings)


def same(one, other):
    """Up to rounding, which the first iterations of EM can make a million times larger."""
    assert one.status.code == other.status.code
    assert one.status.notes == other.status.notes
    torch.testing.assert_close(one.trace["bound"][-1], other.trace["bound"][-1], rtol=1e-9, atol=0)
    for name, value in other.parameters.items():
        torch.testing.assert_close(one.parameters[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [4, 30])
@pytest.mark.parametrize("form", FORMS)
def test_every_sum_is_that_over_all_components(form, d, weighted, over_groups, monkeypatch):
    whole, steps = candidates.Candidates.expect, []

    def compared(self, plan, values, every):
        e, all_pairs = whole(self, plan, values, every), every()
        steps.append(self.groups is not None)
        torch.testing.assert_close(e.log_prob, all_pairs.log_prob, rtol=1e-11, atol=0)
        torch.testing.assert_close(e.table, all_pairs.table, rtol=1e-12, atol=1e-15 * len(x))
        for path, sums in all_pairs.sums.items():
            for name, value in sums.items():
                size = value.abs().amax().item()
                torch.testing.assert_close(e.sums[path][name].view_as(value), value, rtol=1e-12, atol=1e-13 * size)
        return e

    monkeypatch.setattr(candidates.Candidates, "expect", compared)
    x = clusters(d)
    fit(x, form, torch.arange(len(x), dtype=torch.float64) % 4 if weighted else None)
    assert sum(steps) > 4
    assert min(over_groups) < 0.4


@pytest.mark.parametrize("form", FORMS)
def test_the_fit_is_that_over_all_components(form, over_groups, monkeypatch):
    x = clusters(4)
    grouped = fit(x, form)
    assert over_groups
    same(grouped, over_all(monkeypatch, x, form))


@pytest.mark.parametrize("settings", [{"accelerate": "squarem"}, {"frozen": ("mixing.probs",)}, {"n_init": 2}])
def test_variations_over_groups(settings, over_groups, monkeypatch):
    x = clusters(4)
    grouped = fit(x, **settings)
    assert over_groups
    same(grouped, over_all(monkeypatch, x, **settings))


def test_a_component_without_data_is_found_and_restarted(over_groups, monkeypatch):
    x = clusters(4)
    loc = x[:: len(x) // K][:K].clone()
    loc[2] = 1e7
    start = {"components.loc": loc, "mixing.probs": torch.tensor([0.2, 0.2, 1e-12, 0.2, 0.2, 0.2])}
    grouped = fit(x, start=start)
    assert over_groups
    assert "restarted" in str(grouped.status)
    same(grouped, over_all(monkeypatch, x, start=start))


def test_overlapping_components_are_left_alone(over_groups):
    assert fit(clusters(2, apart=0.5)).status.code == "max_iter"
    assert not over_groups


def test_sharp_components_keep_their_digits(over_groups, monkeypatch):
    """A cluster ten thousand times narrower than the others: its moments are taken about its own mean."""
    x = clusters(4)
    x[:500] = 40 + 1e-4 * x[:500]
    grouped = fit(x, "full")
    assert over_groups
    same(grouped, over_all(monkeypatch, x, "full"))


class Stopping(Callback):
    def __init__(self, number):
        self.number = number

    def end(self, run, step, metrics):
        if step == self.number:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [2, 9, 30])
def test_an_interrupted_fit_ends_with_the_same_bits(at, tmp_path, over_groups):
    x = clusters(4)
    straight = fit(x)
    with pytest.raises(KeyboardInterrupt):
        fit(x, checkpoint=tmp_path, callbacks=[Stopping(at)])
    resumed = fit(x, checkpoint=tmp_path)
    assert torch.equal(resumed.trace["bound"], straight.trace["bound"])
    for name, value in straight.parameters.items():
        assert torch.equal(resumed.parameters[name], value)
    assert over_groups


# The bounds.


def normals(seed, d=3, moved=0.0):
    """Means and covariances of K normals, and the same after they have moved."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    m, root = 3 * numbers(K, d), numbers(K, d, d)
    return m + moved * numbers(K, d), root @ root.mT + moved * numbers(K, d).square().diag_embed() + 0.1 * torch.eye(d)


def distances(form, m, covariance):
    if form == "scaled":
        scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
        return Scaled(m, scale, -scale.log().sum(1))
    W, half = inverse_factor(covariance)
    return Mahalanobis(m, W, -half)


def squares(of, y):
    z = (y - of.m[:, :, None]) / of.scale[:, :, None] if isinstance(of, Scaled) else of.W @ (y - of.m[:, :, None])
    return z.square().sum(1)


@pytest.mark.parametrize("form", ["scaled", "matrices"])
@pytest.mark.parametrize("moved", [0.0, 1e-3, 0.1, 1.0, 10.0])
def test_a_stretch_holds_all_distances(form, moved):
    for seed in range(20):
        before, now = distances(form, *normals(seed)), distances(form, *normals(seed, moved=moved))
        y = 5 * torch.randn(3, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        old, new = squares(before, y) / 2, squares(now, y) / 2
        stretch = now.stretch(before)
        for k in range(K):
            rounding = 1e-9 * (1 + new[k])
            assert bool((stretch.most(old[k], torch.tensor(k)) >= new[k] - rounding).all())
            least = torch.stack([stretch.least(half.expand(K))[k] for half in old[k]])
            assert bool((least <= new[k] + rounding).all())
        if moved == 0:
            torch.testing.assert_close(least, new[-1])


@pytest.mark.parametrize("form", ["scaled", "matrices"])
def test_totals_of_moments_are_those_of_the_data(form):
    of, y, w = distances(form, *normals(0)), torch.randn(3, 50).double(), torch.rand(50).double()
    mean = (y @ w) / w.sum()
    scatter = of.scatter(y - mean[:, None], w)
    total = of.total(torch.tensor([2]), w.sum()[None], mean[None], scatter[None])
    torch.testing.assert_close(total[0], squares(of, y)[2] @ w)


def grouped_by_best(x, form):
    """A group for each component of a fit, from that component's data, and mixtures moved from the fit."""
    model = pv.models.GaussianMixture(K, 3, form).double()
    family = model.components
    family.adapt([(x, None)])
    y, truth = family.features(x), fit(x, form).parameters

    def mixture(moved, seed=1):
        generator = torch.Generator().manual_seed(seed)
        off = moved * torch.randn(K, 3, dtype=torch.float64, generator=generator)
        values = {"loc": truth["components.loc"] + off, "covariance": truth["components.covariance"] * (1 + moved)}
        with torch.no_grad(), family.bind(values):
            return Mixture(family.kernel(), truth["mixing.probs"].log()[:, None])

    anchor = mixture(0.0)
    log = anchor.joint(y)[0]
    top, best = log.max(0)
    margins = Margins.of(best, top - log, top)
    parts = [[Part(y[:, best == k].contiguous(), None, best[best == k])] for k in range(K)]
    groups = Groups(anchor, parts, torch.arange(K), margins.kind, margins.least, margins.lowest)
    return groups, mixture, y, best


def check_bounds(groups, y, best):
    """The bounds hold for the data, up to rounding: the least margins, [K, B], and the largest distances, [B]."""
    log = groups.at.joint(y)[0]
    for k in range(K):
        own = log[:, best == k]
        margin, distance = (own[k] - own).amin(1), groups.at.peak[k] - own[k].amin()
        assert bool((groups.least[:, k] <= margin + 1e-9 * (1 + margin.abs())).all())
        assert groups.farthest[k] >= distance * (1 - 1e-9)
        yield margin, distance


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("moved", [0.0, 0.01, 0.1, 1.0])
def test_what_is_left_out_is_out_of_reach(form, moved):
    groups, mixture, y, best = grouped_by_best(clusters(3, n=1500), form)
    groups.move(mixture(moved))
    near = groups.near(torch.full((K,), 30.0, dtype=torch.float64))
    log = groups.at.joint(y)[0]
    for k, candidates_of in enumerate(near):
        margin = log[:, best == k].amax(0) - log[:, best == k]
        assert bool((margin[~candidates_of] >= 30 - 1e-6).all())
    if moved == 0:
        assert float(near.double().mean()) < 0.6


@pytest.mark.parametrize("form", FORMS)
def test_bounds_hold_wherever_the_normals_go_and_are_exact_where_they_were_looked_at(form):
    groups, mixture, y, best = grouped_by_best(clusters(3, n=1500), form)
    list(check_bounds(groups, y, best))
    needed, exact = torch.full((K,), 30.0, dtype=torch.float64), 0
    for step in range(6):
        groups.move(mixture(0.05 * (step + 1), seed=step))
        list(check_bounds(groups, y, best))
        before, known = groups.near(needed), groups.known.clone()
        near = groups.look(needed)
        assert not bool((near & ~before).any())
        for k, (margin, distance) in enumerate(check_bounds(groups, y, best)):
            if bool((before[k] & ~known[k]).any()):
                exact += 1
                torch.testing.assert_close(groups.least[before[k], k], margin[before[k]])
                torch.testing.assert_close(groups.farthest[k], distance)
                assert torch.equal(groups.known[k], near[k])
    assert exact >= K


def test_margins_of_parts_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(5, (60,), generator=generator)
    least, lowest = torch.randn(3, 60, generator=generator), torch.randn(60, generator=generator)
    whole = Margins.of(kind, least, lowest)
    halves = [Margins.of(kind[rows], least[:, rows], lowest[rows]) for rows in (slice(0, 7), slice(7, None))]
    for margins in (whole, halves[0] + halves[1]):
        assert margins.kind.tolist() == sorted(set(kind.tolist()))
        for place, k in enumerate(margins.kind):
            assert torch.equal(margins.least[:, place], least[:, kind == k].amin(1))
            assert margins.lowest[place] == lowest[kind == k].amin()


def test_stretch_of_a_family_is_that_of_its_law():
    """log N(y; k) = peak - q / 2, against torch's own density."""
    m, covariance = normals(0)
    of, y = distances("matrices", m, covariance), torch.randn(3, 7).double()
    constant = -0.5 * 3 * torch.log(torch.tensor(2 * torch.pi))
    expected = MultivariateNormal(m[:, None], covariance[:, None]).log_prob(y.mT)
    torch.testing.assert_close(of.peak[:, None] + constant - squares(of, y) / 2, expected)
