"""How far a fit can be trusted: convergence of its draws, weights of q(theta), cross-validation."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ppl_vae.convergence import Convergence, convergence
from ppl_vae.counted import counted_elpd, counts_of
from ppl_vae.datatree import data_of
from ppl_vae.evidence import hardly_vary, log_mean_exp
from ppl_vae.fit import Fit

__all__ = [
    "Convergence",
    "convergence",
    "elbo_total",
    "khat",
    "leave_one_out",
    "log_densities",
]

EQUAL = 0.99
"""Share of the draws from which on the effective sample size says that weights are as good as equal."""
LEAST = 25
"""Draws below which the tail of weights cannot be fitted."""


def log_densities(fit: Fit, pointwise: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """Log p(X, theta) and log q(theta) of every draw, [chain, draw] total nats; None unless draws are of a q(theta).

    Parameters
    ----------
    fit : Fit
        Of SVI or VB, with its training data.
    pointwise : Tensor, optional
        Log p(x_i | theta_s) of those data, [chain, draw, n], where it is known already.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.VB(num_draws=50, progress=False).fit(gmm, pv.data.faithful())
    >>> log_p, log_q = log_densities(fit)
    >>> log_p.shape, log_q.shape
    (torch.Size([1, 50]), torch.Size([1, 50]))
    """
    if fit.is_point or "log_q" not in fit.sample_stats or fit.data is None:
        return None
    each = fit.pointwise(fit.data) if pointwise is None else pointwise
    weights = torch.ones(len(fit.data)) if fit.weights is None else fit.weights
    log_p = (each * weights.to(each)).sum(-1) + fit.sample_stats["log_prior"]
    return log_p.double(), fit.sample_stats["log_q"].double()


def khat(fit: Fit, pointwise: Tensor | None = None) -> float | None:
    """Shape k of the generalised Pareto law of the largest weights p(X, theta) / q(theta); None below 25 draws of q.

    Up to 0.7 the draws of q can stand for the posterior once they are weighted; above, q misses so much of it that not
    even that helps (Yao et al. 2018). Weights that differ by less than 5%, so that q is the posterior, have k = 0
    whatever the shape of so little.

    Parameters
    ----------
    fit, pointwise
        As of `log_densities`.

    References
    ----------
    Yao, Vehtari, Simpson and Gelman (2018), "Yes, but did it work?: Evaluating variational inference".

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.VB(num_draws=200, progress=False).fit(gmm, pv.data.faithful())
    >>> khat(fit) < 0.7
    True
    """
    if fit.num_draws < LEAST or (densities := log_densities(fit, pointwise)) is None:
        return None
    from arviz_stats.base import array_stats

    log_w = (densities[0] - densities[1]).flatten()
    share = torch.softmax(log_w, 0)
    if 1 / share.square().sum() >= EQUAL * len(share):
        return 0.0
    return float(array_stats.psislw(-log_w.cpu().numpy())[1])  # it takes log likelihoods, the inverse of weights


def leave_one_out(fit: Fit, data: Any = None, pointwise: Tensor | None = None) -> Any:
    """ArviZ's ELPDData by Pareto-smoothed importance sampling over the draws of a posterior; None for other fits.

    Draws of a q(theta) are weighted by p(X, theta) / q(theta) as well (Magnusson et al. 2019), where they are on the
    training data. The Pareto k of a datum whose weights are worth 90% of the draws or more is given as 0: it would be
    the shape of next to nothing (see `hardly_vary`). Data of which nothing was seen are left out; below 25 draws there
    is no answer. A weight w stands for w data, each of them left out alone; weights that are no counts have no answer.

    Parameters
    ----------
    fit : Fit
        Of NUTS, SVI or VB.
    data : optional
        The training data, for a fit that was loaded from a file.
    pointwise : Tensor, optional
        Log p(x_i | theta_s) of those data, [chain, draw, n], where it is known already.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.VB(num_draws=50, progress=False).fit(gmm, pv.data.faithful())
    >>> print(round(leave_one_out(fit).elpd, -1))  # total nats
    -1140.0
    """
    if fit.is_point or fit.engine == "bootstrap" or fit.num_draws < LEAST:
        return None
    counts = counts_of(fit.weights) if data is None else None
    if counts is None and data is None and fit.weights is not None:
        return None
    import arviz_base
    from arviz_stats import loo, loo_approximate_posterior

    each = fit.pointwise(data_of(fit, data)) if pointwise is None else pointwise
    # A datum of which nothing was seen has the same density everywhere, but for rounding: it says nothing of the model.
    spread = each.flatten(0, 1).max(0).values - each.flatten(0, 1).min(0).values
    seen = spread > 100 * torch.finfo(each.dtype).eps
    if not bool(seen.any()):
        return None
    groups = {
        "posterior": {name: value.cpu().numpy() for name, value in fit.draws.items()},
        "log_likelihood": {"x": each[..., seen].double().cpu().numpy()},
    }
    densities = log_densities(fit, each) if data is None else None
    log_w = -each[..., seen].double()
    with warnings.catch_warnings():
        # Bad Pareto k are counted and worded by the table.
        warnings.simplefilter("ignore", UserWarning)
        if densities is None:
            found = loo(arviz_base.from_dict(groups), pointwise=True)
        else:
            log_p, log_q = (value.flatten().cpu().numpy() for value in densities)
            log_w = log_w + (densities[0] - densities[1]).to(log_w)[..., None]
            found = loo_approximate_posterior(arviz_base.from_dict(groups), log_p, log_q, pointwise=True)
    share = torch.softmax(log_w.flatten(0, 1), 0)
    even = hardly_vary(1 / share.square().sum(0), len(share)).cpu().numpy()
    found.pareto_k = found.pareto_k.where(~even, 0.0)
    found.warning = bool((found.pareto_k > found.good_k).any())
    return found if counts is None else counted_elpd(found, each[..., seen], counts.to(seen.device)[seen])


def elbo_total(fit: Fit, pointwise: Tensor | None = None) -> tuple[float, float, float] | None:
    """The bound on log p(X) with the shared latents integrated: (bound, importance-weighted log p(X), ESS share).

    elbo_total = E_q(theta)[log p(X | theta) + log p(theta) - log q(theta)], total nats; the same draws weighted by
    p(X, theta) / q(theta) estimate log p(X), and the difference is KL(q || p(theta | X)). VB has a bound of its own in
    closed form, which is lower because its q(z) does not know theta.

    Parameters
    ----------
    fit, pointwise
        As of `log_densities`.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.VB(num_draws=50, progress=False).fit(gmm, pv.data.faithful())
    >>> bound, log_evidence, ess = elbo_total(fit)
    >>> round(bound, 3), bound < log_evidence
    (-1168.908, True)
    """
    if (densities := log_densities(fit, pointwise)) is None:
        return None
    log_w = (densities[0] - densities[1]).flatten()
    share = torch.softmax(log_w, 0)
    ess = 1 / share.square().sum() / len(log_w)
    bound = fit.trace["bound"][-1] if fit.engine == "VB" else log_w.mean()
    return bound.item(), log_mean_exp(log_w).item(), ess.item()
