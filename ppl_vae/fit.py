"""The record of a fit: what was fitted, how it went, and everything the fitted model can say."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_vae.errors import EngineError, check_count
from ppl_vae.evidence import Evidence, log_mean_exp
from ppl_vae.version import __version__

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Fit", "Status", "versions"]

ELEMENTS_AT_ONCE = 1 << 20
ROWS = 1 << 16
"""Data for which all draws of theta may be taken at once."""
DRAWS = 200
"""Draws, evenly spaced, that answers other than the predictive density are means over, at most."""


@dataclass(frozen=True)
class Status:
    """How a fit ended, as a value.

    Attributes
    ----------
    code : str
        "converged", "finished", "stopped early", "stopped by a callback", "interrupted", "max_iter", "degenerate" or
        "failed".
    message : str
        One sentence for people.
    notes : tuple of str
        What happened on the way: repairs, warnings, naming the component or site.
    """

    code: str
    message: str
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the answer can be used as it is."""
        return self.code in ("converged", "finished", "stopped early", "stopped by a callback")

    def __str__(self) -> str:
        return "; ".join([f"{self.code}: {self.message}", *self.notes])


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import pyro

    return {
        "ppl_vae": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
    }


@dataclass
class Fit:
    """Declaration, state, draws, trace and status of one fit.

    Attributes
    ----------
    model : LatentVariableModel
        The fitted copy of the declaration.
    engine : str
        "EM", "VB", "SVI", "NUTS" or "bootstrap".
    draws : dict of Tensor
        Shared latents, [chain, draw, *event]; a point estimate is 1 x 1. A bootstrap's are its refits.
    trace : dict of Tensor
        The engine's record by iteration or epoch: "bound" (total nats for EM and VB, nats per datum for SVI),
        "seconds", ...
    bound : str
        What `trace["bound"]` is.
    status : Status
        How it ended.
    seconds : float
        Wall-clock time of the fit.
    seed : int
        Seed that repeats it.
    settings : dict
        The engine's arguments.
    data : Observations, optional
        The training data; not saved.
    sample_stats : dict of Tensor
        Sampler's record, [chain, draw].
    history : dict of Tensor
        EM's parameters at some of its iterations, [iterations kept, *event], and under "iteration" which these are.
    q : dict
        VB's conjugate posterior of each family's parameters, by path; not saved.
    """

    model: Any
    engine: str
    draws: dict[str, Tensor]
    trace: dict[str, Tensor]
    bound: str
    status: Status
    seconds: float
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    data: Any = None
    weights: Tensor | None = None
    sample_stats: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    history: dict[str, Tensor] = field(default_factory=dict)
    q: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if getattr(self.data, "columns", None):
            self.model._columns = self.data.columns  # later data with other ones in these places are refused

    # The draws.

    @property
    def is_point(self) -> bool:
        """Whether the shared latents, if any, have a single value."""
        return all(value.shape[:2] == (1, 1) for value in self.draws.values())

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Mean over its draws of each parameter that has draws, and the value of each other one, by name."""
        found = {name: value.mean((0, 1)) for name, value in self.draws.items()}
        for path, family in self.model.families().items():
            if family.prior is None:
                own = {f"{path}.{name}": value for name, value in family.values().items()}
                found |= {name: value for name, value in own.items() if name not in found}
        return {**found, **getattr(self.model, "values", {})}

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
        for s in self.spaced(min(DRAWS, self.num_draws)) if chosen is None else chosen:
            with self.model.bind(self.draw(s)):
                answer = ask()
            yield answer

    def _mean(self, ask: Callable[[], Any]) -> Any:
        """Mean of an answer over those draws."""
        return _scale(reduce(_combine, self._asked(ask)), 1 / min(DRAWS, self.num_draws))

    # What the model says, with the draws.

    def pointwise(self, data: Any, num_particles: int = 100) -> Tensor:
        """Log p(x_i | theta_s), latents of each datum integrated out, [chain, draw, n] nats."""
        obs = self.model.check(data)
        if not self.draws:
            return self.model.log_prob(obs, num_particles)[None, None]
        if not self.model.draws_latents(obs):
            flat = self._exact_pointwise(obs)
        else:
            flat = self._each_draw(
                obs,
                list(range(self.num_draws)),
                lambda draws: self.model.log_prob_of_draws(obs, draws, num_particles),
                lambda: self.model.log_prob(obs, num_particles),
            )
        first = next(iter(self.draws.values()))
        return flat.reshape(*first.shape[:2], -1)

    def _each_draw(
        self, obs: Any, chosen: list[int], together: Callable[[dict[str, Tensor]], Tensor], alone: Callable[[], Tensor]
    ) -> Tensor:
        """An answer [S, n] at these draws of theta: many at once where a latent has a q for every datum and draw."""
        at_once = ELEMENTS_AT_ONCE // (len(obs) * 64)
        if at_once > 1 and self.model.draws_without_posterior(obs):
            stacked = {name: value.flatten(0, 1)[chosen].split(at_once) for name, value in self.draws.items()}
            parts = [dict(zip(stacked, part, strict=True)) for part in zip(*stacked.values(), strict=True)]
            with suppress(RuntimeError):  # a model whose operations depend on values goes draw by draw
                return torch.cat([together(part) for part in parts])
        return torch.stack(list(self._asked(alone, chosen)))

    def _exact_pointwise(self, obs: Any) -> Tensor:
        return self._exact(obs, lambda: self.model.log_weights(obs, 1)[0], list(range(self.num_draws)))

    def _exact(self, obs: Any, function: Callable[[], Any], chosen: list[int]) -> Any:
        """What draws nothing, at each of these draws of theta: tensors [S, ...]."""
        import pyro

        def one(values: dict[str, Tensor]) -> Any:
            with self.model.bind(values), self.model.numeric():
                return function()

        stacked = {name: value.flatten(0, 1)[chosen] for name, value in self.draws.items()}
        at_once = max(1, ELEMENTS_AT_ONCE // (len(obs) * 8))
        with torch.no_grad(), pyro.validation_enabled(False):
            try:
                return torch.vmap(one, chunk_size=at_once)(stacked)
            except RuntimeError:  # a model whose operations depend on values goes draw by draw
                each = [one(self.draw(s)) for s in chosen]
                return tree_map(lambda *values: torch.stack(values), *each)

    def log_predictive(self, data: Any, num_particles: int = 100) -> Tensor:
        """Log of the mean over draws of p(x_i | theta), [n] nats: the held-out column every engine shares."""
        pointwise = self.pointwise(data, num_particles).flatten(0, 1)
        return log_mean_exp(pointwise)

    def log_prob(self, data: Any, num_particles: int = 100) -> Tensor:
        """Log p(x_i) under the fit, [n] nats; the same as `log_predictive`."""
        return self.log_predictive(data, num_particles)

    def evidence(self, data: Any, num_particles: int = 100) -> Evidence:
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
        with self.model.bind(self.draw(0)):
            return self.model.evidence(data, num_particles)

    def log_joint(self, data: Any, **latents: Tensor) -> Tensor:
        """Log of the mean over draws of p(x_i, z_i | theta), [n] nats, at a value [n, *event] of each latent."""
        return log_mean_exp(torch.stack(list(self._asked(lambda: self.model.log_joint(data, **latents)))))

    def elbo(self, data: Any, num_particles: int = 1) -> Tensor:
        """Evidence lower bound of each datum, mean over draws, [n] nats."""
        obs = self.model.check(data)
        if self.is_point:
            return self._mean(lambda: self.model.elbo(obs, num_particles))
        return self._each_draw(
            obs,
            self.spaced(min(DRAWS, self.num_draws)),
            lambda draws: self.model.elbo_of_draws(obs, draws, num_particles),
            lambda: self.model.elbo(obs, num_particles),
        ).mean(0)

    def responsibilities(self, data: Any) -> Any:
        """p(z = k | x_i), mean over draws, [n, K]; a dictionary when several latents are finite."""
        if self.is_point:
            return self._mean(lambda: self.model.responsibilities(data))
        obs = self.model.check(data)
        finite = self.model.finite_latents(obs)
        if not finite or len(obs) > ROWS or self.model.draws_latents(obs):
            return self._mean(lambda: self.model.responsibilities(obs))
        chosen = self.spaced(min(DRAWS, self.num_draws))
        each = self._exact(obs, lambda: self.model.class_probabilities(obs, finite), chosen)
        found = {name: value.mean(0) for name, value in each.items()}
        return found if len(found) > 1 else next(iter(found.values()))

    def labels(self, data: Any) -> Tensor:
        """The most probable component of each datum, [n] (004 s.7.2)."""
        r = self.responsibilities(data)
        if isinstance(r, dict):
            raise EngineError(f"labels needs one finite latent, this model has {', '.join(r)}; use responsibilities")
        return r.argmax(-1)

    def reconstruct(self, data: Any, num_particles: int = 1) -> Any:
        """E[x | z] with z from the posterior, mean over draws, [n, *event]."""
        return self._mean(lambda: self.model.reconstruct(data, num_particles))

    def posterior(self, data: Any) -> Any:
        """q(z | x_i) of each latent.

        Raises
        ------
        EngineError
            For a continuous latent when theta itself has many draws: then the posterior is a mixture over them.
        """
        if self.is_point:
            with self.model.bind(self.draw(0)):
                return self.model.posterior(data)
        import pyro.distributions as dist

        if self.model.draws_latents(self.model.check(data)):
            raise EngineError(
                f"the posterior of a latent over the {self.num_draws} draws of theta is a mixture; ask at one of them: "
                "with fit.model.bind(fit.draw(0)): fit.model.posterior(x)"
            )
        r = self.responsibilities(data)
        if isinstance(r, dict):
            return {name: dist.Categorical(probs=p) for name, p in r.items()}
        return dist.Categorical(probs=r)

    def sample(self, n: int, seed: int = 0, **inputs: Tensor) -> Any:
        """N new data from the posterior predictive, given inputs [n, ...]: each has a draw of theta of its own."""
        check_count(n)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
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
            if isinstance(parts[0], dict):
                return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
            order = torch.randperm(n) if not inputs else torch.arange(n)
            return torch.cat(parts)[order]

    # What the fit is worth, and how to keep it.

    def evaluate(self, data: Any, num_particles: int = 100, weights: Any = None) -> Any:
        """ELBO, log p(x), KL per unit and their kin on data: see ppl_vae.diagnostics.evaluate."""
        from ppl_vae.diagnostics import evaluate

        return evaluate(self, data, num_particles, weights=weights)

    def diagnose(self, data: Any = None, **options: Any) -> Any:
        """Collapse, prior hole and quality of q, with verdicts and advice: see ppl_vae.diagnose.diagnose."""
        from ppl_vae.diagnose import diagnose

        return diagnose(self, data, **options)

    def to_datatree(self, data: Any = None) -> "xr.DataTree":
        """For ArviZ: posterior, log_likelihood, posterior_predictive, observed_data, sample_stats."""
        from ppl_vae.datatree import to_datatree

        return to_datatree(self, data)

    def export(self, path: str | os.PathLike[str], data: Any = None) -> Path:
        """Write q(z | x) and p(x | z) as programs that run without this package: see ppl_vae.export.export."""
        from ppl_vae.export import export

        return export(self, path, data)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write parameters, draws and record to one safetensors file; no code, no pickle, no data.

        Parameters
        ----------
        path : path
            File to write; an older one is replaced only when the new one is complete.
        """
        from ppl_vae.fit_files import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any) -> "Fit":
        """Read a fit back into a declaration of the same class and shape.

        Raises
        ------
        DataError
            If the file is missing, cut short, not a fit, or of another model.
        """
        from ppl_vae.fit_files import load

        return load(path, model)

    def _free(self) -> list[str]:
        """Names of networks and parameters that no family owns."""
        own = (*(f"{path}." for path in self.model.families()), "local_posteriors.", "shared_guide.")
        named = self.model.named_parameters() if isinstance(self.model, torch.nn.Module) else ()
        return list(dict.fromkeys(name.partition(".")[0] for name, _ in named if not name.startswith(own)))

    def __repr__(self) -> str:
        kind = "point estimate" if self.is_point else f"{self.num_draws} draws"
        last = self.trace.get("bound")
        bound = f"\n  {self.bound}: {last[-1].item():.4f}" if last is not None and len(last) else ""
        free = self._free()
        rest = f"{'; ' if self.parameters else ''}in fit.model {', '.join(free)}" if free else ""
        return (
            f"Fit of {type(self.model).__name__} by {self.engine} ({kind}, {self.seconds:.1f} s, seed {self.seed})"
            f"\n  {self.status}{bound}"
            f"\n  parameters: {', '.join(self.parameters)}{rest}"
            f"\n  next: fit.log_predictive(x), fit.sample(n), fit.evaluate(x), fit.to_datatree(), fit.save(path)"
        )

    def _repr_html_(self) -> str:
        from ppl_vae.report import fit_html

        return fit_html(self)


def _combine(a: Any, b: Any) -> Any:
    return {name: a[name] + b[name] for name in a} if isinstance(a, Mapping) else a + b


def _scale(a: Any, by: float) -> Any:
    return {name: value * by for name, value in a.items()} if isinstance(a, Mapping) else a * by
