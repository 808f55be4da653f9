"""A q of its own for every datum at many draws of theta: one local optimisation finds them all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ppl_vae.declare.local import HALF, POLISH, SEARCH, Rounds, Values, about_prior, best_q, bound_of, middle, placed
from ppl_vae.evidence import EVEN, importance, log_mean_exp

__all__ = ["at_draws", "each_draw", "log_prob_at_draws", "nearby"]

PARTICLES_AT_ONCE = 1 << 18
"""Draws of q that are held at once, over data and draws of theta."""
NUMBERS_AT_ONCE = 1 << 22
"""Numbers that a search of pairs of a draw of theta and a datum holds at once."""
PER_PAIR = 64
"""Such numbers of a pair beside theta."""
LEAST = 25
"""Draws of q by which one can tell what their weights are worth."""

Answer = TypeVar("Answer")


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
        return _answers(model, obs, draws, _all_rows(model, obs, draws), q, num_particles, answer)


def _answers(
    model: Any,
    obs: Any,
    draws: Values,
    rows: Tensor,
    q: Values,
    num_particles: int,
    answer: Callable[[Any, Tensor], Answer],
) -> Answer:
    """An answer for the data `rows` [S, m] of each theta_s, whose q's these are, [S, m]."""

    def asked(theta: Values, own: Values, which: Tensor) -> Answer:
        index = torch.arange(len(which), device=model.like.device).repeat(num_particles)
        with model.bind(theta), model.numeric(), placed(model.local_posteriors, own):
            return answer(obs.rows(which).repeat(num_particles), index)

    at_once = max(1, PARTICLES_AT_ONCE // (rows.shape[1] * num_particles))
    return torch.vmap(asked, randomness="different", chunk_size=at_once)(draws, q, rows)


def nearby(model: Any, obs: Any, draws: Values, num_particles: int) -> Values | None:
    """Normal q's over the middle of those found at a few draws [S, *event] of theta.

    None if the weights of most data are too uneven for these q's to serve other draws.
    """
    if num_particles < LEAST:
        return None
    with _searched(model, obs, draws) as q, torch.no_grad():
        near = _over(q)
        _, variance = _weighed(model, obs, draws, _all_rows(model, obs, draws), _everywhere(near, draws), num_particles)
        serves = _uneven(variance, num_particles).double().mean() <= HALF
        return _in_units(model, near, 1) if serves else None


def _over(q: Values) -> Values:
    """About as wide as the mixture of these normals [S, n, width], whatever a few of them that lie far out are."""
    found: Values = {}
    for name, value in q.items():
        latent, _, parameter = name.rpartition(".")
        if parameter == "loc":
            log_scale = f"{latent}.log_scale"
            center, spread = middle(value)
            own = (2 * q[log_scale]).exp().median(0).values
            found |= {name: center, log_scale: (own + spread.square()).log() / 2}
    return found


def _in_units(model: Any, q: Values, power: int) -> Values:
    """These q's in the latent's own units (power 1), and back in those of the model's local posteriors (power -1)."""
    found: Values = {}
    for latent, own in model.local_posteriors.items():
        loc, log_scale = f"{latent}.loc", f"{latent}.log_scale"
        moved = own.center + own.unit * q[loc] if power > 0 else (q[loc] - own.center) / own.unit
        found |= {loc: moved, log_scale: q[log_scale] + power * own.unit.log()}
    return found


def _everywhere(q: Values, draws: Values) -> Values:
    """The same q at each of these draws of theta."""
    count = len(next(iter(draws.values())))
    return {name: value.expand(count, *value.shape) for name, value in q.items()}


def log_prob_at_draws(model: Any, obs: Any, draws: Values, num_particles: int, near: Values | None) -> Tensor:
    """Log p(x_i | theta_s) by importance weights, [S, n] nats.

    Any q gives weights without bias, so that the same q's serve all draws of theta, and better ones are searched for
    only where weights are uneven, a datum and a draw of theta at a time.

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
    with _allocated(model, obs, draws) as prior, torch.no_grad():
        near = _everywhere(_in_units(model, near, -1), draws)
        value, variance = _weighed(model, obs, draws, _all_rows(model, obs, draws), near, num_particles)
        for start, rounds in ((near, POLISH), (prior, SEARCH + POLISH)):
            pairs = _uneven(variance, num_particles).nonzero()
            for s, i in (part.unbind(1) for part in pairs.split(_pairs_at_once(draws)) if len(part)):
                theta, rows = {name: draw[s] for name, draw in draws.items()}, i[:, None]
                own = _best(model, obs, theta, rows, {name: q[s, i][:, None] for name, q in start.items()}, rounds)
                found = _weighed(model, obs, theta, rows, own, num_particles)
                value[s, i], variance[s, i] = (each[:, 0] for each in found)
    return value


def _pairs_at_once(draws: Values) -> int:
    """How many pairs of a draw and a datum are searched for together: each has theta_s of its own."""
    return max(1, NUMBERS_AT_ONCE // sum(PER_PAIR + draw[0].numel() for draw in draws.values()))


def _uneven(variance: Tensor, num_particles: int) -> Tensor:
    """Where the draws of q should be from a better one, [S, n].

    That is where the weights of a datum are worth less than half of the draws and, where those of all data together
    are worth less than 90%, also where the datum's own are. Weights of P draws are worth the share 1 / (1 + P v) of
    them, v = var log p(x_i).
    """
    spread = num_particles * variance
    worse = spread.nanmean(1, keepdim=True) > 1 / EVEN - 1
    return ~(spread <= torch.where(worse, 1 / EVEN - 1, 1 / HALF - 1))


def _weighed(model: Any, obs: Any, draws: Values, rows: Tensor, q: Values, num_particles: int) -> tuple[Tensor, Tensor]:
    """Log p(x_i | theta_s) of the data `rows` by draws of q, and its variance, [S, m] each."""

    def weighed(chosen: Any, index: Tensor) -> tuple[Tensor, Tensor]:
        found = importance(model.log_weights(chosen, num_particles, index))
        return found.value, found.standard_error.square()

    return _answers(model, obs, draws, rows, q, num_particles, weighed)


def _all_rows(model: Any, obs: Any, draws: Values) -> Tensor:
    """Numbers of all data at each of these draws of theta, [S, n]."""
    return torch.arange(len(obs), device=model.like.device).expand(len(next(iter(draws.values()))), -1)


def each_draw(model: Any, obs: Any, draws: Values, answer: Callable[[], Answer]) -> list[Answer]:
    """An answer at each theta_s of the draws [S, *event], where every datum has its own q, as `at_draws` finds them."""
    found = []
    with _searched(model, obs, draws) as q, model.aside(), torch.no_grad():
        for s in range(len(next(iter(draws.values())))):
            theta, own = ({name: value[s] for name, value in values.items()} for values in (draws, q))
            with model.bind(theta), model.numeric(), placed(model.local_posteriors, own):
                found.append(answer())
    return found


@contextmanager
def _searched(model: Any, obs: Any, draws: Values) -> Iterator[Values]:
    """Within the block these data have posteriors of their own; gives the best q at each theta_s, [S, ...] by name."""
    with _allocated(model, obs, draws) as start:
        yield _best(model, obs, draws, _all_rows(model, obs, draws), start)


@contextmanager
def _allocated(model: Any, obs: Any, draws: Values) -> Iterator[Values]:
    """Within the block these data have posteriors of their own; gives q's about the prior at each theta_s, [S, ...]."""
    trained, count = model.local_posteriors, len(next(iter(draws.values())))
    model.local_posteriors = nn.ModuleDict()
    try:
        start: Values = {}
        if model.draws_without_posterior(obs):
            with model.aside(seed=0), model.bind({name: value[0] for name, value in draws.items()}):
                start = about_prior(model, obs)
        yield {name: value.repeat(count, *[1] * value.dim()) for name, value in start.items()}
    finally:
        model.local_posteriors = trained


def _best(model: Any, obs: Any, draws: Values, rows: Tensor, start: Values, rounds: Rounds = SEARCH + POLISH) -> Values:
    """The best q of the data `rows` [S, m] of each theta_s, [S, m, ...] by name, from a search that begins at these."""

    def bound(theta: Values, own: Values, which: Tensor) -> Tensor:
        with model.bind(theta), model.numeric(), placed(model.local_posteriors, own):
            return bound_of(model, obs.rows(which))

    if not start:
        return start
    with model.aside(seed=0):
        return best_q(start, lambda q: torch.vmap(bound, randomness="different")(draws, q, rows).sum(), rounds)
