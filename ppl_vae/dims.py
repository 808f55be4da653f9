"""Names of dimensions, and labels along them, of everything that a declared model has."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.families import Categorical, Family
from ppl_vae.families.forms import Tied

__all__ = ["OBS_ID", "dims_and_coords"]

OBS_ID = "obs_id"
"""The dimension of the data."""

Dims = dict[str, list[str]]
Coords = dict[str, Any]


def dims_and_coords(model: LatentVariableModel, obs: Observations, posterior: Mapping[str, Any]) -> tuple[Dims, Coords]:
    """Dimensions of every variable beyond chain and draw, and coordinates.

    Parameters
    ----------
    model : LatentVariableModel
        Whose families say which axis of a parameter is the component and which the feature.
    obs : Observations
        Whose columns name the features.
    posterior : mapping of arrays or tensors
        Variables [chain, draw, *event]; dimensions that nobody can name are left to ArviZ.
    """
    laws = model.prototypes(obs)
    local = [node.name for node in model.local_nodes()]
    coords: Coords = {OBS_ID: np.arange(len(obs))}
    features = _feature_names(model, obs)
    dims = {name: [OBS_ID, *_events(obs.values[name], features[name])] for name in features}
    dims |= {name: [OBS_ID] for name in (*local, "weights", "joint") if name not in dims}
    for name, dim in features.items():
        if len(obs.columns.get(name, ())) == _width(obs.values[name]):
            coords[dim] = list(obs.columns[name])
    components = _components(model, laws)
    by_family = {id(d.origin[0]): features[name] for name, d in laws.items() if name in features and _made(d)}
    for path, family in model.families().items():
        for parameter, value in family.defaults().items():
            feature, component = by_family.get(id(family), f"{path}_feature"), components.get(id(family))
            # A product of families names the parameters of its blocks first.
            dims.setdefault(f"{path}.{parameter}", _axes(family, parameter, value.shape, component, path, feature))
    sizes = {
        dim: size
        for name, array in posterior.items()
        for dim, size in zip(dims.get(name, ()), array.shape[2:], strict=False)
    }
    for dim in sizes:
        coords.setdefault(dim, coords.get(dim.removesuffix("_bis"), np.arange(sizes[dim])))
    return dims, coords


def _feature_names(model: LatentVariableModel, obs: Observations) -> dict[str, str]:
    """The dimension of the columns of each node and input: `feature` where one node is observed."""
    nodes = [node.name for node in model.local_nodes() if node.kind == "observed"]
    own = {name: f"{name}_feature" for name in (*nodes, *model.inputs) if name in obs.values}
    return {**own, nodes[0]: "feature"} if len(nodes) == 1 else own


def _width(value: Any) -> int:
    return value.shape[1] if isinstance(value, torch.Tensor) and value.dim() == 2 else -1


def _events(value: Any, feature: str) -> list[str]:
    """Names of event dimensions; those of images and their like are left to ArviZ."""
    return [feature] if _width(value) >= 0 else []


def _made(d: Any) -> bool:
    return hasattr(d, "origin")


def _components(model: LatentVariableModel, laws: Mapping[str, Any]) -> dict[int, str]:
    """The dimension of each family's members, by its id: the values of the finite latent that it makes or reads."""
    finite = {
        node.name: len(laws[node.name].enumerate_support(expand=False))
        for node in model.local_nodes()
        if node.kind == "latent" and laws[node.name].has_enumerate_support
    }
    # `component` alone is a name that ArviZ gives to parts of its own.
    named = {name: f"{name}_component" for name in finite}
    found = {id(laws[name].origin[0]): named[name] for name in finite if _made(laws[name])}
    for node in model.local_nodes():
        parents = [p for p in node.parents if p in finite]
        if _made(laws[node.name]) and len(parents) == 1 and laws[node.name].origin[0].batch == finite[parents[0]]:
            found.setdefault(id(laws[node.name].origin[0]), named[parents[0]])
    return found


def _axes(
    family: Family, parameter: str, shape: torch.Size, component: str | None, path: str, feature: str
) -> list[str]:
    """A name for each axis: the members first, unless they share the parameter; then features."""
    member = component or f"{path}_component"
    if isinstance(family, Categorical):
        values = component or f"{path}_category"
        return [values] if len(shape) == 1 else [f"{path}_from", values]
    shared = isinstance(getattr(family, "form", None), Tied) and parameter in ("covariance", "scale_matrix")
    rest = len(shape) - (0 if shared else 1)
    width = getattr(family, "n_features", getattr(family, "n_inputs", None))
    names = [
        feature if size == width else f"{path}.{parameter}_dim_{i}" for i, size in enumerate(shape[len(shape) - rest :])
    ]
    names = [name if name not in names[:i] else f"{name}_bis" for i, name in enumerate(names)]
    return [*([] if shared else [member]), *names]
