"""Exponential families: distribution, sufficient statistics, maximum-likelihood update, conjugate prior."""

from ppl_vae.families.categorical import Categorical, DirichletPrior
from ppl_vae.families.conjugate import DirichletPosterior, Posterior, conjugate
from ppl_vae.families.continuous import Exponential, Gamma
from ppl_vae.families.counts import Bernoulli, Poisson
from ppl_vae.families.covariance import InverseWishart, LogCholesky, covariance_matrix
from ppl_vae.families.family import Family, Sums
from ppl_vae.families.independent import IndependentFeatures
from ppl_vae.families.normal import Normal, NormalInverseWishartPrior
from ppl_vae.families.normal_posterior import NormalPosterior
from ppl_vae.families.product import Product
from ppl_vae.families.product_posterior import ProductPosterior
from ppl_vae.families.regression import LinearRegression, LogisticRegression
from ppl_vae.families.scalar_posterior import ScalarPosterior
from ppl_vae.families.scalar_priors import BetaPrior, GammaPrior, ScalarPrior
from ppl_vae.families.student import StudentT
from ppl_vae.families.vectors import CategoricalVector

__all__ = [
    "Bernoulli",
    "BetaPrior",
    "Categorical",
    "CategoricalVector",
    "DirichletPosterior",
    "DirichletPrior",
    "Exponential",
    "Family",
    "Gamma",
    "GammaPrior",
    "IndependentFeatures",
    "InverseWishart",
    "LinearRegression",
    "LogCholesky",
    "LogisticRegression",
    "Normal",
    "NormalInverseWishartPrior",
    "NormalPosterior",
    "Poisson",
    "Posterior",
    "Product",
    "ProductPosterior",
    "ScalarPosterior",
    "ScalarPrior",
    "StudentT",
    "Sums",
    "conjugate",
    "covariance_matrix",
]
