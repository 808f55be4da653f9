"""From a decoder's output to p(x|z): small modules that return a distribution over one datum."""

from types import MappingProxyType

from ppl_vae.likelihoods.binary import Bernoulli, ContinuousBernoulli
from ppl_vae.likelihoods.gaussian import Gaussian, GaussianLearned, GaussianNetwork, GaussianOptimal
from ppl_vae.likelihoods.pixels import Categorical, LogisticMixture

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Gaussian",
    "GaussianLearned",
    "GaussianNetwork",
    "GaussianOptimal",
    "LogisticMixture",
]

LIKELIHOODS = MappingProxyType(
    {
        "bernoulli": Bernoulli,
        "continuous-bernoulli": ContinuousBernoulli,
        "gaussian": Gaussian,
        "gaussian-learned": GaussianLearned,
        "gaussian-network": GaussianNetwork,
        "gaussian-optimal": GaussianOptimal,
        "logistic-mixture": LogisticMixture,
        "categorical": Categorical,
    }
)
