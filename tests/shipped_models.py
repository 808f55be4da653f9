"""Every model that the package ships, with every likelihood, posterior and prior, and data of its kind, in float64."""

import torch

import ppl_vae as pv

D, K, N, LEVELS = 6, 2, 6, 5


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


REAL = numbers(N, D)
BITS = (REAL > 0).double()
GREY = REAL.sigmoid()
GREYS = (GREY * (LEVELS - 1)).round() / (LEVELS - 1)
CODES = torch.arange(N * 3).reshape(N, 3).remainder(4)


def nets(width=1, **options):
    return pv.nets.mlp_encoder(D, 5, K, **options), pv.nets.mlp_decoder(K, 5, D * width)


def vae(likelihood="bernoulli", prior=None, posterior=None, covariance="diagonal"):
    width = getattr(likelihood, "width", 1)
    return pv.models.VAE(*nets(width, covariance=covariance), likelihood, prior=prior, posterior=posterior)


def plain(inputs, outputs):
    """A network without heads."""
    return pv.nets.mlp_decoder(inputs, 5, outputs)


LIKELIHOODS = {
    "Bernoulli": (pv.likelihoods.Bernoulli, BITS),
    "ContinuousBernoulli": (pv.likelihoods.ContinuousBernoulli, GREY),
    "Gaussian": (pv.likelihoods.Gaussian, REAL),
    "GaussianLearned": (pv.likelihoods.GaussianLearned, REAL),
    "GaussianNetwork": (pv.likelihoods.GaussianNetwork, REAL),
    "GaussianOptimal": (pv.likelihoods.GaussianOptimal, REAL),
    "LogisticMixture": (lambda: pv.likelihoods.LogisticMixture(3, levels=LEVELS), GREYS),
    "Categorical": (lambda: pv.likelihoods.Categorical(levels=LEVELS), GREYS),
}
POSTERIORS = {
    "Diagonal": pv.posteriors.Diagonal,
    "Full": pv.posteriors.Full,
    "Flow": lambda: pv.posteriors.Flow(pv.flows.coupling(K, 2)),
    "inverse_autoregressive": lambda: pv.posteriors.inverse_autoregressive(K),
}
PRIORS = {
    "Normal": lambda: pv.priors.Normal(K),
    "Mixture": lambda: pv.priors.Mixture(3, K),
    "Vamp": lambda: pv.priors.Vamp(3, D),
    "Flow": lambda: pv.priors.Flow(pv.flows.coupling(K, 2), pv.priors.Mixture(3, K)),
    "real_nvp": lambda: pv.priors.real_nvp(K, 2),
}
# The words "mixture" and "finite" in a name say that something is summed out.
OTHERS = {
    "CategoricalVAE, finite posterior": lambda: (pv.models.CategoricalVAE(plain(D, 4), plain(4, D), 4), BITS),
    "CodePrior, Independent": lambda: (pv.models.CodePrior(pv.code_priors.Independent(3, 4)), CODES),
    "CodePrior, Autoregressive": lambda: (pv.models.CodePrior(pv.code_priors.Autoregressive(3, 4, hidden=5)), CODES),
    "DeepLatentVariableModel": lambda: (pv.models.DeepLatentVariableModel(plain(K, D), K), BITS),
    "GMVAE, its mixture": lambda: (pv.models.GMVAE(*nets(), 3), BITS),
    "GaussianMixture, a mixture": lambda: (pv.models.GaussianMixture(2, D), REAL),
    "GumbelVAE": lambda: (pv.models.GumbelVAE(plain(D, 6), plain(6, D), 2, 3), BITS),
    "GumbelVAE, corners": lambda: (pv.models.GumbelVAE(plain(D, 6), plain(6, D), 2, 3, hard=True), BITS),
    "VQVAE, Learned": lambda: (pv.models.VQVAE(plain(D, 4), plain(4, D), pv.codebooks.Learned(5, 2), 2), REAL),
    "VQVAE, Averaged": lambda: (pv.models.VQVAE(plain(D, 4), plain(4, D), pv.codebooks.Averaged(5, 2), 2), REAL),
}
SHIPPED = {
    **{f"VAE, {name}": lambda make=make, x=x: (vae(make()), x) for name, (make, x) in LIKELIHOODS.items()},
    **{
        f"VAE, posterior {name}": lambda name=name, make=make: (
            vae(posterior=make(), covariance="full" if name == "Full" else "diagonal"),
            BITS,
        )
        for name, make in POSTERIORS.items()
    },
    **{f"VAE, prior {name}": lambda make=make: (vae(prior=make()), BITS) for name, make in PRIORS.items()},
    **OTHERS,
}
