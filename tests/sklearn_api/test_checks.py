"""scikit-learn's own checks of an estimator, for every estimator here."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from ppl_vae.sklearn import BayesianGaussianMixture, GaussianMixture, KMeans

ESTIMATORS = [
    GaussianMixture(),
    GaussianMixture(n_components=2, covariance_type="diag", n_init=2, max_iter=5, init_params="random", random_state=0),
    BayesianGaussianMixture(),
    KMeans(n_clusters=2, n_init=2, max_iter=5),
]

RANDOM_START = (
    "a start drawn from weighted rows is another random draw than one from repeated rows; "
    "test_a_weight_is_a_repetition compares them from one start"
)


def expected_failures(estimator):
    """What scikit-learn expects of its own KMeans too: starts that depend on the order of the rows."""
    if estimator.get_params().get("n_components") == 1:
        return {}
    return {"check_sample_weight_equivalence_on_dense_data": RANDOM_START}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures)
def test_estimator(estimator, check):
    check(estimator)
