"""A step for one's own loop: what it says when the objective is no number, and what it takes for missing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import ppl_vae as pv
from ppl_vae.errors import EngineError


def vae():
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(4, 8, 1), pv.nets.mlp_decoder(1, 8, 4), "gaussian")


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_an_objective_that_is_no_number_moves_nothing_and_is_told(mode):
    model, x = vae(), torch.randn(16, 4)
    step = pv.svi_step(model, torch.optim.Adam(model.parameters()), compile=mode)
    step(x)
    with torch.no_grad():
        model.encoder.net[0].weight.fill_(1e38)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(EngineError, match="the objective became"):
        step(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Root(pv.LatentVariableModel):
    """x ~ N(w sqrt(t + 0 w), 1): at t = 0 its value is a number, and its gradient by w is none."""

    t = pv.given()

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.5))

    @pv.observed
    def x(self, t):
        return dist.Normal(self.w * torch.sqrt(t + 0 * self.w), 1.0)


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_a_gradient_that_is_no_number_moves_nothing_and_is_told(mode):
    model, good = Root(), {"x": torch.ones(3), "t": torch.ones(3)}
    step = pv.svi_step(model, pv.adam(1e-2), compile=mode)
    step(good)
    before = model.w.item()
    for _ in range(2):
        with pytest.raises(EngineError, match="the gradient of w became not finite; the parameters were not moved"):
            step({"x": torch.ones(3), "t": torch.tensor([1.0, 0.0, 1.0])})
    assert model.w.item() == before
    step(good)
    assert model.w.isfinite()
    assert model.w.item() != before


def test_a_gradient_whose_sum_overflows_is_a_number():
    """That of each of two w is 3e38, and their sum no float32."""

    class Steep(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))

        @pv.observed
        def x(self):
            return dist.Normal((3e38 * self.w).clamp(-1.0, 1.0), 1.0).to_event(1)

    model = Steep()
    pv.svi_step(model, pv.sgd(1e-38))(torch.ones(4, 2))
    torch.testing.assert_close(model.w.detach(), torch.full((2,), 3.0))


def nothing(x):
    """A program without a site."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model, adam: pv.svi_step(model, adam, objective=Trace_ELBO()), "such as pv.elbo.*got <pyro.infer"),
        (lambda model, adam: pv.svi_step(model, adam, objective=pv.elbo), "called; got <function elbo"),
        (lambda model, adam: pv.svi_step(vae(), adam), "none of the parameters of this VAE; .* such as pv.adam"),
        (lambda model, adam: pv.svi_step((nothing, nothing), adam, size=100), "size= is for declared models"),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    model = vae()
    with pytest.raises(EngineError, match=message):
        make(model, torch.optim.Adam(model.parameters()))


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_what_was_frozen_since_the_step_was_made_is_told(mode):
    model, x = vae(), torch.randn(16, 4)
    step = pv.svi_step(model, pv.adam(1e-2), compile=mode)
    step(x)
    model.encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(EngineError, match=r"requires_grad of encoder\S+ was True .* make a new step by pv.svi_step"):
        step(x)
    step = pv.svi_step(model, pv.adam(1e-2), compile=mode)
    step(x)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("encoder"), name
    model.requires_grad_(True)
    with pytest.raises(EngineError, match=r"was False .* and is True now"):
        step(x)


def test_a_network_of_a_pair_that_was_frozen_is_told():
    net = torch.nn.Linear(1, 1)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(torch.ones(1)), 1.0), obs=x)

    step = pv.svi_step((model, nothing), pv.adam(1e-2))
    step(torch.ones(3))
    net.bias.requires_grad_(False)
    with pytest.raises(EngineError, match=r"requires_grad of net\S*bias was True"):
        step(torch.ones(3))


def test_a_model_in_which_all_is_frozen_is_refused():
    model = pv.SVI(1, progress=False).fit(vae(), torch.zeros(16, 4)).model
    for optimizer in (torch.optim.Adam(model.decoder.parameters()), pv.adam()):
        with pytest.raises(EngineError, match=r"all parameters are frozen: call model.requires_grad_\(True\)"):
            pv.svi_step(model, optimizer)
    step = pv.svi_step(model.requires_grad_(True), torch.optim.Adam(model.decoder.parameters()))
    assert step(torch.zeros(16, 4)).isfinite()


def test_beta_is_a_number_that_is_not_negative(recwarn):
    x = torch.randn(16, 4)
    found = []
    for beta in (0.5, torch.tensor(0.5)):
        model = vae()
        step = pv.svi_step(model, pv.sgd(1e-2), compile="off")
        step(x, beta=beta)
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    with pytest.raises(EngineError, match="svi_step: beta must be a number that is not negative; got -1"):
        step(x, beta=-1)
    fit = pv.SVI(2, beta=lambda epoch: torch.tensor(0.5), compile="off", progress=False).fit(vae(), x)
    assert fit.status.ok
    assert not [str(w.message) for w in recwarn if "copy construct" in str(w.message)]


def test_missing_entries_are_found_among_infinities_or_not_at_all():
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor([[0.0, 1.0, 2.0, 3.0], [inf, -inf, 0.0, 0.0], [nan, 0.0, 1.0, inf]])
    model = vae()
    assert not model.observe(rows[:2]).missing
    assert model.observe(rows).missing["x"].nonzero().tolist() == [[2, 0]]


@pytest.mark.parametrize("mode", ["trace", "off", "inductor"])
def test_autocast_around_a_step_changes_nothing(mode):
    x, found = torch.rand(32, 16, generator=torch.Generator().manual_seed(0)).round(), {}
    for around in (False, True):
        torch.manual_seed(0)
        model = pv.models.VAE(pv.nets.mlp_encoder(16, 64, 2), pv.nets.mlp_decoder(2, 64, 16))
        step = pv.svi_step(model, pv.adam(1e-2), compile=mode)
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            bounds = [step(x).item() for _ in range(4)]
        found[around] = bounds, model.state_dict()
    assert found[True][0] == found[False][0]
    assert all(torch.equal(value, found[False][1][name]) for name, value in found[True][1].items())


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_a_pair_follows_autocast_as_pyro_does(mode):
    x = torch.rand(32, 16, generator=torch.Generator().manual_seed(0))

    def made():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Softplus(), torch.nn.Linear(64, 16))

        def model(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

        return model, nothing

    def steps(one):
        found = []
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                found.append(float(one(x)))
        return found

    expected = [-loss for loss in steps(pyro.infer.SVI(*made(), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step)]
    pyro.clear_param_store()
    assert steps(pv.svi_step(made(), pv.adam(1e-2), compile=mode)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_a_model_that_was_cast_since_the_step_was_made_is_told(mode):
    model, x = vae(), torch.randn(16, 4)
    step = pv.svi_step(model, pv.adam(1e-2), compile=mode)
    step(x)
    model.double()
    for batch in (x, x.double()):
        with pytest.raises(EngineError, match=r"was torch.float32 on cpu .* torch.float64 on cpu now: make a new step"):
            step(batch)
    assert pv.svi_step(model, pv.adam(1e-2), compile=mode)(x).dtype == torch.float64


@pytest.mark.parametrize("mode", ["trace", "off"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.int32, torch.bool])
def test_batches_of_any_dtype_count_as_their_numbers(mode, dtype):
    x = torch.randint(2, (16, 4), generator=torch.Generator().manual_seed(0)).float()
    found = []
    for batch in (x, x.to(dtype)):
        model = vae()
        step = pv.svi_step(model, pv.sgd(0.1), compile=mode)
        found.append([step(batch).item(), step(x).item()])
    assert found[0] == found[1]


class Halves(pv.LatentVariableModel):
    """y ~ Categorical(0.3, 0.7), x | y ~ N(m_y, 1)."""

    def __init__(self):
        super().__init__()
        self.m = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))

    @pv.latent
    def y(self):
        return dist.Categorical(torch.tensor([0.3, 0.7]))

    @pv.observed
    def x(self, y):
        return dist.Normal(self.m[y], 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
def test_labels_of_any_dtype_are_whole_numbers(dtype):
    x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1, 1])
    expected = torch.tensor([0.3, 0.7])[y].log() + dist.Normal(torch.tensor([-1.0, 2.0])[y], 1.0).log_prob(x)
    step = pv.svi_step(Halves(), pv.sgd(0.0))
    for _ in range(2):
        assert step({"x": x, "y": y.to(dtype)}).item() == pytest.approx(expected.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(3), "y": torch.tensor([0.0, 0.5, 1.0])}, "y: 1 values lie outside the support"),
        ({"x": torch.zeros(3), "y": torch.tensor([0.0, 2.0, 1.0])}, "y: 1 values lie outside the support"),
        ({"x": torch.zeros(3, dtype=torch.uint8)}, "got bytes"),
    ],
)
def test_what_is_no_label_or_number_is_refused(batch, message):
    with pytest.raises(pv.DataError, match=message):
        pv.svi_step(Halves(), pv.sgd(0.0))(batch)
