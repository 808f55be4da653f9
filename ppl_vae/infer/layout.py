"""Named values in their supports as one flat vector of reals, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

__all__ = ["Layout"]


@dataclass(frozen=True)
class _Site:
    name: str
    shape: torch.Size
    transform: Transform
    dtype: torch.dtype
    start: int
    stop: int


class Layout:
    """Theta = T(u): where each site stands in u, and its bijection from the reals to its support."""

    def __init__(self) -> None:
        self.sites: list[_Site] = []

    def add(self, name: str, value: Tensor, support: Constraint) -> None:
        """Place a site, with a value of its shape and dtype."""
        transform = biject_to(support)
        stop = self.size + transform.inverse_shape(value.shape).numel()
        self.sites.append(_Site(name, value.shape, transform, value.dtype, self.size, stop))

    @property
    def size(self) -> int:
        """Length of u."""
        return self.sites[-1].stop if self.sites else 0

    def constrain(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Theta = T(u) by name, and log|d theta / d u|."""
        values: dict[str, Tensor] = {}
        log_jacobian = u.new_zeros(())
        for site in self.sites:
            raw = u[site.start : site.stop].reshape(site.transform.inverse_shape(site.shape)).to(site.dtype)
            values[site.name] = site.transform(raw)
            log_jacobian = log_jacobian + site.transform.log_abs_det_jacobian(raw, values[site.name]).sum()
        return values, log_jacobian

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """U with T(u) = theta, float64."""
        parts = [site.transform.inv(values[site.name]).reshape(-1).double() for site in self.sites]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def draws(self, u: np.ndarray) -> dict[str, Tensor]:
        """Draws [chain, draw, *event] by name from unconstrained ones [chain, draw, size]."""
        flat = torch.as_tensor(u).flatten(0, 1)
        with torch.no_grad():
            values = torch.vmap(lambda v: self.constrain(v)[0])(flat)
        return {name: value.reshape(*u.shape[:2], *value.shape[1:]) for name, value in values.items()}
