"""What the decoder makes of the latent space: walks along its units, and a map of a plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ppl_vae.alone import forked_rng
from ppl_vae.declare import Observations
from ppl_vae.declare.local import local_q
from ppl_vae.diagnose.codes import Codes, flat
from ppl_vae.errors import EngineError
from ppl_vae.plots.pixels import Shape, images
from ppl_vae.plots.style import array

__all__ = ["latent_map", "means_at", "traversals"]

MOST = 8
"""Units that are walked along unless they are named."""


def means_at(fit: Any, z: dict[str, Tensor], inputs: dict[str, Tensor] | None = None) -> np.ndarray:
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
        If x depends on a latent that was not given.
    """
    model = fit.model
    name = next(node.name for node in model.local_nodes() if node.kind == "observed")
    with torch.no_grad(), model.bind(fit.draw(0)), model.numeric():
        given = Observations({**{k: v.to(model.like) for k, v in z.items()}, **(inputs or {})})
        scope = model.scope(given)
        lacking = [p for p in model._graph.nodes[name].parents if p not in scope]
        if lacking:
            raise EngineError(f"{name} also depends on {lacking[0]!r}, which has no value here")
        return array(model.distribution(name, scope, Observations({})).mean)


def traversals(
    fit: Any,
    data: Any,
    shape: Shape,
    ax: Axes | None = None,
    units: Sequence[int] | None = None,
    start: int = 0,
    steps: int = 9,
    span: float = 2.5,
) -> Axes:
    """Walk along one latent unit at a time, a row each: E[x | z] with all other units those of one datum.

    A row that does not change is a unit that the decoder ignores.

    Parameters
    ----------
    fit : Fit
        A point fit of a model of images.
    data : Tensor, array or mapping
        n rows.
    shape : sequence of int
        (height, width) or (channels, height, width).
    ax : Axes, optional
        Where to draw.
    units : sequence of int, optional
        Which, all latents' units side by side; by default the 8 whose posterior mean varies most over the data, in
        that order.
    start : int
        The datum at whose posterior mean the walks pass.
    steps : int
        Images in a row.
    span : float
        The walk goes this many standard deviations of the prior to both sides of its mean.
    """
    mean, prior, codes, inputs = _spread(fit, data, start, steps)
    chosen = list(units) if units is not None else mean.std(0).argsort(descending=True)[:MOST].tolist()
    centre, sd = prior.mean(0), prior.std(0)
    walk = torch.linspace(-span, span, steps, dtype=mean.dtype)
    rows = mean[start].repeat(len(chosen) * steps, 1)
    for i, j in enumerate(chosen):
        rows[i * steps : (i + 1) * steps, j] = centre[j] + walk * sd[j]
    tiled = {name: value.repeat(len(chosen), *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    decoded = means_at(fit, _by_latent(codes, rows), tiled)
    ax = images(decoded.reshape(len(decoded), -1), shape, ax, steps)
    names, height = codes.units(), shape[-2] + max(1, shape[-2] // 14)
    for i, j in enumerate(chosen):
        ax.text(-2, (i + 0.5) * height, names[j], ha="right", va="center", fontsize="small")
    ax.set_title(f"each unit from -{span:g} to {span:g} sds of its prior", fontsize="medium")
    return ax


def _spread(fit: Any, data: Any, start: int, steps: int) -> tuple[Tensor, Tensor, Codes, dict[str, Tensor]]:
    """Posterior means of data, draws of the prior, the codes, and the inputs of the datum `start`, `steps` times."""
    model = fit.model
    with forked_rng(), torch.no_grad(), model.bind(fit.draw(0)), model.numeric():
        torch.manual_seed(fit.seed)
        obs = model.check(data)
        with local_q(model, obs):
            codes = Codes(model, obs)
            mean = codes.moments()[0]
        given = obs.rows(torch.full((2000,), start)) if model.inputs else Observations({})
        prior = flat(codes.draw_prior(2000, Observations({name: given.values[name] for name in model.inputs})))
    inputs = {name: obs.values[name][start : start + 1] for name in model.inputs}
    return mean, prior, codes, {name: value.repeat(steps, *[1] * (value.dim() - 1)) for name, value in inputs.items()}


def _by_latent(codes: Codes, rows: Tensor) -> dict[str, Tensor]:
    """Flat codes [m, units] as values of the latents."""
    events = codes.events()
    parts = rows.split([event.numel() for event in events.values()], 1)
    return {name: part.reshape(len(rows), *event) for (name, event), part in zip(events.items(), parts, strict=True)}


def latent_map(fit: Any, shape: Shape, ax: Axes | None = None, steps: int = 15, span: float = 2.5) -> Axes:
    """E[x | z] over a plane: a latent of two units, each from -span to span, z0 to the right and z1 upwards.

    Parameters
    ----------
    fit : Fit
        A point fit of a model of images with one latent of two units.
    shape : sequence of int
        (height, width) or (channels, height, width).
    ax : Axes, optional
        Where to draw.
    steps : int
        Images in a row.
    span : float
        In units of z.

    Raises
    ------
    EngineError
        If the latent does not have two units.
    """
    latents = [node.name for node in fit.model.local_nodes() if node.kind == "latent"]
    walk = torch.linspace(-span, span, steps)
    across, up = torch.meshgrid(walk, walk.flip(0), indexing="xy")
    name, plane = latents[0], torch.stack([across.flatten(), up.flatten()], 1)
    size = fit.model.sample_joint(1)[name].numel() if not fit.model.inputs else 0
    if len(latents) != 1 or size != 2:
        raise EngineError(
            f"latent_map needs one latent of two units; {type(fit.model).__name__} has {latents}: see traversals"
        )
    decoded = means_at(fit, {name: plane})
    ax = images(decoded.reshape(len(decoded), -1), shape, ax, steps)
    ax.set_title(f"{name} from -{span:g} to {span:g} in both units", fontsize="medium")
    return ax
