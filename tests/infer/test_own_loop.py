"""A step for one's own loop: what it says when the objective is no number, and what it takes for missing."""

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


def test_missing_entries_are_found_among_infinities_or_not_at_all():
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor([[0.0, 1.0, 2.0, 3.0], [inf, -inf, 0.0, 0.0], [nan, 0.0, 1.0, inf]])
    model = vae()
    assert not model.observe(rows[:2]).missing
    assert model.observe(rows).missing["x"].nonzero().tolist() == [[2, 0]]
