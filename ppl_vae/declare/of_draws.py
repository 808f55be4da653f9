"""What a model says of data at many draws of theta at once, where a latent has no posterior of its own.

There every datum has a q of its own at every theta, and one local optimisation finds them all.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.declare.answers import class_probabilities, expected_of, reconstructed
from ppl_vae.declare.local_draws import at_draws, each_draw, log_prob_at_draws, nearby
from ppl_vae.declare.observations import Observations
from ppl_vae.declare.pyro_programs import PyroPrograms
from ppl_vae.errors import EngineError
from ppl_vae.objectives import Elbo, Sites

__all__ = ["Asked", "OfDraws", "one_or_all"]

Asked = Callable[[Sites, str, int, Any], Tensor]
"""An answer about a node: factors, its name, draws of each datum, its value where it has one."""


class OfDraws(PyroPrograms):
    """The answers of a model at draws [S, ...] of its shared latents."""

    def nearby(self, data: Any, draws: Mapping[str, Tensor], num_particles: int = 100) -> dict[str, Tensor] | None:
        """A q of every datum about these few draws [S, ...] of theta, where it may serve all in `log_prob_of_draws`."""
        return nearby(self, self.check(data), dict(draws), num_particles)

    def log_prob_of_draws(
        self,
        data: Any,
        draws: Mapping[str, Tensor],
        num_particles: int = 100,
        near: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Log p(x_i | theta_s), [S, n] nats, at draws [S, ...] of theta, where a latent has no posterior."""
        return log_prob_at_draws(self, self.check(data), dict(draws), num_particles, near)

    def elbo_of_draws(self, data: Any, draws: Mapping[str, Tensor], num_particles: int = 1) -> Tensor:
        """The bound L_i at each of the draws [S, ...] of theta, [S, n] nats, where a latent has no posterior."""
        objective = Elbo(num_particles)
        return at_draws(
            self, self.check(data), dict(draws), num_particles, lambda obs, i: objective(self.bound_sites(obs, i))
        )

    def posterior_of_draws(self, data: Any, draws: Mapping[str, Tensor]) -> list[dict[str, TorchDistribution]]:
        """What q(z | x_i) of each continuous latent is at each of the draws [S, ...] of theta."""
        obs = self.check(data)

        def q() -> dict[str, TorchDistribution]:
            sites = self.bound_sites(obs)
            return {name: sites.q[name] for name in sites.drawn}

        return each_draw(self, obs, dict(draws), q)

    def responsibilities_of_draws(
        self, data: Any, draws: Mapping[str, Tensor], num_particles: int = 100
    ) -> list[Tensor | dict[str, Tensor]]:
        """`responsibilities` at each of the draws [S, ...] of theta, where a latent has no posterior."""
        obs = self.check(data)
        finite = self.finite_latents(obs)
        if not finite:
            raise EngineError(f"{type(self).__name__} has no finite latent to infer: use posterior(x)")

        def classes(sites: Sites, name: str, count: int, value: Any) -> Tensor:
            return class_probabilities(sites, name, count)

        each = self._at_draws(obs, draws, num_particles, finite, classes)
        return [one_or_all(found) for found in each]

    def reconstruct_of_draws(
        self, data: Any, draws: Mapping[str, Tensor], num_particles: int = 1
    ) -> list[Tensor | dict[str, Tensor]]:
        """`reconstruct` at each of the draws [S, ...] of theta, where a latent has no posterior."""
        obs = self.check(data)
        each = self._at_draws(obs, draws, num_particles, self._observed_names(), reconstructed)
        return [one_or_all(found) for found in each]

    def expected_values_of_draws(
        self, obs: Observations, draws: Mapping[str, Tensor], num_particles: int = 1
    ) -> list[dict[str, Tensor]]:
        """`expected_values` at each of the draws [S, ...] of theta, where a latent has no posterior."""
        return self._at_draws(obs, draws, num_particles, self._gappy(obs), expected_of)

    def _at_draws(
        self, obs: Observations, draws: Mapping[str, Tensor], particles: int, names: list[str], answer: Asked
    ) -> list[dict[str, Tensor]]:
        repeated = obs.repeat(particles)
        index = torch.arange(len(obs), device=self.like.device).repeat(particles)

        def answers() -> dict[str, Tensor]:
            sites = self.bound_sites(repeated, index)
            return {name: answer(sites, name, particles, repeated.values.get(name)) for name in names}

        return each_draw(self, obs, dict(draws), answers)

    def _observed_names(self) -> list[str]:
        return [node.name for node in self.local_nodes() if node.kind == "observed"]

    def _gappy(self, obs: Observations) -> list[str]:
        return [name for name in self._observed_names() if name in obs.missing]


def one_or_all(found: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """Answers about observed nodes; one alone is not named."""
    return next(iter(found.values())) if len(found) == 1 else found
