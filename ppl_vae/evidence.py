"""log p(x): exact where it is a finite sum, by importance weights elsewhere, and how far to trust it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Evidence",
    "RunningWeights",
    "exact",
    "hardly_vary",
    "importance",
    "log_mean_exp",
    "pareto_k_hat",
    "tail_length",
]


@dataclass(frozen=True)
class Evidence:
    """log p(x_i) with what is needed to believe it.

    Attributes
    ----------
    value : Tensor
        [n] nats.
    standard_error : Tensor
        [n] nats, zero when exact; NaN from a single draw, which does not say how far draws differ.
    effective_sample_size : Tensor
        [n]: (sum w)^2 / sum w^2 of the importance weights; infinite when exact.
    method : str
        "exact"; "importance"; "annealed", by annealed importance sampling; or "bound", where `value` is the bound
        itself, as of a VQ-VAE, whose standard error of 0 does not make it log p(x).
    k_hat : Tensor, optional
        [n], of `pv.log_evidence`: shape of the generalised Pareto law of the largest weights (see `pareto_k_hat`).
        Above 0.7 value and standard error are not to be relied on, unless the weights hardly vary (see `hardly_vary`).
    """

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    method: str
    k_hat: Tensor | None = None

    def __repr__(self) -> str:
        ess = self.effective_sample_size.min().item()
        return (
            f"{'bound on ' if self.method == 'bound' else ''}log p(x) of {len(self.value)} data, {self.method}"
            f"\n  mean {self.value.mean().item():.4f}, total {self.value.sum().item():.4f} nats"
            + ("" if math.isinf(ess) else f"; smallest effective sample size {ess:.4g}")
            + "\n  next: .value, .standard_error, .effective_sample_size"
        )


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
    to it, sqrt((1/ESS - 1/S) S/(S - 1)), which the logarithm turns into nats (000 (15), (16), per datum). Of S = 1
    draw it is unknown, NaN.

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
    variance = (share - 1 / count).square().sum(0) * (count / (count - 1) if count > 1 else math.nan)
    return Evidence(log_mean_exp(log_w), variance.sqrt(), ess, "importance")


class RunningWeights:
    """Evidence from log weights that come piece by piece: their running mean and squares, and the largest ones.

    Sums are kept in float64, relative to the largest weight so far, and joined pairwise (Chan, Golub and LeVeque 1983),
    so that memory does not grow with the number of draws.

    Parameters
    ----------
    count : int
        S, how many draws there will be.

    Examples
    --------
    >>> import torch
    >>> weights = RunningWeights(4)
    >>> weights.add(torch.tensor([[1.0], [1.0], [1.0]]).log())
    >>> weights.add(torch.tensor([[3.0]]).log())
    >>> e = weights.evidence()
    >>> round(e.value.exp().item(), 4), round(e.effective_sample_size.item(), 4)
    (1.5, 3.0)
    """

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, 0
        self.tail = tail_length(count)
        self.top: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Take the log weights of further draws, [draws, n]."""
        log_w = log_w.double()
        if self.top is None:
            self.top = log_w.new_full((1, log_w.shape[1]), -torch.inf)
            self.mean, self.squares = torch.zeros_like(self.top[0]), torch.zeros_like(self.top[0])
        before = _finite(self.top[0])
        joined = torch.cat([self.top, log_w])
        self.top = joined.topk(min(self.tail + 1, len(joined)), dim=0).values
        peak = _finite(self.top[0])
        w, scale, new = torch.exp(log_w - peak), torch.exp(before - peak), len(log_w)
        mean, difference = self.mean * scale, w.mean(0) - self.mean * scale
        total = self.seen + new
        self.mean = mean + difference * new / total
        self.squares = self.squares * scale**2 + (w - w.mean(0)).square().sum(0)
        self.squares = self.squares + difference**2 * self.seen * new / total
        self.seen = total

    def evidence(self) -> Evidence:
        """What the weights so far say; the standard error is that of `importance`."""
        assert self.top is not None
        n, mean, squares = self.seen, self.mean, self.squares
        relative = (squares / (n - 1 or math.nan) / n).sqrt() / mean
        ess = (n * mean) ** 2 / (squares + n * mean**2)
        none = mean == 0  # no draw has any weight: nothing is known
        return Evidence(
            torch.log(mean) + _finite(self.top[0]),
            relative.masked_fill(none, torch.inf),
            ess.masked_fill(none, 0.0),
            "importance",
            pareto_k_hat(self.top[: self.tail + 1]) if self.tail else None,
        )


def _finite(log_w: Tensor) -> Tensor:
    """The same, with a very small number for minus infinity, from which others can be subtracted."""
    return log_w.clamp_min(torch.finfo(log_w.dtype).min / 4)


def tail_length(count: int) -> int:
    """How many of S weights make the tail of a Pareto fit: min(S / 5, 3 sqrt(S)), 0 where that is below 5.

    Examples
    --------
    >>> tail_length(5000), tail_length(100), tail_length(10)
    (212, 20, 0)
    """
    tail = int(min(count / 5, 3 * math.sqrt(count)))
    return tail if tail >= FEWEST else 0


FEWEST = 5
"""Weights in a tail that a law can be fitted to."""


def pareto_k_hat(largest: Tensor) -> Tensor:
    """Shape k of the generalised Pareto law of the largest importance weights (PSIS), [n].

    The weights have about 1 / k finite moments: below 0.5 the variance is finite, and above 0.7 no practical number of
    draws gives a mean that can be relied on. Minus infinity where all these weights are the same, infinity where a
    single draw has all weight; NaN where weights tie, those of a discrete latent, and there is no tail to fit.

    Parameters
    ----------
    largest : Tensor
        [M + 1, n]: log weights, the M of the tail and the largest one below it, in descending order.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry (2024). Pareto smoothed importance sampling. JMLR 25(72), 1-58.

    Examples
    --------
    >>> import torch
    >>> u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    >>> log_w = -0.5 * u[: tail_length(5000) + 1].log()  # quantiles of a Pareto law with k = 0.5
    >>> round(pareto_k_hat(log_w[:, None]).item(), 1)
    0.5
    """
    from arviz_stats.base import array_stats

    tail = len(largest) - 1
    log_w = (largest - largest[0]).T.double().cpu()
    k = torch.full((len(log_w),), -torch.inf, dtype=torch.float64)
    k[log_w[:, 1:].isneginf().all(1) | log_w.isnan().any(1)] = torch.inf
    k[log_w[:, tail - max(int(tail / 4 + 0.5), 1)] < -NOTHING] = torch.inf  # the fit divides by their lower quartile
    fitted = (log_w[:, tail - 1] < -SAME) & k.isneginf()
    if bool(fitted.any()):
        # Of few draws ArviZ takes the upper fifth as the tail: our tail, and zeros. Its log_weights=True reads the
        # logarithms as weights.
        weights = torch.zeros(int(fitted.sum()), 5 * tail, dtype=torch.float64)
        weights[:, : tail + 1] = log_w[fitted].exp()
        with np.errstate(divide="ignore", invalid="ignore"):
            found = array_stats.pareto_khat(weights.numpy(), chain_axis=None, r_eff=1e-12, tail="right")
        k[fitted] = torch.as_tensor(found, dtype=torch.float64)
    return k.to(largest.device)


def hardly_vary(effective_sample_size: Tensor, count: int) -> Tensor:
    """Whether S weights are so even that the shape of their tail is no danger, [n] of bool.

    k is the shape of the tail whatever its size: of weights 1 + e h it is that of h, however small e. Where the
    effective sample size is at least 90% of S the weights' standard deviation is at most a third of their mean, and so
    the largest one is at most sqrt(S) / 3 means above it. As many draws again have one about 2^k times as far out,
    which moves the logarithm of the mean by 2^k / (3 sqrt(S)) at most: 0.03 nats for k = 0.9 and 500 draws.

    Parameters
    ----------
    effective_sample_size : Tensor
        [n], as of Evidence.
    count : int
        S.

    Examples
    --------
    >>> import torch
    >>> hardly_vary(torch.tensor([50.0, 990.0]), 1000)
    tensor([False,  True])
    """
    return effective_sample_size >= EVEN * count


EVEN = 0.9
"""Share of the draws from which on the effective sample size says that weights hardly vary."""
SAME = 1e-12
"""Nats between log weights that count as the same."""
NOTHING = 500.0
"""Nats below the largest at which a weight is nothing beside it in double precision."""
