"""log p(x): exact where it is a finite sum, by importance weights elsewhere, and how far to trust it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Evidence", "exact", "importance", "log_mean_exp"]


@dataclass(frozen=True)
class Evidence:
    """log p(x_i) with what is needed to believe it.

    Attributes
    ----------
    value : Tensor
        [n] nats.
    standard_error : Tensor
        [n] nats, zero when exact.
    effective_sample_size : Tensor
        [n]: (sum w)^2 / sum w^2 of the importance weights; infinite when exact.
    method : str
        "exact" or "importance".
    """

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    method: str


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """Log of the mean of exp.

    Examples
    --------
    >>> import torch
    >>> round(log_mean_exp(torch.tensor([1.0, 3.0]).log()).exp().item(), 4)
    2.0
    """
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def exact(value: Tensor) -> Evidence:
    """Evidence known without error."""
    return Evidence(value, torch.zeros_like(value), torch.full_like(value, torch.inf), "exact")


def importance(log_w: Tensor) -> Evidence:
    """Evidence from log weights log p(x, z_s) - log q(z_s), [S, n].

    value = log (1/S) sum_s w_s; ESS = (sum w)^2 / sum w^2; the standard error is that of the mean weight relative
    to it, sqrt((1/ESS - 1/S) S/(S - 1)), which the logarithm turns into nats (000 (15), (16), per datum).

    Examples
    --------
    >>> import torch
    >>> e = importance(torch.zeros(10, 1))
    >>> e.value.item(), e.standard_error.item(), round(e.effective_sample_size.item(), 4)
    (0.0, 0.0, 10.0)
    """
    count = log_w.shape[0]
    share = torch.softmax(log_w, 0)
    ess = 1 / share.square().sum(0)
    variance = (share - 1 / count).square().sum(0) * count / max(count - 1, 1)
    return Evidence(log_mean_exp(log_w), variance.sqrt(), ess, "importance")
