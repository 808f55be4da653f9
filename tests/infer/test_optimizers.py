"""Optimisers: steps are those of torch and Pyro, states come back whole, schedules and clipping do what they say."""

import json

import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam as PyroClippedAdam
from torch.optim import lr_scheduler

import ppl_vae as pv
from ppl_vae.infer.optimizers import build, spoken
from ppl_vae.infer.schedules import schedule
from ppl_vae.infer.stepper import stepper
from ppl_vae.records import packed, unpacked


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in [(3, 2), (4,), ()]]


def gradients(number, like, scale=20.0):
    generator = torch.Generator().manual_seed(100 + number)
    return [scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in like]


def take(optimizer, moved, numbers, scale=20.0):
    for number in numbers:
        for p, g in zip(moved, gradients(number, moved, scale), strict=True):
            p.grad = g
        optimizer.step()


FACTORIES = {
    "adam": (pv.adam(1e-2, weight_decay=0.1), lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1)),
    "adamw": (pv.adamw(1e-2), lambda p: torch.optim.AdamW(p, 1e-2)),
    "sgd": (pv.sgd(1e-2, momentum=0.9), lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9)),
    "rmsprop": (pv.rmsprop(1e-2, momentum=0.5), lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5)),
    "adagrad": (pv.optimizer(torch.optim.Adagrad, lr=0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_makes_torchs_steps(name):
    ours, theirs = FACTORIES[name]
    moved, expected = parameters(), parameters()
    take(build(ours, moved), moved, range(5))
    take(theirs(expected), expected, range(5))
    for a, b in zip(moved, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not torch.equal(moved[0], parameters()[0])


@pytest.mark.parametrize(("clip", "lrd", "weight_decay"), [(10.0, 1.0, 0.0), (3.0, 0.9, 0.0), (5.0, 0.99, 0.1)])
@pytest.mark.parametrize("scale", [20.0, 1e-7])
def test_clipped_adam_is_pyros_step_for_step(clip, lrd, weight_decay, scale):
    moved, expected = parameters(), parameters()
    ours = build(pv.clipped_adam(0.03, clip=clip, lrd=lrd, weight_decay=weight_decay), moved)
    theirs = PyroClippedAdam(expected, lr=0.03, clip_norm=clip, lrd=lrd, weight_decay=weight_decay)
    for number in range(20):
        take(ours, moved, [number], scale)
        take(theirs, expected, [number], scale)
        for a, b in zip(moved, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert ours.lr == pytest.approx(0.03 * lrd**20, rel=1e-12)
    if scale == 1e-7:  # where eps matters, torch's Adam goes elsewhere
        plain = parameters()
        take(torch.optim.Adam(plain, 0.03), plain, range(20), scale)
        assert (plain[0] - moved[0]).abs().max() > 1e-3


def test_clipped_adam_leaves_parameters_without_a_gradient():
    moved, expected = parameters(), parameters()
    ours, theirs = build(pv.clipped_adam(0.1), moved), PyroClippedAdam(expected, lr=0.1)
    for optimizer, own in ((ours, moved), (theirs, expected)):
        take(optimizer, own[:2], range(3))
        take(optimizer, own, range(3, 5))
    for a, b in zip(moved, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, step_size=3),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 4, 7]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=6),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, step_size_up=3, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max", patience=1, factor=0.5),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)], milestones=[4]
    ),
    "chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.StepLR(o, 3)]
    ),
}


def epochs(built, moved, numbers):
    rates = []
    for number in numbers:
        take(built, moved, [number])
        built.end_of_epoch(score=-1.0 if number < 3 else -2.0)
        rates.append(built.lr)
    return rates


def on_disk(state):
    """The state as a checkpoint brings it back: JSON and tensors."""
    tree, tensors = packed(state)
    return unpacked(json.loads(json.dumps(tree)), {name: value.clone() for name, value in tensors.items()})


@pytest.mark.parametrize("base", [pv.adam(0.05), pv.sgd(0.05, momentum=0.9), pv.clipped_adam(0.05, lrd=0.99)], ids=str)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_state_comes_back_bit_for_bit(name, base):
    factory = pv.clipped(pv.scheduled(base, SCHEDULERS[name]), norm=5.0)
    moved = parameters()
    straight = build(factory, moved)
    before = epochs(straight, moved, range(5))
    values, state = [p.detach().clone() for p in moved], on_disk(straight.state_dict())
    after = epochs(straight, moved, range(5, 10))
    assert len({*before, *after}) > 1, "the schedule changes the rate"
    again = [torch.nn.Parameter(value) for value in values]
    resumed = build(factory, again)
    resumed.load_state_dict(state)
    assert epochs(resumed, again, range(5, 10)) == after
    assert all(torch.equal(a, b) for a, b in zip(again, moved, strict=True))


def test_schedules_of_steps_and_of_epochs():
    halve = lr_scheduler.ExponentialLR
    by_epoch = build(pv.scheduled(pv.sgd(1.0), halve, gamma=0.5), parameters())
    by_step = build(pv.scheduled(pv.sgd(1.0), halve, per="step", gamma=0.5), parameters())
    for built in (by_epoch, by_step):
        take(built, built.param_groups[0]["params"], range(3))
    assert (by_epoch.lr, by_step.lr) == (1.0, 0.125)
    for built in (by_epoch, by_step):
        built.end_of_epoch()
    assert (by_epoch.lr, by_step.lr) == (0.5, 0.125)


def test_a_scheduled_rate_is_what_fused_adam_steps_with():
    rates = [0.1, 0.05, 0.025, 0.0125]
    moved, expected = parameters(), parameters()
    built = build(pv.scheduled(pv.adam(0.1), lr_scheduler.ExponentialLR, gamma=0.5), moved)
    plain = torch.optim.Adam(expected, 0.1)
    for number, rate in enumerate(rates):
        assert built.lr == rate
        plain.param_groups[0]["lr"] = rate
        take(built, moved, [number])
        take(plain, expected, [number])
        built.end_of_epoch()
    for a, b in zip(moved, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_rate_in_a_tensor_is_changed_in_its_place():
    rate = torch.tensor(0.1)
    moved = parameters()
    built = build(
        pv.scheduled(pv.optimizer(torch.optim.Adam, lr=rate, fused=True), lr_scheduler.StepLR, step_size=1), moved
    )
    take(built, moved, range(2))
    state = on_disk(built.state_dict())
    built.end_of_epoch()
    assert rate.item() == pytest.approx(0.01)
    built.load_state_dict(state)
    assert built.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1)


def test_clipping_by_norm_and_by_value():
    g = gradients(0, parameters())
    norm = torch.stack([one.norm() for one in g]).norm()
    for limits, expected in [
        ({"norm": 5.0}, [one * 5.0 / norm for one in g]),
        ({"norm": 1e6}, g),
        ({"value": 7.0}, [one.clamp(-7.0, 7.0) for one in g]),
    ]:
        moved, start = parameters(), parameters()
        take(build(pv.clipped(pv.sgd(1.0), **limits), moved), moved, [0])
        for p, before, step in zip(moved, start, expected, strict=True):
            torch.testing.assert_close(p, before - step, rtol=1e-6, atol=1e-6)


def test_the_outer_clipping_comes_first():
    moved, start = parameters(), parameters()
    g = gradients(0, moved)
    norm = torch.stack([one.norm() for one in g]).norm()
    take(build(pv.clipped(pv.clipped(pv.sgd(1.0), value=1.0), norm=10.0), moved), moved, [0])
    for p, before, one in zip(moved, start, g, strict=True):
        torch.testing.assert_close(p, before - (one * 10.0 / norm).clamp(-1, 1), rtol=1e-6, atol=1e-6)


def at_rows(rows):
    """A gradient of ones in rows 1 and 3."""
    index = torch.tensor([[1, 3]])
    return torch.sparse_coo_tensor(index, torch.ones(2, 2), rows.shape, check_invariants=True)


def test_normalized_gradients_have_length_one_each():
    moved, before = parameters(), parameters()
    take(build(pv.normalized(pv.sgd(1.0)), moved), moved, [0])
    for a, b, g in zip(moved, before, gradients(0, before), strict=True):
        torch.testing.assert_close(b - a, g / g.norm(), rtol=1e-6, atol=0.0)


def test_normalized_adam_is_adam_on_gradients_over_their_norms():
    moved, expected = parameters(), parameters()
    ours, theirs = build(pv.normalized(pv.adam(0.03)), moved), torch.optim.Adam(expected, 0.03)
    for number in range(5):
        take(ours, moved, [number], 10.0**number)
        for p, g in zip(expected, gradients(number, expected, 10.0**number), strict=True):
            p.grad = g / (g.norm() + 1e-7)
        theirs.step()
    for a, b in zip(moved, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_gradient_of_zero_or_none_stays_what_it_is():
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    optimizer = build(pv.normalized(pv.sgd(1.0)), [p, q])
    p.grad = torch.zeros(3)
    optimizer.step()
    assert p.tolist() == [1.0, 1.0, 1.0]
    assert q.tolist() == [1.0, 1.0]


def test_normalising_goes_around_clipping():
    moved, before = parameters(), parameters()
    take(build(pv.normalized(pv.clipped(pv.sgd(1.0), norm=0.5)), moved), moved, [0])
    steps = torch.cat([(b - a).flatten() for a, b in zip(moved, before, strict=True)])
    assert steps.norm().item() == pytest.approx(0.5, rel=1e-5)  # three gradients of length one, then cut to a half
    assert spoken(pv.normalized(pv.clipped(pv.sgd(1.0), norm=0.5))).startswith("normalized(clipped(SGD(lr=1.0")


def test_rows_follow_the_rate_of_the_others():
    moved, rows = parameters(), torch.nn.Parameter(torch.zeros(5, 2))
    built = build(pv.scheduled(pv.sgd(1.0), lr_scheduler.ExponentialLR, gamma=0.1), moved)
    adam = built.follow([rows])

    def step(number):
        take(built, moved, [number])
        rows.grad = at_rows(rows)
        adam.step()

    step(0)
    assert rows[1, 0].item() == pytest.approx(-1.0)
    assert not rows[[0, 2, 4]].any()
    built.end_of_epoch()
    state, values = on_disk(built.state_dict()), rows.detach().clone()
    step(1)
    assert (rows[1, 0] - values[1, 0]).item() == pytest.approx(-0.1)
    other = torch.nn.Parameter(values)
    again = build(pv.scheduled(pv.sgd(1.0), lr_scheduler.ExponentialLR, gamma=0.1), parameters())
    follower = again.follow([other])
    again.load_state_dict(state)
    other.grad = at_rows(rows)
    follower.step()
    assert torch.equal(other, rows)


def test_the_same_in_words_in_every_process():
    factory = pv.clipped(pv.scheduled(pv.adam(), lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0), value=2.0)
    said = spoken(factory)
    assert "0x" not in said
    assert "LambdaLR" in said
    assert said.startswith("clipped(scheduled(Adam(lr=0.001")


BAD = {
    "an optimiser": (lambda: build(torch.optim.Adam(parameters()), parameters()), "a factory, parameters -> optimiser"),
    "a Pyro optimiser": (lambda: build(__import__("pyro").optim.Adam({"lr": 0.1}), parameters()), "clipped_adam"),
    "a number": (lambda: build(1e-3, parameters()), "got 0.001"),
    "no optimiser": (lambda: build(lambda p: None, parameters()), "got NoneType"),
    "a closure": (lambda: build(pv.optimizer(torch.optim.LBFGS), parameters()), "LBFGS evaluates the objective"),
    "an option": (lambda: pv.optimizer(torch.optim.Adagrad, rate=0.1), "unexpected keyword argument 'rate'"),
    "no class": (lambda: pv.optimizer("adam"), "got 'adam'"),
    "two limits": (lambda: pv.clipped(pv.adam(), norm=1.0, value=1.0), "norm=1.0 and value=1.0"),
    "no limit": (lambda: pv.clipped(pv.adam()), "norm=None and value=None"),
    "a negative limit": (lambda: pv.clipped(pv.adam(), norm=-1.0), "norm=-1.0"),
    "per": (lambda: pv.scheduled(pv.adam(), lr_scheduler.StepLR, per="batch", step_size=1), "got 'batch'"),
    "no scheduler": (lambda: build(pv.scheduled(pv.adam(), lambda o: o.zero_grad), parameters()), "no scheduler"),
    "minimising": (lambda: build(pv.scheduled(pv.adam(), lr_scheduler.ReduceLROnPlateau), parameters()), 'mode="max"'),
    "lrd": (lambda: pv.clipped_adam(lrd=0.0), "lrd=0.0"),
    "stepper": (lambda: stepper(3), "got int"),
    "beta": (lambda: schedule("warm"), "beta must be a number"),
    "negative beta": (lambda: schedule(-1.0), "got -1.0"),
    "linear": (lambda: pv.linear(0, 1, epochs=0), "epochs must be positive"),
    "cycles": (lambda: pv.cyclical(0, 1, epochs=10, cycles=0), "cycles=0"),
    "rise": (lambda: pv.cyclical(0, 1, epochs=10, rise=0.0), "rise=0.0"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said(what):
    call, message = BAD[what]
    with pytest.raises(pv.EngineError, match=message.replace("(", r"\(")):
        call()


def test_a_plateau_needs_a_score():
    built = build(pv.scheduled(pv.adam(), lr_scheduler.ReduceLROnPlateau, mode="max"), parameters())
    with pytest.raises(pv.EngineError, match="needs the bound"):
        built.end_of_epoch()


def test_cycles_are_those_of_the_paper():
    # Fu et al. (2019), equations (6) and (7), with t counted from 0: tau = (t mod T/M) / (T/M), min(1, tau / R).
    total, cycles, rise = 200, 4, 0.5
    beta = pv.cyclical(0.0, 1.0, epochs=total, cycles=cycles, rise=rise)
    for t in range(total):
        tau = (t % (total / cycles)) / (total / cycles)
        assert beta(t) == pytest.approx(min(1.0, tau / rise), abs=1e-12)
    assert beta(total) == beta(10 * total) == 1.0
    assert pv.cyclical(2.0, 1.0, epochs=10, cycles=1, rise=1.0)(5) == 1.5


def test_a_number_is_a_schedule():
    assert schedule(0.5)(3) == pv.constant(0.5)(7) == 0.5
    own = lambda epoch: epoch  # noqa: E731
    assert schedule(own) is own


class LeaveAt(pv.Callback):
    def __init__(self, step):
        self.step = step

    def end(self, run, step, metrics):
        if step == self.step:
            raise KeyboardInterrupt


PIXELS = (torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()

CHAINS = {
    "steps": lambda: pv.scheduled(pv.adam(0.1), lr_scheduler.LambdaLR, per="step", lr_lambda=lambda step: 0.9**step),
    "plateau": lambda: pv.scheduled(
        pv.clipped(pv.clipped_adam(0.1, lrd=0.99), norm=0.5), lr_scheduler.ReduceLROnPlateau, mode="max", patience=0
    ),
    "own": lambda: lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
}


@pytest.mark.parametrize("name", CHAINS)
def test_an_interrupted_fit_goes_on_with_its_optimiser(name, tmp_path):
    def fit(*callbacks, folder=None):
        where = None if folder is None else pv.checkpoints(folder, steps=3, seconds=None)
        torch.manual_seed(0)
        vae = pv.models.VAE(pv.nets.mlp_encoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4))
        engine = pv.SVI(
            4, 10, CHAINS[name](), validation=PIXELS[:7], callbacks=callbacks, checkpoint=where, progress=False
        )
        return engine.fit(vae, PIXELS)

    straight = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(LeaveAt(10), folder=tmp_path)
    again = fit(folder=tmp_path)
    assert torch.equal(again.trace["bound"], straight.trace["bound"])
    for a, b in zip(again.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_svi_steps_as_the_optimiser_does():
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4))
    still = pv.SVI(2, 10, pv.scheduled(pv.sgd(0.1), lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.0), progress=False)
    clipped = pv.SVI(1, None, pv.clipped(pv.sgd(1.0), norm=1e-3), progress=False)
    before = torch.nn.utils.parameters_to_vector(vae.parameters())
    assert torch.equal(torch.nn.utils.parameters_to_vector(still.fit(vae, PIXELS).model.parameters()), before)
    moved = torch.nn.utils.parameters_to_vector(clipped.fit(vae, PIXELS).model.parameters()) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)
