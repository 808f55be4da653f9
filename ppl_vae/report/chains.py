"""Diagnostics of a fit that has chains: each scalar's numbers by ArviZ, and its plots."""

import warnings
from dataclasses import dataclass

from markupsafe import Markup

from ppl_vae import plots
from ppl_vae.convergence import ESS_PER_CHAIN, RHAT_LIMIT
from ppl_vae.fit import Fit
from ppl_vae.plots.chains import scalars
from ppl_vae.report.figures import svg

__all__ = ["Chains", "chains_of"]

HEADS = ("mean", "sd", "MCSE", "R-hat", "bulk ESS", "tail ESS")


@dataclass
class Chains:
    """A table by scalar, and the trace and rank plots.

    Attributes
    ----------
    heads : tuple of str
        Columns.
    rows : list
        Name, and for each column its text and whether it speaks against the draws.
    divergences : int or None
        Transitions that diverged; None for an engine that has none.
    trace, rank : Markup
        ArviZ's plots.
    """

    heads: tuple[str, ...]
    rows: list[tuple[str, list[tuple[str, bool]]]]
    divergences: int | None
    trace: Markup
    rank: Markup


def chains_of(fit: Fit) -> Chains | None:
    """Diagnostics of a fit with several chains; None for others.

    Parameters
    ----------
    fit : Fit
        Any fit; drawn within `drawing()`.
    """
    if fit.is_point or next(iter(fit.draws.values())).shape[0] < 2:
        return None
    trace, rank = plots.trace_rank(fit)
    diverging = fit.sample_stats.get("diverging")
    return Chains(
        HEADS,
        _rows(fit),
        None if diverging is None else int(diverging.sum()),
        svg(trace, "Density and trace of each parameter by chain"),
        svg(rank, "Ranks of each parameter by chain"),
    )


def _rows(fit: Fit) -> list[tuple[str, list[tuple[str, bool]]]]:
    import arviz_base
    import arviz_stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = arviz_base.from_dict({"posterior": scalars(fit)})
        frame = arviz_stats.summary(tree, kind="all", round_to="none")
    least = ESS_PER_CHAIN * next(iter(fit.draws.values())).shape[0]
    return [
        (
            str(name),
            [
                (f"{row['mean']:#.4g}", False),
                (f"{row['sd']:#.3g}", False),
                (f"{row['mcse_mean']:#.2g}", False),
                (f"{row['r_hat']:.3f}", bool(row["r_hat"] > RHAT_LIMIT)),
                (f"{row['ess_bulk']:.0f}", bool(row["ess_bulk"] < least)),
                (f"{row['ess_tail']:.0f}", bool(row["ess_tail"] < least)),
            ],
        )
        for name, row in frame.iterrows()
    ]
