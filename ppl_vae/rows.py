"""One line of a comparison: what a fit is worth in each column, and what to know before believing it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.convergence import Convergence, convergence
from ppl_vae.coordinates import coordinates
from ppl_vae.counted import counted_mean, counts_of, same_data
from ppl_vae.declare import Observations
from ppl_vae.diagnostics import elbo_total, khat, leave_one_out
from ppl_vae.evaluation import evaluate
from ppl_vae.evidence import EVEN, log_mean_exp
from ppl_vae.fit import Fit
from ppl_vae.infer.weights import check_weights, own_weights

__all__ = ["COLUMNS", "Judged", "Row", "judge"]

K_LIMIT, WEIGHT_SHARE = 0.7, 0.05

COLUMNS = {
    "engine": "engine",
    "log_predictive": "log p(x) of the data compared on, nats per datum",
    "log_predictive_se": "standard error",
    "log_likelihood": "log p(X | theta), total, training",
    "elbo_total": "bound on log p(X), total",
    "elbo": "bound on log p(x), nats per datum",
    "gap": "what the bound lacks, in its own unit",
    "bic": "BIC, smaller is better",
    "elpd_loo": "ELPD by PSIS-LOO, total",
    "elpd_se": "its standard error",
    "bad_k": "data with Pareto k above 0.7, of weights that vary",
    "khat": "Pareto k of q(theta), up to 0.7 to be trusted",
    "rhat": "worst R-hat",
    "ess": "smallest ESS",
    "ari": "agreement of labels",
    "seconds": "seconds",
    "status": "status",
}
"""Columns of a comparison with what they mean."""


@dataclass
class Row:
    """One fit's line of the table; None where a column has no meaning for it."""

    engine: str
    log_predictive: float
    log_predictive_se: float
    seconds: float
    status: str
    log_likelihood: float | None = None
    elbo_total: float | None = None
    elbo: float | None = None
    gap: float | None = None
    bic: float | None = None
    elpd_loo: float | None = None
    elpd_se: float | None = None
    bad_k: int | None = None
    khat: float | None = None
    rhat: float | None = None
    ess: float | None = None
    ari: float | None = None


@dataclass(frozen=True)
class Judged:
    """A fit's row with what it was made from.

    Attributes
    ----------
    row : Row
        The numbers.
    elpd : ELPDData or None
        ArviZ's record of PSIS-LOO, where the fit has draws of a posterior and its training data.
    warnings : list of str
        What the reader should know before believing a number.
    """

    row: Row
    elpd: Any
    warnings: list[str]


def judge(fit: Fit, obs: Observations, num_particles: int, weights: Tensor) -> Judged:
    """Fill a fit's row.

    Parameters
    ----------
    fit : Fit
        Of any engine.
    obs : Observations
        The data compared on, in the fit's dtype.
    num_particles : int
        Draws of q per datum where log p(x) is not exact.
    weights : Tensor
        [n], how many times each of the data compared on counts.
    """
    pointwise = None if fit.is_point or fit.data is None else fit.pointwise(fit.data, num_particles)
    predictive = _predictive(fit, obs, num_particles, pointwise)
    row = Row(fit.engine, *counted_mean(predictive, own_weights(fit, obs, weights)), fit.seconds, fit.status.code)
    total = elbo_total(fit, pointwise)
    if fit.engine == "EM":
        _fill_em(row, fit)
    elif total is not None:
        row.elbo_total, row.gap, row.khat = total[0], total[1] - total[0], khat(fit, pointwise)
    elif fit.engine == "SVI":
        evaluation = evaluate(fit, obs, num_particles, weights=weights)
        row.elbo, row.gap = evaluation.elbo, evaluation.log_prob - evaluation.elbo
    if (chains := convergence(fit)) is not None:
        row.rhat, row.ess = chains.rhat, chains.ess
    if (elpd := leave_one_out(fit, pointwise=pointwise) if fit.data is not None else None) is not None:
        row.elpd_loo, row.elpd_se = float(elpd.elpd), float(elpd.se)
        row.bad_k = int((np.asarray(elpd.pareto_k) > K_LIMIT).sum())
    return Judged(row, elpd, _warnings(fit, row, chains, None if total is None else total[2]))


def _predictive(fit: Fit, obs: Observations, num_particles: int, pointwise: Tensor | None) -> Tensor:
    """Log of the mean over draws of p(x_i | theta), [n]; what is known of the training data is not computed again."""
    if pointwise is not None and same_data(fit.data, obs):
        return log_mean_exp(pointwise.flatten(0, 1)).double()
    return fit.log_predictive(obs, num_particles).double()


def _fill_em(row: Row, fit: Fit) -> None:
    """Log p(X | theta): the bound is tight after an E-step, so its gap is zero; BIC where theta is its maximum."""
    if fit.data is None:
        return
    weights = check_weights(own_weights(fit, fit.data), len(fit.data))
    per_datum = fit.log_predictive(fit.data).double()
    row.log_likelihood, row.gap = (weights.to(per_datum) * per_datum).sum().item(), 0.0
    if not fit.bound.endswith("log p(theta)"):
        row.bic = -2 * row.log_likelihood + degrees_of_freedom(fit) * float(torch.log(weights.sum()))


def degrees_of_freedom(fit: Fit) -> int:
    """Number of free scalars among a fit's parameters: a simplex of K counts K - 1.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    >>> degrees_of_freedom(fit)
    11
    """
    return coordinates(fit.model, fit.settings.get("frozen", ())).size


def _warnings(fit: Fit, row: Row, chains: Convergence | None, share: float | None) -> list[str]:
    found = list(fit.status.notes) if fit.status.ok else [str(fit.status)]
    if chains is not None:
        found += [said for said in chains.warnings() if said not in found]
    if row.khat is not None and not (row.khat <= K_LIMIT or (share or 0.0) >= EVEN):
        found.append(
            f"q(theta) is too far from the posterior: the Pareto k of its importance weights is {row.khat:.2f}, above "
            f"{K_LIMIT}, and they are worth {share:.1%} of the draws: its standard deviations, its elpd_loo and the gap"
            f" (which is underestimated) are not reliable; take a richer guide, or NUTS"
        )
    elif share is not None and share < WEIGHT_SHARE:
        found.append(
            f"q covers the posterior poorly: the importance weights are worth {share:.1%} of the draws, so the gap "
            f"is underestimated"
        )
    if row.elpd_loo is None and not fit.is_point and fit.weights is not None and counts_of(fit.weights) is None:
        found.append("no leave-one-out: the weights are no whole numbers, so none of them is a number of data")
    if row.bad_k:
        said, whose = ("1 datum has", "its") if row.bad_k == 1 else (f"{row.bad_k} data have", "their")
        found.append(f"{said} a Pareto k above {K_LIMIT}: {whose} share of elpd_loo is not reliable")
    return found
