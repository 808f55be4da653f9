"""What somebody meets who tries the library for the first time: messages for slips, and data as they come."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae as pv
from ppl_vae import given, latent, observed
from ppl_vae.declare.observations import observe
from ppl_vae.records import writable

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) + 6 * (torch.arange(40) > 19)[:, None]
FAR_OFF = torch.cat([X.double(), torch.full((1, 2), 1e200, dtype=torch.float64)])
FRAME = pd.DataFrame(X.numpy(), columns=["a", "b"])
GMM = pv.models.GaussianMixture
EM = pv.EM(progress=False)


def bits_vae():
    return pv.models.VAE(pv.nets.mlp_encoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4))


class ZeroInflated(pv.LatentVariableModel):
    """Poisson(rate * on): at on = 0 the density has a value and no gradient."""

    @latent(shared=True)
    def rate(self):
        return dist.Gamma(2.0, 1.0)

    @latent
    def on(self):
        return dist.Bernoulli(0.5)

    @observed
    def x(self, on, rate):
        return dist.Poisson(rate * on)


class SharedCategory(pv.LatentVariableModel):
    """One category for the whole data set."""

    @latent(shared=True)
    def k(self):
        return dist.Categorical(torch.ones(3))

    @observed
    def x(self, k):
        return dist.Normal(k.to(torch.get_default_dtype()), 1.0)


class Line(pv.LatentVariableModel):
    """y = slope t + noise."""

    t = given()

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(()))

    @observed
    def y(self, t):
        return dist.Normal(self.slope * t, 1.0)


class SharedScale(pv.LatentVariableModel):
    """A scalar node with one scale for all."""

    @latent(shared=True)
    def scale(self):
        return dist.LogNormal(0.0, 0.5)

    @observed
    def x(self, scale):
        return dist.Normal(2.0, scale)


def within():
    class Within(pv.LatentVariableModel):
        @observed
        def x(self):
            return dist.Normal(pyro.sample("mu", dist.Normal(0.0, 5.0)), 1.0)


class Both(SharedScale):
    """A latent of each datum beside the shared one."""

    @latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @observed
    def x(self, z, scale):
        return dist.Normal(z, scale)


class Backwards(Line):
    """A scale that is not one."""

    @observed
    def y(self, t):
        return dist.Normal(self.slope * t, self.slope - 1.0)


class Detached(Line):
    """A value that leaves torch: a graph has the one of its first step for ever."""

    @observed
    def y(self, t):
        return dist.Normal(self.slope * t + torch.tensor(self.slope.detach().numpy()), 1.0)


class Fixed(pv.LatentVariableModel):
    """A node that has the number of data written into it."""

    @latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @observed
    def x(self, z):
        return dist.Normal(z + torch.zeros(40), 1.0)


def program(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def no_self():
    class Bare(pv.LatentVariableModel):
        @latent
        def z():
            return dist.Normal(0.0, 1.0)

        @observed
        def x(self, z):
            return dist.Normal(z, 1.0)


def nuts(model, data):
    return pv.NUTS(10, warmup=10, num_chains=1, progress=False).fit(model, data)


def a_name_for_a_method():
    class Named(pv.LatentVariableModel):
        @latent("z")
        def z(self):
            return dist.Normal(0.0, 1.0)


class Early(pv.LatentVariableModel):
    """It has a family before it is a module."""

    def __init__(self):
        self.heights = pv.families.Normal(1)

    @observed
    def x(self):
        return self.heights()


SLIPS = {
    "no gradient at the start": (
        lambda: nuts(ZeroInflated(), torch.tensor([0.0, 3.0])), pv.EngineError, "log density by rate is not finite",
    ),
    "a shared category": (lambda: EM.fit(SharedCategory(), X[:, 0]), pv.DeclarationError, "'k' ~ Categorical is disc"),
    "a shared category, by NUTS": (lambda: nuts(SharedCategory(), X[:, 0]), pv.DeclarationError, "or fit a model for"),
    "data first": (lambda: EM.fit(X, GMM(2, 2)), pv.EngineError, "got Tensor; the order is engine.fit"),
    "an array first": (lambda: EM.fit(X.numpy(), GMM(2, 2)), pv.EngineError, "got ndarray; the order is engine.fit"),
    "data first, by NUTS": (lambda: nuts(X.numpy(), GMM(2, 2)), pv.EngineError, "got ndarray; the order is"),
    "the class": (lambda: EM.fit(GMM, X), pv.EngineError, r"pass GaussianMixture\(...\) instead of the class"),
    "a list of fits": (lambda: pv.compare([EM.fit(GMM(1, 2), X)]), pv.DataError, "fits by name, .* got a list"),
    "models for fits": (lambda: pv.compare({"a": GMM(1, 2)}, X), pv.DataError, "got a GaussianMixture"),
    "one output of an encoder": (
        lambda: pv.models.VAE(torch.nn.Linear(4, 4), pv.nets.mlp_decoder(2, 4, 4), latent_dim=2).elbo(torch.ones(3, 4)),
        pv.DeclarationError, r"its encoder, a Linear, returned one tensor \[7, 4\]",
    ),
    "a decorator with a name": (a_name_for_a_method, pv.DeclarationError, "a node is a method, got 'z': write @latent"),
    "no super().__init__()": (Early, pv.DeclarationError, r"sets 'heights' too early: make super\(\).__init__\(\) its"),
    "rows that are all missing": (
        lambda: pv.SVI(1, progress=False).fit(bits_vae(), torch.full((5, 4), torch.nan)), pv.DataError,
        "all 5 rows are missing altogether: there is nothing to fit",
    ),
    "a loader without a batch": (
        lambda: pv.SVI(1).fit(bits_vae(), DataLoader(TensorDataset(X), 99, drop_last=True)), pv.DataError,
        r"there is no batch \(drop_last leaves out what does not fill a batch\)",
    ),
    "numbers whose squares are too large": (
        lambda: EM.fit(GMM(2, 2), 1e160 * X.double()), pv.DataError, "feature 0 has .* float64 cannot hold: divide",
    ),
    "a row of no weight beyond all squares": (
        lambda: EM.fit(GMM(2, 2), FAR_OFF, torch.cat([torch.ones(len(X)), torch.zeros(1)])), pv.DataError,
        "float64 cannot hold: .*, and leave out rows of weight zero",
    ),
    "numbers whose squares are too small": (
        lambda: EM.fit(GMM(2, 2), 1e-200 * X.double()), pv.DataError, "float64 cannot hold: divide the feature by its",
    ),
    "a report in a folder": (lambda: writable("."), pv.DataError, "is a folder; the name of a file is needed"),
    "no data to draw": (lambda: GMM(2, 2).sample(0), pv.DataError, "whole number and at least 1; got 0"),
    "a part of a datum": (lambda: EM.fit(GMM(2, 2), X).sample(2.5), pv.DataError, "at least 1; got 2.5"),
    "no self": (no_self, pv.DeclarationError, "'z' takes no argument; it is a method"),
    "labels for responsibilities": (
        lambda: pv.EM(start=np.zeros(40), progress=False).fit(GMM(2, 2), X), pv.DataError, r"\(40,\), \(40, 2\) is exp",
    ),
    "one datum without its row": (
        lambda: EM.fit(GMM(2, 2), X).log_prob(X[0]), pv.DataError, r"this is a single datum: pass x\[None\], one row",
    ),
    "columns in another order": (
        lambda: EM.fit(GMM(2, 2), FRAME).log_prob(FRAME[["b", "a"]]), pv.DataError,
        r"columns b, a, and the model was fitted to a, b in this order: pass x\[\['a', 'b'\]\]",
    ),
    "columns of which one is in another place": (
        lambda: EM.fit(GMM(2, 2), FRAME).log_prob(FRAME[["b", "a"]].rename(columns={"a": "c"})), pv.DataError,
        "columns b, c, .* fitted to a, b in this order: 'a' is missing",
    ),
    "a fit of a Pyro program in a table": (
        lambda: pv.compare({"own": pv.NUTS(5, 5, 1, progress=False).fit(program, X[:, 0])}), pv.DataError,
        "own are of ordinary Pyro programs",
    ),
    "columns of other names": (
        lambda: EM.fit(GMM(2, 2), FRAME).log_prob(FRAME.set_axis(["u", "v"], axis=1)), pv.DataError,
        r"columns u, v, .* fitted to a, b in this order: 'a' is missing; rename the columns, or pass x.to_numpy\(\)",
    ),
    "a latent within a node": (
        within, pv.DeclarationError,
        r"Within.x calls pyro.sample, .* declare it with @latent\(shared=True\), or @latent for a value per datum",
    ),
    "a fixed value of no parameter": (
        lambda: GMM(2, 2).fix({"muu": torch.zeros(2)}), pv.DataError, "fix got 'muu'; the model has mixing.probs, comp",
    ),
    "SVI without gradients": (
        lambda: torch.inference_mode()(pv.SVI(1, progress=False).fit)(GMM(2, 2), X), pv.EngineError,
        r"torch.inference_mode\(\) is on, and this needs gradients",
    ),
    "NUTS without gradients": (
        lambda: torch.inference_mode()(pv.NUTS(1, progress=False).fit)(GMM(2, 2, prior="weak"), X), pv.EngineError,
        r"torch.inference_mode\(\) is on, and this needs gradients",
    ),
    "pixels from 0 to 255": (
        lambda: pv.models.VAE(pv.nets.mlp_encoder(4, 4, 2), pv.nets.mlp_decoder(2, 4, 4)).elbo(255 * torch.ones(3, 4)),
        pv.DataError, "divide them by 255, and binarise them",
    ),
    "a path for data": (
        lambda: EM.fit(GMM(2, 2), "data.csv"), pv.DataError, "is the path 'data.csv': read it by pv.data.read_table",
    ),
    "objects": (
        lambda: EM.fit(GMM(2, 2), X.numpy().astype(object)), pv.DataError, r"array of object; .* with .astype\(float\)",
    ),
    "the class of a file": (lambda: pv.Fit.load("fit.safetensors", GMM), pv.DataError, "got the class itself"),
    "a model for a number": (lambda: pv.EM(GMM(2, 2)), pv.EngineError, r"EM\(\).fit\(model, data\) fits one"),
    "half an epoch": (lambda: pv.SVI(2.5), pv.EngineError, "epochs must be a whole number, at least 1, got 2.5"),
    "SVI of no model": (lambda: pv.SVI(1, progress=False).fit(X, GMM(2, 2)), pv.EngineError, "the order is engine.fit"),
    "a program without a guide": (lambda: pv.SVI(1, progress=False).fit(program, X), pv.EngineError, "needs its guide"),
    "a frame without the column": (
        lambda: Line().log_prob(pd.DataFrame({"time": [1.0], "y": [2.0]})), pv.DataError,
        "mapping with y, t; got DataFrame with columns time, y",
    ),
}  # fmt: skip


def test_a_decorator_may_have_brackets():
    class Bracketed(pv.LatentVariableModel):
        @latent()
        def z(self):
            return dist.Categorical(torch.ones(2))

        @observed()
        def x(self, z):
            return dist.Normal(z.to(torch.get_default_dtype()), 1.0)

        @pv.penalty()
        def none(self, x):
            return 0 * x

    assert Bracketed().penalties == ("none",)
    assert [node.kind for node in Bracketed().graph().values()] == ["latent", "observed"]


@pytest.mark.parametrize("slip", SLIPS)
def test_it_says_what_was_given_and_what_to_do(slip):
    call, error, said = SLIPS[slip]
    with pytest.raises(error, match=said):
        call()


def test_an_error_within_a_node_says_in_which_and_what_it_was_given():
    with pytest.raises(RuntimeError) as caught:
        Fixed().elbo(X[:, 0])
    assert caught.value.__notes__ == [
        "in Fixed.x, called with z [7]; a few rows are tried first, so sizes of data do not count"
    ]


def test_responsibilities_to_start_from_may_be_an_array():
    r = np.eye(2)[(X[:, 0] > 3).long().numpy()]
    fits = [pv.EM(start=start, progress=False).fit(GMM(2, 2), X) for start in (r, torch.from_numpy(r))]
    assert torch.equal(*(fit.trace["bound"] for fit in fits))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_a_frame_are_nodes_and_inputs(library):
    frame = pytest.importorskip(library).DataFrame({"t": [1.0, 2.0, 3.0], "y": [2.0, 4.5, 6.0]})
    by_name = {"t": torch.tensor([1.0, 2.0, 3.0]), "y": torch.tensor([2.0, 4.5, 6.0])}
    engine = pv.SVI(5, progress=False)
    fits = [engine.fit(Line(), data) for data in (frame, by_name)]
    assert fits[0].model.slope.dtype == torch.float64
    torch.testing.assert_close(fits[0].model.slope.float(), fits[1].model.slope)


def test_a_gap_of_a_frame_is_missing_in_its_node_only():
    frame = pd.DataFrame({"t": [1.0, 2.0], "y": [2.0, None]})
    seen = observe(frame, ["y"], ("t",), [])
    assert {name: gap.tolist() for name, gap in seen.missing.items()} == {"y": [False, True]}


def test_one_row_of_a_frame_and_a_column_of_gaps_can_be_asked_about():
    fit = EM.fit(GMM(2, 2), FRAME)
    torch.testing.assert_close(fit.log_prob(FRAME.iloc[:1]), fit.log_prob(X[:1]))
    gaps = FRAME.iloc[:2].assign(b=np.nan)
    torch.testing.assert_close(fit.log_prob(gaps), fit.log_prob(gaps.to_numpy()))


def test_a_series_is_one_value_for_each_datum():
    model = SharedScale()
    fit = pv.SVI(2, guide="delta", progress=False).fit(model, FRAME["a"])
    torch.testing.assert_close(fit.log_prob(FRAME["a"]).float(), fit.log_prob(X[:, 0]).float())


def test_entries_under_a_mask_are_missing():
    masked = np.ma.masked_greater(X.double().numpy(), 6.0)
    gaps = np.where(masked.mask, np.nan, X.double().numpy())
    fits = [EM.fit(GMM(1, 2), data) for data in (masked, gaps)]
    assert masked.mask.any()
    assert torch.equal(fits[0].parameters["components.loc"], fits[1].parameters["components.loc"])


def test_read_only_arrays_are_taken_without_a_warning():
    array = X.double().numpy().copy()
    array.flags.writeable = False
    assert EM.fit(GMM(1, 2), array).status.ok


def test_a_failed_step_says_which_number_cannot_be():
    fit = pv.SVI(2, progress=False).fit(Backwards(), {"t": X[:, 0], "y": X[:, 1]})
    assert "at node y, Normal whose scale is -1, not of GreaterThan(lower_bound=0.0)" in fit.status.message


def test_a_fit_names_the_parameters_that_no_family_owns():
    fit = pv.SVI(1, progress=False).fit(Line(), {"t": X[:, 0], "y": X[:, 1]})
    assert "parameters: in fit.model slope" in repr(fit)
    assert "parameters: mixing.probs, components.covariance, components.loc\n" in repr(EM.fit(GMM(2, 2), X))
    assert "scale\n" in repr(pv.SVI(1, progress=False).fit(Both(), X[:, 0]))


def test_a_short_fit_is_held_against_its_program_too():
    """Below a hundred steps, where compile="trace" was asked for: one step of all is compared, never the first."""
    for seed in range(2):
        engine = pv.SVI(3, compile="trace", optimizer=pv.adam(0.5), seed=seed, progress=False)
        fit = engine.fit(Detached(), {"t": X[:, 0], "y": X[:, 1]})
        assert "the traced graph differed from the model" in str(fit.status), seed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_keeping_data_not_for_computing(dtype):
    x = (torch.rand(600, 4, generator=torch.Generator().manual_seed(0)) < 0.5).to(dtype)
    fits = [pv.SVI(3, batch_size=64, progress=False).fit(seeded(), one) for one in (x, x.float())]
    assert fits[0].model.like.dtype == torch.float32
    assert torch.equal(fits[0].trace["bound"], fits[1].trace["bound"])


def seeded():
    torch.manual_seed(0)
    return bits_vae()


BACKWARDS = {
    "rows": lambda x: x[::-1],
    "columns": lambda x: x[:, ::-1],
    "byte order": lambda x: x.astype(">f8"),
    "long double": lambda x: x.astype(np.longdouble),
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_arrays_are_taken_however_they_lie_in_memory(name):
    x = np.ascontiguousarray(X.double().numpy())
    found, plain = BACKWARDS[name](x), np.ascontiguousarray(BACKWARDS[name](x)).astype(float)
    assert EM.fit(GMM(2, 2), found).trace["bound"][-1] == EM.fit(GMM(2, 2), plain).trace["bound"][-1]
    if name != "long double":  # which scikit-learn refuses
        own = [pv.sklearn.GaussianMixture(2, random_state=0).fit(one) for one in (found, plain)]
        np.testing.assert_array_equal(own[0].predict(found), own[1].predict(plain))


def test_free_parameters_are_counted_as_they_vary():
    """K - 1 weights, K d means, and of each covariance d (d + 1) / 2, 1 for all, d, or 1."""
    for form, each in {"full": 3 * 3, "tied": 3, "diagonal": 3 * 2, "spherical": 3}.items():
        assert f"{2 + 3 * 2 + each} free parameters" in repr(GMM(3, 2, form))
    assert "  0 free parameters" in repr(GMM(3, 2, prior="weak"))
    own = bits_vae()
    assert f"{sum(p.numel() for p in own.parameters())} free parameters" in repr(own)


class Shifted(pv.LatentVariableModel):
    """z ~ N(0, 1), x ~ N(loc + z, 1)."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))

    @latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @z.posterior
    def q_z(self, x):
        return dist.Normal((x - self.loc) / 2, 0.5**0.5)

    @observed
    def x(self, z):
        return dist.Normal(self.loc + z, 1.0)


def test_a_bound_that_still_rises_or_that_fell_is_told_of_without_shared_latents_too():
    x = 5 + torch.randn(200, generator=torch.Generator().manual_seed(0))
    rises = pv.SVI(30, optimizer=pv.adam(1e-2), progress=False).fit(Shifted(), x)
    assert any("the bound was still rising at the end, by" in note for note in rises.status.notes)
    done = pv.SVI(200, optimizer=pv.adam(0.3), progress=False).fit(Shifted(), x)
    assert not done.status.notes
    fell = pv.SVI(12, optimizer=pv.sgd(10.0), progress=False).fit(Shifted(), x)
    assert any("the bound ended at" in note and "smaller learning rate" in note for note in fell.status.notes)
