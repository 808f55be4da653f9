"""q and the model in turns: who moves when, whose a parameter is, and the lagging-encoder schedule."""

import itertools
import math

import pyro
import pytest
import torch
from example_models import bits, make, numbers

import ppl_vae as pv
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import make_batches
from ppl_vae.infer.sides import belongs_to_q
from ppl_vae.infer.turns import mutual_information
from ppl_vae.objectives import Sites


class Moves(pv.Callback):
    """Which parameters each step has changed."""

    def set_up(self, run):
        self.last, self.moved, self.bounds = self._state(run), [], []

    def _state(self, run):
        return {name: p.detach().clone() for name, p in run.model.named_parameters()}

    def end(self, run, step, metrics):
        now = self._state(run)
        self.moved.append({name for name in now if not torch.equal(now[name], self.last[name])})
        self.bounds.append(float(metrics["objective"]))
        self.last = now


def trained(model, x, alternate, **options):
    moves = Moves()
    options = {"epochs": 2, "batch_size": 10, "optimizer": pv.adam(1e-2), "compile": "off", **options}
    fit = pv.SVI(**options, alternate=alternate, callbacks=[moves], progress=False).fit(model, x)
    return fit, moves


def vae(**options):
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(6, 5, 2), pv.nets.mlp_decoder(2, 5, 6), **options).double()


def names(model, *prefixes):
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


# Whose turn it is


def test_each_step_moves_one_side_and_the_turns_have_their_lengths():
    fit, moves = trained(vae(), bits(40, 6), pv.alternate(q=2, model=1))
    q, model = names(fit.model, "encoder"), names(fit.model, "decoder")
    assert moves.moved == [q, q, model, q, q, model, q, q]


def test_turns_of_epochs():
    fit, moves = trained(vae(), bits(40, 6), pv.alternate(q=1, model=2, per="epoch"), epochs=4)
    q, model = names(fit.model, "encoder"), names(fit.model, "decoder")
    assert moves.moved == [q] * 4 + [model] * 8 + [q] * 4


@pytest.mark.parametrize("optimizer", [pv.adam(1e-2), pv.adamw(1e-2, weight_decay=0.1), pv.sgd(1e-2, momentum=0.9),
                                       pv.clipped_adam(1e-2), pv.clipped(pv.rmsprop(), norm=1.0),
                                       pv.normalized(pv.adam(1e-2))])  # fmt: skip
def test_no_optimiser_moves_the_side_that_waits(optimizer):
    fit, moves = trained(vae(), bits(20, 6), pv.alternate(), optimizer=optimizer)
    q, model = names(fit.model, "encoder"), names(fit.model, "decoder")
    assert moves.moved == [q, model, q, model]


def test_a_graph_takes_the_same_turns():
    options = {"epochs": 5, "batch_size": 10}
    (eager, one), (graph, two) = (
        trained(vae(), bits(40, 6), pv.alternate(q=2), compile=mode, **options) for mode in ("off", "trace")
    )
    assert graph.settings["compile"] == "trace"
    assert one.moved == two.moved
    for a, b in zip(eager.model.parameters(), graph.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_rows_of_a_q_for_every_datum_move_in_its_turn():
    model, x = make("local q")
    fit, moves = trained(model, x, pv.alternate(), batch_size=3)
    q, rest = names(fit.model, "local_posteriors"), names(fit.model, "decoder")
    assert moves.moved == [q, rest, q, rest]


# Whose a parameter is


def split(model, data, given=None):
    batches = make_batches(model, data)
    model.adapt(batches.first)
    if model.shared_laws():
        model.use_guide("normal")
    with model.numeric():
        model.allocate(batches.first, batches.size)
    climbed = ModelObjective(model.train(), pv.elbo(), batches.total)
    with pyro.validation_enabled(False):
        found = belongs_to_q(climbed, batches.first, given)
    return {name for name, own in zip([*climbed.names, *climbed.row_names], found, strict=True) if own}


SPLITS = {
    "hierarchy": ("top_net", "z_net"),
    "conditional vae": ("encoder",),
    "vae with NaN": ("encoder",),
    "mixture vae": ("logits", "slope"),
    "finite posterior": ("slope",),
    "poisson latent": ("a", "b"),
    "local q": ("local_posteriors",),
    "shared by hand": ("shared_guide",),
}


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "poisson latent"])
def test_q_owns_what_its_draws_and_density_use(name):
    model, data = make(name)
    assert split(model, data) == names(model, *SPLITS[name])


def test_an_encoder_that_the_prior_uses_too_is_q_s_and_its_pseudo_inputs_are_not():
    model = vae(prior=pv.priors.Vamp(4, 6))
    found = split(model, bits(10, 6))
    assert found == names(model, "encoder")
    assert "prior.free" not in found


def test_a_flow_of_the_posterior_is_q_s_and_one_of_the_prior_is_not():
    model = vae(prior=pv.priors.real_nvp(2, 1), posterior=pv.posteriors.inverse_autoregressive(2, 1))
    assert split(model, bits(10, 6)) == names(model, "encoder", "posterior_of")


def test_the_user_may_say_it():
    model = vae()
    last = max(names(model, "encoder"))
    assert split(model, bits(10, 6), [last]) == {last}
    assert split(model, bits(10, 6), ["decoder"]) == names(model, "decoder")


def test_looking_leaves_model_and_noise_as_they_were():
    model, data = make("linear vae")
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    split(model, data)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "side"), [("poisson latent", "q"), ("two finite", "the model"), ("mixture, full, prior", "q")]
)
def test_one_side_alone_has_no_turns(name, side):
    model, data = make(name)
    with pytest.raises(pv.EngineError, match=f"every parameter belongs to {side}"):
        split(model, data)


def test_wrong_settings_are_refused():
    x = bits(10, 6)
    for make_it, message in (
        (lambda: pv.alternate(q=0), "q must be .* got 0"),
        (lambda: pv.alternate(per="batch"), "'batch'"),
        (lambda: pv.lagging(window=0), "got 0"),
        (lambda: pv.SVI(1, alternate=5), "alternate takes .* got 5"),
        (lambda: trained(vae(), x, pv.alternate(parameters=["coder"])), "'coder'; the model has decoder"),
    ):
        with pytest.raises(pv.EngineError, match=message):
            make_it()


# The lagging encoder


def test_q_takes_steps_until_a_window_is_no_better_and_then_the_model_takes_one():
    """The turns are recomputed from the recorded objectives by the rule itself."""
    x = bits(3, 6)[torch.arange(60) % 3]  # three images: a code that tells them apart is soon worth it
    fit, moves = trained(vae(), x, pv.lagging(2, 8, patience=8, rows=30), epochs=25, optimizer=pv.adam(0.03))
    q, model = names(fit.model, "encoder"), names(fit.model, "decoder")
    step, last, turns = 0, None, []
    while step < len(moves.moved) and moves.moved[step] != q | model:
        steps, last = 0, None
        while step < len(moves.moved) and moves.moved[step] == q:
            steps, step = steps + 1, step + 1
            if steps % 2 == 0:
                mean = sum(moves.bounds[step - 2 : step]) / 2
                flat, last = last is not None and mean <= last, mean
                if flat or steps == 8:
                    break
        turns.append(steps)
        if step < len(moves.moved) and moves.moved[step] == model:
            assert flat or steps == 8
            step += 1
    assert len(turns) > 3
    assert len(set(turns)) > 1
    assert all(together == q | model for together in moves.moved[step:])


def test_when_information_stops_rising_both_are_trained_together():
    """Pure noise: a code has nothing to say, so the information does not go on rising."""
    fit, moves = trained(
        vae(), bits(60, 6), pv.lagging(window=2, most=4, rows=60), epochs=15, batch_size=20, optimizer=pv.adam(0.02)
    )
    (note,) = [note for note in fit.status.notes if "together" in note]
    first = int(note.split("epoch ")[1].split(" ")[0])
    both = names(fit.model, "encoder", "decoder")
    assert 2 <= first < 15
    assert all(moved != both for moved in moves.moved[: 3 * first])
    assert all(moved == both for moved in moves.moved[3 * first :])


def test_the_information_of_separate_codes_is_the_logarithm_of_their_number():
    loc = 100 * torch.arange(8.0)[:, None].double()
    q = pyro.distributions.Normal(loc, 1.0).to_event(1)
    z = q.sample()
    sites = Sites({}, {"z": q.log_prob(z)}, {}, {"z": q}, {"z": z})
    assert mutual_information(sites).item() == pytest.approx(math.log(8))
    same = pyro.distributions.Normal(torch.zeros(8, 1), 1.0).to_event(1)
    z = same.sample()
    sites = Sites({}, {"z": same.log_prob(z)}, {}, {"z": same}, {"z": z})
    assert mutual_information(sites).item() == pytest.approx(0.0, abs=1e-6)


def test_information_of_finite_and_drawn_codes_is_its_sum():
    """I(x; y) + I(x; z | y) with q(y | x) and a draw of q(z | x, y) for each y, term by term."""
    torch.manual_seed(0)
    n, K = 5, 3
    y = torch.rand(K, n).double() + 0.1
    y[1, 2] = 0.0
    y = y / y.sum(0)
    q = pyro.distributions.Normal(torch.randn(K, n, 2).double(), 0.7).to_event(1)
    z = q.sample()
    found = mutual_information(Sites({}, {"y": y.log(), "z": q.log_prob(z)}, {}, {"z": q}, {"z": z}, {}, {"y": -2}))
    expected = 0.0
    for k, i in itertools.product(range(K), range(n)):
        if y[k, i] == 0:
            continue
        density = [
            math.exp(torch.distributions.Normal(q.base_dist.loc[k, j], 0.7).log_prob(z[k, i]).sum()) for j in range(n)
        ]
        marginal = sum(y[k, j].item() * density[j] for j in range(n)) / y[k].sum().item()
        of_y = math.log(y[k, i].item() * n / y[k].sum().item())
        expected += y[k, i].item() * (of_y + math.log(density[i] / marginal)) / n
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["mixture vae", "finite posterior", "finite posterior, partly observed"])
def test_models_with_finite_codes_lag(name):
    model, data = make(name)
    fit = pv.SVI(4, alternate=pv.lagging(window=1, most=2), progress=False).fit(model, data)
    assert fit.status.code != "failed"
    assert math.isfinite(fit.trace["bound"][-1])


def test_information_needs_a_q():
    with pytest.raises(pv.EngineError, match="no latent of this model has one"):
        mutual_information(Sites({"x": torch.zeros(3)}, {}))
    model, data = make("two finite")
    with pytest.raises(pv.EngineError, match="have no q of their own"):
        pv.SVI(1, alternate=pv.lagging(), progress=False).fit(model, data)


def test_a_pyro_pair_has_no_turns():
    x = numbers(5)
    with pytest.raises(pv.EngineError, match="alternate"):
        pv.SVI(1, alternate=pv.alternate(), progress=False).fit((lambda x: None, lambda x: None), x)
