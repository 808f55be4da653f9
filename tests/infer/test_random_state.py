"""Every generator's state is kept, put back, and lent to a fit."""

import random

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.checkpoint import Checkpoint
from ppl_vae.infer.random_state import own_random, random_state, restore_random_state

DEVICES = [torch.device("cuda", n) for n in range(torch.cuda.device_count())]


def draws():
    """A few numbers from each generator, those included that keep half of a pair of normals."""
    return (
        [torch.randn(3).tolist(), torch.rand(()).item()]
        + [torch.randn(3, device=device).tolist() for device in DEVICES]
        + [np.random.normal(), np.random.rand(), random.gauss(0.0, 1.0), random.random()]  # noqa: NPY002
    )


def test_a_state_gives_the_same_numbers_again():
    draws()
    state = random_state(DEVICES)
    first = draws()
    assert draws() != first
    restore_random_state(state)
    assert draws() == first


def test_a_state_goes_through_a_checkpoint(tmp_path):
    draws()
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.opened({})
        checkpoint.keep(lambda: random_state(DEVICES), now=True)
    first = draws()
    restore_random_state(Checkpoint(tmp_path).opened({}, DEVICES[0] if DEVICES else None))
    assert draws() == first


def test_own_generators_start_at_the_seed_and_give_the_users_back():
    def inside(seed):
        with own_random(seed, DEVICES):
            return draws()

    restore_random_state(state := random_state(DEVICES))
    after = draws()
    restore_random_state(state)
    assert inside(1) == inside(1) != inside(2)
    with pytest.raises(ZeroDivisionError), own_random(3, ["cpu", *DEVICES]):
        draws()[1 // 0]
    assert draws() == after
    assert isinstance(inside(-1), list)
    assert isinstance(inside(2**40), list)


def test_the_state_of_a_device_that_is_not_here_is_refused():
    state = random_state()
    state["cuda"] = {99: torch.get_rng_state()}
    with pytest.raises(pv.EngineError, match="CUDA device 99"):
        restore_random_state(state)
