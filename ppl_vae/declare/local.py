"""The q that is not amortised: parameters of its own for every datum (000 s.2.2)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from ppl_vae.alone import differentiable
from ppl_vae.objectives import Elbo

__all__ = [
    "HALF",
    "POLISH",
    "SEARCH",
    "LocalPosterior",
    "Rounds",
    "Values",
    "about_prior",
    "best_q",
    "bound_of",
    "local_q",
    "middle",
    "placed",
]

NODES = 64
"""Of the quadrature for moments of a mapped normal."""
HALF = 0.5
"""Share of its draws that a datum's weights are worth, at least, before a q is searched for anew."""
SEARCH = ((50, 0.4), (50, 0.4), (50, 0.4), (50, 0.2))
POLISH = ((150, 0.05), (100, 0.02))
"""Steps and first learning rate of each round of the local optimisation."""

Values = dict[str, Tensor]
Rounds = Sequence[tuple[int, float]]


class LocalPosterior(nn.Module):
    """q(z_i) = T(N(m + u loc_i, diag (u scale_i)^2)), with T the map onto the latent's support.

    A step of SVI moves only the rows that are in the batch. The center m and the unit u, 0 and 1 until `measure` takes
    them from the prior, make a step mean the same whatever units the latent is in.

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

    center: Tensor
    unit: Tensor

    def __init__(self, size: int, event_shape: torch.Size, support: constraints.Constraint, scale: float = 0.1) -> None:
        super().__init__()
        self.size = size
        self.transform = biject_to(support)
        self.shape = self.transform.inverse_shape(event_shape)
        width = self.shape.numel()
        self.loc = nn.Parameter(torch.zeros(size, width))
        self.log_scale = nn.Parameter(torch.full((size, width), math.log(scale)))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("unit", torch.ones(width))

    def measure(self, prior: TorchDistribution, draws: int = 256) -> None:
        """Count in deviations of the prior from its mean, or by the central 68% of its draws mapped to the reals."""
        base = prior.base_dist if isinstance(prior, dist.Independent) else prior
        if _is_identity(self.transform) and isinstance(base, dist.Normal):
            center, unit = (value.expand(prior.shape()) for value in (base.loc, base.scale))
            center, unit = (value.reshape(-1, self.loc.shape[1]).mean(0) for value in (center, unit))
        else:
            mapped = self.transform.inv(prior.sample((draws,))).reshape(-1, self.loc.shape[1])
            center, unit = middle(mapped)
        known = center.isfinite() & unit.isfinite() & (unit > 0)
        self.center = torch.where(known, center, 0.0).to(self.loc)
        self.unit = torch.where(known, unit, 1.0).to(self.loc)

    def forward(self, index: Tensor) -> TorchDistribution:
        """Q of the data `index`, batch shape [len(index)]."""
        loc = (self.center + self.unit * self.loc[index]).reshape(len(index), *self.shape)
        scale = (self.unit * self.log_scale[index].exp()).reshape(len(index), *self.shape)
        base = _Normal(loc, scale).to_event(len(self.shape))
        if _is_identity(self.transform):
            return base  # a normal, whose moments and KL are known
        return _Transformed(base, [self.transform])


def middle(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Median of [draw, ...] and half the width of the central 68%: a normal's mean and standard deviation."""
    low, center, high = draws.quantile(draws.new_tensor([0.1587, 0.5, 0.8413]), 0)
    return center, (high - low) / 2


class _Normal(dist.Normal):
    """A normal whose noise is made like its loc: under vmap each member draws its own."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self.loc + self.scale * torch.randn_like(self.loc.expand(shape))


class _Transformed(dist.TransformedDistribution):
    """A map of a normal; mean and variance by Gauss-Hermite nodes where each entry is mapped by itself."""

    @property
    def mean(self) -> Tensor:
        z, weights = self._nodes()
        return z @ weights

    @property
    def variance(self) -> Tensor:
        z, weights = self._nodes()
        return (z - self.mean[..., None]).square() @ weights

    def _nodes(self) -> tuple[Tensor, Tensor]:
        (transform,), normal = self.transforms, self.base_dist
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        if transform.domain.event_dim or transform.codomain.event_dim:
            raise NotImplementedError("entries that are mapped together have no mean in closed form; take draws")
        nodes, weights = (torch.as_tensor(a).to(normal.mean) for a in np.polynomial.hermite_e.hermegauss(NODES))
        return transform(normal.mean[..., None] + normal.stddev[..., None] * nodes), weights / weights.sum()


def _is_identity(transform: Transform) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and not transform.parts


@contextmanager
def local_q(model: Any, obs: Any) -> Iterator[None]:
    """Within the block, new data have a q of their own, found by local optimisation of the bound at fixed theta.

    Models whose posteriors are all declared pass through untouched.
    """
    trained = model.local_posteriors
    if not trained and not model.draws_without_posterior(obs):
        yield
        return
    model.local_posteriors = nn.ModuleDict()
    try:
        with model.aside(seed=0):  # reported numbers must not depend on how often they are asked for

            def bound(q: Values) -> Tensor:
                with placed(model.local_posteriors, q):
                    return bound_of(model, obs)

            found = best_q(about_prior(model, obs), bound)
            with torch.no_grad():
                for name, parameter in model.local_posteriors.named_parameters():
                    parameter.copy_(found[name])
        yield
    finally:
        model.local_posteriors = trained


# The local optimisation, of `loc` and `log_scale` of each latent by name.


def about_prior(model: Any, obs: Any) -> Values:
    """About the prior, for every datum: loc 0 and scale 1 in the prior's units."""
    model.allocate(obs, len(obs))
    model.measure(obs)
    return {name: torch.zeros_like(value) for name, value in model.local_posteriors.named_parameters()}


def bound_of(model: Any, obs: Any) -> Tensor:
    """The sum of the ELBO over data, its gradient along the draws alone.

    The rest of the gradient, the score of q, has mean zero; without it the noise vanishes as q becomes the posterior
    (Roeder, Wu and Duvenaud 2017).
    """
    sites = model.bound_sites(obs)
    score = sum(sites.q[name].log_prob(sites.values[name].detach()).sum() for name in model.local_posteriors)
    return Elbo()(sites).sum() + score - score.detach()


def best_q(q: Values, bound: Callable[[Values], Tensor], rounds: Rounds = SEARCH + POLISH) -> Values:
    """The q of the highest bound, from rounds of which each has the scales found by the one before as its units."""
    for steps, learning_rate in rounds:
        q = _climb(q, bound, steps, learning_rate)
    return q


def _climb(q: Values, bound: Callable[[Values], Tensor], steps: int, learning_rate: float) -> Values:
    moves = {name: torch.zeros_like(value, requires_grad=True) for name, value in q.items()}

    def moved() -> Values:
        found = {}
        for name, move in moves.items():
            latent, _, parameter = name.rpartition(".")
            unit = q[f"{latent}.log_scale"].exp() if parameter == "loc" else 1.0
            found[name] = q[name] + unit * move
        return found

    optimizer = torch.optim.Adam(list(moves.values()), lr=learning_rate, fused=True)
    with differentiable():
        for step in range(steps):
            # The draws' noise averages out only as the steps get shorter.
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimizer.zero_grad()
            (-bound(moved())).backward(inputs=list(moves.values()))
            optimizer.step()
    return {name: value.detach() for name, value in moved().items()}


@contextmanager
def placed(posteriors: nn.ModuleDict, values: dict[str, Tensor]) -> Iterator[None]:
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
