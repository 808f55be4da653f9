"""What the decoder makes of codes: means of the first observed node, at inputs where the model is conditional."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.declare import Observations
from ppl_vae.errors import EngineError
from ppl_vae.plots.style import array

__all__ = ["inputs_of", "means_at", "repeated", "shown_node"]


def shown_node(model: Any) -> str:
    """Name of the observed node that figures show, the first."""
    return next(node.name for node in model.local_nodes() if node.kind == "observed")


def inputs_of(model: Any, given: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The inputs that draws depend on among `given`, as the model reads them, [m, ...]; none of another model.

    Raises
    ------
    EngineError
        If one is not there.
    """
    known = given or {}
    lacking = [name for name in model.inputs_of_draws if name not in known]
    if lacking:
        raise EngineError(
            f"{type(model).__name__} is conditional, and what it decodes depends on {lacking[0]!r}: pass "
            f"inputs={{{lacking[0]!r}: ...}}, one row for each image or fewer, such as those of the data"
        )
    own = {name: torch.as_tensor(known[name]) for name in model.inputs_of_draws}
    return dict(model.given_inputs(len(next(iter(own.values()))), own).values) if own else {}


def repeated(inputs: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Rows [count, ...] of inputs [m, ...], taken in turn.

    Examples
    --------
    >>> repeated({"label": torch.tensor([3, 4])}, 3)["label"].tolist()
    [3, 4, 3]
    """
    return {name: value[torch.arange(count) % len(value)] for name, value in inputs.items()}


def means_at(fit: Any, z: Mapping[str, Tensor], inputs: Mapping[str, Tensor] | None = None) -> np.ndarray:
    """E[x | z] of the first observed node, [m, *event].

    Parameters
    ----------
    fit : Fit
        A point fit.
    z : dict of Tensor
        Values of the latents by name, [m, *event].
    inputs : dict of Tensor, optional
        [m, ...], of a conditional model.

    Raises
    ------
    EngineError
        If x depends on a latent that was not given, or has no mean.
    """
    model = fit.model
    name = shown_node(model)
    with torch.no_grad(), model.bind(fit.draw(0)), model.numeric():
        codes = {k: v.to(model.like) if v.is_floating_point() else v for k, v in z.items()}
        scope = model.scope(Observations({**codes, **(inputs or {})}))
        lacking = [p for p in model._graph.nodes[name].parents if p not in scope]
        if lacking:
            raise EngineError(f"{name} also depends on {lacking[0]!r}, which has no value here")
        try:
            mean = array(model.distribution(name, scope, Observations({})).mean)
        except NotImplementedError:
            mean = np.full(1, np.nan)
        if np.isnan(mean).any():
            raise EngineError(f"the law of {name!r} has no mean to be shown")
        return mean
