"""Relaxed categorical variables: points of the simplex near its corners, whose draws have a pathwise gradient."""

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

__all__ = ["LogConcrete", "corner"]


class LogConcrete(ExpRelaxedCategorical, TorchDistributionMixin):
    """log y of a Gumbel-softmax (concrete) y in the simplex: log y = log softmax((logits + Gumbel) / temperature).

    Its largest entry is k with the probability softmax(logits)_k, at any temperature. On this scale entries that
    `pyro.distributions.RelaxedOneHotCategorical` rounds to 0, with a density that is not finite, are kept apart; the
    divergence of two such laws is the same on both scales (Maddison et al. 2017, appendix C.3).

    Parameters
    ----------
    temperature : Tensor
        Positive; near 0 draws lie near the corners.
    logits : Tensor
        [..., K].

    References
    ----------
    Maddison, Mnih and Teh (2017). The concrete distribution. ICLR.
    Jang, Gu and Poole (2017). Categorical reparameterization with Gumbel-softmax. ICLR.

    Examples
    --------
    >>> import torch
    >>> y = LogConcrete(torch.tensor(0.5), logits=torch.zeros(5, 3)).rsample().exp()
    >>> torch.allclose(y.sum(-1), torch.ones(5))
    True
    """


def corner(log_y: Tensor) -> Tensor:
    """The corner of the simplex nearest to y, [..., K] of 0 and 1, with the gradient of y: straight-through.

    Examples
    --------
    >>> import torch
    >>> corner(torch.tensor([0.2, 0.7, 0.1]).log())
    tensor([0., 1., 0.])
    """
    y = log_y.exp()
    hard = nn.functional.one_hot(log_y.argmax(-1), log_y.shape[-1]).to(y)
    return hard + (y - y.detach())
