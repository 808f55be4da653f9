"""How good the answers of an approximation are, held against draws from the posterior."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COVERED", "quality", "quality_words"]

COVERED = 0.9
"""Probability of the intervals whose coverage is measured."""
FAR = 0.5
"""Standard deviations that a mean may be off before words are said."""
FEWEST = 8
"""Draws of a chain below which their correlation cannot be seen."""
LOW, HIGH = 0.8, 0.97
"""Mean coverage between which none are said; 0.97 is that of standard deviations 1.3 times too large."""


def quality(reference: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]]) -> "pd.DataFrame":
    """Errors of approximate posteriors, a row for each fit and each scalar that it has in common with the reference.

    - error: (mean - reference mean) / reference sd, in standard deviations of the reference
    - mc_error: the Monte-Carlo standard error of `error`, by effective sample sizes
    - sd_ratio: sd / reference sd; below 1 the approximation is too sure
    - coverage: share of the reference's draws inside the approximation's central 90% interval, 0.9 where it is right

    Parameters
    ----------
    reference : mapping of Tensor
        Draws from the posterior, [chain, draw, *event] by name.
    others : mapping
        Those of the fits by name; a point estimate is 1 x 1 and has only an error.

    Examples
    --------
    >>> import torch
    >>> truth = {"mu": torch.linspace(-1, 1, 1001)[None]}
    >>> found = quality(truth, {"too sure": {"mu": 0.5 * truth["mu"]}})
    >>> found.loc[("too sure", "mu"), ["sd_ratio", "coverage"]].round(2).tolist()
    [0.5, 0.45]
    """
    import pandas as pd

    own = {name: dict(_scalars(draws)) for name, draws in others.items()}
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for label, truth in _scalars(reference):
        if np.ptp(truth) == 0:
            continue
        noise = 1 / _effective(truth)
        rows |= {(name, label): _row(truth, noise, scalars[label]) for name, scalars in own.items() if label in scalars}
    order = sorted(rows, key=lambda key: list(others).index(key[0]))
    index = pd.MultiIndex.from_tuples(order, names=["fit", "parameter"]) if order else None
    return pd.DataFrame(
        [rows[key] for key in order], index=index, columns=["error", "mc_error", "sd_ratio", "coverage"]
    )


def _scalars(draws: Mapping[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Each scalar [chain, draw], named by its place."""
    for name, value in draws.items():
        numbers = value.double().cpu().numpy()
        for where in np.ndindex(*numbers.shape[2:]):
            yield (f"{name}[{', '.join(map(str, where))}]" if where else name), numbers[(..., *where)]


def _row(truth: np.ndarray, noise: float, own: np.ndarray) -> dict[str, float]:
    row = {"error": (own.mean() - truth.mean()) / truth.std()}
    if own.size == 1:
        return row | {"mc_error": noise**0.5}
    lower, upper = np.quantile(own, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    ratio = own.std() / truth.std()
    inside = float(((truth >= lower) & (truth <= upper)).mean())
    return row | {"mc_error": (noise + ratio**2 / _effective(own)) ** 0.5, "sd_ratio": ratio, "coverage": inside}


def _effective(column: np.ndarray) -> float:
    """Effective number of draws: fewer than there are where a sampler's draws follow one another, in one chain too."""
    if column.shape[1] < FEWEST or np.ptp(column) == 0:
        return column.size
    from arviz_stats.base import array_stats

    return float(array_stats.ess(column, chain_axis=0, draw_axis=1, method="mean"))


def quality_words(reference: str, found: "pd.DataFrame") -> list[str]:
    """What is wrong with an approximation, a sentence each; none where nothing is.

    Parameters
    ----------
    reference : str
        Name of the fit held for the posterior.
    found : DataFrame
        Rows of `quality` of one fit, by parameter.
    """
    said: list[str] = []
    beyond = (found["error"].abs() - 4 * found["mc_error"]).dropna()
    if len(beyond) and beyond.max() > FAR:
        worst: Any = beyond.idxmax()
        off = found["error"][worst]
        side = "above" if off > 0 else "below"
        said.append(f"the mean of {worst} is {abs(off):.2f} standard deviations {side} {reference}'s")
    covered = found["coverage"].dropna()
    if len(covered) and not LOW <= covered.mean() <= HIGH:
        low = covered.mean() < LOW
        edge: Any = covered.idxmin() if low else covered.idxmax()
        said.append(
            f"it is {'too sure' if low else 'less sure than it could be'}: its {COVERED:.0%} intervals hold "
            f"{covered.mean():.0%} of {reference}'s draws on average, {covered[edge]:.0%} for {edge}, and its standard "
            f"deviations are {found['sd_ratio'].median():.2f} of {reference}'s (median)"
        )
    return said
