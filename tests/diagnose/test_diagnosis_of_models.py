"""What holds for every diagnosis of every model."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from example_models import MODELS, make

sys.path.insert(0, str(Path(__file__).parent))
from linear import Diagonal, data_of, fitted, weighted

import ppl_vae as pv
from ppl_vae.diagnose.advice import RULES
from ppl_vae.diagnose.collapse import _kl_per_unit
from ppl_vae.diagnose.hole import _divergence
from ppl_vae.diagnose.quantity import Quantity, measured

DRAWN = ("vae", "gaussian vae", "vae with NaN", "conditional vae", "hierarchy", "poisson latent", "mixture vae")
NAMES = (
    "active units",
    "KL",
    "KL per unit",
    "mutual information",
    "mutual information, at most",
    "encoder sensitivity",
    "KL(q(z) || p)",
    "KL(q(z) || p), at least",
    "MMD",
    "prior in holes",
    "variance over the prior's",
    "decoder scales at their floor",
    "smallest decoder scale",
    "ELBO",
    "log p(x)",
    "gap",
    "approximation gap",
    "amortisation gap",
    "bad Pareto k",
    "effective sample size",
)
FINITE = ("finite posterior", "finite posterior, partly observed")
DOCS = Path(__file__).parents[2] / "docs"


def holds(found, n):
    """The laws of a diagnosis."""
    assert tuple(found.quantities) == NAMES
    for quantity in found:
        assert quantity.meaning
        if quantity.value is None:
            assert quantity.why
        else:
            assert math.isfinite(quantity.value), quantity
            assert quantity.standard_error is None or quantity.standard_error >= 0
    value = {name: quantity.value for name, quantity in found.quantities.items()}
    assert value["mutual information"] <= math.log(n) + 1e-9
    slack = 4 * (found["KL"].standard_error + found["mutual information"].standard_error)
    assert value["mutual information"] <= value["KL"] + slack
    if value["active units"] is not None:
        assert found.collapse.variance.shape == found.collapse.active.shape == (len(found.collapse.units),)
    assert value["gap"] >= -4 * found["gap"].standard_error
    if value["amortisation gap"] is not None:
        assert value["amortisation gap"] >= -0.05
        assert value["approximation gap"] >= 0
    if value["KL(q(z) || p)"] is not None:
        assert value["KL(q(z) || p), at least"] <= value["KL(q(z) || p)"] + 1e-9
        assert 0 <= value["prior in holes"] <= 1
    assert len(found.advice) == sum(quantity.ok is False for quantity in found)


@pytest.mark.parametrize("name", DRAWN)
def test_laws(name):
    model, data = make(name)
    holds(fitted(model).diagnose(data, num_particles=25, gap_data=2), 6)


def test_laws_with_a_q_for_every_datum():
    model, data = make("local q")
    found = fitted(model).diagnose(data, num_particles=25)
    holds(found, 6)
    assert found["amortisation gap"].why == "q has parameters of its own for each datum, there is no encoder"
    assert found["encoder sensitivity"].value is None


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        ("vamp", "flow"),
        pytest.param("mixture", "full", marks=pytest.mark.slow),
        pytest.param("flow", "full", marks=pytest.mark.slow),
    ],
)
def test_laws_with_other_priors_and_posteriors(prior, posterior):
    torch.manual_seed(0)
    priors = {"vamp": pv.priors.Vamp(5, 6), "mixture": pv.priors.Mixture(3, 2), "flow": pv.priors.real_nvp(2, 2)}
    posteriors = {"full": pv.posteriors.Full(), "flow": pv.posteriors.inverse_autoregressive(2, 1)}
    encoder = pv.nets.mlp_encoder(6, 5, 2, covariance="full" if posterior == "full" else "diagonal")
    model = pv.models.VAE(encoder, pv.nets.mlp_decoder(2, 5, 6), prior=priors[prior], posterior=posteriors[posterior])
    x = (torch.randn(12, 6) > 0).float()
    found = fitted(model).diagnose(x, num_particles=25, gap_data=2)
    holds(found, 12)
    assert found.collapse.kl_per_unit is None
    assert found["KL per unit"].text == "not defined: prior or q is no product over units"


@pytest.mark.parametrize("name", [name for name in MODELS if name not in (*DRAWN, *FINITE, "linear vae", "local q")])
def test_a_model_whose_latents_have_no_q_is_refused(name):
    model, data = make(name)
    with pytest.raises(pv.EngineError, match="has no latent that is drawn or has a q of its own"):
        fitted(model).diagnose(data)


@pytest.mark.parametrize("name", FINITE)
def test_laws_with_a_finite_latent(name):
    model, data = make(name)
    found = fitted(model).diagnose(data, num_particles=25, gap_data=2)
    holds(found, 6)
    torch.testing.assert_close(found.inference.evidence.value, model.evidence(data).value)
    assert found["approximation gap"].value == 0
    assert found["bad Pareto k"].value is None


def test_a_categorical_latent_against_sums_over_its_values():
    torch.manual_seed(0)
    model = pv.models.CategoricalVAE(pv.nets.linear_decoder(3, 4), pv.nets.linear_decoder(4, 3), 4, "gaussian").double()
    with torch.no_grad():
        model.encoder.bias[3] = -20.0  # a value that is never used
    x = torch.randn(50, 3).double()
    fit = fitted(model)
    found = fit.diagnose(x, gap_data=10, ais_data=2)
    with torch.no_grad():
        log_q = model.encoder(x).log_softmax(1)
        log_joint = model.likelihood(model.decoder(torch.eye(4).double())[:, None]).log_prob(x).T - math.log(4)
    q, log_p = log_q.exp(), torch.logsumexp(log_joint, 1)
    bound, kl = (q * (log_joint - log_q)).sum(1), (q * (log_q + math.log(4))).sum(1)
    share = q.mean(0)
    apart = (share * (share.log() + math.log(4))).sum()
    torch.testing.assert_close(found.inference.bound, bound)
    torch.testing.assert_close(found.inference.evidence.value, log_p)
    torch.testing.assert_close(found.inference.local.local, log_p[:10])
    assert found.inference.evidence.method == "exact"
    assert found["KL"].value == pytest.approx(kl.mean().item())
    assert found["gap"].value == pytest.approx((log_p - bound).mean().item())
    assert found["amortisation gap"].value == pytest.approx((log_p - bound)[:10].mean().item())
    assert found["approximation gap"].value == 0
    for name, truth in (("mutual information", kl.mean() - apart), ("KL(q(z) || p)", apart)):
        assert abs(found[name].value - truth.item()) < 4 * found[name].standard_error + 0.01, name
    assert abs(found["prior in holes"].value - 0.25) < 4 * found["prior in holes"].standard_error
    for name in ("active units", "encoder sensitivity", "MMD", "variance over the prior's"):
        assert found[name].why == "z is the number of a category, of which there is no mean and no distance"
    assert found["effective sample size"].why.startswith("log p(x) is the sum over all values")
    assert found["annealed log p(x)"].why.startswith("z is discrete")
    assert set(found.figures(fit, (1, 3))) >= {"usage of z", "reconstructions", "samples from holes"}
    assert any("pv.families.Categorical" in said for said in found.advice)
    with pytest.raises(pv.EngineError, match="there are no walks: z is the number of a category"):
        pv.plots.feature_walks(fit, x)
    with pytest.raises(pv.EngineError, match="side by side: z is the number of a category"):
        pv.plots.aggregate_plane(found)


def test_learned_scales_below_a_finite_latent():
    torch.manual_seed(0)
    networks = pv.nets.linear_decoder(3, 4), pv.nets.linear_decoder(4, 3)
    x = torch.randn(50, 3)
    fit = pv.SVI(1, compile="off", progress=False).fit(pv.models.CategoricalVAE(*networks, 4, "gaussian-learned"), x)
    found = fit.diagnose(x)
    assert found["decoder scales at their floor"].value == 0
    scale = fit.model.likelihood(torch.zeros(3)).stddev.min().item()
    assert found["smallest decoder scale"].value == pytest.approx(scale / x.var(0, correction=0).mean().sqrt().item())


def test_the_same_seed_gives_the_same_numbers_and_the_generator_is_put_back():
    model = weighted(Diagonal())
    x = data_of(model, 30)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fitted(model).diagnose(x, num_particles=25, gap_data=3)
    assert torch.equal(before, torch.get_rng_state())
    second = fitted(model).diagnose(x, num_particles=25, gap_data=3)
    pd.testing.assert_frame_equal(first.to_frame(), second.to_frame())
    other = fitted(model).diagnose(x, num_particles=25, gap_data=0, seed=1)
    assert other["ELBO"].value != first["ELBO"].value


class StopError(Exception):
    pass


def test_an_interrupted_diagnosis_goes_on_to_the_same_numbers(tmp_path):
    model = weighted(Diagonal())
    fit, x = fitted(model), data_of(model, 50)
    file, ask = tmp_path / "log_p.safetensors", {"num_particles": 2000, "gap_data": 0, "progress": False}
    blocks, stop = [], [None]

    def weighs(module, args, out):
        if len(args[0]) > 2000:  # draws of several data
            blocks.append(len(args[0]) // 2000)
            if len(blocks) == stop[0]:
                raise StopError

    model.decoder.register_forward_hook(weighs)
    whole = fit.diagnose(x, **ask)
    assert blocks == [8] * 6 + [2]
    blocks.clear()
    stop[0] = 4
    with pytest.raises(StopError):
        fit.diagnose(x, checkpoint=file, **ask)
    blocks.clear()
    stop[0] = None
    resumed = fit.diagnose(x, checkpoint=file, **ask)
    assert blocks == [8] * 3 + [2]
    pd.testing.assert_frame_equal(whole.to_frame(), resumed.to_frame(), check_exact=True)
    assert torch.equal(whole.inference.evidence.value, resumed.inference.evidence.value)
    with pytest.raises(pv.EngineError, match="of another call: num_particles was 2000 there and is 1000 here"):
        fit.diagnose(x, checkpoint=file, **{**ask, "num_particles": 1000})


def test_a_diagnosis_looks_at_as_many_data_as_it_is_told():
    model = weighted(Diagonal())
    found = fitted(model).diagnose(data_of(model, 50), size=20, num_particles=25, gap_data=0)
    assert found.n == 20
    assert len(set(found.index.tolist())) == 20


def test_the_kl_of_each_unit_is_in_the_table_the_largest_first():
    model = weighted(Diagonal())
    found = fitted(model).diagnose(data_of(model, 50), num_particles=25, gap_data=0)
    row, each = found["KL per unit"], found.collapse.kl_per_unit.sort(descending=True).values.tolist()
    assert row.value == each[0]
    assert row.text == f"{'  '.join(f'{value:.2f}' for value in each)} nats"
    assert row.text in str(found)
    many = _kl_per_unit(torch.arange(25.0))
    assert many.each == tuple(range(24, 4, -1))
    assert "5 more are smaller" in many.meaning


def test_training_data_are_the_default():
    model = weighted(Diagonal())
    fit = fitted(model)
    with pytest.raises(pv.DataError, match="pass the data"):
        fit.diagnose()
    fit.data = model.check(data_of(model, 10))
    assert fit.diagnose(num_particles=25, gap_data=0).n == 10


def test_one_datum_has_no_aggregate():
    model = weighted(Diagonal())
    found = fitted(model).diagnose(data_of(model, 1), num_particles=25, gap_data=0)
    assert found["mutual information"].why == found["MMD"].why == "it takes two data at least"
    assert found["ELBO"].standard_error is None


def test_shown_as_text_html_and_frame():
    model = weighted(Diagonal())
    found = fitted(model).diagnose(data_of(model, 20), num_particles=25, gap_data=0)
    text = str(found)
    assert text.startswith("Diagnosis of 20 data\ncollapse\n")
    assert all(said in text for said in found.advice)
    assert found._repr_html_().count("<tr>") == 1 + len(found.quantities)
    frame = found.to_frame()
    assert list(frame.index) == list(found.quantities)
    assert frame.loc["ELBO", "value"] == found["ELBO"].value
    assert [row[0] for row in found.rows()] == list(frame.index)
    with pytest.raises(pv.DataError, match="has no 'elbo'; it has active units"):
        found["elbo"]


def test_bad_arguments_are_named():
    model = weighted(Diagonal())
    x = data_of(model, 3)
    for option in ("size", "num_particles"):
        with pytest.raises(pv.DataError, match=f"{option} must be a whole number, at least 1, got 0"):
            fitted(model).diagnose(x, **{option: 0})
    for option in ("gap_data", "ais_data"):
        with pytest.raises(pv.DataError, match=f"{option} must be a whole number, at least 0, got -1"):
            fitted(model).diagnose(x, **{option: -1})


def test_every_quantity_that_can_warn_has_a_rule():
    named = {rule.quantity for rule in RULES}
    assert named <= {*NAMES, "annealed log p(x)"}
    model, data = make("gaussian vae")
    found = fitted(model).diagnose(data, num_particles=25, gap_data=1)
    judged = {quantity.name for quantity in found if quantity.ok is not None}
    assert judged == named - {"annealed log p(x)"}


def test_the_pages_that_advice_names_exist():
    pages = {rule.page for rule in RULES}
    assert {page for page in pages if not (DOCS / f"{page}.md").exists()} == set()


def test_a_value_that_is_not_a_number_is_not_shown_as_one():

    assert measured("a", "b", "c", torch.tensor(math.nan)) == Quantity(
        "a", "b", "c", why="the estimate is not a number"
    )


def test_a_divergence_that_is_no_number_is_not_called_zero():
    codes = SimpleNamespace(n=2, log_prior=lambda z: torch.full((2,), math.nan))
    found = SimpleNamespace(codes=codes, draws=[{}], mixed=torch.zeros(1, 2), others=torch.zeros(1, 2))
    assert [row.why for row in _divergence(found)] == ["the estimate is not a number"] * 2


class Seen(torch.nn.Module):
    """The mean of a code is a sum over what is there, each entry from its own center."""

    output_size = 1

    def __init__(self, center):
        super().__init__()
        self.center = torch.nn.Parameter(center)

    def forward(self, x):
        loc = torch.where(x == 0, 0.0, x - self.center).sum(-1, keepdim=True)
        return loc, torch.ones_like(loc)


def test_gaps_are_no_data():
    """Missing entries are zeros to the encoder: they have no part in the spread of the data, and stay."""
    torch.manual_seed(0)
    n, sd = 400, torch.tensor([1.0, 2.0, 0.5]).double()
    x = 100 + sd * torch.randn(n, 3).double()
    gap = torch.rand(n, 3) < 0.3
    x[gap] = torch.nan
    model = pv.models.VAE(Seen(torch.full((3,), 100.0)), pv.nets.linear_decoder(1, 3), pv.likelihoods.Gaussian(0.3))
    found = fitted(model.double()).diagnose(x, num_particles=5, gap_data=0)
    seen = [column[~column.isnan()] for column in x.T]
    unit = torch.stack([column.var(correction=0) for column in seen]).mean().sqrt()
    assert found["smallest decoder scale"].value == pytest.approx(0.3 / unit.item())
    # What is there moves by its own sd; 8 directions of 3 numbers of 400 data, and the prior's sd of 4,096 draws.
    moved = sum(len(column) * column.var() for column in seen) / n
    assert found["encoder sensitivity"].value == pytest.approx(moved.sqrt().item(), rel=0.06)


def test_a_feature_of_one_value_has_no_scale_at_its_floor_because_of_gaps():
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    x[:, 2] = 7.0
    x[::3, 1:] = torch.nan
    likelihood = pv.likelihoods.GaussianLearned(pixels=3)
    model = pv.models.VAE(pv.nets.linear_encoder(3, 1), pv.nets.linear_decoder(1, 3), likelihood)
    with torch.no_grad():
        likelihood.rho[2] = -30.0  # where nothing varies that is no fault
    assert fitted(model).diagnose(x, num_particles=5, gap_data=0)["decoder scales at their floor"].value == 0


class OfCounts(pv.LatentVariableModel):
    """Counts, of which the encoder may take logarithms: it has no answer below -1."""

    def __init__(self, taken):
        super().__init__()
        self.encoder, self.decoder, self.taken = torch.nn.Linear(3, 1), torch.nn.Linear(1, 3), taken

    @pv.latent
    def z(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(self.encoder(self.taken(x)), 0.5).to_event(1)

    @pv.observed
    def x(self, z):
        return dist.Poisson(torch.nn.functional.softplus(self.decoder(z))).to_event(1)


COUNTS = (torch.tensor([1.0, 1.0, 600.0]).double() * torch.linspace(0, 1, 400)[:, None]).round()


@pytest.mark.parametrize("taken", [torch.log1p, torch.positive])
def test_inputs_are_moved_within_their_support(taken):
    torch.manual_seed(0)
    fit = pv.SVI(1, progress=False).fit(OfCounts(taken).double(), COUNTS)
    found = fit.diagnose(COUNTS, gap_data=0)["encoder sensitivity"].value
    assert math.isfinite(found)
    assert found > 0
    if taken is torch.positive:  # then it is the size of the linear map, over eight directions for each of 400 data
        truth = (fit.model.encoder.weight[0] * COUNTS.std(0)).norm().item()
        # The root of chi^2 of 3,200 degrees of freedom over them, and of 4,096 draws of the prior's sd: 1.7%.
        assert found == pytest.approx(truth, rel=0.06)


class Silent(dist.TorchDistribution):
    """A law that does not say what its values can be."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, law):
        self.law = law
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Silent(self.law.expand(batch_shape))

    def log_prob(self, value):
        return self.law.log_prob(value)

    def sample(self, sample_shape=()):
        return self.law.sample(sample_shape)


class OfSilent(OfCounts):
    @pv.observed
    def x(self, z):
        return Silent(dist.Normal(self.decoder(z), 1.0).to_event(1))


def test_a_law_that_does_not_say_its_support_is_moved_freely():
    torch.manual_seed(0)
    x = torch.randn(100, 3).double()
    fit = pv.SVI(1, progress=False).fit(OfSilent(torch.positive).double(), x)
    truth = (fit.model.encoder.weight[0] * x.std(0)).norm().item()
    assert fit.diagnose(x, gap_data=0)["encoder sensitivity"].value == pytest.approx(truth, rel=0.15)


def test_an_encoder_that_has_no_answer_leaves_its_sensitivity_undefined():
    torch.manual_seed(0)
    x = torch.rand(100, 3).double().mul(100).round() / 100  # an own law does not say that these are positive
    fit = pv.SVI(1, progress=False).fit(OfSilent(lambda x: (x + 1e-3).log()).double(), x)
    assert "has no answer" in fit.diagnose(x, gap_data=0)["encoder sensitivity"].why


class ByLabel(pv.LatentVariableModel):
    """p(c) p(z | c, label) p(x | z), c summed out: the prior of each datum is a mixture of its own."""

    label = pv.given()

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([[-1.0, 2.0], [1.0, 0.5]]))

    @pv.latent
    def c(self):
        return dist.Categorical(torch.tensor([0.3, 0.7]))

    @pv.latent
    def z(self, c, label):
        return dist.Normal(self.loc[c, label.long()], 0.8)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(x / 2, 0.6)

    @pv.observed
    def x(self, z):
        return dist.Normal(z, 1.0)


def test_the_divergence_from_a_mixture_that_depends_on_an_input():
    torch.manual_seed(0)
    model, x, label = ByLabel().double(), torch.randn(60).double(), torch.arange(60) % 2
    found = fitted(model).diagnose({"x": x, "label": label}, num_particles=25, gap_data=0)
    z = torch.linspace(-8, 8, 2001).double()[:, None]
    log_q = torch.distributions.Normal(x / 2, 0.6).log_prob(z)
    loc, log_c = model.loc.detach()[:, label], torch.tensor([0.3, 0.7]).double().log()
    log_p = torch.logsumexp(torch.distributions.Normal(loc[:, None], 0.8).log_prob(z) + log_c[:, None, None], 0)
    truth = (log_q.exp() * (log_q - log_p)).sum(0).mean() * 16 / 2000
    assert abs(found["KL"].value - truth.item()) < 4 * found["KL"].standard_error
    assert found["KL(q(z) || p)"].why.startswith("the prior depends on label")


def test_a_divergence_by_draws_is_that_of_the_information():
    """Mean KL(q(z | x) || p) = I + KL(q(z) || p), where the prior is a mixture too."""
    torch.manual_seed(0)
    networks = pv.nets.linear_encoder(6, 2), pv.nets.linear_decoder(2, 6)
    fit = fitted(pv.models.VAE(*networks, prior=pv.priors.Vamp(5, 6)))
    found = fit.diagnose((torch.randn(50, 6) > 0).float(), num_particles=5, gap_data=0)
    parts = found["mutual information"].value + found["KL(q(z) || p)"].value
    assert found["KL"].value == pytest.approx(parts, abs=1e-6)


class Switches(pv.LatentVariableModel):
    """Six Bernoulli units with a prior of no batch shape, which torch's divergence does not spread over data."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(8, 6), torch.nn.Linear(6, 8)

    @pv.latent
    def c(self):
        return dist.Bernoulli(0.3 * torch.ones(6)).to_event(1)

    @c.posterior
    def q_c(self, x):
        return dist.Bernoulli(logits=self.encoder(x)).to_event(1)

    @pv.observed
    def x(self, c):
        return dist.Bernoulli(logits=self.decoder(c)).to_event(1)


def test_units_of_two_values_have_their_divergence():
    torch.manual_seed(0)
    x = (torch.rand(50, 8) < 0.5).double()
    fit = pv.SVI(1, progress=False).fit(Switches().double(), x)
    q = fit.model.encoder(x).sigmoid()
    truth = (q * (q / 0.3).log() + (1 - q) * ((1 - q) / 0.7).log()).mean(0)
    torch.testing.assert_close(fit.evaluate(x).kl_per_unit, truth.detach())
    assert fit.diagnose(x, gap_data=0)["KL"].value == pytest.approx(truth.sum().item(), rel=0.2)
