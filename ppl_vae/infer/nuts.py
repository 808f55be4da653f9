"""The No-U-Turn sampler on the model's own log joint, finite latents summed out."""

import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.align import align
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer.initial import initial_values
from ppl_vae.infer.potential import Potential
from ppl_vae.infer.samplers import JITTER, SAMPLERS, make_target
from ppl_vae.infer.weights import check_weights

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
        "nutpie" drives the traced potential from Rust, "pyro" is Pyro's kernel on the same potential; "auto" takes
        nutpie where the model can be traced.
    start : "auto", None, mapping or Fit
        Where chains start; "auto" is the best of short EM runs where EM applies, else a draw from the prior.
    seed : int
        Seed of everything random.
    progress : bool
        Show progress.

    Raises
    ------
    EngineError
        If the model has free parameters, which no prior gives a posterior, naming them; or nothing to sample.

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

    def __post_init__(self) -> None:
        if self.sampler not in ("auto", *SAMPLERS):
            raise EngineError(f"NUTS: sampler must be auto, {' or '.join(SAMPLERS)}; got {self.sampler!r}")
        if min(self.num_samples, self.num_chains) < 1 or self.warmup < 0:
            raise EngineError(f"NUTS: num_samples and num_chains must be at least 1, got {self}")

    def fit(self, model: Any, data: Any, weights: Any = None) -> Fit:
        """Sample the posterior of a copy of the model.

        Parameters
        ----------
        model : LatentVariableModel or callable
            A declaration whose parameters all have priors, or an ordinary Pyro model.
        data : Tensor, array, data frame or mapping
            Observed values, n rows; for a Pyro model its argument, or a tuple of arguments.
        weights : Tensor, optional
            [n], non-negative: datum i counts w_i times.
        """
        if not isinstance(model, LatentVariableModel):
            from ppl_vae.infer.nuts_pair import sample_pair

            return sample_pair(self, model, data)
        begin = time.perf_counter()
        fitted = deepcopy(model).double()
        _refuse_free_parameters(fitted)
        obs = fitted.check(data)
        w = check_weights(weights, len(obs)).to(fitted.like)
        with torch.random.fork_rng([]), pyro.validation_enabled(False):
            torch.manual_seed(self.seed)
            fitted.adapt(obs, None if weights is None else w)
            potential = Potential(fitted, obs, w)
            if not potential.layout.size:
                raise EngineError(f"{type(model).__name__} has nothing to sample: no prior, no continuous latent")
            starts = self._starts(fitted, potential, obs, None if weights is None else w)
            target = make_target(potential, starts, self.compile)
            name = self.sampler if self.sampler != "auto" else ("nutpie" if target.traced else "pyro")
            u, stats = SAMPLERS[name](target, starts, self.num_samples, self.warmup, self.seed, self.progress)
            draws = potential.layout.draws(u)
        shared = {name: draws[name] for name in fitted.shared_laws()}
        aligned, note = align(fitted, obs, shared)
        divergences = int(stats["diverging"].sum())
        notes: tuple[str, ...] = (note,) if note else ()
        if divergences:
            notes += (f"{divergences} of {stats['diverging'].numel()} transitions diverged: do not trust the tails",)
        return Fit(
            model=fitted,
            engine="NUTS",
            draws={**draws, **aligned},
            trace={},
            bound="none: draws from the posterior",
            status=Status("finished", f"{self.num_chains} chains of {self.warmup} + {self.num_samples}", notes),
            seconds=time.perf_counter() - begin,
            seed=self.seed,
            settings={**self._settings(), "sampler": name},
            data=obs,
            weights=None if weights is None else w,
            sample_stats=stats,
        )

    def _settings(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("num_samples", "warmup", "num_chains", "seed")}

    def _starts(self, model: LatentVariableModel, potential: Potential, obs: Any, weights: Tensor | None) -> Tensor:
        """[chains, size] unconstrained starts with finite density."""
        values = initial_values(self.start, model, obs, weights, self.seed) or {}
        rows = []
        for _ in range(self.num_chains):
            center = potential.layout.unconstrain(potential.prior_draw(values))
            rows.append(center + JITTER * torch.randn_like(center))
        starts = torch.stack(rows)
        finite = torch.stack([potential.log_density(u).isfinite() for u in starts])
        if not bool(finite.all()):
            raise EngineError("the log density is not finite where the chains start; pass start= with values inside it")
        return starts


def _refuse_free_parameters(model: LatentVariableModel) -> None:
    names = [name.removesuffix("_unconstrained") for name, _ in model.named_parameters()]
    if names:
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise EngineError(
            f"NUTS samples what has a prior, and {type(model).__name__} has free parameters: {shown}; give them priors "
            f'(prior="weak" for a family), or fit by EM or SVI'
        )
