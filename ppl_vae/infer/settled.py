"""A first q of all that has a prior, found before SVI begins: where it is, and how wide."""

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import count

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.local import POLISH, SEARCH, LocalPosterior, Values, best_q, middle
from ppl_vae.errors import EngineError
from ppl_vae.infer.potential import Potential
from ppl_vae.infer.target import make_target, with_gradient
from ppl_vae.progress import progress

__all__ = ["Settled", "climbed", "settled"]

ROWS = 2000
"""Data that are looked at, at most."""
MOST = 10_000
"""Shared coordinates, above which the search would take longer than epochs do."""
PRIOR_DRAWS = 64
SCALE = 0.1
"""Of Pyro's automatic guides at their start."""
NARROW = 0.1
"""Scale of q at the start, in those of the prior, or in unconstrained numbers where a start is given."""
SEARCHES = 10
NEAR = 2.0
"""Standard deviations, or change of a log scale, above which the search goes on."""

Gradient = Callable[[Tensor], tuple[Tensor, ...]]
"""U to log density and gradient."""


@dataclass(frozen=True)
class Settled:
    """A mean-field normal in unconstrained coordinates.

    Attributes
    ----------
    values : dict of Tensor
        Its median of each shared latent, [*event].
    loc, scale : dict of Tensor
        Of each site in its unconstrained shape; latents of each datum only where all data were looked at.
    """

    values: Values
    loc: Values
    scale: Values

    def units(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Center and unit of each site, such that a guide that starts at 0 and `SCALE` starts at this q."""
        return {name: (self.loc[name], self.scale[name] / SCALE) for name in self.loc}

    def place(self, model: LatentVariableModel) -> None:
        """Let the posteriors of single data start here, where all of these were looked at."""
        for name, q in model.local_posteriors.items():
            if isinstance(q, LocalPosterior) and name in self.loc and self.loc[name].numel() == q.loc.numel():
                loc, scale = (value[name].to(q.loc).reshape(q.loc.shape) for value in (self.loc, self.scale))
                with torch.no_grad():
                    q.loc.copy_((loc - q.center) / q.unit)
                    q.log_scale.copy_((scale / q.unit).log())


def settled(
    model: LatentVariableModel,
    obs: Observations,
    weights: Tensor | None,
    start: Mapping[str, Tensor] | None,
    seed: int,
    total: float,
    show: bool = False,
) -> Settled | None:
    """The q that `start`, or else the prior, leads to; None where there is none to be had.

    That is a model whose every parameter has a prior, with shared latents declared by hand: parameters of families
    know the units of their data. The data that are looked at count as much as `total`, the weight of all.
    """
    if not model.shared_by_hand() or model.penalties or any(True for _ in model.parameters()):
        return None
    copy = deepcopy(model).double()
    chosen = obs.spaced(ROWS)
    few = obs.rows(chosen).to(copy.like)
    w = copy.like.new_ones(len(few)) if weights is None else weights[chosen.to(weights.device)].to(copy.like)
    with model.aside(seed):
        try:
            potential = Potential(copy, few, w * (total / w.sum()))
        except EngineError:  # a latent without a gradient, which SVI itself refuses
            return None
        if sum(site.stop - site.start for site in potential.layout.sites if site.name not in potential.local) > MOST:
            return None
        q = climbed(potential, start, lambda at: _gradient(potential, at), show)
    return None if q is None else _named(potential, *q, whole=len(few) == len(obs))


def climbed(
    potential: Potential,
    start: Mapping[str, Tensor] | None,
    gradient_of: Callable[[Tensor], Gradient],
    show: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Loc and scale [P] of the mean-field normal of the highest bound; None where it found no density.

    Parameters
    ----------
    potential : Potential
        The density.
    start : mapping, optional
        Shared latents, where they are known.
    gradient_of : callable
        Given a first u, a function of u to log density and gradient.
    show : bool
        Show progress.
    """
    given = {} if start is None else {name: value.double() for name, value in start.items()}
    try:
        drawn = torch.stack([potential.layout.unconstrain(potential.prior_draw(given)) for _ in range(PRIOR_DRAWS)])
    except torch.linalg.LinAlgError:
        return None
    loc, width = middle(drawn)
    loc = torch.where(loc.isfinite(), loc, 0.0)
    width = NARROW * torch.where((width > 0) & width.isfinite(), width, 1.0)
    gradient_at = _guarded(gradient_of(loc))

    asked = count(1)

    def bound(q: Values) -> Tensor:
        loc, scale = q["theta.loc"], q["theta.log_scale"].exp()
        u = loc + scale * torch.randn_like(loc)
        _, gradient = gradient_at(u)
        update(next(asked), "search for a first q")
        # A draw where nothing is known says nothing.
        known = torch.where(gradient.isfinite().all(), gradient, 0.0)
        return known @ u - dist.Normal(loc.detach(), scale.detach()).log_prob(u).sum()

    q = {"theta.loc": loc, "theta.log_scale": width.log()}
    most = SEARCHES * sum(steps for steps, _ in SEARCH) + sum(steps for steps, _ in POLISH)
    with progress("first q, at most", most, show) as update:
        for _ in range(SEARCHES):
            before, q = q, best_q(q, bound, SEARCH)
            if _distance(before, q) < NEAR:
                break
        q = best_q(q, bound, POLISH)
    loc, scale = q["theta.loc"], q["theta.log_scale"].exp()
    finite = torch.cat([loc, scale, *(part.reshape(-1) for part in gradient_at(loc))]).isfinite().all()
    return (loc, scale) if bool(finite) else None


def _gradient(potential: Potential, at: Tensor) -> Gradient:
    """By a graph, where the model has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # why there is no graph is said by the training itself
        try:
            return make_target(potential, at, 0, "trace").value_and_gradient
        except EngineError:  # no gradient at this point; another may have one
            return with_gradient(potential.log_density)


def _guarded(function: Gradient) -> Gradient:
    """NaN where a covariance is singular to rounding."""

    def gradient_at(u: Tensor) -> tuple[Tensor, ...]:
        try:
            return function(u)
        except torch.linalg.LinAlgError:
            return torch.full_like(u[0], torch.nan), torch.full_like(u, torch.nan)

    return gradient_at


def _distance(before: Values, now: Values) -> float:
    """How far q has moved, in its own standard deviations and on the logarithm of these."""
    scale = now["theta.log_scale"]
    moved = ((now["theta.loc"] - before["theta.loc"]) / scale.exp(), scale - before["theta.log_scale"])
    return torch.cat(moved).abs().max().item()


def _named(potential: Potential, loc: Tensor, scale: Tensor, whole: bool) -> Settled:
    values, _ = potential.layout.constrain(loc)
    places, widths = {}, {}
    for site in potential.layout.sites:
        if whole or site.name not in potential.local:
            shape = site.transform.inverse_shape(site.shape)
            places[site.name], widths[site.name] = (v[site.start : site.stop].reshape(shape) for v in (loc, scale))
    return Settled({name: v for name, v in values.items() if name not in potential.local}, places, widths)
