"""Models that a newcomer declares: shared latents by hand, tables with columns of several kinds, counts, gaps."""

import warnings

import pandas as pd
import polars as pl
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import families


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


class Counts(pv.LatentVariableModel):
    """A Poisson mixture whose shares and rates have priors, all declared by hand."""

    @pv.latent(shared=True)
    def share(self):
        return dist.Dirichlet(torch.ones(2))

    @pv.latent(shared=True)
    def rate(self):
        return dist.Gamma(torch.ones(2), 0.5).to_event(1)

    @pv.latent
    def z(self, share):
        return dist.Categorical(share)

    @pv.observed
    def x(self, z, rate):
        return dist.Poisson(rate[z])


GROUP = torch.arange(200).ge(150).long()
STARTS = {
    "k-means++": {},
    "random": {"start": "random"},
    "responsibilities": {"start": nn.functional.one_hot(GROUP).double()},
    "rates": {"start": {"rate": torch.tensor([2.0, 12.0])}},
}


@pytest.mark.parametrize("start", STARTS)
def test_em_of_latents_declared_by_hand_begins_where_components_differ(start):
    """From the prior's centre, where all components are alike, EM does not move."""
    x = torch.poisson(torch.tensor([2.0, 12.0])[GROUP], generator=draws())
    fit = pv.EM(progress=False, **STARTS[start]).fit(Counts(), x)
    rates, order = fit.parameters["rate"].sort()
    torch.testing.assert_close(rates, torch.tensor([2.0, 12.0]).double(), atol=1.5, rtol=0)
    torch.testing.assert_close(fit.parameters["share"][order], torch.tensor([0.75, 0.25]).double(), atol=0.08, rtol=0)


class Means(pv.LatentVariableModel):
    """Two normals whose means are parameters of the module."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.0]))

    @pv.latent
    def z(self):
        return dist.Bernoulli(0.5)

    @pv.observed
    def x(self, z):
        return dist.Normal(self.loc[z.long()], 1.0)


def test_em_begins_at_the_modules_own_parameters_or_at_given_responsibilities():
    x = torch.cat([torch.randn(100, generator=draws()) - 3, torch.randn(100, generator=draws(1)) + 3])
    r = nn.functional.one_hot((x < 0).long()).double()  # the first component is the upper one
    own = pv.EM(progress=False).fit(Means(), x).model.loc
    given = pv.EM(start=r, progress=False).fit(Means(), x).model.loc
    torch.testing.assert_close(given, own.flip(0), atol=1e-3, rtol=0)
    assert own[0] < 0 < own[1]


class Coefficients(pv.LatentVariableModel):
    """y ~ N(t b, 1/4), b with Pyro's expanded prior."""

    t = pv.given()

    @pv.latent(shared=True)
    def b(self):
        return dist.Normal(0.0, 2.0).expand([3]).to_event(1)

    @pv.observed
    def y(self, b, t):
        return dist.Normal(t @ b, 0.5)


def test_em_of_an_expanded_prior_is_the_ridge_regression():
    t = torch.randn(60, 3, generator=draws()).double()
    y = t.sum(1) + torch.randn(60, generator=draws(1)).double()
    fit = pv.EM(progress=False).fit(Coefficients(), {"t": t, "y": y})
    ridge = torch.linalg.solve(t.T @ t / 0.25 + torch.eye(3).double() / 4, t.T @ y / 0.25)
    torch.testing.assert_close(fit.parameters["b"], ridge, atol=1e-5, rtol=0)


class Raw(pv.LatentVariableModel):
    """A normal whose scale may become negative on the way."""

    def __init__(self):
        super().__init__()
        self.m, self.s = nn.Parameter(torch.tensor(50.0)), nn.Parameter(torch.tensor(50.0))

    @pv.observed
    def x(self):
        return dist.Normal(self.m, self.s)


def test_em_turns_back_from_where_the_density_is_not_a_number():
    x = torch.poisson(torch.full((200,), 4.0), generator=draws())
    fit = pv.EM(progress=False).fit(Raw(), x)
    assert fit.status.code == "converged"
    assert fit.model.m.item() == pytest.approx(x.mean().item(), abs=1e-3)
    assert fit.model.s.item() == pytest.approx(x.std(correction=0).item(), abs=1e-3)


class Kinds(pv.LatentVariableModel):
    """A category and a number of each of two kinds of things."""

    def __init__(self):
        super().__init__()
        self.mix, self.a, self.h = families.Categorical(2), families.Categorical(3, batch=2), families.Normal(1, 2)

    @pv.latent
    def z(self):
        return self.mix()

    @pv.observed
    def answer(self, z):
        return self.a(z)

    @pv.observed
    def height(self, z):
        return self.h(z)


def test_columns_of_several_kinds_are_each_in_their_nodes_shape():
    answer, height = torch.randint(0, 3, (80,), generator=draws()), torch.randn(80, generator=draws())
    table = {"answer": answer.numpy(), "height": height.numpy()}
    sources = [{"answer": answer, "height": height[:, None]}, {"answer": answer, "height": height}]
    sources += [pd.DataFrame(table), pl.DataFrame(table)]
    bounds = [pv.EM(max_iter=5, progress=False).fit(Kinds(), source).trace["bound"] for source in sources]
    for bound in bounds[1:]:
        torch.testing.assert_close(bound, bounds[0])
    partly = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 1), {"x": height, "z": (height > 0).long()})
    assert partly.status.ok


class Groups(pv.LatentVariableModel):
    """Means of groups, which are numbered."""

    g = pv.given()

    @pv.latent(shared=True)
    def a(self):
        return dist.Normal(torch.zeros(4), 1.0).to_event(1)

    @pv.observed
    def x(self, a, g):
        return dist.Normal(a[g], 1.0)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_whole_numbers_of_a_data_frame_index(frame):
    g, x = torch.arange(200) % 4, torch.randn(200, generator=draws())
    fits = [pv.EM(progress=False).fit(Groups(), {"g": g, "x": x})]
    fits += [pv.EM(progress=False).fit(Groups(), frame({"g": g.numpy(), "x": x.numpy()}))]
    torch.testing.assert_close(fits[1].parameters["a"], fits[0].parameters["a"], atol=1e-5, rtol=0)


class Mean(pv.LatentVariableModel):
    @pv.latent(shared=True)
    def m(self):
        return dist.Normal(0.0, 5.0)

    @pv.observed
    def x(self, m):
        return dist.Normal(m, 1.0)


def test_a_table_of_one_column_is_data_of_a_node_of_numbers():
    x = torch.randn(50, generator=draws())
    fits = [pv.EM(progress=False).fit(Mean(), data) for data in (x, pd.DataFrame({"x": x.numpy()}))]
    torch.testing.assert_close(fits[1].parameters["m"], fits[0].parameters["m"])
    assert fits[1].log_prob(pd.DataFrame({"x": x.numpy()})).shape == (50,)


# Gradients where EM's answer is on the edge, and graphs.


class Answers(pv.LatentVariableModel):
    def __init__(self):
        super().__init__()
        self.mixing = families.Categorical(2, prior="weak")
        self.answers = families.CategoricalVector(4, 3, batch=2, prior="weak")

    @pv.latent
    def z(self):
        return self.mixing()

    @pv.observed
    def x(self, z):
        return self.answers(z)


def test_gradients_do_not_start_where_a_probability_is_zero():
    """Answers 0 and 1 of one kind, 2 and 3 of the other: the mode has zeros, the posterior mean 1 / (100 + 4)."""
    x = torch.randint(0, 2, (200, 3), generator=draws()) + 2 * (torch.arange(200) % 2)[:, None]
    mode = pv.EM(n_init=3, progress=False).fit(Answers(), x).parameters["answers.probs"]
    assert mode.min() < 1e-9
    engine = pv.SVI(1000, optimizer=pv.adam(2e-2), progress=False)
    for fit in (engine.fit(Answers(), x), pv.SVI(1000, optimizer=pv.adam(2e-2), start={"answers.probs": mode},
                                                 progress=False).fit(Answers(), x)):  # fmt: skip
        unseen = fit.parameters["answers.probs"].sort(-1).values[..., :2]
        torch.testing.assert_close(unseen, torch.full_like(unseen, 1 / 104), atol=3e-3, rtol=0)


class Line(pv.LatentVariableModel):
    t = pv.given()

    @pv.latent(shared=True)
    def b(self):
        return dist.Normal(0.0, 2.0)

    @pv.observed
    def y(self, b, t):
        return dist.Normal(b * t.log(), 0.5)


def test_whole_inputs_and_gaps_of_numbers_are_traced():
    t = torch.randint(1, 90, (100,), generator=draws())
    y = 0.7 * t.double().log() + 0.5 * torch.randn(100, generator=draws(1)).double()
    y[:5] = torch.nan
    seen, u = t[5:].double().log(), y[5:]
    precision = 0.25 + (seen @ seen) / 0.25
    engine = pv.NUTS(300, warmup=300, num_chains=2, compile="trace", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a model that runs eagerly warns
        fits = [engine.fit(Line(), {"t": given, "y": y}) for given in (t, t.double())]
    for fit in fits:
        assert fit.settings["compile"] == "trace"
        assert fit.parameters["b"].item() == pytest.approx((seen @ u / 0.25 / precision).item(), abs=0.01)
    svi = pv.SVI(5, progress=False, compile="trace").fit(Line(), {"t": t.double(), "y": y})
    assert svi.settings["compile"] == "trace"


# What is told.


@pytest.fixture(scope="module")
def lines():
    t = 1 + torch.rand(60, generator=draws())
    data = {"t": t, "y": t.log() + torch.randn(60, generator=draws(1))}
    return t, [pv.EM(progress=False).fit(Line(), data), pv.SVI(20, num_draws=50, progress=False).fit(Line(), data)]


def test_inputs_of_new_data_are_checked(lines):
    t, fits = lines
    cases = [
        (10, {"t": t}, "n=10 and inputs of 60 rows"),
        (100, {"t": t}, "n=100 and inputs of 60 rows"),
        (60, {"t": t, "foo": t}, "got 'foo'; the inputs of this model: t"),
        (60, {}, "needs the input 't'"),
        (60, {"t": torch.where(t > 1.5, torch.nan, t)}, "NaN"),
        (60, {"t": torch.where(t > 1.5, torch.inf, t)}, "infinite"),
    ]
    for fit in fits:
        same = [fit.sample(60, t=kind) for kind in (t, t.numpy(), pd.Series(t.numpy()), t.tolist())]
        assert all(torch.equal(one, same[0]) for one in same)
        for n, given, said in cases:
            with pytest.raises(pv.DataError, match=said):
                fit.sample(n, **given)


class Events(pv.LatentVariableModel):
    @pv.latent
    def k(self):
        return dist.Poisson(3.0)

    @pv.observed
    def x(self, k):
        return dist.Normal(k, 1.0)


class Switches(pv.LatentVariableModel):
    @pv.latent
    def k(self):
        return dist.Bernoulli(torch.full((4,), 0.5)).to_event(1)

    @pv.observed
    def x(self, k):
        return dist.Normal(k.sum(-1), 1.0)


@pytest.mark.parametrize(("model", "advice"), [(Events(), "take a Categorical over"), (Switches(), "of their own")])
def test_a_latent_that_cannot_be_summed_out_is_told_with_a_way_out(model, advice):
    with pytest.raises(pv.EngineError, match=advice):
        pv.SVI(3, progress=False).fit(model, torch.randn(20))
    with pytest.raises(pv.EngineError, match="take a Categorical over"):
        pv.NUTS(3, warmup=3, progress=False).fit(model, torch.randn(20))


def test_a_loaded_fit_knows_its_columns(tmp_path):
    table = pv.data.faithful()
    frame = pd.DataFrame(table.values.numpy(), columns=list(table.columns))
    fit = pv.EM(max_iter=3, progress=False).fit(pv.models.GaussianMixture(2, 2), frame)
    again = pv.Fit.load(fit.save(tmp_path / "fit"), pv.models.GaussianMixture(2, 2))
    torch.testing.assert_close(again.log_prob(frame), fit.log_prob(frame))
    with pytest.raises(pv.DataError, match="fitted to eruptions, waiting in this order"):
        again.log_prob(frame[["waiting", "eruptions"]])


def test_fits_of_other_data_and_exchanged_models_are_told():
    x = pv.data.faithful().values
    one, two = (pv.models.GaussianMixture(K, 2, covariance="tied") for K in (1, 2))
    table = pv.compare({"all": pv.EM(progress=False).fit(two, x), "few": pv.EM(progress=False).fit(two, x[:100])})
    assert any("few was fitted to other data (100 rows, 272) than all" in said for said in table.warnings)
    with pytest.raises(pv.EngineError, match="are they exchanged"):
        pv.likelihood_ratio_test(two, one, x, num_samples=3, progress=False)


class OfAnyWidth(pv.LatentVariableModel):
    """A decoder that learns from its first call how wide its input is."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.LazyLinear(3)

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @pv.observed
    def x(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(1)


def test_a_lazy_network_finds_its_width_in_the_first_data_and_is_trained():
    x = torch.randn(40, 3, generator=draws()) + 5
    fits = []
    for _ in range(2):
        torch.manual_seed(0)
        fits.append(pv.SVI(30, optimizer=pv.adam(0.1), progress=False).fit(OfAnyWidth(), x))
    first, second = (fit.model.decoder for fit in fits)
    assert first.weight.shape == (3, 2)
    assert torch.equal(first.weight, second.weight)
    assert fits[0].trace["bound"][-1] > fits[0].trace["bound"][0] + 1


class LazyEncoder(nn.Module):
    """Mean and scale from layers that learn from their first call how wide their input is."""

    def __init__(self, *more, hidden=8, bias=True):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(hidden, bias), *more, nn.Tanh(), nn.LazyLinear(4))

    def forward(self, x):
        loc, scale = self.net(x).chunk(2, -1)
        return loc, nn.functional.softplus(scale)


def test_a_lazy_encoder_is_trained_and_one_that_cannot_be_copied_says_what_to_do():
    x = torch.randn(40, 3, generator=draws())
    decoder = pv.nets.mlp_decoder(2, 8, 3)
    fit = pv.SVI(2, progress=False).fit(pv.models.VAE(LazyEncoder(), decoder, "gaussian", latent_dim=2), x)
    assert fit.model.encoder.net[0].weight.shape == (8, 3)
    assert fit.status.ok
    vae = pv.models.VAE(LazyEncoder(nn.LazyBatchNorm1d()), decoder, "gaussian", latent_dim=2)
    with pytest.raises(
        pv.EngineError, match=r"encoder.net.1.running_mean .* lazy .* model.eval\(\).elbo\(data\[:4\]\)"
    ):
        pv.SVI(1, progress=False).fit(vae, x)
    vae.eval().elbo(x[:4])
    fit = pv.SVI(1, batch_size=20, progress=False).fit(vae.train(), x)
    assert fit.model.encoder.net[1].num_batches_tracked == 2


def test_a_fit_of_lazy_networks_is_read_into_networks_that_have_seen_no_data(tmp_path):
    def model(*more, **settings):
        encoder = LazyEncoder(*more, **settings)
        return pv.models.VAE(encoder, pv.nets.mlp_decoder(2, 8, 3), "gaussian", latent_dim=2)

    x = torch.randn(40, 3, generator=draws())
    fit = pv.SVI(2, progress=False).fit(model(), x)
    path = fit.save(tmp_path / "fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pv.Fit.load(path, model())
        twice = pv.Fit.load(again.save(tmp_path / "again"), model())
    assert torch.equal(fit.elbo(x), again.elbo(x))
    assert torch.equal(fit.elbo(x), twice.elbo(x))
    with pytest.warns(UserWarning, match=r"encoder.net.0.out_features was 8 and is 16 here"):
        pv.Fit.load(path, model(hidden=16))
    bare = pv.SVI(2, progress=False).fit(model(bias=False), x).save(tmp_path / "bare")
    with pytest.raises(pv.DataError, match=r"encoder.net.0.bias is absent in the file and of any shape in the model"):
        pv.Fit.load(bare, model())
    with pytest.raises(
        pv.EngineError, match=r"encoder.net.1.running_mean .* lazy .* model.eval\(\).elbo\(data\[:4\]\)"
    ):
        pv.Fit.load(path, model(nn.LazyBatchNorm1d()))
