"""What a fit says of data: bound, log p(x), and what each latent unit carries."""

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ppl_vae.alone import seeded_rng
from ppl_vae.counted import counted_mean
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import DataError
from ppl_vae.fit import Fit
from ppl_vae.infer.batches import in_memory, make_batches
from ppl_vae.infer.weights import check_weights, own_weights
from ppl_vae.objectives import Sites, analytic_kl, has_analytic_kl
from ppl_vae.progress import progress

__all__ = ["Evaluation", "evaluate"]

ACTIVE = 0.01
"""A unit is active when the variance over data of its posterior mean is at least this (Burda et al. 2016)."""
ROWS = 1000
"""Rows of a Dataset that are looked at together."""
PARTICLES = 10
"""Draws of q per datum for the bound at a point estimate."""
FEW = 10
"""Draws on which the weights of every datum should rest."""


@dataclass(frozen=True)
class Evaluation:
    """What a fit says of data, in nats per datum.

    Attributes
    ----------
    n : int
        Number of data.
    elbo, elbo_se : float
        Mean bound and its standard error over data.
    log_prob, log_prob_se : float
        Mean log p(x) and its standard error over data, that of the importance weights included; NaN where one datum
        or one draw leaves it unknown.
    min_ess : float
        Smallest effective sample size of a datum's importance weights; infinite when exact, NaN over many draws of
        theta, each of which has weights of its own.
    method : str
        "exact", "importance", or "bound" where log_prob is the bound itself, as of a VQ-VAE.
    kl_per_unit : Tensor or None
        Mean KL(q(z_j | x) || p(z_j)) of each latent unit, [units]; None unless one θ, one continuous latent with a
        posterior, and independent units are all there is.
    active_units : int or None
        Units whose posterior mean varies over the data.
    """

    n: int
    elbo: float
    elbo_se: float
    log_prob: float
    log_prob_se: float
    min_ess: float
    method: str
    kl_per_unit: Tensor | None
    active_units: int | None

    @property
    def doubt(self) -> str:
        """Why log_prob is not to be relied on, if it is not."""
        if not self.min_ess < FEW:
            return ""
        return (
            f"The importance weights of at least one datum rest on {self.min_ess:.1f} draws: its log p(x) is probably "
            "too low; take more particles."
        )

    def __str__(self) -> str:
        lines = [
            f"{'held-out ELBO':<28}{plus_minus(self.elbo, self.elbo_se, 4, 10)} nats per datum",
            f"{'log p(x), ' + self.method:<28}{plus_minus(self.log_prob, self.log_prob_se, 4, 10)} nats per datum",
            f"{'gap':<28}{self.log_prob - self.elbo:10.4f}",
        ]
        if math.isfinite(self.min_ess):
            lines.append(f"{'smallest ESS of a datum':<28}{self.min_ess:10.1f} draws")
        lines += [f"! {self.doubt}"] if self.doubt else []
        if self.kl_per_unit is None:
            lines.append(f"{'KL per unit':<28}defined for one θ and one posterior of independent units")
        else:
            units = "  ".join(f"{v:.2f}" for v in self.kl_per_unit.sort(descending=True).values.tolist())
            lines.append(f"{'KL per unit':<28}{units}")
            lines.append(f"{'active units':<28}{self.active_units} of {len(self.kl_per_unit)}")
        return "\n".join(lines)


def plus_minus(value: float, error: float, digits: int, width: int = 0) -> str:
    """A value with its standard error.

    Examples
    --------
    >>> plus_minus(2.5, 0.123, 2), plus_minus(2.5, float("nan"), 2)
    ('2.50 ± 0.12', '2.50 (standard error unknown)')
    """
    return f"{value:{width}.{digits}f} " + (f"± {error:.{digits}f}" if error == error else "(standard error unknown)")


def evaluate(fit: Fit, data: Any, num_particles: int = 100, seed: int = 0, weights: Any = None) -> Evaluation:
    """Bound, log p(x) and what the latent units carry, on data the fit may not have seen.

    Parameters
    ----------
    fit : Fit
        Any fit.
    data : Tensor, array, data frame or mapping, or a DataLoader, Dataset, Stream or iterable of batches
        n rows; of a declared model they may come in batches, as to SVI.
    num_particles : int
        Draws of q per datum for log p(x), where it is not exact.
    seed : int
        Seed of those draws.
    weights : Tensor, optional
        [n], datum i counts w_i times; those of the fit where the data are its training data. Not for loaders and
        iterables.

    Returns
    -------
    Evaluation
        In nats per datum.

    Raises
    ------
    DataError
        If the data do not fit the model, or are none at all.
    EngineError
        If `num_particles` or `seed` is no whole number, or out of range.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> x = torch.arange(8.0)
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 1), x)
    >>> whole, parts = fit.evaluate(x), fit.evaluate(torch.utils.data.DataLoader(x, batch_size=3))
    >>> whole.n == parts.n == 8, round(whole.log_prob - parts.log_prob, 5)
    (True, 0.0)
    """
    with seeded_rng(seed), torch.no_grad(), closing(_parts(fit, data, weights)) as parts:
        looks = [_looked(fit, obs, w, num_particles) for obs, w in parts]
    w, bound, value, error = (torch.cat([getattr(look, name) for look in looks]) for name in _COLUMNS)
    (elbo, elbo_se), (log_prob, own_se) = counted_mean(bound, w), counted_mean(value, w)
    kl, active = _carried([look.units for look in looks], w)
    return Evaluation(
        n=len(w),
        elbo=elbo,
        elbo_se=elbo_se,
        log_prob=log_prob,
        log_prob_se=float(np.hypot(own_se, ((w * error).square().sum().sqrt() / w.sum()).item())),
        min_ess=min(look.ess for look in looks),
        method=looks[0].method,
        kl_per_unit=kl,
        active_units=active,
    )


@dataclass(frozen=True)
class _Look:
    """What a fit says of each of some data: their weights, bound, log p(x) and its error, KL and mean of each unit."""

    w: Tensor
    bound: Tensor
    value: Tensor
    error: Tensor
    ess: float
    method: str
    units: tuple[Tensor, Tensor] | None


_COLUMNS = ("w", "bound", "value", "error")


def _parts(fit: Fit, data: Any, weights: Any) -> Generator[tuple[Any, Tensor]]:
    """The data with their weights, at once or in the batches that they come in."""
    model, device = fit.model, fit.model.like.device
    pair = not isinstance(model, LatentVariableModel)
    if pair and isinstance(data, DataLoader | Dataset):
        raise DataError("a Pyro pair is evaluated on its arguments, tensors; a declared model takes loaders")
    if pair or in_memory(data):
        obs = model.check(data)
        n = obs.count() if pair else len(obs)
        own = check_weights(own_weights(fit, obs, weights), n).to(device)
        yield obs if pair else obs.drawn(), own  # bound and log p(x) are of the same values
        return
    batches = make_batches(model, data, weights, ROWS if isinstance(data, Dataset) else None, shuffle=False)
    with progress("evaluate", batches.steps or 0, batches.steps is not None) as update:
        for number, batch in enumerate(batches.epoch(0)):
            update(number, "batches")
            yield batch.obs.rows(torch.arange(batch.real, device=device)), batch.weights[: batch.real].double()


def _looked(fit: Fit, obs: Any, w: Tensor, num_particles: int) -> _Look:
    seed = int(torch.randint(2**32, ()))  # each part of the data has draws of its own
    bound = fit.elbo(obs, PARTICLES if fit.is_point else 1, seed).double()
    if fit.is_point:
        evidence = fit.evidence(obs, num_particles, seed)
        value, error = evidence.value.double(), evidence.standard_error.double()
        counted = evidence.effective_sample_size[w > 0]
        ess, method = min(counted.tolist(), default=math.inf), evidence.method
    else:
        value = fit.log_predictive(obs, num_particles, seed).double()
        drawn = bool(fit.model.draws_latents(obs))
        error, ess, method = torch.zeros_like(value), *((math.nan, "importance") if drawn else (math.inf, "exact"))
    return _Look(w, bound, value, error, ess, method, _units(fit, obs) if fit.is_point else None)


def _units(fit: Fit, obs: Any) -> tuple[Tensor, Tensor] | None:
    """KL and posterior mean of each unit of the one continuous latent, [n, units]."""
    with fit.model.bind(fit.draw(0)), fit.model.numeric():
        if fit.model.draws_without_posterior(obs):
            return None
        sites = fit.model.bound_sites(obs)
    factors = _factors(sites)
    return None if factors is None else (analytic_kl(*factors).flatten(1), factors[0].mean.double().flatten(1))


def _carried(units: list[tuple[Tensor, Tensor] | None], w: Tensor) -> tuple[Tensor | None, int | None]:
    """Mean KL of each unit, and how many units are active."""
    known = [each for each in units if each is not None]
    if len(known) < len(units):
        return None, None
    kl, mean = (torch.cat(column) for column in zip(*known, strict=True))
    share = (w / w.sum())[:, None]
    variance = (share * (mean - (share * mean).sum(0)) ** 2).sum(0) * w.sum() / (w.sum() - 1).clamp_min(1)
    return (share * kl).sum(0), int((variance >= ACTIVE).sum())


def _factors(sites: Sites) -> tuple[Any, Any] | None:
    names = [name for name in sites.q if name not in sites.enumerated]
    if len(names) != 1 or sites.enumerated or sites.summed:
        return None
    q, p = sites.q[names[0]], sites.p[names[0]]
    independent = isinstance(q, dist.Independent) and isinstance(p, dist.Independent)
    if not independent or q.base_dist.event_shape or not has_analytic_kl(q.base_dist, p.base_dist):
        return None
    return q.base_dist, p.base_dist
