"""What to do about a warning: rules as data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["RULES", "Rule", "advise"]


@dataclass(frozen=True)
class Rule:
    """Said where the quantity of this name warns.

    Attributes
    ----------
    quantity : str
        The name of a quantity.
    evidence : callable
        From a Diagnosis to the first half of the sentence.
    mend : str
        The second half: what helps, and the page to read.
    """

    quantity: str
    evidence: Callable[[Any], str]
    mend: str


def _inactive(d: Any) -> str:
    active = d.collapse.active
    return f"{int((~active).sum())} of {len(active)} units are inactive (variance of the posterior mean under 0.01)"


RULES = (
    Rule(
        "active units",
        _inactive,
        "warm-up of the KL term (beta=pv.linear(0, 1, epochs=10)) or free bits mend it: see docs/collapse",
    ),
    Rule(
        "mutual information",
        lambda d: f"a code carries at most {d['mutual information, at most'].text} about its datum",
        "the decoder explains the data alone; warm-up, free bits or a weaker decoder mend it: see docs/collapse",
    ),
    Rule(
        "KL(q(z) || p), at least",
        lambda d: f"the aggregate posterior is {d['KL(q(z) || p), at least'].text} or more from the prior",
        "a prior refitted with pv.refit_prior, or one that learns (VampPrior, mixture), mends it: see docs/prior-hole",
    ),
    Rule(
        "prior in holes",
        lambda d: f"{d['prior in holes'].value:.0%} of the prior's draws land where no datum is encoded",
        "they decode to what the model never saw; pv.refit_prior or a prior that learns mends it: see docs/prior-hole",
    ),
    Rule(
        "variance over the prior's",
        lambda d: f"the codes spread to {d[SPREAD].value:.3g} times the variance of the prior",
        "the KL term is too weak (beta under 1, or a decoder scale that is too small): see docs/variance-explosion",
    ),
    Rule(
        "decoder scales at their floor",
        lambda d: f"{d['decoder scales at their floor'].value:.0%} of the learned decoder scales are at their floor",
        "the likelihood would grow without bound; raise floor= or share one scale: see docs/variance-explosion",
    ),
    Rule(
        "smallest decoder scale",
        lambda d: f"the decoder's smallest scale is {d['smallest decoder scale'].value:.2g} of the data's spread",
        "the likelihood grows without bound where the decoder is exact; a floor or one scale bounds it: see "
        "docs/variance-explosion",
    ),
    Rule(
        "amortisation gap",
        lambda d: f"a q of its own for each datum gains {d['amortisation gap'].text} over the encoder's",
        "a wider encoder, or training it longer than the decoder, mends it: see docs/diagnose",
    ),
    Rule(
        "bad Pareto k",
        lambda d: f"for {d['bad Pareto k'].value:.0%} of the data q misses part of the posterior (Pareto k)",
        "log p(x) is then too low and its error understated; a richer posterior, such as "
        "pv.posteriors.inverse_autoregressive, or more draws mend it: see docs/diagnose",
    ),
    Rule(
        "effective sample size",
        lambda d: f"the importance weights are worth {d['effective sample size'].text}",
        "raise num_particles, and do not rank models by this log p(x): see docs/diagnose",
    ),
    Rule(
        "annealed log p(x)",
        lambda d: f"annealed importance sampling finds log p(x) higher by {d['annealed log p(x)'].text}",
        "draws of q miss part of the posterior; trust the annealed value: see docs/diagnose",
    ),
)
"""One for each quantity that can warn, the gravest first."""
SPREAD = "variance over the prior's"


def advise(diagnosis: Any) -> list[str]:
    """The sentences of all rules whose quantity warns."""
    named = diagnosis.quantities
    return [
        f"{rule.evidence(diagnosis)}: {rule.mend}"
        for rule in RULES
        if rule.quantity in named and named[rule.quantity].ok is False
    ]
