"""Fits in several threads: each as alone, and the process as before."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ppl_vae as pv

X = pv.data.faithful().values
# Made before the threads: a model's constants take the default dtype, which is another one while a fit runs.
MODEL = pv.models.GaussianMixture(2, 2, prior="weak")
ENGINES = {
    "EM": pv.EM(max_iter=5, tol=0, progress=False),
    "VB": pv.VB(max_iter=5, progress=False),
    "SVI": pv.SVI(5, progress=False),
    "SVI, eager": pv.SVI(3, compile="off", progress=False),
    "NUTS": pv.NUTS(5, 5, 1, progress=False),
    "NUTS, eager": pv.NUTS(5, 5, 1, compile="off", progress=False),
}


def ends(engine):
    """Parameters and answers of a fit."""
    fit = engine.fit(MODEL, X)
    return torch.cat(
        [value.flatten().double() for value in (*fit.draws.values(), fit.log_prob(X[:5]), fit.elbo(X[:5]))]
    )


@pytest.mark.parametrize("name", ENGINES)
def test_fits_in_threads_are_those_of_one_thread(name):
    alone = ends(ENGINES[name])
    before = torch.get_default_dtype(), torch.random.get_rng_state(), torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ends, [ENGINES[name]] * 6))
    assert all(torch.equal(one, alone) for one in found)
    assert torch.get_default_dtype() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert torch.get_num_threads() == before[2]
    assert torch.distributions.Distribution._validate_args


def test_different_engines_take_turns():
    alone = {name: ends(engine) for name, engine in ENGINES.items()}
    with ThreadPoolExecutor(6) as pool:
        found = dict(zip(ENGINES, pool.map(ends, ENGINES.values()), strict=True))
    assert all(torch.equal(found[name], alone[name]) for name in ENGINES)


def test_questions_from_threads_do_not_leave_another_dtype():
    fits = [ENGINES["EM"].fit(pv.models.GaussianMixture(2, 2), X)] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda fit: fit.log_prob(X).sum().item(), fits * 10))
    assert len(set(found)) == 1
    assert torch.get_default_dtype() == torch.float32
