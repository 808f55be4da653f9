"""Exported programs run where only torch is imported, for any number of rows, and say what the model says."""

import json
import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
from example_models import LinearGaussian, LinearVAE, make
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.errors import EngineError
from ppl_vae.export import base_of, parameters_of
from ppl_vae.fit import Fit, Status

ROWS = (1, 2, 7)

SHIPPED = (
    "VAE, LogisticMixture", "VAE, Categorical", "VAE, posterior Full", "CategoricalVAE, finite posterior", "GumbelVAE",
    "GMVAE, its mixture", "VQVAE, Learned", "VQVAE, Averaged", "VAE, prior Flow", "VAE, prior real_nvp",
)  # fmt: skip
NAMES = ("vae", "conditional vae", "hierarchy", "mixture vae", "finite posterior", *SHIPPED)
ELSEWHERE = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    questions = torch.load(folder / "questions.pt")
    answers = {}
    for name in record["programs"]:
        program = torch.export.load(folder / f"{name}.pt2").module()
        answers[name] = [program(*question) for question in questions[name]]
    torch.save(answers, folder / "answers.pt")
left = {"ppl_vae", "pyro"} & set(sys.modules)
assert not left, left
"""


def fit_of(model, data=None):
    """A point fit as an engine would return it, of the model's parameters as they are."""
    model = model.eval().requires_grad_(False)
    obs = None if data is None else model.check(data)
    return Fit(model, "SVI", {}, {}, "ELBO", Status("finished", ""), 0.0, 0, data=obs)


def question(signature, rows):
    generator = torch.Generator().manual_seed(rows)
    shape = [rows, *signature["shape"][1:]]
    if signature["dtype"] == "int64":
        return torch.randint(2, shape, generator=generator)
    return torch.randn(shape, dtype=getattr(torch, signature["dtype"]), generator=generator)


def methods(model):
    return {name: posterior.name for name, posterior in model._graph.posteriors.items()} | {
        node.name: node.name for node in model._graph.of_kind("observed")
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every model of NAMES with its folder, its record, what its programs were asked and what they answered."""
    found = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp("export")
        model, data = make(name)
        programs = json.loads((fit_of(model, data).export(folder) / "export.json").read_text())["programs"]
        questions = {
            program: [tuple(question(s, rows) for s in told["inputs"]) for rows in ROWS]
            for program, told in programs.items()
        }
        torch.save(questions, folder / "questions.pt")
        found[name] = model, folder, programs, questions
    folders = [str(folder) for _, folder, _, _ in found.values()]
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("name", NAMES)
def test_programs_say_elsewhere_what_the_model_says_here(name, exported):
    model, folder, programs, questions = exported[name]
    answers = torch.load(folder / "answers.pt")
    assert set(answers) == set(programs)
    for program, told in programs.items():
        method = getattr(model, methods(model)[told["node"]])
        for asked, answered in zip(questions[program], answers[program], strict=True):
            expected = parameters_of(method(*asked))
            assert isinstance(answered, tuple)
            assert [output["name"] for output in told["outputs"]] == list(expected)
            for output, ours, theirs in zip(told["outputs"], expected.values(), answered, strict=True):
                torch.testing.assert_close(theirs, ours)
                assert output["shape"] == ["rows", *theirs.shape[1:]]


def test_one_posterior_and_one_observed_node_are_encoder_and_decoder(tmp_path):
    model, data = make("vae")
    folder = fit_of(model, data).export(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.pt2", "encoder.pt2", "export.json"]
    weights = torch.export.load(folder / "encoder.pt2").state_dict
    assert weights
    assert not [name for name in weights if "decoder" in name], "the encoder's file holds the decoder's weights"


def test_several_nodes_have_a_program_each(exported):
    _, _, programs, _ = exported["hierarchy"]
    assert [(name, told["node"]) for name, told in programs.items()] == [
        ("encoder-top", "top"),
        ("encoder-z", "z"),
        ("decoder", "x"),
    ]


def test_a_missing_entry_is_to_the_program_what_it_is_to_the_model(tmp_path):
    model, data = make("vae with NaN")
    folder = fit_of(model, data).export(tmp_path)
    loc, scale = torch.export.load(folder / "encoder.pt2").module()(data)
    q = base_of(model.posterior(data))
    torch.testing.assert_close(loc, q.loc)
    torch.testing.assert_close(scale, q.scale)


def test_a_trained_fit_and_the_same_one_read_from_a_file(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    fit = pv.SVI(epochs=2, progress=False).fit(LinearVAE(), x)
    fit.save(tmp_path / "fit.safetensors")
    again = Fit.load(tmp_path / "fit.safetensors", LinearVAE())
    with pytest.raises(EngineError, match="pass data="):
        again.export(tmp_path / "again")
    folders = fit.export(tmp_path / "fit"), again.export(tmp_path / "again", x[:1])
    ours, theirs = (torch.export.load(folder / "encoder.pt2").module()(x) for folder in folders)
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(ours[0], fit.posterior(x).base_dist.loc)


OUTSIDE = {
    "Dataset": lambda x: TensorDataset(x, torch.zeros(len(x))),
    "DataLoader": lambda x: DataLoader(TensorDataset(x), batch_size=20),
    "stream": lambda x: pv.data.stream(x, rows=20),
    "batches": lambda x: [x[:20], x[20:]],
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_data_that_a_fit_does_not_hold_show_shapes_when_given(kind, tmp_path):
    x = torch.randn(40, 3)
    data = OUTSIDE[kind](x)
    fit = pv.SVI(1, batch_size=20 if kind == "Dataset" else None, progress=False).fit(LinearVAE(), data)
    with pytest.raises(EngineError, match=r"holds none, as it was read from a file or trained on a Dataset, .* data="):
        fit.export(tmp_path / "none")
    loc, _ = torch.export.load(fit.export(tmp_path / "fit", data) / "encoder.pt2").module()(x)
    torch.testing.assert_close(loc, fit.posterior(x).base_dist.loc)


class SharedScale(LinearVAE):
    """p(x | z) with a scale that is one draw for all data."""

    @latent(shared=True)
    def spread(self):
        return dist.LogNormal(torch.tensor(0.0), 0.5)

    @observed
    def x(self, z, spread):
        return dist.Normal(self.decoder(z), spread).to_event(1)


def test_a_shared_latent_with_one_value_is_a_constant_of_the_program(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    fit = pv.SVI(epochs=2, guide="delta", progress=False).fit(SharedScale(), x)
    loc, scale = torch.export.load(fit.export(tmp_path) / "decoder.pt2").module()(torch.zeros(4, 2))
    assert loc.shape == (4, 3)
    torch.testing.assert_close(scale, fit.parameters["spread"].expand(4, 3))
    many = pv.SVI(epochs=1, num_draws=5, progress=False).fit(SharedScale(), x)
    with pytest.raises(EngineError, match="one value of spread, and this fit has 5 draws"):
        many.export(tmp_path)


class Correlated(LinearVAE):
    """q(z | x) with a full covariance."""

    @LinearVAE.z.posterior
    def q_z(self, x):
        loc, scale = self.encoder(x)
        return dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))


class Constant(LinearVAE):
    """q(z | x) that does not look at x."""

    @LinearVAE.z.posterior
    def q_z(self, x):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)


@pytest.mark.parametrize(("model", "shapes"), [(Correlated, [(5, 2), (5, 2, 2)]), (Constant, [(5, 2), (5, 2)])])
def test_other_posteriors(model, shapes, tmp_path):
    folder = fit_of(model(), torch.randn(4, 3)).export(tmp_path)
    out = torch.export.load(folder / "encoder.pt2").module()(torch.randn(5, 3))
    assert [tuple(value.shape) for value in out] == shapes


class Branching(LinearVAE):
    @LinearVAE.z.posterior
    def q_z(self, x):
        return dist.Normal(*self.encoder(x if x.sum() > 0 else -x)).to_event(1)


class Noisy(LinearVAE):
    @LinearVAE.z.posterior
    def q_z(self, x):
        return dist.Normal(*self.encoder(x + torch.randn_like(x))).to_event(1)


class Counting(LinearVAE):
    @LinearVAE.z.posterior
    def q_z(self, x):
        loc, scale = self.encoder(x)
        return dist.Normal(loc + torch.zeros(len(x), 2), scale).to_event(1)


class Mixed(LinearVAE):
    @LinearVAE.z.posterior
    def q_z(self, x):
        loc, scale = self.encoder(x)
        flow = dist.transforms.AffineTransform(0.0, 2.0)
        return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), [flow])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching, "Branching.q_z cannot be exported"),
        (Noisy, "Noisy.q_z cannot be exported: its program gives other numbers"),
        (Counting, r"Counting.q_z .* specialized it to be a constant .*write x.shape\[0\] in place of len\(x\)"),
        (Mixed, "Mixed.q_z cannot be exported: TransformedDistribution is not told by parameters"),
        (LinearGaussian, "LinearGaussian declares no posterior"),
    ],
)
def test_what_cannot_be_exported_is_named_and_leaves_nothing(model, message, tmp_path):
    with pytest.raises(EngineError, match=message):
        fit_of(model(), torch.randn(4, 3)).export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


class HalfAmortised(LinearVAE):
    """A second latent, whose q has parameters for every datum."""

    @latent
    def offset(self):
        return dist.Normal(torch.zeros(3), 1.0).to_event(1)

    @observed
    def x(self, z, offset):
        return dist.Normal(self.decoder(z) + offset, 0.5).to_event(1)


def test_a_q_of_each_datum_is_no_function_of_x(tmp_path):
    fit = pv.SVI(epochs=1, progress=False).fit(HalfAmortised(), torch.randn(20, 3))
    with pytest.raises(EngineError, match=r"HalfAmortised\.offset has no declared posterior"):
        fit.export(tmp_path)


def test_a_model_in_pyros_own_form_is_refused(tmp_path):
    fit = fit_of(LinearVAE(), torch.randn(4, 3))
    fit.model = nn.Linear(1, 1)
    with pytest.raises(EngineError, match="a declared model"):
        fit.export(tmp_path)
