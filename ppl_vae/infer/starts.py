"""Where an engine starts: seeds of clusters, random responsibilities, or what it is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.observations import check_order
from ppl_vae.errors import DataError, EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer.processes import Share
from ppl_vae.infer.start_values import check_values

__all__ = [
    "are_responsibilities",
    "first_responsibilities",
    "given_values",
    "initialise",
    "start_alike",
    "take_networks",
    "trained_copy",
]

HARDNESS = 0.9
"""Share of a datum given to its nearest seed; the rest keeps every component's covariance regular."""


def given_values(start: Any, model: LatentVariableModel, defaults: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Parameters from a mapping or a Fit, checked against the model's; None when the start is not of that kind."""
    named = start.parameters if isinstance(start, Fit) else start
    if not isinstance(named, Mapping):
        return None
    unknown = [name for name in named if name not in defaults]
    if unknown:
        known = ", ".join(defaults) or "it has no family and no shared latent"
        raise DataError(f"start names {unknown[0]!r}, which the model does not have: {known}")
    values = dict(defaults)
    for name, value in named.items():
        tensor = torch.as_tensor(value).to(defaults[name]).clone()  # it will be moved in place
        if tensor.shape != defaults[name].shape:
            raise DataError(
                f"start[{name!r}] has shape {tuple(tensor.shape)}, the model's has {tuple(defaults[name].shape)}"
            )
        values[name] = tensor
    if not isinstance(start, Fit):  # the mean of its draws may be in no set
        check_values({name: values[name] for name in named}, model)
    return values


def take_networks(start: Any, model: LatentVariableModel) -> None:
    """Give the parameters that no family owns, such as a network's, the values that they have in a fit to start from.

    Raises
    ------
    DataError
        If the fit is of a model whose parameters have other shapes, or of other columns.
    """
    if not isinstance(start, Fit):
        return
    check_order(start.model._columns, model._columns)
    theirs = dict(start.model.named_parameters())
    for name, parameter in model.free_parameters().items():
        value = theirs.get(name)
        if value is None or value.shape != parameter.shape:
            found = "no such parameter" if value is None else f"shape {tuple(value.shape)}"
            raise DataError(f"the fit to start from has {found} for {name}; the model's has {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.copy_(value)


def trained_copy(model: LatentVariableModel) -> LatentVariableModel:
    """A copy for training: what its owner froze by `requires_grad_(False)` stays, networks of an earlier fit go on."""
    copy = model.unfitted()
    for module in copy.modules():
        if getattr(module, "_of_fit", False):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
    return copy


def start_alike(model: LatentVariableModel, share: Share) -> None:
    """Networks start as the first process's, whatever the others drew."""
    if share.world > 1:
        model.load_state_dict(share.same(model.state_dict()))


def initialise(model: LatentVariableModel, obs: Observations) -> None:
    """Let lazy modules, those of posteriors too, see a few data, so that their parameters have a size."""
    if not any(map(is_lazy, model.parameters())):
        return
    few = obs.rows(torch.arange(min(4, len(obs)), device=model.like.device))
    index = torch.arange(len(few), device=model.like.device) if model.local_posteriors else None
    with model.standing(), model.aside(), torch.no_grad(), model.numeric():
        shared, _ = model.draw_shared()
        with model.bind(shared):
            model.sites(few, index)


def are_responsibilities(start: Any) -> bool:
    """Whether a start is responsibilities of all data: then there is one run, whatever n_init."""
    return isinstance(start, Tensor | np.ndarray)


def first_responsibilities(
    start: Any, model: LatentVariableModel, obs: Observations, weights: Tensor, sizes: Mapping[str, int], seed: int
) -> Tensor:
    """Responsibilities [*enumerated, n] to begin with, the last-declared latent first."""
    n, shape = len(obs), tuple(reversed(list(sizes.values())))
    cells = torch.Size(shape).numel()
    if are_responsibilities(start):
        return _given(torch.as_tensor(start), shape, n)
    members = max((family.batch for family in model.families().values()), default=1)
    if members > n:
        raise DataError(
            f"{members} components need at least {members} data, there are {n}; use fewer components, or pass start= "
            "with parameters by name"
        )
    methods = {"k-means++": _kmeans_plusplus, "random": _random}
    if not isinstance(start, str) or start not in methods:
        raise EngineError(
            f"start must be one of {', '.join(methods)}, parameters by name, responsibilities [n, K] or a Fit; "
            f"got {repr(start) if isinstance(start, str) else type(start).__name__}"
        )
    # More values than data, as of the states of a chain together, are no clusters.
    return methods[start if cells <= n else "random"](model, obs, weights, cells, seed).reshape(*shape, n)


def _given(r: Tensor, shape: tuple[int, ...], n: int) -> Tensor:
    cells = torch.Size(shape).numel()
    if r.shape != (n, cells):
        raise DataError(f"responsibilities to start from have shape {tuple(r.shape)}, ({n}, {cells}) is expected")
    if bool((r < 0).any()) or not torch.allclose(r.sum(1), torch.ones((), dtype=r.dtype), atol=1e-4):
        raise DataError("responsibilities to start from must be non-negative with rows that sum to 1")
    return r.double().T.reshape(*shape, n)


def _random(model: LatentVariableModel, obs: Observations, weights: Tensor, cells: int, seed: int) -> Tensor:
    return torch.distributions.Dirichlet(torch.ones(cells, dtype=torch.float64)).sample((len(obs),)).T


def _kmeans_plusplus(model: LatentVariableModel, obs: Observations, weights: Tensor, cells: int, seed: int) -> Tensor:
    from sklearn.cluster import kmeans_plusplus

    families = model.observed_families(obs)
    columns, share = [], weights / weights.sum()
    for name in obs.values:
        value = obs.with_gaps(name)
        y = families[name].coordinates(value) if name in families else value.reshape(len(obs), -1).nan_to_num()
        y = y.to(weights)
        spread = (share @ (y - share @ y).square()).sqrt()
        columns.append(y / torch.where(spread > 1e-12, spread, 1.0))
    y = torch.cat(columns, 1).cpu()
    centers, _ = kmeans_plusplus(y.numpy(), cells, sample_weight=weights.cpu().numpy(), random_state=seed % 2**32)
    nearest = torch.cdist(y, torch.as_tensor(centers)).argmin(1)
    hard = torch.nn.functional.one_hot(nearest, cells).double()
    return (HARDNESS * hard + (1 - HARDNESS) / cells).T
