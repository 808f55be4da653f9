"""Several copies of the same rows: of tensors, and of laws that were found for the rows once."""

from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, ExpTransform, SigmoidTransform, Transform, transforms

from ppl_vae.relaxed import LogConcrete

__all__ = ["tile", "tiled"]

PARAMETERS: dict[type, tuple[str, ...]] = {
    dist.Normal: ("loc", "scale"),
    dist.LogNormal: ("loc", "scale"),
    dist.Laplace: ("loc", "scale"),
    dist.StudentT: ("df", "loc", "scale"),
    dist.Gamma: ("concentration", "rate"),
    dist.Beta: ("concentration1", "concentration0"),
    dist.Dirichlet: ("concentration",),
    dist.Poisson: ("rate",),
    dist.MultivariateNormal: ("loc", "scale_tril"),
    dist.LowRankMultivariateNormal: ("loc", "cov_factor", "cov_diag"),
}
"""Arguments that make a law anew, all with its batch shape."""
FINITE = (dist.Categorical, dist.Bernoulli, dist.OneHotCategorical, dist.OneHotCategoricalStraightThrough)
"""Laws of finitely many values, made of logits or of probabilities."""
RELAXED = (
    dist.RelaxedBernoulli,
    dist.RelaxedOneHotCategorical,
    dist.RelaxedOneHotCategoricalStraightThrough,
    LogConcrete,
)
"""The same with a temperature."""
CONSTANT = (ExpTransform, SigmoidTransform, transforms.TanhTransform, transforms.SoftplusTransform)
"""Transforms without parameters."""


def tile(value: Tensor, copies: int) -> Tensor:
    """Rows [n, ...] as [copies * n, ...], one copy after the other.

    Examples
    --------
    >>> tile(torch.tensor([1, 2]), 2).tolist()
    [1, 2, 1, 2]
    """
    return value.repeat(copies, *[1] * (value.dim() - 1))


def tiled(d: TorchDistribution, copies: int) -> TorchDistribution | None:
    """The law of n rows as that of `copies` times as many; None of a kind whose parameters are not known here.

    Examples
    --------
    >>> tiled(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1), 3).batch_shape
    torch.Size([15])
    """
    law: Any = d
    if type(law) in PARAMETERS:
        return type(law)(**{name: tile(getattr(law, name), copies) for name in PARAMETERS[type(law)]})
    if type(law) in FINITE:
        return type(law)(**_tiled_chances(law, copies))
    if type(law) in RELAXED and torch.as_tensor(law.temperature).dim() == 0:
        return type(law)(law.temperature, **_tiled_chances(law, copies))
    if type(law) is dist.Delta:
        return dist.Delta(tile(law.v, copies), tile(law.log_density, copies), law.event_dim)
    if type(law) in (dist.Independent, torch.distributions.Independent):
        base = tiled(law.base_dist, copies)
        return None if base is None else base.to_event(law.reinterpreted_batch_ndims)
    if type(law) is dist.TransformedDistribution and all(map(_of_all_rows, law.transforms)):
        base = tiled(law.base_dist, copies)
        return None if base is None else dist.TransformedDistribution(base, law.transforms)
    return None


def _tiled_chances(law: Any, copies: int) -> dict[str, Tensor]:
    """Whichever of probabilities and logits a law was made of: the other one has fewer digits near 0 and 1."""
    inner: Any = law.base_dist if isinstance(law, torch.distributions.TransformedDistribution) else law
    inner = getattr(inner, "_categorical", inner)
    name = "probs" if inner._param is vars(inner).get("probs") else "logits"
    return {name: tile(inner._param, copies)}


def _of_all_rows(transform: Transform) -> bool:
    """Whether a transform is the same for every row: it holds nothing that was computed from one."""
    if isinstance(transform, ComposeTransform):
        return all(map(_of_all_rows, transform.parts))
    if isinstance(transform, AffineTransform):
        return not any(isinstance(value, Tensor) and value.dim() for value in (transform.loc, transform.scale))
    if isinstance(transform, nn.Module):  # its networks are; a partial of one, as in Pyro's conditional flows, is not
        held = [value for name, value in vars(transform).items() if not name.startswith("_cached")]
        return not any(isinstance(value, Tensor | partial) for value in held)
    return isinstance(transform, CONSTANT)
