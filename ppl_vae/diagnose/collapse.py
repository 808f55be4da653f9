"""Posterior collapse: what the latent units carry about their data (T22)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.diagnose.aggregate import Aggregate
from ppl_vae.diagnose.codes import Codes, UndefinedError, flat, variance_seen
from ppl_vae.diagnose.quantity import Quantity, error, measured, undefined
from ppl_vae.families.supports import of_entries
from ppl_vae.objectives import Elbo

__all__ = ["ACTIVE", "Collapse", "collapse", "mutual_information", "sensitivity"]

PART = "collapse"
ACTIVE = 0.01
"""A unit is active when the variance over data of its posterior mean is at least this (Burda et al. 2016)."""
INFORMED = 0.1
"""Nats below which a code says next to nothing about its datum."""
NO_ANSWER = "the encoder has no answer where data are moved by a hundredth of their sd"
SHOWN = 20
"""Units whose KL is written out."""
STEP, DIRECTIONS = 0.01, 8
"""Of the finite differences along random directions, in standard deviations of the inputs."""


@dataclass(frozen=True)
class Collapse:
    """What each latent unit carries.

    Attributes
    ----------
    units : list of str
        Names of the units, of all drawn latents side by side.
    variance : Tensor or None
        [units] variance over data of the posterior mean; None of categories, which have none.
    active : Tensor or None
        [units], whether that variance is at least 0.01.
    kl_per_unit : Tensor or None
        [units] mean KL(q(z_j | x) || p(z_j)), nats; None where prior and q do not factorise.
    sensitivity : Tensor or None
        [units], see `sensitivity`.
    quantities : list of Quantity
        The rows of the table.
    """

    units: list[str]
    variance: Tensor | None
    active: Tensor | None
    kl_per_unit: Tensor | None
    sensitivity: Tensor | None
    quantities: list[Quantity]


def collapse(found: Aggregate) -> Collapse:
    """Measure what the units carry: KL, active units, mutual information, sensitivity of the encoder."""
    codes = found.codes
    between, active = _active(codes)
    kl, kl_units = divergence(found)
    rows = [active, _kl(kl), _kl_per_unit(kl_units), *_information(found, kl)]
    moved, said = _sensitivity(codes)
    which = None if between is None else between >= ACTIVE
    return Collapse(codes.units(), between, which, kl_units, moved, [*rows, said])


def variance_of_mean(mean: Tensor, noise: Tensor | None, draws: int = 64) -> Tensor:
    """Variance over data of posterior means [n, units], the noise of `draws` draws taken off, [units]."""
    if len(mean) == 1:
        return torch.zeros_like(mean[0])
    between = mean.var(0)
    return between if noise is None else (between - noise.mean(0) / draws).clamp_min(0)


def _active(codes: Codes) -> tuple[Tensor | None, Quantity]:
    """The variance over data of the posterior mean, [units], and the row of how many it makes active."""
    name, of = "active units", f"of {len(codes.units())}"
    meaning = f"{of}: variance over data of the posterior mean at least {ACTIVE}"
    try:
        mean, variance = codes.moments()
    except UndefinedError as why:
        return None, undefined(name, PART, meaning, str(why))
    between = variance_of_mean(mean, None if codes.exact_moments else variance)
    count = int((between >= ACTIVE).sum())
    ok = None if codes.points else 2 * count >= len(between)  # a codebook's scale is its own, and warm-up is no help
    return between, measured(name, PART, meaning, float(count), unit=of, ok=ok)


def divergence(found: Aggregate) -> tuple[Tensor, Tensor | None]:
    """KL(q(z | x_i) || p(z)) of each datum [n], and its mean by unit where prior and q factorise [units]."""
    codes, objective, each = found.codes, Elbo(kl="analytic"), list[Tensor]()
    with torch.no_grad(), codes.model.numeric():
        for _ in found.draws:
            sites = codes.model.bound_sites(codes.obs)
            if sites.summed or not sites.enumerated.keys() <= {*codes.names}:
                return _divergence_by_draws(found), None
            each.append(torch.cat([objective.by_unit(sites, name).double() for name in codes.names], 1))
            closed, whole = torch.equal(each[0], each[-1]), each[0].shape[1] == len(codes.units())
            if len(each) == 2 and closed:
                break
            if len(each) == 2 and not whole:
                return _divergence_by_draws(found), None
    units = torch.stack(each).mean(0)
    return units.sum(1), units.mean(0) if whole else None


def _divergence_by_draws(found: Aggregate) -> Tensor:
    """The same by the draws that tell the mutual information, finite latents summed out of q and p, [n]."""
    log_p = [found.codes.log_prior(z, found.codes.obs) for z in found.draws]
    return (found.own - torch.stack(log_p)).mean(0)


def _kl(kl: Tensor) -> Quantity:
    return measured("KL", PART, "mean over data of KL(q(z | x) || p(z))", kl.mean(), error(kl))


def _kl_per_unit(kl: Tensor | None) -> Quantity:
    name, meaning = "KL per unit", "the same of each unit, the largest first"
    if kl is None:
        return undefined(name, PART, meaning, "prior or q is no product over units")
    largest = kl.sort(descending=True).values[:SHOWN].tolist()
    meaning += f"; {len(kl) - SHOWN} more are smaller" if len(kl) > SHOWN else ""
    return Quantity(name, PART, meaning, largest[0], unit="nats", each=tuple(largest))


def mutual_information(found: Aggregate) -> tuple[Tensor, Tensor]:
    """Bounds of I(x; z) from below and above, one term per datum, [n] and [n] nats.

    The mean of log q(z_i | x_i) - log (1/n) sum_j q(z_i | x_j), z_i ~ q(z | x_i), is the mutual information between a
    code and which of the n data it came from: at most log n, and in the mean a lower bound of I(x; z) over the
    population. With the datum itself left out of the mixture, (1/(n-1)) sum_{j != i}, it is an upper bound.

    References
    ----------
    Poole, Ozair, van den Oord, Alemi and Tucker (2019). On variational bounds of mutual information. ICML.
    """
    return (found.own - found.mixed).mean(0), (found.own - found.others).mean(0)


def _information(found: Aggregate, kl: Tensor) -> list[Quantity]:
    codes = found.codes
    below = (
        f"between x and z, from below: E log q(z | x) / q(z), q(z) the mixture of q(z | x_i) of these n = {codes.n} "
        f"data, so at most log n = {math.log(codes.n):.2f}; equally mean KL(q(z | x) || p) - KL(q(z) || p)"
    )
    above = "between x and z, from above: the same with the datum's own q(z | x_i) left out of q(z); at most the KL"
    if codes.n == 1:
        return [undefined("mutual information", PART, below, "it takes two data at least")]
    lower, upper = mutual_information(found)
    most = torch.minimum(upper.mean(), kl.mean())
    finite = bool(most.isfinite())
    return [
        measured("mutual information", PART, below, lower.mean(), error(lower), ok=most >= INFORMED),
        measured("mutual information, at most", PART, above, most, error(upper if upper.mean() < kl.mean() else kl))
        if finite
        else undefined("mutual information, at most", PART, above, "codes of different data do not overlap"),
    ]


def sensitivity(codes: Codes) -> Tensor:
    """How far the posterior means move when every input moves by its own spread, [units] in sds of the prior.

    The root of the mean over data of sum_d (s_d dm_j / dx_d)^2 / sd_p(z_j)^2, s_d the standard deviation of input d
    over the data: what m_j would move at random if each input did, to first order. It is found by finite differences
    along random directions, which turn back where an entry could not go on; missing entries stay. A unit that ignores
    its input has 0.

    Raises
    ------
    UndefinedError
        If there is no encoder, nothing continuous to move, or no answer of the encoder for what was moved.
    """
    if not codes.amortised:
        raise UndefinedError("q has parameters of its own for each datum, there is no encoder")
    spread = flat(codes.draw_prior(4096)).std(0)
    total = torch.zeros_like(spread)
    movable, here = _movable(codes), _moments(codes, codes.obs.values)
    for _ in range(DIRECTIONS):
        moved = {name: within(x + STEP * sd * torch.randn_like(x)) for name, (x, sd, within) in movable.items()}
        try:
            there = _moments(codes, {**codes.obs.values, **moved})
        except ValueError as refused:  # a q whose parameters are no numbers
            raise UndefinedError(NO_ANSWER) from refused
        total += ((there - here) / STEP).square().mean(0)
    if not bool(total.isfinite().all()):
        raise UndefinedError(NO_ANSWER)
    return (total / DIRECTIONS).sqrt() / spread


def _movable(codes: Codes) -> dict[str, tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Observed numbers by node, how far each goes, and how they are brought back into the node's support."""
    laws = codes.model.prototypes(codes.obs)
    observed = [node.name for node in codes.model.local_nodes() if node.kind == "observed"]
    found = {name: codes.obs.values[name] for name in observed if codes.obs.values[name].is_floating_point()}
    if not found or codes.n == 1:
        raise UndefinedError("it takes two data of real numbers at least")
    return {name: (value, _spread(codes, name), _turned_back(laws[name])) for name, value in found.items()}


def _spread(codes: Codes, name: str) -> Tensor:
    """Standard deviation over the data of each number that is there, [n, *event], 0 of what is missing."""
    x = codes.obs.with_gaps(name)
    return torch.where(x.isnan(), 0.0, variance_seen(x).sqrt().nan_to_num())


def _turned_back(law: TorchDistribution) -> Callable[[Tensor], Tensor]:
    try:
        entry = of_entries(law.support)
    except NotImplementedError:  # a law of one's own need not say
        return lambda x: x
    low, high = getattr(entry, "lower_bound", -torch.inf), getattr(entry, "upper_bound", torch.inf)

    def within(x: Tensor) -> Tensor:
        x = torch.where(x < low, 2 * low - x, x)
        return torch.where(x > high, 2 * high - x, x)

    return within


def _moments(codes: Codes, values: Mapping[str, Any]) -> Tensor:
    moved = Codes(codes.model, replace(codes.obs, values=values))
    with codes.model.aside(seed=0):  # means by draws take the same ones on both sides
        return moved.moments()[0]


def _sensitivity(codes: Codes) -> tuple[Tensor | None, Quantity]:
    name = "encoder sensitivity"
    meaning = (
        "of the most sensitive unit: how far its posterior mean moves when every input moves by its sd, in prior sds"
    )
    try:
        moved: Any = sensitivity(codes)
    except UndefinedError as why:
        return None, undefined(name, PART, meaning, str(why))
    return moved, measured(name, PART, meaning, moved.max(), unit="prior sds")
