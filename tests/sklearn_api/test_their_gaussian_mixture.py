"""scikit-learn's own tests of GaussianMixture, as its wheel ships them, run against ours."""

import importlib.util

import numpy as np
import pytest

from ppl_vae.sklearn import GaussianMixture

PRIVATE = {
    "test_suffstat_sk_full": "_estimate_gaussian_covariances_full",
    "test_suffstat_sk_tied": "_estimate_gaussian_covariances_tied",
    "test_suffstat_sk_diag": "_estimate_gaussian_covariances_diag",
    "test_gaussian_suffstat_sk_spherical": "_estimate_gaussian_covariances_spherical",
    "test_compute_log_det_cholesky": "_compute_log_det_cholesky",
    "test_gaussian_mixture_log_probabilities": "_estimate_log_gaussian_prob",
    "test_gaussian_mixture_precisions_init": "GaussianMixture._set_parameters and ._initialize",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": "a mock of _estimate_gaussian_parameters",
}
"""Tests that are skipped, each with the private function of scikit-learn that it calls in place of the estimator."""


def load(name):
    """A fresh copy of a test module of scikit-learn, so that replacing a name in it changes no other."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"this scikit-learn ships no {name}", allow_module_level=True)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(test):
    """The test with the values of its parametrisation as lists, which pytest asks for."""
    marks = getattr(test, "pytestmark", [])
    test.pytestmark = [
        pytest.mark.parametrize(mark.args[0], list(mark.args[1]), **mark.kwargs).mark
        if mark.name == "parametrize"
        else mark
        for mark in marks
    ]
    return test


theirs = load("sklearn.mixture.tests.test_gaussian_mixture")
theirs.GaussianMixture = GaussianMixture

for _name, _test in list(vars(theirs).items()):
    if _name.startswith("test_"):
        reason = f"uses private API {PRIVATE.get(_name)}"
        globals()[_name] = pytest.mark.skip(reason=reason)(_test) if _name in PRIVATE else listed(_test)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def global_dtype(request):
    return request.param


@pytest.fixture
def global_random_seed():
    return 42


def test_what_is_skipped_exists_and_is_little():
    assert set(PRIVATE) <= set(vars(theirs))
    assert len([name for name in vars(theirs) if name.startswith("test_")]) > 4 * len(PRIVATE)
