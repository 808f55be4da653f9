"""The No-U-Turn sampler on the model's own log joint, finite latents summed out."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae.alone import seeded_rng, unvalidated
from ppl_vae.convergence import convergence
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError, check_seed, check_whole
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.callbacks import Callback, Callbacks, Run, checked
from ppl_vae.infer.initial import initial_values
from ppl_vae.infer.potential import Potential
from ppl_vae.infer.samplers import SAMPLERS
from ppl_vae.infer.settled import climbed
from ppl_vae.infer.target import COMPILE, JITTER, Density, Target, make_target
from ppl_vae.infer.watch import Chains, Plan
from ppl_vae.infer.weights import check_weights
from ppl_vae.invariants import remarks
from ppl_vae.relabel import Relabelled, Relabelling, Stephens, relabel_draws

__all__ = ["NUTS"]


@dataclass(frozen=True)
class NUTS:
    """Draws from p(theta | X) by the No-U-Turn sampler, several chains from jittered starts, labels aligned.

    Parameters
    ----------
    num_samples, warmup : int
        Draws kept and spent in adaptation, per chain.
    num_chains : int
        Chains.
    sampler : {"auto", "nutpie", "pyro"}
        "nutpie" drives the traced potential from Rust, a chain on every core; "pyro" is Pyro's kernel on the same
        potential, one chain after the other; "auto" takes nutpie where the model can be traced.
    start : "auto", None, mapping or Fit
        Where chains start; "auto" is the best of short EM runs where EM applies, else a draw from the prior. With
        shared latents declared by hand it goes on from there to a mean-field q, and chains start apart by twice its
        standard deviations.
    seed : int
        Seed of everything random.
    progress : bool
        Show progress.
    compile : {"auto", "inductor", "trace", "off"}
        The potential with its gradient as a graph that inductor compiles (5 to 15 seconds), as a plain graph, or run
        through Python each time; "auto" compiles where so many draws are worth it.
    callbacks : sequence of Callback
        Told of every draw, those of the warm-up included; one of them may end the fit, which keeps what was drawn.
    labels : Stephens, Ordering or None
        How components are put into one order in every draw, where their names mean nothing; None leaves them as drawn.

    Raises
    ------
    EngineError
        If a setting is out of range; if the model has free parameters, which no prior gives a posterior, naming them;
        or nothing to sample.

    Notes
    -----
    The status gives the largest R-hat, the smallest number of effective draws, and the divergences; its notes say what
    speaks against the draws: R-hat above 1.01, fewer than 100 effective draws per chain (Vehtari et al. 2021),
    divergences.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.NUTS(20, warmup=50, num_chains=2, progress=False).fit(gmm, pv.data.faithful())
    >>> fit.draws["mixing.probs"].shape
    torch.Size([2, 20, 2])
    """

    num_samples: int = 1000
    warmup: int = 500
    num_chains: int = 4
    sampler: str = "auto"
    start: Any = "auto"
    seed: int = 0
    progress: bool = True
    compile: str = "auto"
    callbacks: Sequence[Callback] = ()
    labels: Relabelling | None = Stephens()  # noqa: RUF009

    def __post_init__(self) -> None:
        object.__setattr__(self, "callbacks", checked(self.callbacks))
        if self.sampler not in ("auto", *SAMPLERS):
            raise EngineError(f"NUTS: sampler must be auto, {' or '.join(SAMPLERS)}; got {self.sampler!r}")
        if self.compile not in COMPILE:
            raise EngineError(f"NUTS: compile must be one of {', '.join(COMPILE)}; got {self.compile!r}")
        check_whole("NUTS", num_samples=self.num_samples, num_chains=self.num_chains)
        check_whole("NUTS", 0, warmup=self.warmup)
        object.__setattr__(self, "seed", check_seed(self.seed))

    def fit(self, model: Any, data: Any, weights: Any = None) -> Fit:
        """Sample the posterior of a copy of the model.

        Parameters
        ----------
        model : LatentVariableModel or callable
            A declaration whose parameters all have priors, or an ordinary Pyro model.
        data : Tensor, array, data frame or mapping
            Observed values, n rows; for a Pyro model its argument, or a tuple of arguments.
        weights : Tensor, optional
            [n], non-negative: datum i counts w_i times; for declared models.

        Returns
        -------
        Fit
            `draws` are of the shared latents, or a Pyro model's sites, [chain, draw, *event], and of continuous latents
            of each datum without a posterior, [chain, draw, n, *event]; `sample_stats` has "diverging" and what else
            the sampler records, [chain, draw]. `trace` is empty: there is no bound.
        """
        if not isinstance(model, LatentVariableModel):
            from ppl_vae.infer.nuts_pair import sample_pair

            return sample_pair(self, model, data, weights)
        begin = time.perf_counter()
        model.refuse_penalties("NUTS")
        fitted = model.unfitted().double()
        _refuse_free_parameters(fitted)
        obs = fitted.check(data)
        fitted.know(obs.columns)
        w = None if weights is None else check_weights(weights, len(obs)).to(fitted.like)
        with seeded_rng(self.seed), unvalidated():
            fitted.adapt(obs, w)
            potential = Potential(fitted, obs, torch.ones(len(obs)).to(fitted.like) if w is None else w)
            if not potential.layout.size:
                raise EngineError(f"{type(model).__name__} has nothing to sample: no prior, no continuous latent")
            chains, how = self.sample(fitted, potential, *self._starts(fitted, potential, obs, w))
            draws = potential.layout.draws(chains.u)
        aligned = self._aligned(fitted, obs, draws)
        count = next(iter(draws.values())).shape[:2].numel()
        notes = (f"component labels of {aligned.switched} of {count} draws were switched back",)
        how |= {"labels": aligned.said}
        fit = self.record(fitted, aligned.draws, chains, how, notes if aligned.switched else (), obs, w)
        return replace(fit, seconds=time.perf_counter() - begin)

    def _aligned(self, model: LatentVariableModel, obs: Any, draws: dict[str, Tensor]) -> Relabelled:
        return Relabelled(draws, "as drawn") if self.labels is None else relabel_draws(model, obs, draws, self.labels)

    def sample(
        self, model: Any, density: Density, starts: Tensor, target: Target | None = None
    ) -> tuple[Chains, dict[str, str]]:
        """The chains, and which sampler and mode of compilation made them."""
        length = self.warmup + self.num_samples
        target = target or self.target(density, starts[0])
        name = self.sampler if self.sampler != "auto" else ("pyro" if target.mode == "off" else "nutpie")
        run = Run("NUTS", model, self.num_chains * length, settings=self._settings())
        with Callbacks(self.callbacks, run) as hooks:
            chains = SAMPLERS[name](
                target, starts, Plan(self.num_samples, self.warmup, self.seed, self.progress, hooks)
            )
            hooks.status = chains.ended  # None: as planned
        return chains, {"sampler": name, "compile": target.mode}

    def target(self, density: Density, at: Tensor) -> Target:
        """What is sampled."""
        return make_target(density, at, self.num_chains * (self.warmup + self.num_samples), self.compile)

    def record(
        self,
        model: Any,
        draws: dict[str, Tensor],
        chains: Chains,
        how: dict[str, str],
        notes: tuple[str, ...] = (),
        obs: Observations | None = None,
        weights: Tensor | None = None,
    ) -> Fit:
        """A Fit of these draws, whose status says what speaks against them, and of a declared model's data why."""
        length = chains.u.shape[1]
        status = chains.ended or Status(
            "finished", f"{len(chains.u)} chain{'s' * (len(chains.u) > 1)} of {self.warmup} + {length}"
        )
        fit = Fit(
            model=model,
            engine="NUTS",
            draws=draws,
            trace={},
            bound="none: draws from the posterior",
            status=status,
            seconds=0.0,
            seed=self.seed,
            settings={**self._settings(), **how},
            data=obs,
            weights=weights,
            sample_stats=chains.stats,
        )
        found = convergence(fit)
        if found is None:
            return replace(fit, status=replace(status, notes=notes))
        message = f"{status.message}; {found}"
        return replace(fit, status=replace(status, message=message, notes=(*notes, *remarks(fit, obs, found))))

    def _settings(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("num_samples", "warmup", "num_chains", "seed")}

    def _starts(
        self, model: LatentVariableModel, potential: Potential, obs: Any, weights: Tensor | None
    ) -> tuple[Tensor, Target | None]:
        """[chains, size] unconstrained starts with finite density, and what was made of that density to find them."""
        values = initial_values(self.start, model, obs, weights, self.seed) or {}
        made: list[Target] = []

        def gradient_of(at: Tensor) -> Any:
            made.append(self.target(potential, at))
            return made[0].value_and_gradient

        if isinstance(self.start, str) and model.shared_by_hand():
            with suppress(EngineError):  # no gradient where the search begins; there may be one at the prior's draws
                q = climbed(potential, values, gradient_of, self.progress)
                if q is not None:
                    loc, scale = q
                    starts = loc + WIDE * scale * torch.randn(self.num_chains, len(loc)).to(loc)
                    if all(_defined(potential, u) for u in starts):
                        return starts, made[0]
        rows = []
        for _ in range(self.num_chains):
            try:
                center = potential.layout.unconstrain(potential.prior_draw(values))
            except torch.linalg.LinAlgError as error:  # a singular covariance was given
                raise EngineError(NO_START) from error
            rows.append(center + JITTER * torch.randn_like(center))
        starts = torch.stack(rows)
        if not all(_defined(potential, u) for u in starts):
            raise EngineError(NO_START)
        return starts, made[0] if made else None


WIDE = 2.0
"""Standard deviations of a first q by which chains start apart."""
NO_START = (
    "the log density is not finite where the chains start; pass start= with values inside it, or bring features in "
    "units far from 1 to other units"
)


def _defined(potential: Potential, u: Tensor) -> bool:
    """Whether there is a density at a point; a covariance that is singular to rounding has none."""
    try:
        return bool(potential.log_density(u).isfinite())
    except torch.linalg.LinAlgError:
        return False


def _refuse_free_parameters(model: LatentVariableModel) -> None:
    names = [name.removesuffix("_unconstrained") for name, _ in model.named_parameters()]
    if names:
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise EngineError(
            f"NUTS samples what has a prior, and {type(model).__name__} has free parameters: {shown}; give them priors "
            f'(prior="weak" for a family), or fit by EM or SVI'
        )
