"""Exponential families: distribution, sufficient statistics, maximum-likelihood update, conjugate prior."""

from ppl_vae.families.categorical import Categorical, DirichletPrior
from ppl_vae.families.counts import Bernoulli, Poisson
from ppl_vae.families.covariance import InverseWishart, LogCholesky, covariance_matrix
from ppl_vae.families.family import Family, Sums
from ppl_vae.families.normal import Normal, NormalInverseWishartPrior

__all__ = [
    "Bernoulli",
    "Categorical",
    "DirichletPrior",
    "Family",
    "InverseWishart",
    "LogCholesky",
    "Normal",
    "NormalInverseWishartPrior",
    "Poisson",
    "Sums",
    "covariance_matrix",
]
