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
        "a KL term that is warmed up (beta=pv.linear(0, 1, epochs=10)) or free bits mend it: see docs/collapse",
    ),
    Rule(
        "mutual information",
        lambda d: f"the code says at most {d['mutual information, at most'].text} about its datum",
        "the decoder explains the data alone: warm-up, free bits, or a weaker decoder: see docs/collapse",
    ),
)


def advise(diagnosis: Any) -> list[str]:
    """The sentences of all rules whose quantity warns."""
    named = diagnosis.quantities
    return [
        f"{rule.evidence(diagnosis)}: {rule.mend}"
        for rule in RULES
        if rule.quantity in named and named[rule.quantity].ok is False
    ]
