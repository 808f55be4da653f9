"""The q that is not amortised: parameters of its own for every datum (000 s.2.2)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from ppl_vae.objectives import Elbo

__all__ = ["LocalPosterior", "local_q"]


class LocalPosterior(nn.Module):
    """q(z_i) = T(N(loc_i, diag scale_i^2)), with T the map onto the latent's support.

    A step of SVI moves only the rows that are in the batch.

    Parameters
    ----------
    size : int
        Number of data n.
    event_shape : torch.Size
        Event shape of the latent.
    support : Constraint
        Where the latent lives.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import constraints
    >>> q = LocalPosterior(10, torch.Size([2]), constraints.real)
    >>> q(torch.tensor([3, 7])).batch_shape
    torch.Size([2])
    """

    def __init__(self, size: int, event_shape: torch.Size, support: constraints.Constraint, scale: float = 0.1) -> None:
        super().__init__()
        self.size = size
        self.transform = transform_to(support)
        self.shape = self.transform.inverse_shape(event_shape)
        width = self.shape.numel()
        self.loc = nn.Parameter(torch.zeros(size, width))
        self.log_scale = nn.Parameter(torch.full((size, width), math.log(scale)))

    def forward(self, index: Tensor) -> TorchDistribution:
        """Q of the data `index`, batch shape [len(index)]."""
        loc = self.loc[index].reshape(len(index), *self.shape)
        scale = self.log_scale[index].exp().reshape(len(index), *self.shape)
        base = dist.Normal(loc, scale).to_event(len(self.shape))
        if _is_identity(self.transform):
            return base  # a normal, whose moments and KL are known
        return dist.TransformedDistribution(base, [self.transform])


def _is_identity(transform: Transform) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and not transform.parts


@contextmanager
def local_q(model: Any, obs: Any, steps: int = 300, learning_rate: float = 0.05) -> Iterator[None]:
    """Within the block, new data have a q of their own, found by local optimisation of the bound at fixed theta.

    Models whose posteriors are all declared pass through untouched.
    """
    trained = model.local_posteriors
    if not trained and not model.draws_without_posterior(obs):
        yield
        return
    model.local_posteriors = nn.ModuleDict()
    try:
        model.allocate(obs, len(obs))
        # Reported numbers must not depend on how often they are asked for.
        with torch.enable_grad(), model.aside(seed=0):
            optimizer = torch.optim.Adam(model.local_posteriors.parameters(), lr=learning_rate, fused=True)
            for step in range(steps):
                # The draws' noise averages out only as the steps get shorter.
                optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
                optimizer.zero_grad()
                loss = -Elbo()(model.sites(obs)).sum()
                loss.backward(inputs=list(model.local_posteriors.parameters()))
                optimizer.step()
        yield
    finally:
        model.local_posteriors = trained
