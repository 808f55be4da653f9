"""The table of what the package ships leaves nothing out: tests that hold for every model go through it."""

import pytest
import torch
from shipped_models import LIKELIHOODS, POSTERIORS, PRIORS, SHIPPED

import ppl_vae as pv

MADE = {name: make()[0] for name, make in SHIPPED.items()}


def kinds(part):
    return {type(getattr(model, part)).__name__ for model in MADE.values() if hasattr(model, part)}


def test_every_model_is_there():
    assert {type(model).__name__ for model in MADE.values()} == set(pv.models.__all__)


def test_every_choice_of_a_model_is_there():
    assert set(LIKELIHOODS) == kinds("likelihood") == set(pv.likelihoods.__all__) - {"LIKELIHOODS"}
    assert set(POSTERIORS) == set(pv.posteriors.__all__)
    assert set(PRIORS) == set(pv.priors.__all__)
    assert kinds("posterior_of") == {name for name in pv.posteriors.__all__ if name[0].isupper()}
    assert {name for name in pv.priors.__all__ if name[0].isupper()} <= kinds("prior")
    assert kinds("codebook") == {"Averaged", "Learned"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_one_takes_its_data(name):
    torch.manual_seed(0)
    model, data = SHIPPED[name]()
    model = model.double()
    model.adapt(data)
    assert model.elbo(data).isfinite().all()
