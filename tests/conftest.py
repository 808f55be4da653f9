"""Every test starts from one seed and leaves the process as it found it."""

import signal

import pyro
import pytest
import torch

SETTINGS = ("validate_distributions_pyro", "validate_distributions_torch", "validate_infer", "validate_poutine")


def pytest_configure(config):
    config.addinivalue_line("markers", "param_store: uses Pyro's global parameter store, which is cleared afterwards")
    # A program started in the background by some shells is deaf to Ctrl-C, and so is what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # The tests' matrices are tiny: threads that wait for each other cost more than the arithmetic.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _settings():
    return {name: pyro.settings.get(name) for name in SETTINGS} | {"dtype": torch.get_default_dtype()}


@pytest.fixture(autouse=True)
def _clean_global_state(request):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    before = _settings()
    yield
    left = sorted(pyro.get_param_store().keys())
    pyro.clear_param_store()
    after = _settings()
    torch.set_default_dtype(before["dtype"])
    assert after == before, "a test changed a global setting"
    if request.node.get_closest_marker("param_store") is None:
        assert not left, f"left in Pyro's parameter store: {left}"
