"""Advice sees how the fit was trained and what its model has."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from linear import Diagonal, data_of, fitted, weighted

import ppl_vae as pv
from ppl_vae.diagnose.advice import FILL, HOLD, OPEN, Training, training_of

X = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def vae(prior=None, likelihood="bernoulli"):
    torch.manual_seed(0)
    return pv.models.VAE(pv.nets.mlp_encoder(6, 8, 2), pv.nets.mlp_decoder(2, 8, 6), likelihood, prior=prior)


@pytest.fixture(scope="module")
def found():
    model = weighted(Diagonal())
    return fitted(model).diagnose(data_of(model, 20), num_particles=25, gap_data=0)


def said(mends, diagnosis, **training):
    diagnosis = replace(diagnosis, training=Training(**training))
    mend = next(mend for mend in mends if mend.when(diagnosis))
    return mend.said.format(t=diagnosis.training)


@pytest.mark.parametrize(
    ("beta", "warm_up", "last"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 0.5),
        (pv.linear(0, 1, epochs=3), 3, 1.0),
        (pv.linear(0, 1, epochs=2.5), 3, 1.0),
        (pv.cyclical(0, 1, epochs=4, cycles=2), 3, 1.0),
        (lambda epoch: min(1.0, (epoch + 1) / 2), 1, 1.0),
        (pv.linear(0, 1, epochs=12), 5, 5 / 12),
    ],
)
def test_a_fit_records_how_long_beta_moved_and_where_it_ended(beta, warm_up, last):
    fit = pv.SVI(6, beta=beta, compile="off", progress=False).fit(vae(), X)
    assert (fit.settings["warm_up"], fit.settings["last_beta"]) == (warm_up, pytest.approx(last))


def test_the_record_outlives_a_file(tmp_path):
    engine = pv.SVI(4, beta=pv.linear(0, 1, 2), objective=pv.elbo(free_bits=0.1), compile="off", progress=False)
    fit = engine.fit(vae(), X)
    again = pv.Fit.load(fit.save(tmp_path / "fit.safetensors"), vae())
    assert training_of(again, again.model.check(X)) == Training(4, 2, 1.0, free_bits=True, refits=True)


def test_collapse_is_answered_by_what_was_not_tried(found):
    assert "beta=pv.linear(0, 1, epochs=60)" in said(OPEN, found, epochs=80)
    assert "beta=pv.linear(0, 1, epochs=60)" in said(OPEN, found, epochs=80, warm_up=10)
    assert "pv.elbo(free_bits=0.2)" in said(OPEN, found, epochs=80, warm_up=60)
    assert "pv.infovae" in said(OPEN, found, epochs=80, warm_up=60, free_bits=True)
    assert "free_bits" not in said(OPEN, found, epochs=80, warm_up=60, mixture=True)
    assert "train with beta=1" in said(OPEN, found, epochs=80, warm_up=60, last_beta=4.0)
    assert "free bits" not in said(OPEN, found, epochs=80, warm_up=60, finite=True)


def test_a_hole_is_answered_by_what_the_model_can_have(found):
    assert "one that learns (pv.priors.Vamp" in said(FILL, found, refits=True)
    assert "the prior learns already" in said(FILL, found, refits=True, own_prior=True)
    assert "pv.refit_codes" in said(FILL, found, codebook=True)
    assert "refit" not in said(FILL, found)
    assert "beta=1" in said(FILL, found, refits=True, last_beta=0.1)


def test_a_spread_is_answered_by_its_cause(found):
    assert "train with beta=1" in said(HOLD, found, last_beta=0.1)
    assert 'likelihood="gaussian-optimal"' in said(HOLD, found)  # its scale is fixed
    learned = pv.SVI(1, compile="off", progress=False).fit(vae(likelihood="gaussian-learned"), X)
    assert "gaussian-optimal" not in said(HOLD, learned.diagnose(X, num_particles=5, gap_data=0))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (vae(), Training(refits=True)),
        (vae(pv.priors.Mixture(3, 2)), Training(refits=True, own_prior=True)),
        (pv.models.GMVAE(vae().encoder, vae().decoder, 3), Training(mixture=True)),
        (vae(pv.priors.real_nvp(2, 2)), Training(refits=True, own_prior=True)),
    ],
)
def test_what_a_model_has(model, expected):
    assert training_of(fitted(model), model.check(X)) == expected
