"""Label switching: which components can trade labels, and draws put back into one order."""

from dataclasses import replace
from itertools import permutations

import pyro.distributions as dist
import pytest
import torch
from example_models import Chain, ZeroInflated

import ppl_vae as pv
from ppl_vae.align import Axis, Mirror, permute, symmetries
from ppl_vae.relabel import Stephens, relabel_draws


def switched(draws, orders):
    """Every draw's components on their first axis in an order of its own."""
    found = {}
    for name, value in draws.items():
        flat = value.flatten(0, 1)
        found[name] = torch.stack([one[o] for one, o in zip(flat, orders, strict=True)]).reshape(value.shape)
    return found


@pytest.fixture(scope="module")
def x():
    return pv.data.faithful()


@pytest.fixture(scope="module")
def vb(x):
    return pv.VB(num_draws=60, progress=False).fit(pv.models.GaussianMixture(3, 2, prior="weak"), x)


class Tied(pv.LatentVariableModel):
    """Means of three components with priors: alike for two of them, another for the third."""

    def __init__(self, centers):
        super().__init__()
        self.register_buffer("centers", torch.tensor(centers))

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(self.centers, 2.0).to_event(1)

    @pv.latent
    def z(self):
        return dist.Categorical(torch.ones(3) / 3)

    @pv.observed
    def x(self, loc, z):
        return dist.Normal(loc[z], 1.0)


LOC = {"loc": torch.tensor([-3.0, 0.5, 4.0])}


@pytest.mark.parametrize(
    ("centers", "blocks"),
    [([0.0, 0.0, 0.0], [((0, 1, 2),)]), ([0.0, 5.0, 0.0], [((0, 2),)]), ([0.0, 1.0, 2.0], [])],
)
def test_priors_decide_which_components_can_trade_labels(centers, blocks):
    model = Tied(centers)
    found = symmetries(model, model.check(torch.randn(30)), LOC)
    assert [s.blocks for s in found] == blocks
    assert all(s.moves == {"loc": (Axis(0),)} for s in found)


def test_a_datum_whose_component_is_known_tells_components_apart():
    model = Tied([0.0, 0.0, 0.0])
    z = torch.full((500,), torch.nan)
    z[123] = 1.0
    obs = model.check({"x": torch.randn(500), "z": z})
    assert [s.blocks for s in symmetries(model, obs, LOC)] == [((0, 2),)]


def test_a_square_of_features_is_not_taken_for_components(x):
    """Two components of two features: locations are [2, 2], a tied covariance too."""
    model = pv.models.GaussianMixture(2, 2, "tied", prior="weak")
    fit = pv.VB(num_draws=2, progress=False).fit(model, x)
    (found,) = symmetries(fit.model, fit.data, fit.draw(0))
    assert found.moves == {"mixing.probs": (Axis(0),), "components.loc": (Axis(0),)}


class Table(pv.LatentVariableModel):
    """Two finite latents; the second one's table has the first one's components as rows and its own as columns."""

    @pv.latent(shared=True)
    def rows(self):
        return dist.Dirichlet(torch.ones(2, 3)).to_event(1)

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(torch.zeros(3), 3.0).to_event(1)

    @pv.latent
    def a(self):
        return dist.Categorical(torch.ones(2) / 2)

    @pv.latent
    def b(self, rows, a):
        return dist.Categorical(rows[a])

    @pv.observed
    def x(self, loc, b):
        return dist.Normal(loc[b], 1.0)


def test_several_finite_latents_have_a_symmetry_each():
    model, values = Table(), {"rows": torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), "loc": LOC["loc"]}
    found = {s.latents: s for s in symmetries(model, model.check(torch.randn(40) * 3), values)}
    assert found["a",].moves == {"rows": (Axis(0),)}
    assert found["b",].moves == {"rows": (Axis(1),), "loc": (Axis(0),)}


class TwoSided(pv.LatentVariableModel):
    """Two components told apart by the probability of the second, on the scale that a subclass takes."""

    prior = staticmethod(lambda: dist.Beta(2.0, 2.0))
    chance = staticmethod(lambda p: p)

    @pv.latent(shared=True)
    def p(self):
        return type(self).prior()

    @pv.latent(shared=True)
    def loc(self):
        return dist.Normal(torch.zeros(2), 5.0).to_event(1)

    @pv.latent
    def z(self, p):
        return dist.Bernoulli(type(self).chance(p))

    @pv.observed
    def x(self, loc, z):
        return dist.Normal(loc[z.long()], 1.0)


class Lopsided(TwoSided):
    prior = staticmethod(lambda: dist.Beta(2.0, 3.0))


class Logit(TwoSided):
    prior = staticmethod(lambda: dist.Normal(0.0, 1.5))
    chance = staticmethod(torch.sigmoid)


class Coefficients(TwoSided):
    """As many coefficients of the logit as components."""

    prior = staticmethod(lambda: dist.Normal(torch.zeros(2), 1.5).to_event(1))
    chance = staticmethod(lambda p: torch.sigmoid(p[..., 0] - p[..., 1] / 2))


class ZeroTable(pv.LatentVariableModel):
    """Three features that are near zero in the first of three components: rates [2, 3] of the two others."""

    @pv.latent(shared=True)
    def probs(self):
        return dist.Dirichlet(torch.ones(3))

    @pv.latent(shared=True)
    def rate(self):
        return dist.Gamma(torch.ones(2, 3), 0.2).to_event(2)

    @pv.latent
    def z(self, probs):
        return dist.Categorical(probs)

    @pv.observed
    def x(self, rate, z):
        return dist.Poisson(torch.cat([torch.full((1, 3), 1e-4), rate])[z]).to_event(1)


UNLIKE = {
    "a component without a rate": (
        ZeroInflated,
        {"probs": [0.2, 0.3, 0.5], "rate": [2.0, 9.0]},
        [(("z",), {"probs": (Axis(0),), "rate": (Axis(0, 1),)}, ((1, 2),))],
    ),
    "as many features as components, one of which has no rate": (
        ZeroTable,
        {"probs": [0.2, 0.3, 0.5], "rate": [[2.0, 9.0, 4.0], [7.0, 1.0, 12.0]]},
        [(("z",), {"probs": (Axis(0),), "rate": (Axis(0, 1),)}, ((1, 2),))],
    ),
    "states of a chain": (
        Chain,
        {"start": [0.2, 0.3, 0.5], "moves": [[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.25, 0.35, 0.4]], "loc": [-4, 0, 5]},
        [(("z1", "z2"), {"start": (Axis(0),), "moves": (Axis(0), Axis(1)), "loc": (Axis(0),)}, ((0, 1, 2),))],
    ),
    "a probability": (
        TwoSided,
        {"p": 0.3, "loc": [-2, 3]},
        [(("z",), {"p": (Mirror(0.5),), "loc": (Axis(0),)}, ((0, 1),))],
    ),
    "a probability whose prior tells them apart": (Lopsided, {"p": 0.3, "loc": [-2, 3]}, []),
    "coefficients of a logit": (
        Coefficients,
        {"p": [0.3, -0.8], "loc": [-2, 3]},
        [(("z",), {"p": (Mirror(0.0),), "loc": (Axis(0),)}, ((0, 1),))],
    ),
    "a logit": (Logit, {"p": 0.3, "loc": [-2, 3]}, [(("z",), {"p": (Mirror(0.0),), "loc": (Axis(0),)}, ((0, 1),))]),
}


def drawn(make, values, n=60):
    """A model, data of it, and its parameters."""
    model = make()
    theta = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    torch.manual_seed(4)
    with model.bind(theta):
        x = model.sample(n)
    return model, x, theta


@pytest.mark.parametrize("case", UNLIKE)
def test_parameters_that_do_not_have_one_axis_of_components(case):
    make, values, wanted = UNLIKE[case]
    model, x, theta = drawn(make, values)
    found = symmetries(model, model.check(x), theta)
    assert [(s.latents, s.moves, s.blocks) for s in found] == wanted


@pytest.mark.parametrize("case", [case for case, (_, _, wanted) in UNLIKE.items() if wanted])
def test_draws_of_such_parameters_come_back(case):
    """Half the draws switched by hand; relabelled, all are as they were, up to one order of the components."""
    make, values, wanted = UNLIKE[case]
    model, x, theta = drawn(make, values)
    obs = model.check(x)
    (_, moves, blocks) = wanted[0]
    (symmetry,) = symmetries(model, obs, theta)
    order = torch.arange(symmetry.size)
    order[list(blocks[0])] = torch.tensor(blocks[0]).flip(0)
    draws = {name: value.expand(1, 20, *value.shape) for name, value in theta.items()}
    orders = torch.stack([torch.arange(symmetry.size), order]).repeat_interleave(10, 0)[None]
    done = relabel_draws(model, obs, permute(draws, moves, orders))
    assert done.switched == 10
    for value in done.draws.values():
        torch.testing.assert_close(value, value[:, :1].expand_as(value))
    direct = {name: value[0, 0] for name, value in done.draws.items()}
    with model.numeric(), model.bind(theta):
        before = model.log_weights(obs, 1)[0]
    with model.numeric(), model.bind(direct):
        torch.testing.assert_close(model.log_weights(obs, 1)[0], before)


@pytest.mark.parametrize("case", [case for case, (_, _, wanted) in UNLIKE.items() if wanted])
def test_fits_of_such_models_are_compared_in_one_order(case):
    make, values, wanted = UNLIKE[case]
    model, x, theta = drawn(make, values)
    obs = model.check(x)
    (_, moves, blocks) = wanted[0]
    order = torch.arange(1 + max(max(block) for block in blocks))
    order[list(blocks[0])] = torch.tensor(blocks[0]).flip(0)
    each = {"as given": theta, "switched": permute(theta, moves, order)}
    fits = {
        name: pv.Fit(
            model,
            "NUTS",
            {k: v.expand(1, 4, *v.shape) + 0 for k, v in own.items()},
            {},
            "none",
            pv.Status("finished", ""),
            0.0,
            0,
            data=obs,
        )
        for name, own in each.items()
    }
    table = pv.compare(fits, x)
    for name, value in table.matched["as given"].items():
        torch.testing.assert_close(table.matched["switched"][name], value)


class Asked(pv.LatentVariableModel):
    """Counts of three components, and an answer of two categories that has nothing to do with them."""

    def __init__(self, prior):
        super().__init__()
        self.mixing = pv.families.Categorical(3, prior=prior)
        self.counts = pv.families.Poisson(batch=3, prior=prior)
        self.answer = pv.families.Categorical(2, prior=prior)

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def y(self, z):
        return self.counts(z)

    @pv.observed
    def b(self):
        return self.answer()


class Drug(pv.LatentVariableModel):
    """Three intercepts, and slopes of two inputs that all components share."""

    dose = pv.given()

    @pv.latent(shared=True)
    def weights(self):
        return dist.Dirichlet(torch.full((3,), 5.0))

    @pv.latent(shared=True)
    def a(self):
        return dist.Normal(torch.zeros(3), 10.0).to_event(1)

    @pv.latent(shared=True)
    def slope(self):
        return dist.Normal(torch.zeros(2), 3.0).to_event(1)

    @pv.latent
    def z(self, weights):
        return dist.Categorical(weights)

    @pv.observed
    def y(self, a, slope, z, dose):
        return dist.Normal(a[z] + dose @ slope, 0.5)


class Hierarchy(Tied):
    """The means have a mean of their own each, which they carry along; what all share stays."""

    def __init__(self):
        super().__init__([0.0, 0.0, 0.0])

    @pv.latent(shared=True)
    def level(self):
        return dist.Normal(0.0, 1.0)

    @pv.latent(shared=True)
    def mean(self, level):
        return dist.Normal(level * torch.ones(3), 1.0).to_event(1)

    @pv.latent(shared=True)
    def loc(self, mean):
        return dist.Normal(mean, 2.0).to_event(1)


class TwoChains(pv.LatentVariableModel):
    """Two hidden chains of two states and two steps each, and a shift that both share."""

    @pv.latent(shared=True)
    def stays(self):
        return dist.Dirichlet(torch.ones(2, 2)).to_event(1)

    @pv.latent(shared=True)
    def moves(self):
        return dist.Dirichlet(torch.ones(2, 2)).to_event(1)

    @pv.latent(shared=True)
    def a(self):
        return dist.Normal(torch.zeros(2), 5.0).to_event(1)

    @pv.latent(shared=True)
    def b(self):
        return dist.Normal(torch.zeros(2), 5.0).to_event(1)

    @pv.latent(shared=True)
    def shift(self):
        return dist.Normal(0.0, 1.0)

    @pv.latent
    def u1(self):
        return dist.Categorical(torch.ones(2) / 2)

    @pv.latent
    def u2(self, stays, u1):
        return dist.Categorical(stays[u1])

    @pv.latent
    def v1(self):
        return dist.Categorical(torch.ones(2) / 2)

    @pv.latent
    def v2(self, moves, v1):
        return dist.Categorical(moves[v1])

    @pv.observed
    def x1(self, a, shift, u1):
        return dist.Normal(a[u1] + shift, 1.0)

    @pv.observed
    def x2(self, a, shift, u2):
        return dist.Normal(a[u2] + shift, 1.0)

    @pv.observed
    def y1(self, b, shift, v1):
        return dist.Normal(b[v1] + shift, 1.0)

    @pv.observed
    def y2(self, b, shift, v2):
        return dist.Normal(b[v2] + shift, 1.0)


class Batteries(pv.LatentVariableModel):
    """Two binary latents, each seen in four counts of its own."""

    def __init__(self):
        super().__init__()
        for name in ("u", "v"):
            setattr(self, f"p_{name}", pv.families.Categorical(2))
            for k in range(1, 5):
                setattr(self, f"of_{name}{k}", pv.families.Poisson(batch=2))

    @pv.latent
    def u(self):
        return self.p_u()

    @pv.latent
    def v(self):
        return self.p_v()

    @pv.observed
    def u1(self, u):
        return self.of_u1(u)

    @pv.observed
    def u2(self, u):
        return self.of_u2(u)

    @pv.observed
    def u3(self, u):
        return self.of_u3(u)

    @pv.observed
    def u4(self, u):
        return self.of_u4(u)

    @pv.observed
    def v1(self, v):
        return self.of_v1(v)

    @pv.observed
    def v2(self, v):
        return self.of_v2(v)

    @pv.observed
    def v3(self, v):
        return self.of_v3(v)

    @pv.observed
    def v4(self, v):
        return self.of_v4(v)


class Wide(pv.LatentVariableModel):
    """A table of twenty columns, each with a family of its own."""

    def __init__(self):
        super().__init__()
        columns = {f"c{j}": pv.families.Normal(1, batch=2, prior="weak") for j in range(20)}
        self.mixing, self.columns = pv.families.Categorical(2, prior="weak"), pv.families.Product(columns)

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.columns(z)


def test_many_parameters_are_not_tried_in_every_combination():
    """Of 41 parameters there are 2^41 sets; the one of all is tried first."""
    torch.manual_seed(6)
    x = torch.randn(60, 20) + 2 * (torch.arange(60) % 2)[:, None]
    fit = pv.VB(num_draws=3, progress=False).fit(Wide(), x)
    (found,) = symmetries(fit.model, fit.data, fit.draw(0))
    assert len(found.moves) == 41
    assert all(moves == (Axis(0),) for moves in found.moves.values())


def log_p(model, obs, values):
    """Log p(x_i) and log p(theta)."""
    with model.numeric(), model.bind(values):
        return model.log_weights(obs, 1)[0], model.log_prior(values)


def asked():
    torch.manual_seed(0)
    rates = torch.tensor([1.0, 6.0, 20.0])
    return {"y": torch.poisson(rates[torch.randint(3, (200,))]), "b": (torch.rand(200) < 0.3).long()}


def fitted(model, data, **start):
    """By EM from these values."""
    return pv.EM(start={name.replace("__", "."): torch.tensor(v) for name, v in start.items()}, progress=False).fit(
        model, data
    )


@pytest.mark.parametrize("prior", [None, "weak"])
def test_parameters_that_do_not_know_the_components_stay(prior):
    """The answer's two probabilities belong to no two of the three components."""
    data = asked()
    fits = {
        "a": fitted(Asked(prior), data, counts__rate=[1.0, 6.0, 20.0]),
        "b": fitted(Asked(prior), data, counts__rate=[20.0, 1.0, 6.0]),
    }
    fit = fits["a"]
    (found,) = symmetries(fit.model, fit.data, fit.parameters)
    assert found.moves == {"mixing.probs": (Axis(0),), "counts.rate": (Axis(0),)}
    assert found.blocks == ((0, 1, 2),)
    before = log_p(fit.model, fit.data, fit.parameters)
    for order in map(torch.tensor, permutations(range(3))):
        after = log_p(fit.model, fit.data, permute(fit.parameters, found.moves, order))
        torch.testing.assert_close(after, before)
    table = pv.compare(fits)
    torch.testing.assert_close(table.matched["b"], table.matched["a"], rtol=1e-4, atol=1e-4)
    assert table.notes == ["b: components matched to those of a by responsibilities"]
    refits = pv.bootstrap(fits["b"], num_samples=4, progress=False).draws["counts.rate"][0]
    assert bool((refits.argsort(1) == torch.tensor([1, 2, 0])).all())


def drug(n=60):
    torch.manual_seed(5)
    dose, z = torch.randn(n, 2), torch.randint(3, (n,))
    y = torch.tensor([-6.0, 0.0, 6.0])[z] + dose @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(n)
    return {"y": y, "dose": dose}


def test_slopes_that_all_components_share_stay_when_draws_are_put_in_order():
    """Draws whose intercepts were exchanged, as chains do that start in different places."""
    model, data = Drug(), drug()
    torch.manual_seed(7)
    draws = {
        "weights": torch.tensor([0.2, 0.3, 0.5]).repeat(2, 15, 1),
        "a": torch.tensor([-6.0, 0.0, 6.0]) + 0.1 * torch.randn(2, 15, 3),
        "slope": torch.tensor([1.0, -2.0]) + 0.1 * torch.randn(2, 15, 2),
    }
    orders = torch.stack([torch.randperm(3) for _ in range(30)])
    again = {**switched({name: draws[name] for name in ("weights", "a")}, orders), "slope": draws["slope"]}
    done = relabel_draws(model, model.check(data), again, pv.Ordering("a"))
    for name, value in draws.items():
        torch.testing.assert_close(done.draws[name], value, rtol=0, atol=0)


def test_chains_of_a_mixture_with_shared_slopes_come_back():
    """The second chain has all three labels in other places."""
    torch.manual_seed(0)
    fit = pv.NUTS(40, warmup=60, num_chains=2, progress=False).fit(Drug(), drug(40))
    draws = {name: value.clone() for name, value in fit.draws.items()}
    for name in ("weights", "a"):
        draws[name][1] = draws[name][1][:, [2, 0, 1]]
    apart = replace(fit, draws=draws)
    order = pv.relabel(apart).draws["a"].argsort(-1)
    assert bool((order == order[0, 0]).all())
    assert bool((pv.relabel(apart, pv.Ordering("a")).draws["a"].diff(dim=-1) > 0).all())


def test_means_of_means_move_along():
    model = Hierarchy()
    torch.manual_seed(2)
    values = {"level": torch.tensor(0.3), "mean": torch.randn(3), "loc": LOC["loc"]}
    obs = model.check(torch.randn(30) * 3)
    (found,) = symmetries(model, obs, values)
    assert found.moves == {"mean": (Axis(0),), "loc": (Axis(0),)}
    assert found.blocks == ((0, 1, 2),)
    moved = permute(values, found.moves, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(log_p(model, obs, moved), log_p(model, obs, values))


def test_each_of_several_latents_trades_what_depends_on_it():
    """The second fit has the labels of one latent alone the other way round."""
    torch.manual_seed(1)
    u, v = torch.randint(2, (200,)), (torch.rand(200) < 0.3).long()
    data = {f"u{k}": torch.poisson(torch.tensor([2.0, 6.0 + k])[u]) for k in range(1, 5)}
    data |= {f"v{k}": torch.poisson(torch.tensor([1.0, 5.0 + k])[v]) for k in range(1, 5)}
    start = {f"of_{name}{k}__rate": [2.0, 7.0] for name in ("u", "v") for k in range(1, 5)}
    other = {name: rates[::-1] if name.startswith("of_u") else rates for name, rates in start.items()}
    fits = {"a": fitted(Batteries(), data, **start), "b": fitted(Batteries(), data, **other)}
    found = {s.latents: set(s.moves) for s in symmetries(fits["a"].model, fits["a"].data, fits["a"].parameters)}
    assert found == {(name,): {f"p_{name}.probs", *(f"of_{name}{k}.rate" for k in range(1, 5))} for name in ("u", "v")}
    table = pv.compare(fits)
    torch.testing.assert_close(table.matched["b"], table.matched["a"], rtol=1e-4, atol=1e-4)
    assert table.notes == ["b: components of u, v matched to those of a by responsibilities"]


def test_chains_that_share_no_states_trade_apart():
    values = {
        "stays": [[0.9, 0.1], [0.2, 0.8]],
        "moves": [[0.3, 0.7], [0.6, 0.4]],
        "a": [-3.0, 1.0],
        "b": [0.0, 4.0],
        "shift": 0.5,
    }
    model, x, theta = drawn(TwoChains, values)
    found = symmetries(model, model.check(x), theta)
    assert {s.latents: s.moves for s in found} == {
        ("u1", "u2"): {"stays": (Axis(0), Axis(1)), "a": (Axis(0),)},
        ("v1", "v2"): {"moves": (Axis(0), Axis(1)), "b": (Axis(0),)},
    }


class Increasing(Tied):
    """Means that a law keeps in order have no labels to trade: exchanged, they are outside its support."""

    def __init__(self):
        super().__init__([0.0, 0.0, 0.0])

    @pv.latent(shared=True)
    def loc(self):
        inner = dist.Normal(torch.zeros(3), 3.0).to_event(1)
        return dist.TransformedDistribution(inner, dist.transforms.OrderedTransform())


@pytest.mark.parametrize("model", [Tied([0.0, 1.0, 2.0]), Increasing()])
def test_components_without_a_symmetry_are_not_said_to_be_matched(model):
    obs = model.check(torch.randn(30) * 3)
    fits = {
        name: pv.Fit(model, "NUTS", {"loc": LOC["loc"].expand(1, 4, 3) + shift}, {}, "none",
                     pv.Status("finished", ""), 0.0, 0, data=obs)
        for name, shift in (("a", 0.0), ("b", 0.1))
    }  # fmt: skip
    assert symmetries(model, obs, LOC) == []
    table = pv.compare(fits)
    assert torch.equal(table.matched["b"]["loc"], fits["b"].draws["loc"])
    (note,) = table.notes
    assert "not matched to those of a: no trade of labels" in note


def test_an_ordering_by_the_rates_of_all_components_but_one():
    make, values, _ = UNLIKE["a component without a rate"]
    model, x, theta = drawn(make, values)
    draws = {name: value.expand(1, 6, *value.shape) + 0 for name, value in theta.items()}
    draws["rate"][:, 3:] = draws["rate"][:, 3:].flip(-1)
    draws["probs"][:, 3:] = draws["probs"][:, 3:, [0, 2, 1]]
    done = relabel_draws(model, model.check(x), draws, pv.Ordering("rate"))
    assert done.switched == 3
    assert done.draws["rate"].tolist() == [[[2.0, 9.0]] * 6]
    torch.testing.assert_close(done.draws["probs"], theta["probs"].expand(1, 6, 3))


def test_stephens_reaches_the_least_divergence_of_all_orders():
    """Four draws of three components: the loss of Stephens's answer against every combination of permutations."""
    torch.manual_seed(1)
    base = torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0], [2.0, 2.0, 0.0]])
    orders = [torch.randperm(3) for _ in range(4)]
    p = torch.stack([(base + 0.3 * torch.randn(4, 3)).softmax(-1)[:, o] for o in orders]).double()

    def loss(chosen):
        moved = torch.stack([one[:, list(o)] for one, o in zip(p, chosen, strict=True)])
        return (moved * (moved / moved.mean(0)).log()).sum()

    found = Stephens().minimise(p, p[0], torch.ones(3, 3, dtype=torch.bool))
    every = [()]
    for _ in range(4):
        every = [(*chosen, o) for chosen in every for o in permutations(range(3))]
    assert loss(found.tolist()) == pytest.approx(min(loss(chosen) for chosen in every).item(), rel=1e-12)


@pytest.mark.parametrize("by", [Stephens(), pv.Ordering("components.loc", 1)])
def test_switched_draws_come_back(vb, by):
    torch.manual_seed(2)
    once = relabel_draws(vb.model, vb.data, vb.draws, by).draws
    orders = torch.stack([torch.randperm(3) for _ in range(60)])
    again = relabel_draws(vb.model, vb.data, switched(once, orders), by)
    order = torch.stack(
        [(again.draws["components.loc"][0, 0, k] == once["components.loc"][0, 0]).all(-1) for k in range(3)]
    )
    order = order.long().argmax(1)  # Stephens leaves the order of places to its start
    for name, value in once.items():
        torch.testing.assert_close(again.draws[name], value[:, :, order], rtol=0, atol=0)
    # What was moved is what the words say.
    moved = sum(
        not torch.equal(a, b)
        for a, b in zip(again.draws["components.loc"][0], switched(once, orders)["components.loc"][0], strict=True)
    )
    assert again.switched == moved
    assert f"{moved} of 60 draws switched" in again.said


def test_one_finite_latent_at_a_time_across_chains():
    torch.manual_seed(3)
    model = Table()
    rows = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]]).expand(2, 10, 2, 3)
    loc = LOC["loc"] + 0.1 * torch.randn(2, 10, 3)
    draws = {"rows": rows.clone(), "loc": loc.clone()}
    draws["rows"][1] = draws["rows"][1][:, :, [2, 0, 1]]
    draws["loc"][1] = draws["loc"][1][:, [2, 0, 1]]
    done = relabel_draws(model, model.check(torch.randn(50) * 3), draws)
    assert done.switched in (10, 20)
    order = done.draws["loc"].argsort(-1)
    assert bool((order == order[0, 0]).all())
    assert bool((done.draws["rows"] == done.draws["rows"][0, 0]).all())


@pytest.mark.parametrize(
    ("model", "draws", "reason"),
    [
        (Tied([0.0, 1.0, 2.0]), LOC, "no components were found"),
        (pv.models.GaussianMixture(2, 1), {}, "no parameter has draws"),
    ],
)
def test_where_nothing_can_switch_nothing_is_done(model, draws, reason):
    draws = {name: value + torch.randn(2, 5, 3) for name, value in draws.items()}
    done = relabel_draws(model, model.check(torch.randn(20)), draws)
    assert done.draws.keys() == draws.keys()
    assert all(torch.equal(done.draws[name], value) for name, value in draws.items())
    assert reason in done.said


def test_the_fit_says_which_was_used_and_judges_the_relabelled_draws(x):
    """Chains whose labels were switched on purpose disagree; put back into one order, they agree."""
    fit = pv.VB(num_draws=800, progress=False).fit(pv.models.GaussianMixture(2, 2, prior="weak"), x)
    assert fit.settings["labels"] == "Stephens (2000), by responsibilities of 272 of 272 data; 0 of 800 draws switched"
    chains = {name: value.reshape(2, 400, *value.shape[2:]) for name, value in fit.draws.items()}
    draws = {name: torch.stack([value[0], value[1].flip(1)]) for name, value in chains.items()}
    apart = replace(fit, draws=draws)
    judged = pv.diagnostics.convergence(apart)
    apart.status = pv.Status("finished", f"2 chains; {judged}", judged.warnings())
    assert "R-hat" in " ".join(apart.status.notes)
    for by in (None, pv.Ordering("components.loc")):
        again = pv.relabel(apart, by)
        assert pv.diagnostics.convergence(again).rhat < 1.02 < 1.5 < pv.diagnostics.convergence(apart).rhat
        assert "400 of 800 draws switched" in again.settings["labels"]
        assert again.status.notes == pv.diagnostics.convergence(again).warnings()
        assert again.status.message == f"2 chains; {pv.diagnostics.convergence(again)}"


def test_an_ordering_by_what_carries_no_components_is_refused(vb):
    with pytest.raises(pv.EngineError, match=r"order by one of mixing\.probs"):
        pv.relabel(vb, pv.Ordering("weights"))


class Branching(Tied):
    """The law of x asks for values, which no trace and no vmap can follow."""

    @pv.observed
    def x(self, loc, z):
        return dist.Normal(loc[z], 1.0 if bool(loc.abs().max() < 100) else 2.0)


def test_a_model_that_branches_on_values_goes_draw_by_draw():
    plain, branching = Tied([0.0, 0.0, 0.0]), Branching([0.0, 0.0, 0.0])
    x = torch.randn(30) * 3
    orders = torch.stack([torch.randperm(3) for _ in range(60)])
    draws = switched({"loc": LOC["loc"] + 0.1 * torch.randn(2, 30, 3)}, orders)
    a, b = (relabel_draws(model, model.check(x), draws) for model in (plain, branching))
    assert a.switched > 0
    assert torch.equal(a.draws["loc"], b.draws["loc"])
    fits = [
        pv.Fit(model, "NUTS", done.draws, {}, "none", pv.Status("finished", ""), 0.0, 0, data=model.check(x))
        for model, done in ((plain, a), (branching, b))
    ]
    torch.testing.assert_close(*(fit.pointwise(x) for fit in fits))
    one, other = (pv.compare({"NUTS": fit}) for fit in fits)
    assert one.rows["NUTS"].elpd_loo == pytest.approx(other.rows["NUTS"].elpd_loo)


@pytest.mark.parametrize("engine", [pv.SVI(2, num_draws=20, progress=False), pv.VB(num_draws=20, progress=False)])
def test_a_tied_covariance_of_as_many_features_as_components_is_no_component(engine):
    """Its rows are told apart by nothing but their number, and exchanged they are no covariance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64) @ torch.tensor([[1.0, -0.8], [0.0, 0.6]]).double()
    x[:20] += 6
    fit = engine.fit(pv.models.GaussianMixture(2, 2, "tied", prior="weak"), x)
    assert fit.draws["components.covariance"][..., 0, 1].mean() < 0
    (symmetry,) = symmetries(fit.model, fit.data, fit.draw(0))
    assert set(symmetry.moves) == {"mixing.probs", "components.loc"}
