"""One traced step: equal to the function it was made from, on every kind of model, summed over pieces and processes."""

from dataclasses import replace

import pyro
import pytest
import torch
from example_models import MODELS, make
from shipped_models import SHIPPED
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import make_batches
from ppl_vae.infer.processes import Share
from ppl_vae.infer.step import Step, choose
from ppl_vae.infer.stepper import stepper

OBJECTIVES = [pv.elbo(2, "analytic"), pv.iwae(3)]


def prepared(name, objective=None, mode="trace", **options):
    """A step on a model with all its data in one batch."""
    model, data = make(name)
    batches = make_batches(model, data, **{k: options.pop(k) for k in ("batch_size", "seed") if k in options})
    model.adapt(batches.first)
    if model.shared_laws():
        torch.manual_seed(0)
        model.use_guide("normal")
    with model.numeric():
        model.allocate(batches.first, batches.size)
    climbed = ModelObjective(model.train(), objective or pv.elbo(), batches.total, annealed=True)
    if not climbed.dense and not climbed.sparse:
        pytest.skip("no parameter")
    return Step(climbed, None, mode, **options), batches


@pytest.fixture(autouse=True)
def unchecked():
    with pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize("name", [*MODELS, *SHIPPED])
def test_graph_equals_model_at_the_same_seed(name):
    for objective in OBJECTIVES:
        step, batches = prepared(name, objective)
        assert step.verify(next(batches.epoch(0)), beta=0.7) < 1e-12
        assert step.mode == "trace"


@pytest.mark.parametrize("name", ["vae with NaN", "mixture vae"])
def test_graph_with_free_bits(name):
    step, batches = prepared(name, pv.elbo(free_bits=0.2))
    assert step.verify(next(batches.epoch(0)), beta=0.7) < 1e-12


@pytest.mark.parametrize("name", ["vae", "mixture, full, prior", "local q"])
def test_compiled_graph_equals_model_at_the_same_seed(name):
    step, batches = prepared(name, mode="inductor")
    assert step.verify(next(batches.epoch(0)), beta=0.7) < 1e-10


@pytest.mark.parametrize("name", ["vae with NaN", "finite posterior", "mixture, full, prior", "local q"])
def test_gradient_is_that_of_the_bound(name):
    """Against the bound's own backward pass, without functional calls, rows or graphs."""
    step, batches = prepared(name)
    model, batch = step.climbed.model, next(batches.epoch(0))
    torch.manual_seed(5)
    result, gradients = step.gradient(batch, beta=1.0)
    torch.manual_seed(5)
    with model.numeric():
        values, log_q = model.draw_shared()
        with model.bind(values):
            sites = model.sites(batch.obs, batch.index if step.climbed.sparse else None)
            bound = pv.elbo()(sites).sum() + model.log_prior(values) - log_q
    (-bound / len(batch.obs)).backward()
    assert result.bound.item() == pytest.approx(bound.item(), rel=1e-12)
    for parameter, gradient in zip([*step.dense, *step.climbed.sparse], gradients, strict=True):
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_pieces_add_up_to_the_batch():
    """Two pieces of an objective without noise give the gradient of the whole batch."""
    whole, batches = prepared("mixture, full")
    cut, _ = prepared("mixture, full", accumulate=2)
    batch = next(batches.epoch(0))
    (one, gradients), (two, summed) = whole.gradient(batch), cut.gradient(batch)
    assert two.bound.item() == pytest.approx(one.bound.item(), rel=1e-12)
    for a, b in zip(gradients, summed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    odd, batches = prepared("mixture, full", accumulate=7 if len(batch.obs) % 7 else 11)
    with pytest.raises(pv.EngineError, match="cannot be cut into"):
        odd.gradient(next(batches.epoch(0)))


class Gathered(Share):
    """A share whose sums are over steps made one after the other in this process."""

    kept: list = []  # noqa: RUF012

    def add(self, tensors):
        self.kept.append(tensors)
        return [torch.stack(each).sum(0) for each in zip(*self.kept, strict=True)]


def test_shares_of_a_batch_give_the_gradient_of_the_whole():
    whole, batches = prepared("mixture, full")
    (one, expected) = whole.gradient(next(batches.epoch(0)))
    Gathered.kept = []
    for rank in (0, 1):
        step, own = prepared("mixture, full", share=Gathered(rank, 2))
        own.recipe = replace(own.recipe, share=Share(rank, 2))
        result, gradients = step.gradient(next(own.epoch(0)), 1.0, (rank == 0, False))
    assert result.weight.item() == one.weight.item()
    assert result.signals == [1.0, 0.0]
    for a, b in zip(expected, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_padding_counts_for_nothing():
    """The last batch of an epoch, filled with copies at weight zero, has the gradient of its real rows."""
    step, batches = prepared("mixture, diagonal", batch_size=4, seed=1)
    last = list(batches.epoch(0))[-1]
    assert last.real < len(last.weights)
    rows = last.obs.rows(slice(0, last.real))
    result, gradients = step.gradient(last)
    alone, _ = prepared("mixture, diagonal")
    own = make_batches(alone.climbed.model, rows)
    expected, want = alone.gradient(next(own.epoch(0)))
    assert result.bound.item() == pytest.approx(expected.bound.item(), rel=1e-12)
    for a, b in zip(gradients, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


WEIGHED = {
    "elbo": pv.elbo(), "free bits": pv.elbo(free_bits=0.2), "iwae": pv.iwae(2), "dreg": pv.iwae(2, "dreg"),
    "infovae": pv.infovae(0.5, 2.0), "tc": pv.tc_elbo(20),
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("objective", WEIGHED)
def test_a_batch_in_which_nothing_counts_has_no_gradient(objective, pieces):
    step, batches = prepared("vae", WEIGHED[objective], accumulate=pieces)
    batch = next(batches.epoch(0))
    nothing = replace(batch, weights=torch.zeros_like(batch.weights))
    result, gradients = step.gradient(nothing)
    assert result.objective.item() == result.bound.item() == 0
    assert all(bool((g == 0).all()) for g in gradients)


@pytest.mark.parametrize("prior", [None, "weak"])
def test_data_of_weight_zero_may_fill_whole_batches(prior):
    x = pv.data.faithful().values[:60]
    weights = (torch.arange(60) % 20 == 0).double()
    fit = pv.SVI(15, batch_size=4, optimizer=pv.adam(1e-2), progress=False).fit(
        pv.models.GaussianMixture(1, 2, prior=prior), x, weights
    )
    assert fit.status.code == "finished"
    assert bool(fit.trace["bound"].isfinite().all())
    assert all(bool(value.isfinite().all()) for value in fit.parameters.values())


def test_only_rows_of_the_batch_move():
    step, batches = prepared("local q", batch_size=2)
    step.climbed.rows_optimizer = stepper(torch.optim.Adam(step.dense or [torch.zeros(1)], lr=0.1)).follow(
        step.climbed.sparse
    )
    before = [p.detach().clone() for p in step.climbed.sparse]
    batch = next(batches.epoch(0))
    step(batch)
    for p, old in zip(step.climbed.sparse, before, strict=True):
        moved = (p.detach() != old).any(1).nonzero()[:, 0]
        assert set(moved.tolist()) == set(batch.index[: batch.real].tolist())


class Normed(pv.LatentVariableModel):
    """A VAE whose encoder normalises over the batch and keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.net, self.decoder = nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(1, 3)

    @pv.latent
    def z(self):
        return pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1)

    @z.posterior
    def q_z(self, x):
        loc, log_scale = self.net(self.norm(x)).chunk(2, -1)
        return pyro.distributions.Normal(loc, log_scale.exp()).to_event(1)

    @pv.observed
    def x(self, z):
        return pyro.distributions.Normal(self.decoder(z), 1.0).to_event(1)


@pytest.mark.parametrize("mode", ["trace", "inductor"])
def test_running_statistics_move_with_the_step(mode):
    """They are the network's own buffers: read, changed and kept by the graph as by the model."""
    x = 3 + torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    found = {}
    for how in ("off", mode):
        torch.manual_seed(0)
        model = Normed()
        step = pv.svi_step(model.train(), pv.adam(1e-2), compile=how)
        torch.manual_seed(1)
        bounds = [step(x).item() for _ in range(3)]
        found[how] = bounds, model.norm.running_mean.clone(), int(model.norm.num_batches_tracked)
    assert found[mode][2] == found["off"][2] == 3
    torch.testing.assert_close(found[mode][1], found["off"][1])
    assert found[mode][0] == pytest.approx(found["off"][0], rel=1e-5)


class Spare(pv.LatentVariableModel):
    """A mean, and a parameter that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.loc, self.spare = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))

    @pv.observed
    def x(self):
        return pyro.distributions.Normal(self.loc, 1.0).to_event(1)


@pytest.mark.parametrize("mode", ["inductor", "trace", "off"])
def test_what_the_objective_does_not_depend_on_is_left_alone(mode):
    """As in a loop of torch's own, where its gradient is None: weight decay does not move it either."""
    x, ours, theirs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), Spare(), Spare()
    step = pv.svi_step(ours, torch.optim.AdamW(ours.parameters(), lr=0.1, weight_decay=0.5), compile=mode)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        step(x)
        optimizer.zero_grad()
        (-torch.distributions.Normal(theirs.loc, 1.0).log_prob(x).sum(-1).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(ours.loc, theirs.loc)
    assert torch.equal(ours.spare, torch.ones(2))


def test_pieces_leave_it_alone_too():
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    optimizer = pv.adamw(0.1, weight_decay=0.5)
    fits = [
        pv.SVI(3, optimizer=optimizer, accumulate=count, compile="off", progress=False).fit(Spare(), x).model
        for count in (1, 4)
    ]
    assert all(torch.equal(model.spare, torch.ones(2)) for model in fits)
    torch.testing.assert_close(fits[0].loc, fits[1].loc)


def test_half_precision_products_change_the_bound_little():
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(16, 32, 2), pv.nets.mlp_decoder(2, 32, 16))
    x = (torch.rand(32, 16) < 0.5).float()
    batch, bounds = next(make_batches(vae, x).epoch(0)), []
    for precision in ("full", "bf16"):
        torch.manual_seed(1)
        step = Step(ModelObjective(vae, pv.elbo(), 32.0, precision=precision), None)
        result, gradients = step.gradient(batch)
        bounds.append(result.bound.item())
        assert all(g.dtype == torch.float32 for g in gradients)
    assert bounds[0] != bounds[1]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.02)


@pytest.mark.parametrize("mode", ["trace", "off"])
@pytest.mark.parametrize(
    ("posterior", "objective"),
    [
        ("full", pv.elbo()),
        ("full", pv.elbo(kl="analytic")),
        ("full", pv.iwae(3)),
        ("flow", pv.elbo()),
        ("flow", pv.iwae(3)),
    ],
)
def test_half_precision_products_are_no_densities(mode, posterior, objective):
    """A Cholesky factor made by a network is one of float32, in which its density is computed."""
    q = {"full": pv.posteriors.Full, "flow": lambda: pv.posteriors.inverse_autoregressive(2)}[posterior]()
    covariance = "full" if posterior == "full" else "diagonal"
    x, bounds = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), []
    for precision in ("full", "bf16"):
        torch.manual_seed(0)
        encoder = pv.nets.mlp_encoder(6, 8, 2, covariance=covariance)
        vae = pv.models.VAE(encoder, pv.nets.mlp_decoder(2, 8, 6), "gaussian", posterior=q)
        engine = pv.SVI(2, batch_size=32, precision=precision, objective=objective, compile=mode, progress=False)
        bounds.append(engine.fit(vae, x).trace["bound"][-1].item())
    assert bounds[0] != bounds[1]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.02)


@pytest.mark.parametrize("mode", ["trace", "off"])
def test_half_precision_of_a_model_without_networks_changes_nothing(mode):
    x = pv.data.faithful().values.float()
    found = []
    for precision in ("full", "bf16"):
        model = pv.models.GaussianMixture(2, 2).float()
        fit = pv.SVI(5, batch_size=50, precision=precision, compile=mode, progress=False).fit(model, x)
        found.append(fit.trace["bound"])
    assert torch.equal(found[0], found[1])


def test_networks_compute_in_half_precision_and_give_single():
    seen = {}

    class Noted(nn.Linear):
        def forward(self, x):
            found = super().forward(x)
            seen["inner"] = found.dtype
            return found

    class Plain(pv.LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.net, self.w = nn.Sequential(nn.Linear(2, 4), Noted(4, 2)), nn.Parameter(torch.ones(2, 2))

        @pv.latent
        def z(self):
            return pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1)

        @z.posterior
        def q_z(self, x):
            loc = self.net(x)
            seen["outer"], seen["own"] = loc.dtype, (x @ self.w).dtype
            return pyro.distributions.Normal(loc, 1.0).to_event(1)

        @pv.observed
        def x(self, z):
            return pyro.distributions.Normal(z, 1.0).to_event(1)

    pv.svi_step(Plain(), pv.adam(1e-3), precision="bf16", compile="off")(torch.randn(8, 2))
    assert seen == {"inner": torch.bfloat16, "outer": torch.float32, "own": torch.float32}


def test_a_network_that_fails_leaves_no_autocast_behind():
    class Fails(nn.Module):
        def forward(self, z):
            raise ZeroDivisionError

    vae = pv.models.VAE(pv.nets.mlp_encoder(6, 8, 2), nn.Sequential(Fails()), "gaussian")
    step = pv.svi_step(vae, pv.adam(1e-3), precision="bf16", compile="off")
    with pytest.raises(ZeroDivisionError):
        step(torch.randn(8, 6))
    assert not torch.is_autocast_enabled("cpu")
    assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_half_precision_of_double_precision_is_refused():
    x = (torch.rand(32, 16) < 0.5).double()
    vae = pv.models.VAE(pv.nets.mlp_encoder(16, 32, 2), pv.nets.mlp_decoder(2, 32, 16))
    with pytest.raises(pv.EngineError, match=r"float64: pass x.float"):
        pv.SVI(1, precision="bf16", progress=False).fit(vae, x)
    assert pv.SVI(1, precision="bf16", progress=False).fit(vae, x.float()).status.ok


def test_what_pays_is_chosen():
    assert choose("off", 1, 1, 10**9) == "off"
    assert choose("auto", 1000, 100, 10) == "off"
    assert choose("auto", 1000, 100, 10_000) == "trace"
    assert choose("auto", 650_000, 128, 100_000) == "inductor"
    assert choose("auto", 650_000, 128, None) == "trace"
