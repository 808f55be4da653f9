"""From a Fit to ArviZ."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["to_datatree"]

PREDICTIVE_DRAWS = 200


def to_datatree(fit: Fit, data: Any = None, seed: int = 0) -> "xr.DataTree":
    """Posterior, pointwise marginal log-likelihood, predictive draws, data and sampler record, for ArviZ.

    log_likelihood holds log p(x_i | theta_s) with the latents of each datum integrated out, which is what
    leave-one-out needs; a point estimate is one chain of one draw.

    Parameters
    ----------
    fit : Fit
        Any fit.
    data : optional
        Observed values; by default the training data, which a loaded Fit no longer has.

    Raises
    ------
    EngineError
        If there are no data.
    """
    import arviz_base

    obs = data_of(fit, data)
    draws = {name: value.numpy() for name, value in posterior_draws(fit).items()}
    coords, dims = _coords(fit, obs)
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": draws}
    observed = [node.name for node in fit.model.local_nodes() if node.kind == "observed"]
    pointwise = seeded(seed, lambda: fit.pointwise(obs))
    groups["log_likelihood"] = {observed[0] if len(observed) == 1 else "joint": pointwise.numpy()}
    groups["posterior_predictive"] = seeded(seed, lambda: _predictive(fit, obs, observed))
    groups["observed_data"] = {name: _with_gaps(obs, name) for name in observed}
    if fit.sample_stats:
        groups["sample_stats"] = {name: value.numpy() for name, value in fit.sample_stats.items()}
    groups = {name: values for name, values in groups.items() if values}
    tree = arviz_base.from_dict(groups, coords=coords, dims=dims)
    tree.attrs.update({"inference_library": f"ppl_vae {fit.engine}", "seed": fit.seed, **fit.versions})
    return tree


def posterior_draws(fit: Fit) -> dict[str, Tensor]:
    """Draws of shared latents, and family parameters as one chain of one draw, [chain, draw, *event]."""
    if fit.draws:
        return fit.draws
    return {name: value[None, None] for name, value in fit.parameters.items()}


def data_of(fit: Fit, data: Any) -> Any:
    """The data given, else those the fit was trained on."""
    if data is None and fit.data is None:
        raise EngineError("this fit was loaded from a file, which holds no data: pass the data")
    return fit.data if data is None else fit.model.check(data)


def seeded(seed: int, function: Any) -> Any:
    """The answer of a function under a seed of its own, without gradients."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        return function()


def _with_gaps(obs: Any, name: str) -> np.ndarray:
    value = obs.values[name]
    missing = obs.missing.get(name)
    return (value if missing is None else value.masked_fill(missing, torch.nan)).numpy()


def _predictive(fit: Fit, obs: Any, observed: list[str]) -> dict[str, np.ndarray]:
    inputs = {name: obs.values[name] for name in fit.model.inputs}
    chains, length = next(iter(fit.draws.values())).shape[:2] if fit.draws else (1, 1)
    keep = np.linspace(0, length - 1, min(length, max(1, PREDICTIVE_DRAWS // chains))).round().astype(int)
    rows = []
    for s in (chain * length + j for chain in range(chains) for j in keep):
        with fit.model.bind(fit.draw(int(s)) if fit.draws else {}):
            rows.append(fit.model.sample(len(obs), **inputs))
    if len(observed) == 1:
        return {observed[0]: torch.stack(rows).reshape(chains, len(keep), *rows[0].shape).numpy()}
    stacked = {name: torch.stack([row[name] for row in rows]) for name in observed}
    return {name: value.reshape(chains, len(keep), *value.shape[1:]).numpy() for name, value in stacked.items()}


def _coords(fit: Fit, obs: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Names of dimensions: components, and features by column."""
    coords: dict[str, Any] = {}
    dims: dict[str, list[str]] = {}
    for path, family in fit.model.families().items():
        width = getattr(family, "n_features", None)
        for name, value in family.defaults().items():
            labels = []
            for axis, size in enumerate(value.shape):
                feature = width is not None and size == width and (axis > 0 or value.shape[:1] != (family.batch,))
                labels.append(f"{path}_feature" if feature else f"{path}_component")
            if len(set(labels)) < len(labels):
                labels[-1] += "_bis"
            dims[f"{path}.{name}"] = labels
            coords |= {label: np.arange(size) for label, size in zip(labels, value.shape, strict=True)}
    for name, columns in obs.columns.items():
        if columns and obs.values[name].dim() == 2 and obs.values[name].shape[1] == len(columns):
            dims[name] = [f"{name}_row", f"{name}_column"]
            coords |= {f"{name}_row": np.arange(len(obs)), f"{name}_column": list(columns)}
    return coords, dims
