"""The prior hole: where the aggregate posterior leaves the prior empty, or runs away from it (T23, T24)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.diagnose.aggregate import Aggregate
from ppl_vae.diagnose.codes import Code, Codes, UndefinedError, flat, variance_seen
from ppl_vae.diagnose.discrepancy import discrepancy
from ppl_vae.diagnose.quantity import Quantity, error, measured, undefined
from ppl_vae.likelihoods.gaussian import Floored

__all__ = ["Hole", "hole", "prior_hole"]

PART = "prior hole"
LEVEL = 0.01
"""Share of the data's codes where q(z) is thinner than in a hole."""
PRIOR_DRAWS = 4000
NATS, SHARE, SPREAD = 1.0, 0.1, 4.0
"""Most KL, share of the prior in holes, and variance over the prior's, of a sound fit."""
SHOWN, SEEN = 64, 1000
"""Draws kept from holes, and of the prior."""
LEAST = 0.5e-3
"""Least scale of a decoder beside the data's: half the floor that a learned scale has by default."""


@dataclass(frozen=True)
class Hole:
    """How the aggregate posterior q(z) and the prior differ.

    Attributes
    ----------
    holes : dict of Tensor
        Draws of the prior where q(z) has next to nothing, the emptiest first, by latent, [m, *event]; at most 64.
    codes, prior, empty : Tensor or None
        [., units], all latents side by side: a code of each datum, draws of the prior, and those of `holes`. Where it
        has no draws of its own, or codes are categories, `prior` is None.
    level : float or None
        Log density of q(z) below which a point is in a hole.
    variance_ratio : Tensor or None
        [units] variance of the aggregate posterior over the prior's.
    quantities : list of Quantity
        The rows of the table.
    """

    holes: Code
    codes: Tensor
    prior: Tensor | None
    empty: Tensor
    level: float | None
    variance_ratio: Tensor | None
    quantities: list[Quantity]


def hole(found: Aggregate) -> Hole:
    """Measure how far the aggregate posterior is from the prior."""
    codes = found.codes
    try:
        prior = codes.draw_prior(PRIOR_DRAWS)
    except UndefinedError as why:
        rows = [undefined(name, PART, meaning, str(why)) for name, meaning in MEANINGS.items()]
        z = flat(found.draws[0])
        return Hole({}, z, None, z[:0], None, None, [*rows, decoder_scale(codes), least_scale(codes)])
    level, share, holes = prior_hole(found, prior)
    ratio, spread_out = _spread(codes, prior)
    rows = [*_divergence(found), _discrepancy(found, prior), share, spread_out]
    rows += [decoder_scale(codes), least_scale(codes)]
    z, seen = flat(found.draws[0]), None if ratio is None else flat(prior)[:SEEN]
    return Hole(holes, z, seen, flat(holes) if holes else z[:0], level, ratio, rows)


MEANINGS = {
    "KL(q(z) || p)": "KL of the aggregate posterior, the mixture of q(z | x_i) of these data, from the prior",
    "KL(q(z) || p), at least": (
        "the same with the datum's own q(z | x_i) left out of q(z): a lower bound over the population"
    ),
    "MMD": "squared maximum mean discrepancy between codes and prior, unbiased, normal kernel, in prior sds",
    "prior in holes": (
        f"share of the prior's mass where q(z) is thinner than at all but {LEVEL:.0%} of the data's own codes"
    ),
    "variance over the prior's": "of the aggregate posterior, in the unit where it is largest",
}


def _divergence(found: Aggregate) -> list[Quantity]:
    above, below = MEANINGS["KL(q(z) || p)"], MEANINGS["KL(q(z) || p), at least"]
    if found.codes.n == 1:
        why = "it takes two data at least"
        return [undefined("KL(q(z) || p)", PART, above, why), undefined("KL(q(z) || p), at least", PART, below, why)]
    log_p = torch.stack([found.codes.log_prior(z) for z in found.draws])
    whole, left = (found.mixed - log_p).mean(0), (found.others - log_p).mean(0)
    # Left out of a mixture that does not reach it, a code has density zero, and the bound says nothing.
    least = torch.where(left.mean() == -torch.inf, 0.0, left.mean()).clamp_min(0)
    noise = error(left) if least > 0 else None
    return [
        measured("KL(q(z) || p)", PART, above, whole.mean(), error(whole)),
        measured("KL(q(z) || p), at least", PART, below, least, noise, ok=least <= NATS),
    ]


def _discrepancy(found: Aggregate, prior: Code) -> Quantity:
    meaning, n = MEANINGS["MMD"], found.codes.n
    if n < 2:
        return undefined("MMD", PART, meaning, "it takes two data at least")
    try:
        found.codes.require_numbers()
    except UndefinedError as why:
        return undefined("MMD", PART, meaning, str(why))
    many = min(n, PRIOR_DRAWS)
    p = flat(prior)
    unit = p.std(0).clamp_min(1e-12)
    d = discrepancy(flat(found.draws[0])[:many] / unit, p[:many] / unit)
    said = f"{meaning}; up to {d.by_chance:.2g} by chance in 95%, p = {d.p_value:.2g} by {200} shuffles"
    return measured("MMD", PART, said, d.value, d.standard_error, unit="")


def prior_hole(found: Aggregate, prior: Code) -> tuple[float | None, Quantity, Code]:
    """The level of a hole, the prior's mass below it, and draws from there.

    The level is the 1% quantile of log q(z_i) over the data's codes, each left out of its own q(z): a point is in a
    hole if the data come less near to it than to one another. Where q(z) equals the prior the share is 1%.
    """
    meaning = MEANINGS["prior in holes"]
    level = found.others.flatten().quantile(LEVEL).item() if found.codes.n > 1 else -torch.inf
    if level == -torch.inf:
        return None, undefined("prior in holes", PART, meaning, "codes of different data do not overlap"), {}
    density = found.codes.log_aggregate(prior)
    inside = density < level
    share = inside.double().mean()
    order = density.argsort()[: min(int(inside.sum()), SHOWN)]
    noise = (share * (1 - share) / len(density)).sqrt()
    row = measured("prior in holes", PART, meaning, share, noise, unit="of its mass", ok=share <= SHARE)
    return level, row, {name: value[order] for name, value in prior.items()}


def spread(codes: Codes, prior: Code) -> Tensor:
    """Variance of the aggregate posterior over the prior's by unit, [units]: E Var(z | x) + Var E(z | x)."""
    mean, within = codes.moments()
    return (within.mean(0) + mean.var(0, correction=0)) / flat(prior).var(0)


def _spread(codes: Codes, prior: Code) -> tuple[Tensor | None, Quantity]:
    name = "variance over the prior's"
    try:
        ratio = spread(codes, prior)
    except UndefinedError as why:
        return None, undefined(name, PART, MEANINGS[name], str(why))
    worst = int(ratio.argmax())
    meaning = f"{MEANINGS[name]}, {codes.units()[worst]}"
    return ratio, measured(name, PART, meaning, ratio[worst], unit="times", ok=ratio[worst] <= SPREAD)


def decoder_scale(codes: Codes) -> Quantity:
    """How many of the decoder's learned scales have run down to their floor, at pixels that do vary."""
    name, part = "decoder scales at their floor", PART
    meaning = "share of the learned standard deviations, at inputs that vary, that are within 5% of their floor"
    floors = [m for m in codes.model.modules() if isinstance(m, Floored)]
    with torch.no_grad(), codes.model.numeric():
        sites = codes.model.bound_sites(codes.obs)
    observed = [n.name for n in codes.model.local_nodes() if n.kind == "observed"]
    if len(floors) != 1 or len(observed) != 1:
        return undefined(name, part, meaning, "there is no one likelihood with a floor under its scale")
    scale, x = _stddev(sites.p[observed[0]]), codes.obs.with_gaps(observed[0])
    varies = variance_seen(x) > 0 if codes.n > 1 else torch.ones_like(x[0], dtype=torch.bool)
    low = scale <= 1.05 * floors[0].floor * floors[0].unit
    # Of each value of a latent that is summed out there is a scale.
    share = low.expand(torch.broadcast_shapes(low.shape, x.shape))[..., varies].double().mean()
    return measured(name, part, meaning, share, unit="of them", ok=share <= LEVEL)


def least_scale(codes: Codes) -> Quantity:
    """The decoder's smallest standard deviation beside the data's, where p(x | z) is normal (T24)."""
    name, part = "smallest decoder scale", PART
    meaning = "smallest standard deviation of p(x | z), over the root of the mean variance of the inputs"
    observed = [n.name for n in codes.model.local_nodes() if n.kind == "observed"]
    if len(observed) != 1:
        return undefined(name, part, meaning, f"there are {len(observed)} observed nodes")
    with torch.no_grad(), codes.model.numeric():
        p = codes.model.bound_sites(codes.obs).p[observed[0]]
    law = getattr(p, "base", p)
    if not isinstance(getattr(law, "base_dist", law), torch.distributions.Normal):
        return undefined(name, part, meaning, "p(x | z) is not normal")
    unit = variance_seen(codes.obs.with_gaps(observed[0]).double(), correction=0).nanmean().sqrt()
    ratio = law.stddev.min().double() / unit
    return measured(name, part, meaning, ratio, unit="of the data's", ok=ratio >= LEAST)


def _stddev(d: torch.distributions.Distribution) -> Tensor:
    return getattr(d, "base", d).stddev
