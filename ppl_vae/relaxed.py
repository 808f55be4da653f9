"""Relaxed categorical variables: points of the simplex near its corners, whose draws have a pathwise gradient."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.distributions.transforms import Transform

__all__ = ["LogConcrete", "LogSimplex", "corner", "log_simplex"]


class LogSimplex(constraints.Constraint):
    """Logarithms of the points of a simplex: vectors whose exp sums to 1.

    Examples
    --------
    >>> log_simplex.check(torch.tensor([[0.25, 0.75], [0.5, 0.75]]).log())
    tensor([ True, False])
    """

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Whether it is, but for what a draw at a low temperature is rounded by."""
        return torch.logsumexp(value, -1).abs() < 1e-3


log_simplex = LogSimplex()


class _LogSoftmax(Transform):
    """R^(K-1) onto the log simplex: u = log softmax(x_1, ..., x_(K-1), 0).

    Densities on the log simplex are with respect to the measure that exp takes to prod_k y_k times Lebesgue's on
    y_1, ..., y_(K-1), torch's for ExpRelaxedCategorical. As |dy / dx| is prod_k y_k too, the volume is kept.
    """

    domain = constraints.real_vector
    codomain = log_simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LogSoftmax)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 1)).log_softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size([*shape[:-1], shape[-1] + 1])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size([*shape[:-1], shape[-1] - 1])


@biject_to.register(LogSimplex)
@transform_to.register(LogSimplex)
def _onto_log_simplex(support: LogSimplex) -> Transform:
    return _LogSoftmax()


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

    support: Any = log_simplex  # torch's own is all of R^K


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
