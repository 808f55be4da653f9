"""The q that is not amortised: parameters of its own for every datum (000 s.2.2)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from ppl_vae.alone import differentiable
from ppl_vae.evidence import EVEN, importance, log_mean_exp
from ppl_vae.objectives import Elbo

__all__ = [
    "HALF",
    "POLISH",
    "SEARCH",
    "LocalPosterior",
    "at_draws",
    "best_q",
    "each_draw",
    "local_q",
    "log_prob_at_draws",
    "middle",
    "nearby",
]

NODES = 64
"""Of the quadrature for moments of a mapped normal."""
PARTICLES_AT_ONCE = 1 << 18
"""Draws of q that are held at once, over data and draws of theta."""
HALF = 0.5
"""Share of its draws that a datum's weights are worth, at least, before a q is searched for anew."""
LEAST = 25
"""Draws of q by which one can tell what their weights are worth."""
SEARCH = ((50, 0.4), (50, 0.4), (50, 0.4), (50, 0.2))
POLISH = ((150, 0.05), (100, 0.02))
"""Steps and first learning rate of each round of the local optimisation."""

Values = dict[str, Tensor]
Answer = TypeVar("Answer")


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
                with _placed(model.local_posteriors, q):
                    return _bound(model, obs)

            found = best_q(_prior(model, obs), bound)
            with torch.no_grad():
                for name, parameter in model.local_posteriors.named_parameters():
                    parameter.copy_(found[name])
        yield
    finally:
        model.local_posteriors = trained


def at_draws(
    model: Any, obs: Any, draws: Values, num_particles: int, answer: Callable[[Any, Tensor], Tensor]
) -> Tensor:
    """An answer for each datum at each theta_s, [S, n], where every datum has a q of its own at every theta_s.

    What `local_q` gives draw by draw, with the local optimisations of all draws in one.

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
    answer : callable
        Asked once for all data, `num_particles` times over, and the number of each datum's q.
    """
    with _searched(model, obs, draws) as q, torch.no_grad():
        return _answers(model, obs, draws, q, num_particles, answer)


def _answers(
    model: Any, obs: Any, draws: Values, q: Values, num_particles: int, answer: Callable[[Any, Tensor], Answer]
) -> Answer:
    def asked(theta: Values, own: Values) -> Answer:
        index = torch.arange(len(obs), device=model.like.device).repeat(num_particles)
        with model.bind(theta), model.numeric(), _placed(model.local_posteriors, own):
            return answer(obs.repeat(num_particles), index)

    at_once = max(1, PARTICLES_AT_ONCE // (len(obs) * num_particles))
    return torch.vmap(asked, randomness="different", chunk_size=at_once)(draws, q)


def nearby(model: Any, obs: Any, draw: Values, num_particles: int) -> Values | None:
    """The q's found at one draw [*event] of theta, if their weights are so even that they may serve other draws."""
    if num_particles < LEAST:
        return None
    draws = {name: value[None] for name, value in draw.items()}
    with _searched(model, obs, draws) as q, torch.no_grad():
        _, variance = _weighed(model, obs, draws, q, num_particles)
    return {name: value[0] for name, value in q.items()} if bool(_even(variance, num_particles)) else None


def log_prob_at_draws(model: Any, obs: Any, draws: Values, num_particles: int, near: Values | None) -> Tensor:
    """Log p(x_i | theta_s) by importance weights, [S, n] nats.

    Any q gives weights without bias, so that the q's of one draw of theta serve others. They are searched for anew at
    draws where the weights of a datum are worth less than half of the draws of q, or those of all data less than 90%.

    Parameters
    ----------
    model, obs, draws, num_particles
        As of `at_draws`.
    near : dict of Tensor, optional
        The q's to begin with, of `nearby`.
    """
    if near is None:
        return at_draws(
            model, obs, draws, num_particles, lambda o, i: log_mean_exp(model.log_weights(o, num_particles, i))
        )
    with _allocated(model, obs, draws) as start, torch.no_grad():
        count = len(next(iter(draws.values())))
        q = {name: value.expand(count, *value.shape) for name, value in near.items()}
        value, variance = _weighed(model, obs, draws, q, num_particles)
        if len(far := (~_even(variance, num_particles)).nonzero()[:, 0]):
            theta, own = ({name: value[far] for name, value in values.items()} for values in (draws, start))
            value[far] = _weighed(model, obs, theta, _best(model, obs, theta, own), num_particles)[0]
    return value


def _even(variance: Tensor, num_particles: int) -> Tensor:
    """Whether weights are worth enough, [S]: 1 / (1 + P v) of P draws, v the variance of log p(x_i), [S, n]."""
    spread = num_particles * variance
    return (spread <= 1 / HALF - 1).all(1) & (spread.mean(1) <= 1 / EVEN - 1)


def _weighed(model: Any, obs: Any, draws: Values, q: Values, num_particles: int) -> tuple[Tensor, Tensor]:
    """Log p(x_i | theta_s) by draws of q, and its variance, [S, n] each."""

    def weighed(rows: Any, index: Tensor) -> tuple[Tensor, Tensor]:
        found = importance(model.log_weights(rows, num_particles, index))
        return found.value, found.standard_error.square()

    return _answers(model, obs, draws, q, num_particles, weighed)


def each_draw(model: Any, obs: Any, draws: Values, answer: Callable[[], Answer]) -> list[Answer]:
    """An answer at each theta_s of the draws [S, *event], where every datum has its own q, as `at_draws` finds them."""
    found = []
    with _searched(model, obs, draws) as q, model.aside(), torch.no_grad():
        for s in range(len(next(iter(draws.values())))):
            theta, own = ({name: value[s] for name, value in values.items()} for values in (draws, q))
            with model.bind(theta), model.numeric(), _placed(model.local_posteriors, own):
                found.append(answer())
    return found


@contextmanager
def _searched(model: Any, obs: Any, draws: Values) -> Iterator[Values]:
    """Within the block these data have posteriors of their own; gives the best q at each theta_s, [S, ...] by name."""
    with _allocated(model, obs, draws) as start:
        yield _best(model, obs, draws, start)


@contextmanager
def _allocated(model: Any, obs: Any, draws: Values) -> Iterator[Values]:
    """Within the block these data have posteriors of their own; gives q's about the prior at each theta_s, [S, ...]."""
    trained, count = model.local_posteriors, len(next(iter(draws.values())))
    model.local_posteriors = nn.ModuleDict()
    try:
        start: Values = {}
        if model.draws_without_posterior(obs):
            with model.aside(seed=0), model.bind({name: value[0] for name, value in draws.items()}):
                start = _prior(model, obs)
        yield {name: value.repeat(count, *[1] * value.dim()) for name, value in start.items()}
    finally:
        model.local_posteriors = trained


def _best(model: Any, obs: Any, draws: Values, start: Values) -> Values:
    """The best q at each theta_s, [S, ...] by name, from a search that begins at these."""

    def bound(theta: Values, own: Values) -> Tensor:
        with model.bind(theta), model.numeric(), _placed(model.local_posteriors, own):
            return _bound(model, obs)

    if not start:
        return start
    with model.aside(seed=0):
        return best_q(start, lambda q: torch.vmap(bound, randomness="different")(draws, q).sum())


# The local optimisation, of `loc` and `log_scale` of each latent by name.


def _prior(model: Any, obs: Any) -> Values:
    """About the prior, for every datum: loc 0 and scale 1 in the prior's units."""
    model.allocate(obs, len(obs))
    model.measure(obs)
    return {name: torch.zeros_like(value) for name, value in model.local_posteriors.named_parameters()}


def _bound(model: Any, obs: Any) -> Tensor:
    """The sum of the ELBO over data, its gradient along the draws alone.

    The rest of the gradient, the score of q, has mean zero; without it the noise vanishes as q becomes the posterior
    (Roeder, Wu and Duvenaud 2017).
    """
    sites = model.sites(obs)
    score = sum(sites.q[name].log_prob(sites.values[name].detach()).sum() for name in model.local_posteriors)
    return Elbo()(sites).sum() + score - score.detach()


def best_q(
    q: Values, bound: Callable[[Values], Tensor], rounds: Sequence[tuple[int, float]] = SEARCH + POLISH
) -> Values:
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
