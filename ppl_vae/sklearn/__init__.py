"""Drop-in estimators for scikit-learn's mixtures and k-means, with weights, missing values and a device."""

from ppl_vae.sklearn.bayesian import BayesianGaussianMixture
from ppl_vae.sklearn.convert import from_sklearn, to_sklearn
from ppl_vae.sklearn.gaussian import GaussianMixture
from ppl_vae.sklearn.kmeans import KMeans

__all__ = ["BayesianGaussianMixture", "GaussianMixture", "KMeans", "from_sklearn", "to_sklearn"]
