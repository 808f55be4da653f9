"""scikit-learn's own tests of GaussianMixture against ours."""

import numpy as np
import pytest
from their_tests import collected, load

from ppl_vae.sklearn import GaussianMixture

PRIVATE = {
    "test_suffstat_sk_full": "private API _estimate_gaussian_covariances_full",
    "test_suffstat_sk_tied": "private API _estimate_gaussian_covariances_tied",
    "test_suffstat_sk_diag": "private API _estimate_gaussian_covariances_diag",
    "test_gaussian_suffstat_sk_spherical": "private API _estimate_gaussian_covariances_spherical",
    "test_compute_log_det_cholesky": "private API _compute_log_det_cholesky",
    "test_gaussian_mixture_log_probabilities": "private API _estimate_log_gaussian_prob",
    "test_gaussian_mixture_precisions_init": "private API GaussianMixture._set_parameters and ._initialize",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": "private API (mocked)",
}
"""Tests that are skipped, each with the private function of scikit-learn that it calls in place of the estimator."""

DISPATCH = {
    "test_gaussian_mixture_array_api_compliance": "array_api_dispatch: these estimators take device= in its place",
    "test_gaussian_mixture_raises_where_array_api_not_implemented": "array_api_dispatch, and expects an error",
}
"""Tests that scikit-learn itself skips unless the environment sets SCIPY_ARRAY_API."""

theirs = load("sklearn.mixture.tests.test_gaussian_mixture", GaussianMixture=GaussianMixture)
globals().update(collected(theirs, PRIVATE | DISPATCH, slow=["test_monotonic_likelihood", "test_init"]))

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def global_dtype(request):
    return request.param


@pytest.fixture
def global_random_seed():
    return 42


def test_what_is_skipped_exists_and_is_little():
    assert set(PRIVATE | DISPATCH) <= set(vars(theirs))
    assert len([name for name in vars(theirs) if name.startswith("test_")]) > 4 * len(PRIVATE)
