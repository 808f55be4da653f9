"""From a Fit to ArviZ: draws, pointwise marginal likelihood, predictions, data and the sampler's record."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.alone import seeded_rng
from ppl_vae.declare import Observations
from ppl_vae.declare.pair import PyroPair
from ppl_vae.dims import OBS_ID, dims_and_coords
from ppl_vae.errors import NO_DATA, EngineError
from ppl_vae.fit import Fit
from ppl_vae.from_pyro import Group, assemble, describe, pair_tree
from ppl_vae.infer.each import each

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["to_datatree"]

MOST = 20_000_000
"""Numbers that a group of predictions holds at most; of longer posteriors evenly spaced draws are predicted from."""
PRIOR_DRAWS = 500


def to_datatree(fit: Fit, data: Any = None, seed: int = 0) -> "xr.DataTree":
    """Everything that ArviZ reads, as one tree of named arrays.

    ======================== =============================================================================
    posterior                draws of shared latents, a point estimate as one chain of one draw
    log_likelihood           log p(x_i | theta_s) with the latents of datum i integrated out
    log_prior                log p(theta_s) of each shared latent
    posterior_predictive     new data under the inputs and gaps of the data, from each draw, or evenly spaced ones
                             beyond 20 million numbers
    prior, prior_predictive  at most 500 draws, where the parameters have priors
    sample_stats             diverging, energy, tree_depth, step_size, acceptance_rate, lp, where the engine
                             records them; log_q of a variational fit
    observed_data            the data, NaN where missing
    constant_data            inputs, and the weights of the data
    ======================== =============================================================================

    Dimensions are named: `obs_id` counts the data, `z_component` the values of a finite latent z, `feature` the
    columns.

    Parameters
    ----------
    fit : Fit
        Any fit.
    data : optional
        Observed values; by default the training data, which a loaded Fit no longer has.
    seed : int
        Seed of predictions and of importance weights.

    Returns
    -------
    xarray.DataTree
        The groups above, of which those are left out that this fit has nothing for.

    Raises
    ------
    EngineError
        If there are no data.

    Notes
    -----
    `lp` is the log density that the engine saw: NUTS's holds the Jacobian of its unconstrained coordinates. ArviZ
    writes the tree with `tree.to_netcdf(path, engine="h5netcdf")` and `tree.to_zarr(path, consolidated=False)`.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> tree = to_datatree(pv.VB(num_draws=50, progress=False).fit(gmm, pv.data.faithful()))
    >>> tree["posterior"]["components.loc"].dims
    ('chain', 'draw', 'z_component', 'feature')
    >>> tree["posterior"]["feature"].values.tolist()
    ['eruptions', 'waiting']
    """
    obs = data_of(fit, data)
    if isinstance(fit.model, PyroPair):
        return seeded(seed, lambda: pair_tree(fit, obs, posterior_draws(fit), seed))
    pointwise = fit.pointwise(obs, seed=seed)
    weights = fit.weights if obs is fit.data else None
    observed, posterior = observed_names(fit), posterior_draws(fit)
    predicted, kept = seeded(seed, lambda: _predictive(fit, obs))
    prior, prior_predicted = seeded(seed, lambda: _prior(fit, obs))
    data = {name: _rows(obs.with_gaps(name) if name in obs.missing else obs.values[name]) for name in observed}
    constants = {name: _rows(obs.values[name]) for name in fit.model.inputs}
    likelihood = observed[0] if len(observed) == 1 else "joint"
    dims, coords = dims_and_coords(fit.model, obs, posterior)
    tree = assemble(
        [
            Group("posterior", posterior, dims),
            Group("sample_stats", sample_stats(fit, pointwise, weights)),
            Group("log_likelihood", {likelihood: pointwise}, {likelihood: [OBS_ID]}),
            Group("log_prior", seeded(seed, lambda: _log_prior(fit))),
            Group("posterior_predictive", predicted, dims, kept),
            Group("prior", prior, dims),
            Group("prior_predictive", prior_predicted, dims),
            Group("observed_data", data, dims),
            Group("constant_data", constants if weights is None else {**constants, "weights": weights}, dims),
        ],
        coords,
    )
    local = fit.model.draws_latents(obs)
    tree["log_likelihood"].attrs["marginal"] = (
        "log p(x_i | theta), by importance weights" if local else "log p(x_i | theta), exact"
    )
    if weights is not None:
        tree["log_likelihood"].attrs["weights"] = "of one copy of each datum; how often each counts is in constant_data"
    return describe(tree, fit)


def posterior_draws(fit: Fit) -> dict[str, Tensor]:
    """Draws of shared latents, and family parameters as one chain of one draw, [chain, draw, *event]."""
    if fit.draws:
        return fit.draws
    return {name: value[None, None] for name, value in fit.parameters.items()}


def observed_names(fit: Fit) -> list[str]:
    """Observed nodes of a declared model."""
    return [node.name for node in fit.model.local_nodes() if node.kind == "observed"]


def data_of(fit: Fit, data: Any) -> Any:
    """The data given, else those the fit was trained on."""
    if data is None and fit.data is None:
        raise EngineError(f"{NO_DATA}: pass the data")
    return fit.data if data is None else fit.model.check(data)


def seeded(seed: int, function: Callable[[], Any]) -> Any:
    """The answer of a function under a seed of its own, without gradients."""
    with seeded_rng(seed), torch.no_grad():
        return function()


def sample_stats(fit: Fit, pointwise: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
    """The engine's record [chain, draw]; lp = log p(X, theta) where only its parts were recorded."""
    stats = dict(fit.sample_stats)
    if "log_prior" in stats:
        weighted = pointwise if weights is None else pointwise * weights.to(pointwise)
        stats["lp"] = stats["log_prior"] + weighted.sum(-1)
    return stats


def _rows(value: Any) -> Tensor:
    """The rows themselves, of a source that draws them anew each time too."""
    return value if isinstance(value, Tensor) else value[torch.arange(len(value))]


def _predictive(fit: Fit, obs: Observations) -> tuple[dict[str, Tensor], np.ndarray]:
    """New data [chain, draw, n, *event] by observed node, and the draws of each chain that they come from."""
    observed, inputs = observed_names(fit), {name: obs.values[name] for name in fit.model.inputs}
    names = list(fit.draws)
    chains, length = fit.draws[names[0]].shape[:2] if names else (1, 1)
    size = sum(_rows(obs.values[name]).numel() for name in observed)
    kept = np.linspace(0, length - 1, max(1, min(length, MOST // (chains * size)))).round().astype(int)

    def new(*values: Tensor) -> tuple[Tensor, ...]:
        with fit.model.bind(dict(zip(names, values, strict=True))):
            drawn = fit.model.sample_joint(len(obs), **inputs)
        return tuple(drawn[name] for name in observed)

    rows = (tuple(fit.draws[name][c, s] for name in names) for c in range(chains) for s in kept.tolist())
    columns = each(new, rows)
    shaped = {n: v.reshape(chains, len(kept), *v.shape[1:]) for n, v in zip(observed, columns, strict=True)}
    gaps = {name: obs.missing[name] for name in observed if name in obs.missing}
    return {n: v.masked_fill(gaps[n], torch.nan) if n in gaps else v for n, v in shaped.items()}, kept


def _log_prior(fit: Fit) -> dict[str, Tensor]:
    """Log p of each shared latent given those before it, [chain, draw] nats."""
    laws = fit.model.shared_laws()
    if not laws or not fit.draws:
        return {}

    def log_prob(*values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(laws, values, strict=True))
        with fit.model.numeric():
            return tuple(law(named).log_prob(named[name]) for name, law in laws.items())

    flat = [fit.draws[name].flatten(0, 1) for name in laws]
    shape = next(iter(fit.draws.values())).shape[:2]
    columns = each(log_prob, zip(*flat, strict=True))
    return {name: value.reshape(shape) for name, value in zip(laws, columns, strict=True)}


def _prior(fit: Fit, obs: Observations) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws of the shared latents from their prior, and data from each; nothing where parameters have no prior."""
    model, laws, observed = fit.model, fit.model.shared_laws(), observed_names(fit)
    if not laws or set(model.family_defaults()) - set(laws):
        return {}, {}
    inputs = {name: obs.values[name] for name in model.inputs}
    size = sum(_rows(obs.values[name]).numel() for name in observed)
    count = max(1, min(PRIOR_DRAWS, MOST // size))

    def new() -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {}
        with model.numeric():
            for name, law in laws.items():
                values[name] = law(values).sample()
        with model.bind(values):
            drawn = model.sample_joint(len(obs), **inputs)
        return *values.values(), *(drawn[name] for name in observed)

    columns: Iterable[Tensor] = [value[None] for value in each(new, [()] * count)]
    named = dict(zip([*laws, *observed], columns, strict=True))
    return {name: named[name] for name in laws}, {name: named[name] for name in observed}
