"""Laws of shared latents that a guide sees in units of their posterior."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.transforms import AffineTransform, ComposeTransform, Transform

__all__ = ["Counted", "Units"]


class Units(nn.Module):
    """Center and unit of a latent in its unconstrained coordinates."""

    center: Tensor
    unit: Tensor

    def __init__(self, center: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("unit", unit)


class CountedSupport(constraints.Constraint):
    """A support whose unconstrained coordinates are counted in units: u stands for T(center + unit u)."""

    def __init__(self, base: constraints.Constraint, units: Units) -> None:
        self.base, self.units = base, units
        self.event_dim, self.is_discrete = base.event_dim, base.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Whether values are in the support."""
        return self.base.check(value)


@biject_to.register(CountedSupport)
@transform_to.register(CountedSupport)
def _counted(support: CountedSupport) -> Transform:
    base, units = biject_to(support.base), support.units
    return ComposeTransform([AffineTransform(units.center, units.unit, event_dim=base.domain.event_dim), base])


class Counted(dist.Independent):
    """A law whose support is counted in units; its density and draws are the law's own.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import biject_to
    >>> law = Counted(dist.Normal(0.0, 5.0), Units(torch.tensor(3.0), torch.tensor(2.0)))
    >>> biject_to(law.support)(torch.tensor(0.5)).item()
    4.0
    """

    def __init__(self, law: TorchDistribution, units: Units) -> None:
        self.units = units
        super().__init__(law, 0)

    @property
    def support(self) -> constraints.Constraint:
        """The law's support, counted in the units as they are at that moment."""
        return CountedSupport(self.base_dist.support, self.units)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Counted":
        """The same law with this batch shape."""
        return Counted(self.base_dist.expand(torch.Size(batch_shape)), self.units)
