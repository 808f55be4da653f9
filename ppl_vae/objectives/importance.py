"""The importance-weighted bound."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppl_vae.objectives.bound import Elbo
from ppl_vae.objectives.sites import Sites, score

__all__ = ["Iwae", "iwae"]


@dataclass(frozen=True)
class Iwae:
    """log (1/S) sum_s p(x_i, z_s) / q(z_s | x_i), z_s ~ q: tighter than the ELBO for S > 1 (Burda et al. 2016)."""

    num_particles: int = 8
    is_bound: ClassVar[bool] = False

    def __call__(self, sites: Sites, beta: Tensor | float = 1.0, weights: Tensor | None = None) -> Tensor:
        """Log of the mean weight over particles."""
        log_w = Elbo().values(sites, beta).reshape(self.num_particles, -1)
        value = torch.logsumexp(log_w, 0) - math.log(self.num_particles)
        # The whole bound is what a draw is credited with, not its own weight (Mnih and Rezende 2016, eq. 5).
        return value + score(sites, value.repeat(self.num_particles)).reshape(self.num_particles, -1).sum(0)


def iwae(num_particles: int = 8) -> Iwae:
    """The importance-weighted bound as an objective.

    Examples
    --------
    >>> iwae(5).num_particles
    5
    """
    return Iwae(num_particles)
