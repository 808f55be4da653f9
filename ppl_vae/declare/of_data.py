"""What a model says of each datum, over as many rows at a time as fit into memory."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.declare.answers import (
    class_probabilities,
    completed,
    expected_of,
    finite_posterior,
    log_weights,
    reconstructed,
)
from ppl_vae.declare.local import local_q
from ppl_vae.declare.observations import Observations
from ppl_vae.declare.of_draws import Asked, OfDraws, one_or_all
from ppl_vae.declare.order import drawn_before
from ppl_vae.declare.unamortised import badly_covered, unamortised, uneven, with_gaps
from ppl_vae.errors import EngineError, check_particles
from ppl_vae.evidence import Evidence, exact, importance
from ppl_vae.objectives import Elbo
from ppl_vae.over_classes import OverClasses
from ppl_vae.progress import progress

__all__ = ["OfData"]

ROWS_AT_ONCE = 1 << 16
"""Rows times particles held in memory at once."""


class OfData(OfDraws):
    """The answers of a model whose shared latents have values."""

    def elbo(self, data: Any, num_particles: int = 1) -> Tensor:
        """Evidence lower bound L_i = E_q[log p(x_i, z) - log q(z | x_i)], [n] nats (000 (25), (28))."""
        objective = Elbo(num_particles)
        with torch.no_grad():
            return self._by_rows(data, num_particles, lambda obs, i: objective(self.bound_sites(obs, i)))

    def evidence(self, data: Any, num_particles: int = 100) -> Evidence:
        """Log p(x_i): exact when every latent is finite, else by importance weights from q.

        Parameters
        ----------
        data : Tensor or mapping
            Observed values, n rows.
        num_particles : int
            Draws of q per datum, where the latents are continuous.
        """
        obs = self.check(data)
        if not self.draws_latents(obs):
            with torch.no_grad():
                return exact(self.all_log_weights(obs, 1)[0])
        with torch.no_grad():
            log_w, rows = self.all_log_weights(obs, num_particles), with_gaps(self, obs)
            if len(bad := rows[uneven(log_w[:, rows])]):
                with unamortised(self):
                    log_w[:, bad] = self.all_log_weights(obs.rows(bad), num_particles)
        return importance(log_w)

    def all_log_weights(self, obs: Observations, count: int) -> Tensor:
        """`log_weights` of all data at draws of the q's that are declared, [count, n]."""
        return self._by_rows(obs, count, lambda o, i: self.log_weights(o, count, i), dim=1)

    def log_weights(self, obs: Observations, count: int, index: Tensor | None = None) -> Tensor:
        """Log p(x_i, z_s) - log q(z_s | x_i) with every finite latent summed out, [count, n]."""
        return log_weights(self.bound_sites(obs, index), count)

    def log_prob(self, data: Any, num_particles: int = 100) -> Tensor:
        """Log p(x_i), [n] nats; `evidence` also says how it was found and how far to trust it."""
        return self.evidence(data, num_particles).value

    def responsibilities(self, data: Any, num_particles: int = 100) -> Tensor | dict[str, Tensor]:
        """p(z = k | x_i) of the finite latents: [n, K], or a dictionary by name when there are several (000 (11)).

        Exact where all latents are finite. Beside continuous ones it is q(z = k | x_i) of a latent that has a declared
        posterior, and of the others an estimate by importance weights.

        Parameters
        ----------
        data : Tensor or mapping
            Observed values, n rows.
        num_particles : int
            Draws of q per datum, where the other latents are continuous.

        Raises
        ------
        EngineError
            If no latent is finite.
        """
        check_particles(num_particles)
        obs = self.check(data)
        finite = self.finite_latents(obs)
        if not finite:
            raise EngineError(f"{type(self).__name__} has no finite latent to infer: use posterior(x)")
        drawn = set(self.draws_latents(obs))

        def probabilities(o: Observations) -> dict[str, Tensor]:
            before = drawn_before(self._graph)

            def of(name: str) -> Tensor:
                count = num_particles if before.get(name, drawn) & drawn else 1

                def one(rows: Observations, index: Tensor | None) -> Tensor:
                    return class_probabilities(self.bound_sites(rows, index), name, count)

                return self._by_rows(o, count, one)

            return {name: of(name) for name in finite}

        found = self._covered(obs, num_particles if drawn else 1, probabilities)
        return next(iter(found.values())) if len(found) == 1 else found

    def posterior(self, data: Any) -> TorchDistribution | dict[str, TorchDistribution]:
        """q(z | x_i) of each latent: a distribution, or a dictionary when there are several, batch shape [n].

        Finite latents have their `responsibilities`. A q that depends on such a one is a mixture over its values.
        """
        obs = self.check(data)
        with torch.no_grad(), self.numeric(), local_q(self, obs):
            sites = self.bound_sites(obs)
            drawn = {name: sites.q[name] for name in sites.drawn}
            by_class = any(len(q.batch_shape) > 1 for q in drawn.values())
            shares = finite_posterior(sites) if by_class else torch.ones(())
            found = {name: OverClasses(q, shares) if len(q.batch_shape) > 1 else q for name, q in drawn.items()}
        if sites.summed or sites.enumerated:
            r = self.responsibilities(obs)
            by_name = r if isinstance(r, dict) else {next(iter({**sites.enumerated, **sites.summed})): r}
            found |= {name: dist.Categorical(probs=p) for name, p in by_name.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    def reconstruct(self, data: Any, num_particles: int = 100) -> Tensor | dict[str, Tensor]:
        """E[x | z], mean over draws of z from the posterior of each datum, [n, *event] (004 s.4.1).

        Of a categorical node it is the probabilities of its values, [n, *event, C].

        Raises
        ------
        EngineError
            Where x has no mean.
        """
        obs = self.check(data)
        return one_or_all(self._of_observed(obs, num_particles, self._observed_names(), reconstructed))

    def impute(self, data: Any, num_particles: int = 100) -> Tensor | dict[str, Tensor]:
        """The data with E[x_missing | x_seen] in place of what is missing (NaN), [n, *event].

        Every seen entry of a datum tells of its missing ones: by the posterior of the latents, and within a component
        by the correlations of a multivariate normal or Student-t. A missing category is the most probable one.

        Raises
        ------
        EngineError
            Where a missing value has no mean.

        Examples
        --------
        >>> import ppl_vae as pv
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.1], [3.0, 5.9], [2.5, 5.0]])
        >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 2), x)
        >>> fit.impute(torch.tensor([[1.5, torch.nan]])).round(decimals=1).tolist()
        [[1.5, 3.0]]
        """
        obs = self.check(data)
        return self.completed(obs, self.expected_values(obs, num_particles))

    def expected_values(self, obs: Observations, num_particles: int = 100) -> dict[str, Tensor]:
        """E[x | x_seen] of each observed node with gaps, [n, numbers]: probabilities in place of categories."""
        return self._of_observed(obs, num_particles, self._gappy(obs), expected_of)

    def _of_observed(self, obs: Observations, particles: int, names: list[str], answer: Asked) -> dict[str, Tensor]:
        """An answer about these observed nodes, by rows of the data."""
        count = particles if self.draws_latents(obs) else 1

        def by_rows(o: Observations, name: str) -> Tensor:
            def one(rows: Observations, index: Tensor | None) -> Tensor:
                return answer(self.bound_sites(rows, index), name, count, rows.values[name])

            return self._by_rows(o, count, one)

        return self._covered(obs, count, lambda o: {name: by_rows(o, name) for name in names})

    def _covered(
        self, obs: Observations, count: int, answer: Callable[[Observations], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Answers by name, [n, ...], from q's of their own for the data that declared posteriors cover badly."""
        with torch.no_grad():
            found, bad = answer(obs), self.badly_covered(obs, count)
            if len(bad):
                with self.unamortised():
                    for name, better in answer(obs.rows(bad)).items():
                        found[name][bad] = better
        return found

    def badly_covered(self, obs: Observations, count: int) -> Tensor:
        """Numbers of the data with gaps at which draws of the declared posteriors have uneven weights."""
        return badly_covered(self, obs, count)

    def unamortised(self) -> AbstractContextManager[None]:
        """Within the block no latent has a declared posterior: every datum has a q of its own, found by a search."""
        return unamortised(self)

    def completed(self, obs: Observations, expected: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The data with these values of `expected_values` where they are missing."""
        laws, found = self.prototypes(obs), {name: obs.values[name] for name in self._observed_names()}
        for name, mean in expected.items():
            found[name] = completed(laws[name], name, mean, obs.values[name], obs.missing[name])
        return one_or_all(found)

    # Which latents.

    def finite_latents(self, obs: Observations) -> list[str]:
        """Latents that are summed out for some datum at least."""
        return [name for name in self.finite_nodes(obs) if name not in obs.values or name in obs.missing]

    def finite_nodes(self, obs: Observations) -> list[str]:
        """Latents with finitely many values, given or not."""
        laws = self.prototypes(obs)
        return [n.name for n in self.local_nodes() if n.kind == "latent" and laws[n.name].has_enumerate_support]

    def class_probabilities(self, obs: Observations, finite: list[str]) -> dict[str, Tensor]:
        """p(z = k | x_i) of these finite latents by name, [n, K] each, where no other latent is to be drawn."""
        sites = self.bound_sites(obs)
        return {name: class_probabilities(sites, name, 1) for name in finite}

    def draws_latents(self, obs: Observations) -> list[str]:
        """Latents that are neither given nor summed out exactly, so need draws from a q."""
        laws = self.prototypes(obs)
        latents = [node.name for node in self.local_nodes() if node.kind == "latent"]
        return [n for n in latents if n not in obs.values and not laws[n].has_enumerate_support]

    def draws_without_posterior(self, obs: Observations) -> list[str]:
        """Those of `draws_latents` that have no declared posterior."""
        return [name for name in self.draws_latents(obs) if name not in self._graph.posteriors]

    # Rows at a time.

    def _by_rows(
        self, data: Any, particles: int, function: Callable[[Observations, Tensor | None], Tensor], dim: int = 0
    ) -> Tensor:
        """Apply a function of repeated rows to bounded chunks of the data, and put the answers together."""
        check_particles(particles)
        obs = self.check(data)
        at_once = max(1, ROWS_AT_ONCE // particles)
        parts = []
        with progress("data", len(obs), len(obs) > at_once) as update:
            for start in range(0, len(obs), at_once):
                rows = obs.rows(torch.arange(start, min(start + at_once, len(obs)), device=self.like.device))
                with self.numeric(), local_q(self, rows):
                    index = torch.arange(len(rows), device=self.like.device).repeat(particles)
                    parts.append(function(rows.repeat(particles), index if self.local_posteriors else None))
                update(start + len(rows), "")
        return torch.cat(parts, dim)
