"""Codebooks: K vectors, of which the nearest stands for what an encoder says, and how they follow it."""

import warnings
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.errors import DataError, DeclarationError, check_whole

__all__ = ["Averaged", "Codebook", "Codes", "Learned", "Quantized", "perplexity"]

DISTANCES_AT_ONCE = 1 << 24
"""Pairs of a vector and a code whose distance is in memory at once."""


def perplexity(counts: Tensor) -> Tensor:
    """The exponential of the entropy of how often codes are used: K where all are used alike, 1 where only one is.

    Parameters
    ----------
    counts : Tensor
        [..., K], non-negative.

    Examples
    --------
    >>> perplexity(torch.tensor([5.0, 5.0, 0.0]))
    tensor(2.)
    """
    share = counts / counts.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


class Codebook(nn.Module):
    """K code vectors; `Learned` and `Averaged` say how they move.

    In training it adds up what its codes are given, in buffers, so that it is known after a traced step: the statistics
    of k-means, sum_i w_i r_ik and sum_i w_i r_ik e_i, where r_ik is 1 for the code nearest to e_i.

    Parameters
    ----------
    n_codes : int
        K.
    size : int
        d, numbers of a code.

    Attributes
    ----------
    codes : Tensor
        [K, d].
    count, total : Tensor
        [K] and [K, d]: the sums since `take` was called.
    seen : Tensor
        [K, d], encodings of the last batch.
    used : Tensor
        [K], how often each code was chosen in this epoch.
    """

    codes: Tensor
    count: Tensor
    total: Tensor
    seen: Tensor
    used: Tensor

    def __init__(self, n_codes: int, size: int) -> None:
        super().__init__()
        check_whole(type(self).__name__, error=DeclarationError, n_codes=n_codes, size=size)
        self.n_codes, self.size = n_codes, size
        self.register_buffer("count", torch.zeros(n_codes))
        self.register_buffer("total", torch.zeros(n_codes, size))
        self.register_buffer("seen", torch.zeros(n_codes, size))
        self.register_buffer("used", torch.zeros(n_codes))

    def nearest(self, e: Tensor) -> Tensor:
        """argmin_k |e - c_k|^2 of vectors [..., d], [...]."""
        with torch.no_grad(), torch.autocast(e.device.type, enabled=False):
            length, twice = self.codes.square().sum(-1), 2 * self.codes.T
            flat = e.to(self.codes).flatten(0, -2)
            at_once = max(1, DISTANCES_AT_ONCE // self.n_codes)
            # An exported program knows no number of rows, and so no number of pieces.
            parts = [flat] if torch.compiler.is_exporting() else flat.split(at_once)
            return torch.cat([(length - part @ twice).argmin(-1) for part in parts]).reshape(e.shape[:-1])

    def read(self, index: Tensor) -> Tensor:
        """c_index, [..., d], differentiable in the codes."""
        return nn.functional.embedding(index, self.codes)

    def record(self, e: Tensor, index: Tensor, weights: Tensor) -> None:
        """Add the statistics of encodings [n, P, d] given to codes [n, P], of data of weight [n]."""
        with torch.no_grad():
            e = e.flatten(0, 1).to(self.total)
            index, weights = index.flatten(), weights.repeat_interleave(index.shape[1]).to(e)
            self.count.index_add_(0, index, weights)
            self.total.index_add_(0, index, weights[:, None] * e)
            rows = torch.linspace(0, len(e) - 1, self.n_codes, device=e.device).long()
            self.seen.copy_(e[rows])

    def take(self) -> dict[str, Tensor]:
        """The statistics since the last call: {"count": [K], "total": [K, d]}."""
        taken = {"count": self.count.clone(), "total": self.total.clone()}
        self.count.zero_()
        self.total.zero_()
        return taken

    def restart(self, dead: Tensor, codes: Tensor) -> None:
        """Give the codes that are True in `dead`, [K], other values, those of [K, d]."""
        with torch.no_grad():
            self.codes.copy_(torch.where(dead[:, None], codes, self.codes))


class Learned(Codebook):
    """Codes as parameters, moved by the gradient of the quantisation term |e - c|^2.

    Examples
    --------
    >>> book = Learned(8, 2)
    >>> book.read(book.nearest(torch.randn(5, 2))).shape
    torch.Size([5, 2])
    """

    def __init__(self, n_codes: int, size: int) -> None:
        super().__init__(n_codes, size)
        self.codes = nn.Parameter(torch.randn(n_codes, size))


class Averaged(Codebook):
    """Codes as running means of the encodings given to them: online k-means.

    After batch B, with gain g = 1 - decay,

        N_k = (1 - g) N_k + g sum_B r_ik,   m_k = (1 - g) m_k + g sum_B r_ik e_i,   c_k = m_k / N_k,

    which is online EM's mixture of expected statistics and its M-step, with hard assignments and a gain that stays,
    since the encoder moves. `CodebookUpdates` among a fit's callbacks makes this step.

    Parameters
    ----------
    n_codes : int
        K.
    size : int
        d.
    decay : float
        1 - g.

    References
    ----------
    van den Oord, Vinyals and Kavukcuoglu (2017). Neural discrete representation learning. NeurIPS, appendix A.1.

    Examples
    --------
    >>> Averaged(8, 2, decay=0.9).codes.requires_grad
    False
    """

    running_count: Tensor
    running_total: Tensor

    def __init__(self, n_codes: int, size: int, decay: float = 0.99) -> None:
        super().__init__(n_codes, size)
        if not 0 <= decay < 1:
            raise DeclarationError(f"Averaged: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("codes", torch.randn(n_codes, size))
        self.register_buffer("running_count", torch.zeros(n_codes))
        self.register_buffer("running_total", torch.zeros(n_codes, size))

    def train(self, mode: bool = True) -> "Averaged":
        """As of any module; the end of a training that never moved the codes is noticed."""
        if not mode and bool(self.count.any()):
            warnings.warn(
                "this codebook's codes did not follow their encodings: pass callbacks=[pv.CodebookUpdates()] to SVI",
                stacklevel=2,
            )
        return super().train(mode)

    @property
    def running(self) -> dict[str, Tensor]:
        """The forgetting sums, as `take` gives those of a batch."""
        return {"count": self.running_count, "total": self.running_total}

    def follow(self, sums: dict[str, Tensor]) -> None:
        """The M-step on new running sums; a code that was given nothing stays where it is."""
        self.running_count.copy_(sums["count"])
        self.running_total.copy_(sums["total"])
        mean = self.running_total / self.running_count.clamp_min(torch.finfo(self.codes.dtype).tiny)[:, None]
        self.codes.copy_(torch.where(self.running_count[:, None] > 0, mean, self.codes))

    def restart(self, dead: Tensor, codes: Tensor) -> None:
        """Give these codes other values, and let them forget what they were given."""
        super().restart(dead, codes)
        self.running_count.masked_fill_(dead, 0.0)
        self.running_total.masked_fill_(dead[:, None], 0.0)


class Codes(TorchDistribution):
    """p(z) of P code vectors: those of a codebook, at indices of a law of its own.

    A mass function, not a density: log p(z) is log p(c) of the indices of z's rows, each read as its nearest code.

    Parameters
    ----------
    book : Codebook
        K codes of d numbers.
    law : TorchDistribution
        p(c), with event shape [P].

    Examples
    --------
    >>> from ppl_vae.code_priors import Uniform
    >>> p = Codes(Learned(8, 2), Uniform(3, 8)())
    >>> p.sample((5,)).shape, p.log_prob(p.sample()) / torch.tensor(8.0).log()
    (torch.Size([5, 3, 2]), tensor(-3.))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)

    def __init__(self, book: Codebook, law: TorchDistribution) -> None:
        self.book, self.law = book, law
        super().__init__(law.batch_shape, torch.Size([*law.event_shape, book.size]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Codes":
        """The same with this batch shape."""
        return Codes(self.book, self.law.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(c), [...] nats."""
        return self.law.log_prob(self.book.nearest(value))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Codes [*sample_shape, *batch_shape, P, d]."""
        return self.book.codes.detach()[self.law.sample(sample_shape)]


class Quantized(dist.Delta):
    """q(z | x): all mass on the codes nearest to the encodings e, [n, P, d], z = c + (e - e.detach()).

    So z has the value of c and the gradient of e: the straight-through estimator.

    Parameters
    ----------
    encoded : Tensor
        e, [..., P, d].
    book : Codebook
        Of d numbers.

    Attributes
    ----------
    index : Tensor
        [..., P].
    code : Tensor
        c, [..., P, d], differentiable in the codebook.

    Raises
    ------
    DataError
        If encodings and codes differ in size.

    Examples
    --------
    >>> e = torch.randn(5, 3, 2, requires_grad=True)
    >>> q = Quantized(e, Learned(8, 2))
    >>> z = q.rsample()
    >>> torch.equal(z, q.code), torch.autograd.grad(z.sum(), e)[0].unique()
    (True, tensor([1.]))
    """

    def __init__(self, encoded: Tensor, book: Codebook) -> None:
        if encoded.shape[-1] != book.size:
            raise DataError(f"encodings have {encoded.shape[-1]} numbers, the codes of this codebook {book.size}")
        self.encoded, self.book = encoded, book
        self.index = book.nearest(encoded)
        self.code = book.read(self.index)
        super().__init__(self.code.detach() + (encoded - encoded.detach()), event_dim=2)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> TorchDistribution:
        """The point mass with this batch shape."""
        return dist.Delta(self.v, event_dim=2).expand(batch_shape)

    def weigh(self, weights: Tensor) -> "Quantized":
        """The same; in training the codebook is told what it was given, row by row of these weights, [n]."""
        if self.book.training:
            self.book.record(self.encoded, self.index, weights)
        return self
