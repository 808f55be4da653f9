"""What a model predicts, before data and after: prior and posterior predictive draws, checks, and LOO-PIT."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.counted import every_datum
from ppl_vae.datatree import data_of, seeded
from ppl_vae.declare import LatentVariableModel
from ppl_vae.diagnostics import LEAST, log_densities
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STATISTICS", "loo_pit", "predictive_check", "prior_predictive", "replicates"]

STATISTICS: Mapping[str, Callable[[np.ndarray], Any]] = {
    "mean": lambda x: np.nanmean(x, 0),
    "sd": lambda x: np.nanstd(x, 0, ddof=1),
    "smallest": lambda x: np.nanmin(x, 0),
    "largest": lambda x: np.nanmax(x, 0),
}
"""What a check looks at by default, for every feature of data [n, d]."""


def prior_predictive(
    model: LatentVariableModel, n: int, draws: int = 100, data: Any = None, seed: int = 0, **inputs: Tensor
) -> dict[str, Tensor]:
    """Data sets that the model expects before it has seen any: theta from the prior, then n data from p(x | theta).

    Parameters
    ----------
    model : LatentVariableModel
        A declaration whose parameters have priors; it is not changed.
    n : int
        Data in each data set.
    draws : int
        Number of data sets.
    data : optional
        What a prior takes its scale from, where it does (prior="weak").
    seed : int
        Seed of the draws.
    **inputs : Tensor
        A value [n, ...] for each input of the model.

    Returns
    -------
    dict of Tensor
        Shared latents [draws, *event], and every local node [draws, n, *event], by name.

    Raises
    ------
    EngineError
        If the model has parameters without a prior, naming them.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> prior_predictive(gmm, 10, draws=5, data=pv.data.faithful())["x"].shape
    torch.Size([5, 10, 2])
    """
    if not isinstance(model, LatentVariableModel):
        raise EngineError(f"prior_predictive takes a declaration, got {type(model).__name__}; a Fit has fit.model")
    own = deepcopy(model).double()
    free = [name.removesuffix("_unconstrained") for name, _ in own.named_parameters()]
    if free or not own.shared_laws():
        raise EngineError(
            f"prior_predictive draws parameters from their priors; {type(model).__name__} has "
            f"{'none for ' + ', '.join(free) if free else 'none'}"
        )
    if data is not None:
        own.adapt(data)

    def one() -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for name, law in own.shared_laws().items():
            values[name] = law(values).sample()
        with own.bind(values):
            return {**values, **own.sample_joint(n, **inputs)}

    with own.numeric():
        found = seeded(seed, lambda: [one() for _ in range(draws)])
    return {name: torch.stack([drawn[name] for drawn in found]) for name in found[0]}


def replicates(fit: Fit, data: Any = None, draws: int = 200, seed: int = 0) -> dict[str, Tensor]:
    """Data sets drawn from the fit, each with a theta of its own, evenly spaced among its draws.

    Parameters
    ----------
    fit : Fit
        Any fit.
    data : optional
        Data whose number and inputs the replicates have; the training data by default, as many as their weights say.
    draws : int
        Number of data sets.
    seed : int
        Seed of the draws.

    Returns
    -------
    dict of Tensor
        Every observed node, [draws, n, *event].
    """
    obs = _counted(fit, data)
    return seeded(seed, lambda: _replicates(fit, obs, fit.spaced(draws)))


def _counted(fit: Fit, data: Any) -> Any:
    return data_of(fit, data) if data is not None or fit.data is None else every_datum(fit)


def _replicates(fit: Fit, obs: Any, chosen: list[int]) -> dict[str, Tensor]:
    inputs = {name: obs.values[name] for name in fit.model.inputs}
    names = _observed(fit)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for s in chosen:
        with fit.model.bind(fit.draw(s)):
            drawn = fit.model.sample(len(obs), **inputs)
        for name in names:
            found[name].append(drawn[name] if isinstance(drawn, dict) else drawn)
    return {name: torch.stack(each) for name, each in found.items()}


def _observed(fit: Fit) -> list[str]:
    return [node.name for node in fit.model.local_nodes() if node.kind == "observed"]


def predictive_check(
    fit: Fit,
    data: Any = None,
    statistics: Mapping[str, Callable[[np.ndarray], Any]] = STATISTICS,
    draws: int = 200,
    seed: int = 0,
) -> "pd.DataFrame":
    """Statistics of the data beside those of data drawn from the fit (Gelman, Meng and Stern 1996).

    p is the share of replicated data sets whose statistic is larger, ties counted half. Near 0 or 1 the model does not
    make data like these; as it has seen them, it leans towards one half.

    Parameters
    ----------
    fit : Fit
        Any fit; a point estimate has one theta for all replicates.
    data : optional
        Observed values; the training data by default, each as many times as its weight says.
    statistics : mapping
        Functions of data [n, d] to one number, or one for each feature, by name.
    draws : int
        Number of replicated data sets, each as large as the data. Entries that are missing in the data are missing
        in the replicates.
    seed : int
        Seed of the replicates.

    Returns
    -------
    DataFrame
        A row for each statistic of each feature: observed, mean, lower and upper (5% and 95%) of the replicates, p.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    >>> predictive_check(fit, draws=20).loc["sd of waiting", "observed"].round(2)
    np.float64(13.59)
    """
    import pandas as pd

    counted = _counted(fit, data)
    obs = seeded(seed, counted.drawn)
    rows: dict[str, dict[str, float]] = {}
    for name, drawn in replicates(fit, obs, draws, seed).items():
        missing = obs.missing.get(name)
        gaps = np.zeros(obs.values[name].shape, bool) if missing is None else missing.cpu().numpy()
        seen, again = (
            np.where(gaps, np.nan, value.double().cpu().numpy()).reshape(
                *value.shape[: value.dim() - gaps.ndim + 1], -1
            )
            for value in (obs.values[name], drawn)
        )
        for statistic, function in statistics.items():
            here = np.atleast_1d(function(seen))
            there = np.stack([np.atleast_1d(function(x)) for x in again])
            for j, label in enumerate(_labels(obs, name, statistic, len(here))):
                rows[label] = _row(here[j], there[:, j])
    return pd.DataFrame.from_dict(rows, orient="index")


def _labels(obs: Any, name: str, statistic: str, count: int) -> list[str]:
    columns = obs.columns.get(name) or ()
    if count == 1 and len(columns) != 1:
        return [f"{statistic} of {name}"]
    return [f"{statistic} of {columns[j] if len(columns) == count else f'{name}[{j}]'}" for j in range(count)]


def _row(here: float, there: np.ndarray) -> dict[str, float]:
    lower, upper = np.quantile(there, [0.05, 0.95])
    p = np.mean(there > here) + 0.5 * np.mean(there == here)
    return {"observed": here, "mean": there.mean(), "lower": lower, "upper": upper, "p": p}


def loo_pit(fit: Fit, data: Any = None, draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """p(x_ij* <= x_ij | all other data), [n, *event] for each observed node; uniform where the model is right.

    One draw of x* for each theta_s is weighted by the Pareto-smoothed 1 / p(x_i | theta_s), for a q(theta) times
    p(X, theta_s) / q(theta_s); ties, of counts, are broken at random. Missing entries are NaN.

    Parameters
    ----------
    fit : Fit
        Of NUTS, SVI or VB.
    data : optional
        The training data, for a fit that was loaded from a file.
    draws : int
        Draws used at most, evenly spaced.
    seed : int
        Seed of the predictive draws.

    Returns
    -------
    dict of array
        Probabilities [n, *event] by observed node, NaN where x_ij is missing.

    Raises
    ------
    EngineError
        For a point estimate, which has no draws to weight, or fewer than 25 draws.

    References
    ----------
    Gabry, Simpson, Vehtari, Betancourt and Gelman (2019), "Visualization in Bayesian workflow", JRSS A 182(2).

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.VB(num_draws=100, progress=False).fit(gmm, pv.data.faithful())
    >>> loo_pit(fit)["x"].shape
    (272, 2)
    """
    if fit.is_point or fit.engine == "bootstrap" or min(draws, fit.num_draws) < LEAST:
        raise EngineError(
            f"loo_pit weights draws of a posterior, {LEAST} at least; this fit by {fit.engine} has {fit.num_draws}"
        )
    from arviz_stats.base import array_stats

    obs = data_of(fit, data)
    chosen = fit.spaced(min(draws, fit.num_draws))
    pointwise = fit.pointwise(obs, seed=seed)
    log_ratio = pointwise.flatten(0, 1)[chosen].double()
    if data is None and (densities := log_densities(fit, pointwise)) is not None:
        log_ratio = log_ratio - (densities[0] - densities[1]).flatten()[chosen, None]
    log_w = -log_ratio.T.cpu().numpy()  # [n, draw]
    spread = np.ptp(log_w, axis=1) > 0  # nothing was seen of the others
    log_w[spread] = array_stats.psislw(-log_w[spread])[0]
    drawn = seeded(seed, lambda: _replicates(fit, obs, chosen))
    generator, found = np.random.default_rng(seed), {}
    weight = np.exp(log_w - np.logaddexp.reduce(log_w, axis=1, keepdims=True)).T
    for name, value in drawn.items():
        below, equal = (
            np.einsum("sn,sn...->n...", weight, compare(value, obs.values[name]).double().cpu().numpy())
            for compare in (torch.lt, torch.eq)
        )
        pit = below + equal * generator.uniform(size=below.shape)
        missing = obs.missing.get(name)
        found[name] = pit if missing is None else np.where(missing.cpu().numpy(), np.nan, pit)
    return found
