"""What a fit says of data: an answer of the model at every draw of theta, and their mean."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_vae.alone import seeded_rng, unvalidated
from ppl_vae.errors import EngineError, check_count, check_particles
from ppl_vae.evidence import Evidence, log_mean_exp
from ppl_vae.over_draws import OverDraws
from ppl_vae.progress import progress

__all__ = ["Answers"]

ELEMENTS_AT_ONCE = 1 << 20
TOGETHER = 1 << 22
"""Numbers that are held at once where every datum has a q of its own at every draw of theta."""
PER_DATUM = 64
"""Such numbers of a datum and a draw, at least."""
PER_ENTRY = 8
"""Such numbers of each entry of a datum, at least."""
ROWS = 1 << 16
"""Data for which all draws of theta may be taken at once."""
DRAWS = 200
"""Draws, evenly spaced, that answers other than the predictive density are means over, at most."""
FEW = 8
"""Draws, evenly spaced, about which a q that is to serve all draws is laid."""
LEAST = 10
"""Draws of a latent at each theta whose importance weights are held against each other, at least."""
DRAWN = "draws of theta"
"""What of such an answer is counted while it is worked on."""


class Answers:
    """The answers of a fitted model over the draws of its shared latents.

    What an answer draws is drawn from its `seed` and counts nowhere else: the same question has the same answer.

    Attributes
    ----------
    model : LatentVariableModel
        The fitted declaration.
    draws : dict of Tensor
        Shared latents, [chain, draw, *event].
    """

    model: Any
    draws: dict[str, Tensor]

    @property
    def is_point(self) -> bool:
        """Whether the shared latents, if any, have a single value."""
        return all(value.shape[:2] == (1, 1) for value in self.draws.values())

    def draw(self, s: int) -> dict[str, Tensor]:
        """Draw number s of all shared latents, chains one after the other."""
        return {name: value.flatten(0, 1)[s] for name, value in self.draws.items()}

    @property
    def num_draws(self) -> int:
        """Number of draws over all chains."""
        shapes = [value.shape[:2].numel() for value in self.draws.values()]
        return shapes[0] if shapes else 1

    def spaced(self, count: int) -> list[int]:
        """Numbers of `count` draws, evenly spaced from the first to the last; some come again if there are fewer."""
        return torch.linspace(0, self.num_draws - 1, count, dtype=torch.float64).round().long().tolist()

    def _asked(self, ask: Callable[[], Any], chosen: list[int] | None = None) -> Iterator[Any]:
        """An answer at each of these draws, at most `DRAWS` evenly spaced ones by default."""
        chosen = self._some() if chosen is None else chosen
        with progress(DRAWN, len(chosen), len(chosen) > 1) as update:
            for number, s in enumerate(chosen):
                update(number, type(self.model).__name__)
                with self.model.bind(self.draw(s)):
                    answer = ask()
                yield answer

    def _mean(self, ask: Callable[[], Any]) -> Any:
        """Mean of an answer over those draws."""
        return _mean(self._asked(ask))

    # What the model says, with the draws.

    def pointwise(self, data: Any, num_particles: int = 100, seed: int = 0) -> Tensor:
        """Log p(x_i | theta_s), latents of each datum integrated out, [chain, draw, n] nats."""
        obs = self.model.check(data)
        with seeded_rng(seed):
            if not self.draws:
                return self.model.log_prob(obs, num_particles)[None, None]
            draws_latents = self.model.draws_latents(obs)
            flat = self._covered_pointwise(obs, num_particles) if draws_latents else self._exact_pointwise(obs)
        first = next(iter(self.draws.values()))
        return flat.reshape(*first.shape[:2], -1)

    def _covered_pointwise(self, obs: Any, num_particles: int) -> Tensor:
        """Log p(x_i | theta_s), of rows that q misses by a q of their own, [S, n]."""
        flat = self._weighed_pointwise(obs, num_particles)
        bad = torch.cat(list(self._asked(lambda: self.model.badly_covered(obs, num_particles), self._some(FEW))))
        if len(bad := bad.unique()):
            with self.model.unamortised():
                flat[:, bad] = self._weighed_pointwise(obs.rows(bad), num_particles)
        return flat

    def _weighed_pointwise(self, obs: Any, num_particles: int) -> Tensor:
        """Log p(x_i | theta_s) by importance weights, [S, n]."""
        near = cache(lambda: self.model.nearby(obs, self._at(self._some(self._about(obs))), num_particles))
        with torch.no_grad():
            each = self._each_draw(
                obs,
                list(range(self.num_draws)),
                lambda draws: self.model.log_prob_of_draws(obs, draws, num_particles, near()),
                lambda: log_mean_exp(self.model.all_log_weights(obs, num_particles)),
            )
            return torch.stack(each)

    def _about(self, obs: Any) -> int:
        """How many draws of theta are searched together for a q that is to serve them all."""
        return min(FEW, TOGETHER // _held(obs))

    def _each_draw(
        self,
        obs: Any,
        chosen: list[int],
        together: Callable[[dict[str, Tensor]], Iterable[Any]],
        alone: Callable[[], Any],
    ) -> list[Any]:
        """An answer at each of these draws of theta: many at once where a latent has a q for every datum and draw."""
        if self.draws and self.model.draws_without_posterior(obs) and 2 * _held(obs) <= TOGETHER:
            found: list[Any] = []
            # A model whose operations depend on values goes draw by draw.
            with suppress(RuntimeError), progress(DRAWN, len(chosen)) as update:
                for part in self._in_parts(chosen, _held(obs)):
                    update(len(found), f"{len(obs)} data")
                    found += together(part)
                return found
        return list(self._asked(alone, chosen))

    def _in_parts(self, chosen: list[int], held: int) -> list[dict[str, Tensor]]:
        """These draws, as many together as may be where each of them holds so many numbers."""
        at_once = max(1, TOGETHER // held)
        stacked = {name: value.split(at_once) for name, value in self._at(chosen).items()}
        return [dict(zip(stacked, part, strict=True)) for part in zip(*stacked.values(), strict=True)]

    def _exact_pointwise(self, obs: Any) -> Tensor:
        return self._exact(obs, lambda: self.model.log_weights(obs, 1)[0], list(range(self.num_draws)))

    def _exact(self, obs: Any, function: Callable[[], Any], chosen: list[int]) -> Any:
        """What draws nothing, at each of these draws of theta: tensors [S, ...]."""

        def one(values: dict[str, Tensor]) -> Any:
            with self.model.bind(values), self.model.numeric():
                return function()

        at_once = max(1, ELEMENTS_AT_ONCE // (len(obs) * 8))
        with torch.no_grad(), unvalidated():
            try:
                return torch.vmap(one, chunk_size=at_once)(self._at(chosen))
            except RuntimeError:  # a model whose operations depend on values goes draw by draw
                each = [one(self.draw(s)) for s in chosen]
                return tree_map(lambda *values: torch.stack(values), *each)

    def log_predictive(self, data: Any, num_particles: int = 100, seed: int = 0) -> Tensor:
        """Log of the mean over draws of p(x_i | theta), [n] nats: the held-out column every engine shares."""
        pointwise = self.pointwise(data, num_particles, seed).flatten(0, 1)
        return log_mean_exp(pointwise)

    def log_prob(self, data: Any, num_particles: int = 100, seed: int = 0) -> Tensor:
        """Log p(x_i) under the fit, [n] nats; the same as `log_predictive`."""
        return self.log_predictive(data, num_particles, seed)

    def evidence(self, data: Any, num_particles: int = 100, seed: int = 0) -> Evidence:
        """Log p(x_i | theta) at a point estimate, [n] nats, with its standard error and how it was found.

        Raises
        ------
        EngineError
            For many draws of theta.
        """
        if not self.is_point:
            raise EngineError(
                f"evidence is of one value of theta, this fit has {self.num_draws} draws of it: log_predictive(x) "
                "averages over them"
            )
        with seeded_rng(seed), self.model.bind(self.draw(0)):
            return self.model.evidence(data, num_particles)

    def log_joint(self, data: Any, **latents: Tensor) -> Tensor:
        """Log of the mean over draws of p(x_i, z_i | theta), [n] nats, at a value [n, *event] of each latent."""
        return log_mean_exp(torch.stack(list(self._asked(lambda: self.model.log_joint(data, **latents)))))

    def elbo(self, data: Any, num_particles: int = 1, seed: int = 0) -> Tensor:
        """Evidence lower bound of each datum, mean over draws, [n] nats."""
        obs = self.model.check(data)
        with seeded_rng(seed):
            if self.is_point:
                return self._mean(lambda: self.model.elbo(obs, num_particles))
            each = self._each_draw(
                obs,
                self._some(),
                lambda draws: self.model.elbo_of_draws(obs, draws, num_particles),
                lambda: self.model.elbo(obs, num_particles),
            )
        return torch.stack(each).mean(0)

    def responsibilities(self, data: Any, num_particles: int = 100, seed: int = 0) -> Any:
        """p(z = k | x_i), mean over draws of theta, [n, K]; a dictionary when several latents are finite.

        See LatentVariableModel.responsibilities; `num_particles` is the number of draws of the other latents over all
        draws of theta together, of which each has ten at least.
        """
        obs = self.model.check(data)
        with seeded_rng(seed):
            return self._responsibilities(obs, num_particles)

    def _responsibilities(self, obs: Any, num_particles: int) -> Any:
        if self.is_point:
            return self._mean(lambda: self.model.responsibilities(obs, num_particles))
        few = max(LEAST, self._each(num_particles))
        finite = self.model.finite_latents(obs)
        if not finite or len(obs) > ROWS or self.model.draws_latents(obs):
            each = self._each_draw(
                obs,
                self._some(),
                lambda draws: self.model.responsibilities_of_draws(obs, draws, few),
                lambda: self.model.responsibilities(obs, few),
            )
            return _mean(each)
        chosen = self._some()
        each = self._exact(obs, lambda: self.model.class_probabilities(obs, finite), chosen)
        found = {name: value.mean(0) for name, value in each.items()}
        return found if len(found) > 1 else next(iter(found.values()))

    def labels(self, data: Any, num_particles: int = 100, seed: int = 0) -> Tensor:
        """The most probable component of each datum, [n] (004 s.7.2)."""
        r = self.responsibilities(data, num_particles, seed)
        if isinstance(r, dict):
            raise EngineError(f"labels needs one finite latent, this model has {', '.join(r)}; use responsibilities")
        return r.argmax(-1)

    def reconstruct(self, data: Any, num_particles: int = 100, seed: int = 0) -> Any:
        """E[x | z], mean over draws of z from the posterior and over draws of theta, [n, *event].

        Of a categorical node the probabilities of its values. See LatentVariableModel.reconstruct.

        Parameters
        ----------
        data : object
            n rows; NaN where an outcome is not known.
        num_particles : int
            Draws of z for each datum, over all draws of theta together.
        seed : int
            Seed of those draws.
        """
        obs, few = self.model.check(data), self._each(num_particles)
        with seeded_rng(seed):
            each = self._each_draw(
                obs,
                self._some(),
                lambda draws: self.model.reconstruct_of_draws(obs, draws, few),
                lambda: self.model.reconstruct(obs, few),
            )
        return _mean(each)

    def impute(self, data: Any, num_particles: int = 100, seed: int = 0) -> Any:
        """The data with E[x_missing | x_seen], mean over draws, in place of what is missing (NaN), [n, *event].

        See LatentVariableModel.impute; `num_particles` is the number of draws of z over all draws of theta together.
        """
        obs, few = self.model.check(data), self._each(num_particles)
        if not obs.missing:
            return self.model.completed(obs, {})
        with seeded_rng(seed):
            each = self._each_draw(
                obs,
                self._some(),
                lambda draws: self.model.expected_values_of_draws(obs, draws, few),
                lambda: self.model.expected_values(obs, few),
            )
        return self.model.completed(obs, _mean(each))

    def _some(self, most: int = DRAWS) -> list[int]:
        """The draws that an answer is the mean over."""
        return self.spaced(min(most, self.num_draws))

    def _at(self, chosen: list[int]) -> dict[str, Tensor]:
        """These draws of all shared latents, [S, *event]."""
        return {name: value.flatten(0, 1)[chosen] for name, value in self.draws.items()}

    def _each(self, num_particles: int) -> int:
        """How many of so many draws of z each of these draws of theta has."""
        check_particles(num_particles)
        return -(-num_particles // min(DRAWS, self.num_draws))

    def posterior(self, data: Any) -> Any:
        """q(z | x_i) of each latent, a mixture over at most 200 draws of theta: a distribution, or a dictionary."""
        if self.is_point:
            with self.model.bind(self.draw(0)):
                return self.model.posterior(data)
        import pyro.distributions as dist

        obs, found = self.model.check(data), {}
        if names := self.model.draws_latents(obs):
            each = self._each_draw(
                obs,
                self._some(),
                lambda draws: self.model.posterior_of_draws(obs, draws),
                lambda: self.model.posterior(obs),
            )
            laws = [q if isinstance(q, dict) else {names[0]: q} for q in each]
            found = {name: OverDraws([q[name] for q in laws]) for name in names}
        if finite := self.model.finite_latents(obs):
            r = self.responsibilities(obs)
            found |= {
                name: dist.Categorical(probs=p) for name, p in (r if isinstance(r, dict) else {finite[0]: r}).items()
            }
        return next(iter(found.values())) if len(found) == 1 else found

    def sample(self, n: int, seed: int = 0, **inputs: Tensor) -> Any:
        """N new data from the posterior predictive, given the inputs [n, ...] they depend on, each at its own theta."""
        check_count(n)
        with seeded_rng(seed):
            if self.is_point:
                with self.model.bind(self.draw(0)):
                    return self.model.sample(n, **inputs)
            inputs = self.model.given_inputs(n, inputs).values
            which, count = torch.randint(self.num_draws, (n,)).unique(return_counts=True)
            parts, start = [], 0
            for s, m in zip(which.tolist(), count.tolist(), strict=True):
                with self.model.bind(self.draw(s)):
                    own = {name: value[start : start + m] for name, value in inputs.items()}
                    parts.append(self.model.sample(m, **own))
                start += m
            order = torch.randperm(n) if not inputs else torch.arange(n)
            if isinstance(parts[0], dict):
                return {name: torch.cat([p[name] for p in parts])[order] for name in parts[0]}
            return torch.cat(parts)[order]


def _held(obs: Any) -> int:
    """About how many numbers a q of every datum holds at each draw of theta."""
    width = sum(value[:1].numel() for value in obs.values.values())
    return len(obs) * max(PER_DATUM, PER_ENTRY * width)


def _mean(answers: Iterable[Any]) -> Any:
    """Of tensors, or of dictionaries of them."""
    total, count = None, 0
    for answer in answers:
        total, count = answer if total is None else _combine(total, answer), count + 1
    return _scale(total, 1 / count)


def _combine(a: Any, b: Any) -> Any:
    return {name: a[name] + b[name] for name in a} if isinstance(a, Mapping) else a + b


def _scale(a: Any, by: float) -> Any:
    return {name: value * by for name, value in a.items()} if isinstance(a, Mapping) else a * by
