"""The q that is not amortised: parameters of its own for every datum (000 s.2.2)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from ppl_vae.evidence import log_mean_exp
from ppl_vae.objectives import Elbo

__all__ = ["LocalPosterior", "local_q", "log_prob_of_draws"]

PARTICLES_AT_ONCE = 1 << 18
"""Draws of q that are held at once, over data and draws of theta."""


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
        base = _Normal(loc, scale).to_event(len(self.shape))
        if _is_identity(self.transform):
            return base  # a normal, whose moments and KL are known
        return dist.TransformedDistribution(base, [self.transform])


class _Normal(dist.Normal):
    """A normal whose noise is made like its loc: under vmap each member draws its own."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self.loc + self.scale * torch.randn_like(self.loc.expand(shape))


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
        with model.aside(seed=0):  # reported numbers must not depend on how often they are asked for
            moved = list(model.local_posteriors.parameters())
            _climb(moved, lambda: Elbo()(model.sites(obs)).sum(), steps, learning_rate)
        yield
    finally:
        model.local_posteriors = trained


def _climb(parameters: list[Tensor], bound: Callable[[], Tensor], steps: int, learning_rate: float) -> None:
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    with torch.enable_grad():
        for step in range(steps):
            # The draws' noise averages out only as the steps get shorter.
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimizer.zero_grad()
            (-bound()).backward(inputs=parameters)
            optimizer.step()


def log_prob_of_draws(
    model: Any, obs: Any, draws: dict[str, Tensor], num_particles: int, steps: int = 300, learning_rate: float = 0.05
) -> Tensor:
    """Log p(x_i | theta_s), [S, n] nats, where every datum has a q of its own at every theta_s.

    What `local_q` and importance weights give draw by draw, with the local optimisations of all draws in one.

    Parameters
    ----------
    model : LatentVariableModel
        With a continuous latent that has no posterior.
    obs : Observations
        The data, n rows.
    draws : dict of Tensor
        The shared latents, [S, *event], by name.
    num_particles : int
        Draws of q for each datum.
    """
    trained, count = model.local_posteriors, len(next(iter(draws.values())))
    model.local_posteriors = nn.ModuleDict()
    try:
        with model.bind({name: value[0] for name, value in draws.items()}):
            model.allocate(obs, len(obs))
        start = dict(model.local_posteriors.named_parameters())
        q = {name: value.detach().repeat(count, *[1] * value.dim()).requires_grad_() for name, value in start.items()}

        def bound(theta: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
            with model.bind(theta), model.numeric(), _placed(model.local_posteriors, own):
                return Elbo()(model.sites(obs)).sum()

        def evidence(theta: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
            index = torch.arange(len(obs), device=model.like.device).repeat(num_particles)
            with model.bind(theta), model.numeric(), _placed(model.local_posteriors, own):
                log_w = model.log_weights(obs.repeat(num_particles), num_particles, index)
            return log_mean_exp(log_w)

        with model.aside(seed=0):
            _climb(
                list(q.values()),
                lambda: torch.vmap(bound, randomness="different")(draws, q).sum(),
                steps,
                learning_rate,
            )
        with torch.no_grad():
            at_once = max(1, PARTICLES_AT_ONCE // (len(obs) * num_particles))
            return torch.vmap(evidence, randomness="different", chunk_size=at_once)(draws, q)
    finally:
        model.local_posteriors = trained


@contextmanager
def _placed(posteriors: nn.ModuleDict, values: dict[str, Tensor]) -> Iterator[None]:
    """Within the block the parameters of the posteriors are these."""
    places: list[tuple[dict[str, Any], str]] = [
        (posteriors[name.rpartition(".")[0]]._parameters, name.rpartition(".")[2]) for name in values
    ]
    before = [owner[own] for owner, own in places]
    try:
        for (owner, own), value in zip(places, values.values(), strict=True):
            owner[own] = value
        yield
    finally:
        for (owner, own), value in zip(places, before, strict=True):
            owner[own] = value
