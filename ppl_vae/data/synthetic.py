"""Data whose truth is known."""

from typing import Any

import torch

from ppl_vae.errors import DataError, check_seed, check_whole

__all__ = ["gaussian_mixture"]


def gaussian_mixture(
    n: int, weights: Any, locs: Any, covariances: Any, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from a mixture of normals: z ~ Categorical(weights), x | z ~ N(locs[z], covariances[z]).

    Parameters
    ----------
    n : int
        How many data.
    weights : array-like
        [K], not negative, sum to 1.
    locs : array-like
        [K, d].
    covariances : array-like
        [K, d, d], positive definite.
    seed : int
        The same seed gives the same data; torch's default generator is left alone.

    Returns
    -------
    x : torch.Tensor
        [n, d], float64.
    labels : torch.Tensor
        [n], int64: the component that each row came from.

    Raises
    ------
    DataError
        Shapes that do not belong together, weights that are no probabilities, a covariance that is not symmetric and
        positive definite; `n` or `seed` that is no whole number, or out of range.

    Examples
    --------
    >>> x, labels = gaussian_mixture(1000, [0.3, 0.7], [[0.0], [10.0]], [[[1.0]], [[4.0]]])
    >>> x.shape, [round((labels == k).double().mean().item(), 1) for k in (0, 1)]
    (torch.Size([1000, 1]), [0.3, 0.7])
    """
    check_whole("gaussian_mixture", error=DataError, n=n)
    seed = check_seed(seed, DataError)
    pi, mu, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, locs, covariances))
    _check_shapes(pi, mu, sigma)
    factors = _cholesky(sigma)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(pi, n, replacement=True, generator=generator)
    noise = torch.randn(n, mu.shape[-1], 1, dtype=torch.float64, generator=generator)
    return mu[labels] + (factors[labels] @ noise).squeeze(-1), labels


def _check_shapes(pi: torch.Tensor, mu: torch.Tensor, sigma: torch.Tensor) -> None:
    K, d = mu.shape if mu.ndim == 2 else (-1, -1)
    if pi.shape != (K,) or sigma.shape != (K, d, d):
        raise DataError(
            f"weights {list(pi.shape)}, locs {list(mu.shape)} and covariances {list(sigma.shape)} were given; "
            "[K], [K, d] and [K, d, d] were expected. Data of one dimension have d = 1."
        )
    if not bool((pi >= 0).all()) or abs(pi.sum().item() - 1) > 1e-6:
        raise DataError(f"weights {pi.tolist()} were given; probabilities that sum to 1 were expected. Normalise them.")


def _cholesky(sigma: torch.Tensor) -> torch.Tensor:
    factors, failed = torch.linalg.cholesky_ex(sigma)
    wrong = (failed != 0) | ~torch.isclose(sigma, sigma.mT).all(-1).all(-1)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise DataError(f"covariances[{k}] = {sigma[k].tolist()} is not symmetric and positive definite; correct it.")
    return factors
