"""scikit-learn's own tests of BayesianGaussianMixture against ours."""

import pytest
from their_tests import collected, load

from ppl_vae.sklearn import BayesianGaussianMixture

PRIVATE = {
    "test_log_dirichlet_norm": "private API _log_dirichlet_norm",
    "test_log_wishart_norm": "private API _log_wishart_norm",
    "test_compare_covar_type": "private API BayesianGaussianMixture._initialize_parameters",
}
"""Tests that are skipped, each with the private function of scikit-learn that it calls in place of the estimator."""

theirs = load("sklearn.mixture.tests.test_bayesian_mixture", BayesianGaussianMixture=BayesianGaussianMixture)
globals().update(collected(theirs, PRIVATE, slow=["test_monotonic_likelihood"]))

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_what_is_skipped_exists():
    assert set(PRIVATE) <= set(vars(theirs))
