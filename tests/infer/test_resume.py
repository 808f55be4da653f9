"""SVI that crashed goes on from its checkpoint and ends with the same bits, whatever is fitted to whatever data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae as pv
from ppl_vae.records import read_record, unpacked


def pixels(n=150):
    return torch.rand(n, 12, generator=torch.Generator().manual_seed(0))


def binary(n=150):
    return (pixels(n) > 0.5).float()


def drawn_batches():
    """Noise from torch's own generator, which a fit seeds anew for every epoch."""
    for part in pixels().split(32):
        yield torch.bernoulli(part)


def vae():
    model = pv.models.VAE(pv.nets.mlp_encoder(12, 8, 2), pv.nets.mlp_decoder(2, 8, 12))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return model


def learned():
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(12, 8, 2), pv.nets.mlp_decoder(2, 8, 12), "gaussian-learned")


def vqvae():
    torch.manual_seed(0)
    networks = pv.nets.mlp_decoder(12, 8, 4), pv.nets.mlp_decoder(4, 8, 12)
    return pv.models.VQVAE(*networks, pv.codebooks.Averaged(6, 2, decay=0.9), positions=2)


def gumbel():
    torch.manual_seed(0)
    return pv.models.GumbelVAE(pv.nets.mlp_decoder(12, 8, 6), pv.nets.mlp_decoder(6, 8, 12), 2, 3)


class Rows(pv.LatentVariableModel):
    """z_i ~ N(m, 1), x_i ~ N(z_i, 1), with parameters of q for every datum and a shared mean."""

    @pv.latent(shared=True)
    def m(self):
        return dist.Normal(0.0, 2.0)

    @pv.latent
    def z(self, m):
        return dist.Normal(m, 1.0)

    @pv.observed
    def x(self, z):
        return dist.Normal(z, 1.0)


def pyro_model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def pair():
    def guide(x):
        loc = pyro.param("m", torch.tensor(0.0))
        scale = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("loc", dist.Normal(loc, scale))

    return pyro_model, guide


def gmm():
    return pv.models.GaussianMixture(2, 2, prior="weak")


def points():
    x = torch.randn(90, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[::2] += 3.0
    return x


EVERY_STEP = pv.scheduled(pv.adam(2e-2), torch.optim.lr_scheduler.CosineAnnealingLR, per="step", T_max=40)
BY_SCORE = pv.scheduled(pv.adam(2e-2), torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0, factor=0.5)

CASES = {
    "pixels drawn anew": (vae, lambda: pv.data.DynamicBinary(pixels()), {}),
    "a graph": (vae, binary, {"compile": "trace"}),
    "patience": (vae, binary, {"validation": binary(40), "patience": 3, "optimizer": BY_SCORE}),
    "a rate for each step": (vae, binary, {"optimizer": EVERY_STEP, "accumulate": 2}),
    "warm-up": (vae, binary, {"beta": pv.linear(0.0, 1.0, 3), "objective": pv.iwae(3)}),
    "turns": (vae, binary, {"alternate": pv.alternate(q=2, model=1)}),
    "a lagging encoder": (vae, binary, {"alternate": pv.lagging(window=2, most=4, rows=40)}),
    "momentum": (vae, binary, {"optimizer": pv.sgd(1e-2, momentum=0.9)}),
    "a Dataset": (vae, lambda: TensorDataset(binary()), {}),
    "a unit from some rows": (
        learned,
        lambda: TensorDataset(pixels().repeat(50, 1).sort(0).values),
        {"batch_size": 2000},
    ),
    "a DataLoader": (
        vae,
        lambda: DataLoader(TensorDataset(binary()), batch_size=32, shuffle=True),
        {"batch_size": None},
    ),
    "a DataLoader with workers": (
        vae,
        lambda: DataLoader(TensorDataset(binary()), batch_size=32, shuffle=True, num_workers=1),
        {"batch_size": None, "epochs": 3},
    ),
    "a list": (vae, lambda: list(binary().split(32)), {"batch_size": None}),
    "a function that draws": (vae, lambda: drawn_batches, {"batch_size": None}),
    "a stream": (vae, lambda: pv.data.stream(binary(), rows=64), {}),
    "a stream of unknown length": (vae, lambda: pv.data.stream(lambda: iter(binary().split(40)), rows=64), {}),
    "rows of a stream": (Rows, lambda: pv.data.stream({"x": pixels()[:, 0].double()}, rows=64), {}),
    "parameters of rows": (Rows, lambda: pixels()[:, 0].double(), {}),
    "shared latents": (gmm, points, {"guide": "multivariate", "batch_size": None}),
    "running codes": (vqvae, pixels, {"callbacks": lambda: [pv.CodebookUpdates()]}),
    "cooling": (gumbel, binary, {"callbacks": lambda: [pv.BufferSchedules(temperature=pv.linear(1.0, 0.5, 4))]}),
    "a Pyro pair": (pair, lambda: points()[:, 0], {"batch_size": None}),
}


class At(pv.Callback):
    """Acts after a step."""

    def __init__(self, step, act):
        self.step, self.act, self.seen = step, act, 0

    def end(self, run, step, metrics):
        self.seen += 1
        return self.act() if step == self.step else None


def crash():
    raise RuntimeError("the machine is on fire")


def fit(case, folder=None, callbacks=(), **others):
    model, data, settings = CASES[case]
    own = settings.get("callbacks", list)()
    settings = {name: value for name, value in settings.items() if name != "callbacks"}
    usual = {"epochs": 6, "batch_size": 32, "optimizer": pv.adam(2e-2), "num_draws": 5, "compile": "off"}
    checkpoint = None if folder is None else pv.checkpoints(folder, steps=3)
    engine = pv.SVI(**usual | settings | others, checkpoint=checkpoint, callbacks=[*own, *callbacks], progress=False)
    return engine.fit(model(), data())


def same(one, other):
    assert str(one.status) == str(other.status)
    assert one.trace.keys() == other.trace.keys()
    assert all(torch.equal(one.trace[name], other.trace[name]) for name in one.trace if name != "seconds")
    states = one.model.state_dict(), other.model.state_dict()
    assert states[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(one.draws[name], other.draws[name]) for name in one.draws)


@pytest.mark.parametrize("case", CASES)
def test_a_fit_that_crashed_ends_where_it_would_have_ended(case, tmp_path):
    counted = At(-1, crash)
    straight = fit(case, callbacks=[counted])
    for part in (0.4, 0.8):  # crashes twice
        with pytest.raises(RuntimeError, match="on fire"):
            fit(case, tmp_path, [At(int(part * counted.seen), crash)])
    rest = At(-1, crash)
    again = fit(case, tmp_path, [rest])
    assert rest.seen < counted.seen - int(0.8 * counted.seen) + 3
    same(again, straight)


@pytest.mark.parametrize("case", [case for case in CASES if case != "running codes"])  # its last epoch is another one
def test_a_training_goes_on_for_more_epochs_as_if_it_had_been_one(case, tmp_path):
    epochs = CASES[case][2].get("epochs", 6)
    first = fit(case, tmp_path, epochs=epochs // 2)
    assert first.status.code == "finished"
    steps = At(-1, crash)
    same(fit(case, tmp_path, [steps], epochs=epochs), fit(case))
    assert steps.seen


ENDS = {
    "finished": ("a graph", []),
    "stopped early": ("patience", []),
    "stopped by a callback": ("a graph", [lambda: At(7, lambda: True)]),
}


@pytest.mark.parametrize("code", ["stopped early", "stopped by a callback"])
def test_what_ended_for_a_reason_of_its_own_does_not_go_on_for_more_epochs(code, tmp_path):
    case, callbacks = ENDS[code]
    first = fit(case, tmp_path, [make() for make in callbacks], epochs=30)
    steps = At(-1, crash)
    same(fit(case, tmp_path, [steps], epochs=40), first)
    assert not steps.seen


@pytest.mark.parametrize("code", ENDS)
def test_a_fit_that_ended_is_returned_as_it_is(code, tmp_path):
    case, callbacks = ENDS[code]
    settings = {"epochs": 30} if code == "stopped early" else {}
    first = fit(case, tmp_path, [make() for make in callbacks], **settings)
    assert first.status.code == code
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    steps = At(-1, crash)
    again = fit(case, tmp_path, [steps], **settings)
    assert not steps.seen
    same(again, first)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_the_best_state_is_in_its_file(tmp_path):
    found = fit("patience", tmp_path, epochs=30)
    assert found.status.code == "stopped early"
    record, tensors = read_record(tmp_path / "best.safetensors", "ppl_vae checkpoint")
    best = unpacked(record["state"], tensors)["module"]
    assert all(torch.equal(value, best[name]) for name, value in found.model.state_dict().items())
    assert record["best"] in found.trace["validation"].tolist()


OTHER = {
    "fewer epochs": ({"epochs": 5}, "epochs was 6 there and is 5 here"),
    "a rate": ({"optimizer": pv.adam(1e-3)}, "optimizer"),
    "batches": ({"batch_size": 16}, "batch_size was 32"),
    "seed": ({"seed": 3}, "seed was 0"),
    "objective": ({"objective": pv.iwae(2)}, "objective"),
    "validation": ({"validation": binary(20)}, "validation"),
}


@pytest.mark.parametrize("case", OTHER)
def test_the_checkpoint_of_another_call_is_refused(case, tmp_path):
    fit("a graph", tmp_path, compile="off")
    settings, message = OTHER[case]
    with pytest.raises(pv.EngineError, match=message):
        fit("a graph", tmp_path, **{"compile": "off", **settings})


def test_other_data_are_refused(tmp_path):
    def run(data):
        engine = pv.SVI(2, batch_size=32, checkpoint=tmp_path, compile="off", progress=False)
        return engine.fit(vae(), data)

    run(binary())
    changed = binary()
    changed[77, 3] = 1.0 - changed[77, 3]
    with pytest.raises(pv.EngineError, match="data differs"):
        run(changed)


class Constant(pv.LatentVariableModel):
    """A mean whose datum's scale is a number that no parameter holds."""

    def __init__(self, scale, activation):
        super().__init__()
        self.scale, self.activation = scale, activation
        self.loc = torch.nn.Parameter(torch.zeros(()))

    @pv.latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(0.5 * x, 1.0)

    @pv.observed
    def x(self, z):
        return dist.Normal(self.loc + self.activation(z), self.scale)


def with_a_node_that_squares():
    class Constant(globals()["Constant"]):
        @pv.observed
        def x(self, z):
            return dist.Normal(self.loc + z.square(), self.scale)

    return Constant


OTHERS = {
    "scale": lambda: Constant(2.0, torch.nn.ReLU()),
    "network": lambda: Constant(1.0, torch.nn.Tanh()),
    "node": lambda: with_a_node_that_squares()(1.0, torch.nn.ReLU()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_is_not_continued_by_another_model_of_the_same_shapes(name, tmp_path):
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    engine = pv.SVI(3, checkpoint=tmp_path, progress=False)
    first = engine.fit(Constant(1.0, torch.nn.ReLU()), x)
    again = engine.fit(Constant(1.0, torch.nn.ReLU()), x)
    assert torch.equal(first.trace["bound"], again.trace["bound"])
    with pytest.raises(pv.EngineError, match=r"checkpoint of another call: model\."):
        engine.fit(OTHERS[name](), x)


def test_a_fit_is_not_read_into_a_model_with_other_settings_without_a_word(tmp_path):
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    path = pv.SVI(1, progress=False).fit(Constant(1.0, torch.nn.ReLU()), x).save(tmp_path / "fit")
    assert pv.Fit.load(path, Constant(1.0, torch.nn.ReLU())).status.ok
    with pytest.warns(UserWarning, match=r"model\.scale was 1\.0 and is 2\.0 here"):
        pv.Fit.load(path, OTHERS["scale"]())
    with pytest.warns(UserWarning, match="activation.class was 'ReLU' and is 'Tanh' here"):
        pv.Fit.load(path, OTHERS["network"]())
