"""The VQ-VAE, and the law of its codes."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.code_priors import Uniform
from ppl_vae.codebooks import Codebook, Codes, Quantized, perplexity
from ppl_vae.declare import LatentVariableModel, latent, observed, penalty
from ppl_vae.errors import DeclarationError
from ppl_vae.evidence import Evidence, exact
from ppl_vae.models.vae import DeepLatentVariableModel, refuse_widths

__all__ = ["VQVAE", "CodePrior"]


class VQVAE(DeepLatentVariableModel):
    """z are P codes of a codebook, uniform a priori; q(z | x) a point mass at the codes nearest to encoder(x) (T21).

    The bound is log p(x | z_q) - P log K, that of a point mass: it says what x costs when it is sent as its own codes.
    Training subtracts two penalties, by which the codes follow the encodings and the encodings stay near them,

        loss = -log p(x | z_q) + P log K + |sg(e) - c|^2 + beta |e - sg(c)|^2,

    with sg for what gets no gradient; the decoder's gradient in z_q goes to e (straight-through). `log_prob` is the
    bound: a point mass has no weights for other codes.

    Parameters
    ----------
    encoder : Module
        x [..., pixels] to encodings [..., P * d].
    decoder : Module
        Codes [..., P * d] to what the likelihood takes.
    codebook : Codebook
        `codebooks.Learned(K, d)`, or `codebooks.Averaged(K, d)` with the callback `CodebookUpdates()`.
    positions : int
        P.
    likelihood : str or Module
        As in `VAE`.
    commitment : float
        beta.
    prior : Module, optional
        p of the codes' indices, from ppl_vae.code_priors; uniform by default. `refit_codes` fits one after training.

    Raises
    ------
    DeclarationError
        If the prior is of other codes, or a network is made for other sizes.

    References
    ----------
    van den Oord, Vinyals and Kavukcuoglu (2017). Neural discrete representation learning. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae import codebooks, nets
    >>> encoder, decoder = nets.mlp_decoder(64, 32, 8), nets.mlp_decoder(8, 32, 64)
    >>> model = VQVAE(encoder, decoder, codebooks.Learned(16, 2), positions=4)
    >>> model.codes(torch.zeros(5, 64)).shape, model.sample(3).shape
    (torch.Size([5, 4]), torch.Size([3, 64]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        codebook: Codebook,
        positions: int,
        likelihood: str | nn.Module = "gaussian-learned",
        commitment: float = 0.25,
        prior: nn.Module | None = None,
    ) -> None:
        law = fitting(prior or Uniform(positions, codebook.n_codes), positions, codebook.n_codes)
        super().__init__(decoder, positions * codebook.size, likelihood, law)
        refuse_widths(encoder, decoder, self.latent_dim, f"positions={positions} of codes of size={codebook.size}")
        self.encoder, self.codebook, self.positions, self.beta = encoder, codebook, positions, commitment

    @latent
    def z(self) -> TorchDistribution:
        """Codes of the codebook, uniform unless a prior is given."""
        return Codes(self.codebook, self.prior())

    @z.posterior
    def q_z(self, x: Tensor) -> TorchDistribution:
        """The codes nearest to encoder(x)."""
        return Quantized(self.encoder(x).unflatten(-1, (self.positions, -1)), self.codebook)

    @observed
    def x(self, z: Tensor) -> TorchDistribution:
        """Likelihood(decoder(z))."""
        return self.likelihood(self.decoder(z.flatten(-2)))

    @penalty
    def quantisation(self, q_z: Quantized) -> Tensor:
        """|sg(e) - c|^2: the codes follow the encodings."""
        return (q_z.encoded.detach() - q_z.code).square().sum((-1, -2))

    @penalty
    def commitment(self, q_z: Quantized) -> Tensor:
        """Beta |e - sg(c)|^2: the encodings stay near their codes."""
        return self.beta * (q_z.encoded - q_z.code.detach()).square().sum((-1, -2))

    def codes(self, data: Any) -> Tensor:
        """Indices of each datum's codes, [n, P]."""
        with torch.no_grad():
            return self._by_rows(data, 1, lambda obs, _: self.q_z(obs.values["x"][:]).index)

    def perplexity(self, data: Any) -> Tensor:
        """Exponential of the entropy of the codes' shares among all positions of the data: at most K."""
        counts = torch.bincount(self.codes(data).flatten(), minlength=self.codebook.n_codes)
        return perplexity(counts.to(self.like))

    def evidence(self, data: Any, num_particles: int = 1) -> Evidence:
        """The bound of each datum, without error: a lower bound of log p(x_i), and named so."""
        return Evidence(**{**vars(exact(self.elbo(data))), "method": "bound"})


def fitting(law: nn.Module, positions: int, n_codes: int) -> nn.Module:
    """The law of codes, refused where it is of another number of positions or codes."""
    own = getattr(law, "positions", positions), getattr(law, "n_codes", n_codes)
    if own != (positions, n_codes):
        raise DeclarationError(
            f"the codes are {positions} of {n_codes} values, and {type(law).__name__} is a law of {own[0]} of "
            f"{own[1]}: pass positions={positions}, n_codes={n_codes}"
        )
    return law


class CodePrior(LatentVariableModel):
    """p(c) of discrete codes alone, without a latent: for the codes that a VQ-VAE gives its data.

    Parameters
    ----------
    law : Module
        From ppl_vae.code_priors.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae import code_priors
    >>> model = CodePrior(code_priors.Independent(positions=4, n_codes=8))
    >>> model.log_prob(torch.zeros(3, 4, dtype=torch.long)).shape
    torch.Size([3])
    """

    def __init__(self, law: nn.Module) -> None:
        super().__init__()
        self.prior = law

    @observed
    def codes(self) -> TorchDistribution:
        """p(c)."""
        return self.prior()
