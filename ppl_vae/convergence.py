"""Whether chains of draws agree, and how many independent draws they are worth."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae.fit import Fit

__all__ = ["ESS_PER_CHAIN", "RHAT_LIMIT", "Convergence", "convergence", "rhat"]

RHAT_LIMIT, ESS_PER_CHAIN = 1.01, 100
"""The worst R-hat and the smallest effective draws per chain to be trusted (Vehtari et al. 2021, s. 4)."""
MOST = 1000
"""Scalars that are judged; of more, such as latents of every datum, evenly spaced ones."""


@dataclass(frozen=True)
class Convergence:
    """Worst R-hat and smallest effective sample size over all scalar parameters, and where they are.

    Attributes
    ----------
    rhat, ess : float
        Rank-normalised split R-hat, and the smaller of bulk and tail effective sample size (Vehtari et al. 2021).
    divergences : int
        Transitions that diverged, after warm-up.
    worst, scarcest : str
        The parameters that these numbers belong to.
    chains, transitions : int
        Number of chains, and of their draws in all.
    """

    rhat: float
    ess: float
    divergences: int
    worst: str = ""
    scarcest: str = ""
    chains: int = 4
    transitions: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the draws."""
        return not self.warnings()

    def __str__(self) -> str:
        """The three numbers in a row.

        Examples
        --------
        >>> print(Convergence(rhat=1.0014, ess=912.3, divergences=0))
        R-hat at most 1.001, 912 effective draws at least, 0 divergences
        """
        ess = "no number of" if math.isnan(self.ess) else f"{self.ess:.0f}"
        return f"R-hat at most {self.rhat:.3f}, {ess} effective draws at least, {self.divergences} divergences"

    def warnings(self) -> tuple[str, ...]:
        """What speaks against the draws, a sentence each; none when the chains agree and say enough.

        Examples
        --------
        >>> Convergence(rhat=1.001, ess=900.0, divergences=0).warnings()
        ()
        >>> print(Convergence(1.2, 900.0, 0, worst="loc[0]").warnings()[0])
        R-hat of loc[0] is 1.200, above 1.01: the chains disagree; run longer, or from other starts
        """
        found = []
        if self.divergences:
            found.append(
                f"{self.divergences} of {self.transitions} transitions diverged: do not trust the tails; a longer "
                f"warmup or another parameterisation may help"
            )
        if self.chains == 1:
            found.append("a single chain was run: whether others would agree with it is not known; run two or more")
        if math.isnan(self.rhat) or math.isnan(self.ess):
            found.append(f"{self.transitions} draws are too few to tell R-hat and effective draws: run longer")
        if self.rhat > RHAT_LIMIT:
            who = "the chains disagree" if self.chains > 1 else "the halves of the chain disagree"
            found.append(
                f"R-hat of {self.worst} is {self.rhat:.3f}, above {RHAT_LIMIT}: {who}; run longer, or from other starts"
            )
        if self.ess < (least := ESS_PER_CHAIN * self.chains):
            found.append(
                f"the effective sample size of {self.scarcest} is {self.ess:.0f}, below {least} ({ESS_PER_CHAIN} per "
                f"chain): run longer"
            )
        return tuple(found)


def convergence(fit: Fit) -> Convergence | None:
    """R-hat (rank-normalised) and bulk and tail ESS by ArviZ; None without chains.

    Parameters
    ----------
    fit : Fit
        Of any engine; a bootstrap or VB has one chain of independent draws, and so no answer. The R-hat of a single
        chain of a sampler is that of its halves.
    """
    if fit.is_point or (next(iter(fit.draws.values())).shape[0] < 2 and "diverging" not in fit.sample_stats):
        return None
    columns = [column for value in fit.draws.items() for column in _columns(*value)]
    found = {name: _numbers(column) for name, column in columns[:: -(-len(columns) // MOST)]}
    moved = {name: numbers for name, numbers in found.items() if numbers is not None}
    if not moved:
        return None
    worst = max(moved, key=lambda name: _or_inf(moved[name][0]))
    scarcest = min(moved, key=lambda name: moved[name][1])
    first, diverging = next(iter(fit.draws.values())), fit.sample_stats.get("diverging")
    return Convergence(
        rhat=moved[worst][0],
        ess=moved[scarcest][1],
        divergences=0 if diverging is None else int(diverging.sum()),
        worst=worst,
        scarcest=scarcest,
        chains=first.shape[0],
        transitions=first.shape[0] * first.shape[1],
    )


def _columns(name: str, value: Tensor) -> list[tuple[str, Any]]:
    """Each scalar of a parameter with its name, [chain, draw]."""
    shape = tuple(value.shape[2:])
    flat = value.flatten(2).numpy() if shape else value[..., None].numpy()
    return [
        (f"{name}[{', '.join(map(str, index))}]" if shape else name, flat[..., j])
        for j, index in enumerate(np.ndindex(shape))
    ]


def _numbers(column: Any) -> tuple[float, float] | None:
    """R-hat and ESS of a scalar; None where it never moves."""
    from arviz_stats.base import array_stats

    if np.ptp(column) == 0:
        return None
    bulk = float(array_stats.ess(column, chain_axis=0, draw_axis=1, method="bulk"))
    tail = float(array_stats.ess(column, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95)))
    return rhat(column), min(bulk, tail)


def rhat(column: Any) -> float:
    """Rank-normalised split R-hat of a scalar, [chain, draw] (Vehtari et al. 2021); of one chain, of its halves."""
    from arviz_stats.base import array_stats

    if len(column) == 1:
        column = column[:, column.shape[1] % 2 :].reshape(2, -1)
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite where no chain moves within its halves
        return float(array_stats.rhat(column, chain_axis=0, draw_axis=1))


def _or_inf(value: float) -> float:
    return float("inf") if np.isnan(value) else value
