"""The law of a latent when theta itself is uncertain: a mixture over draws of theta."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_vae.evidence import log_mean_exp

__all__ = ["OverDraws"]


class OverDraws(TorchDistribution):
    """p(z) = (1/S) sum_s p_s(z), each datum by itself.

    Parameters
    ----------
    parts : sequence of TorchDistribution
        The S laws, of one batch and event shape.

    Examples
    --------
    >>> import torch
    >>> import pyro.distributions as dist
    >>> law = OverDraws([dist.Normal(torch.tensor([0.0]), 1.0), dist.Normal(torch.tensor([2.0]), 1.0)])
    >>> law.mean.item(), law.variance.item()
    (1.0, 2.0)
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, parts: Sequence[TorchDistribution]) -> None:
        self.parts = list(parts)
        super().__init__(self.parts[0].batch_shape, self.parts[0].event_shape, validate_args=False)

    def __repr__(self) -> str:
        part, shapes = (
            type(self.parts[0]).__name__.lstrip("_"),
            f"batch {list(self.batch_shape)}, event {list(self.event_shape)}",
        )
        return f"OverDraws({len(self.parts)} draws of {part}, {shapes})"

    @property
    def support(self) -> Constraint:
        """That of its parts."""
        return self.parts[0].support

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "OverDraws":
        """The same with this batch shape."""
        return OverDraws([part.expand(torch.Size(batch_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, [...] nats."""
        return log_mean_exp(torch.stack([part.log_prob(value) for part in self.parts]))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, each datum's of a part of its own."""
        shape = torch.Size(sample_shape)
        which = torch.randint(len(self.parts), shape + self.batch_shape)
        drawn = self.parts[0].sample(shape)
        for number in which.unique().tolist():
            chosen = (which == number).to(drawn.device)
            drawn[chosen] = self.parts[number].sample(shape)[chosen]
        return drawn

    @property
    def mean(self) -> Tensor:
        """Mean of the parts' means."""
        return torch.stack([part.mean for part in self.parts]).mean(0)

    @property
    def variance(self) -> Tensor:
        """Mean of the parts' variances, and variance of their means."""
        means = torch.stack([part.mean for part in self.parts])
        within = torch.stack([part.variance for part in self.parts]).mean(0)
        return within + means.var(0, unbiased=False)
