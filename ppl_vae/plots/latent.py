"""What the decoder makes of the latent space: walks along its units, and a map of a plane."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.alone import seeded_rng
from ppl_vae.declare import Observations
from ppl_vae.declare.local import local_q
from ppl_vae.diagnose.codes import Codes, UndefinedError, flat
from ppl_vae.errors import EngineError
from ppl_vae.families.supports import of_entries
from ppl_vae.plots.decoded import inputs_of, means_at, repeated, shown_node
from ppl_vae.plots.pixels import Shape, images
from ppl_vae.plots.style import array, new_axes, values_of
from ppl_vae.relaxed import log_simplex

__all__ = ["feature_walks", "latent_map", "plane_latent", "traversals"]

MOST = 8
"""Units that are walked along unless they are named."""


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
    walk = _walk(fit, data, units, start, np.linspace(-span, span, steps))
    ax = images(walk.means.reshape(len(walk.means), -1), shape, ax, steps)
    height = shape[-2] + max(1, shape[-2] // 14)
    for i, name in enumerate(walk.units):
        ax.text(-2, (i + 0.5) * height, name, ha="right", va="center", fontsize="small")
    ax.set_title(f"each unit from -{span:g} to {span:g} sds of its prior", fontsize="medium")
    return ax


def feature_walks(
    fit: Any,
    data: Any,
    ax: Axes | None = None,
    units: Sequence[int] | None = None,
    start: int = 0,
    steps: int = 9,
    span: float = 2.5,
) -> Axes:
    """Walk along one latent unit at a time, a block each: E[x | z] of every feature, in sds of the data.

    A row is a feature, a block of columns a unit that goes from -span to span. A block of one colour in every row is a
    unit that the decoder ignores; a row that changes in one block alone is a feature of that unit.

    Parameters
    ----------
    fit : Fit
        A point fit of a model of numbers.
    data : Tensor, array or mapping
        n rows.
    ax : Axes, optional
        Where to draw.
    units : sequence of int, optional
        Which, all latents' units side by side; by default the 8 whose posterior mean varies most over the data, in
        that order.
    start : int
        The datum at whose posterior mean the walks pass.
    steps : int
        Places along a unit.
    span : float
        The walk goes this many standard deviations of the prior to both sides of its mean.
    """
    walk = _walk(fit, data, units, start, np.linspace(-span, span, steps))
    obs, name, columns = values_of(fit, data)
    x = array(obs.with_gaps(name)).astype(float).reshape(len(obs), -1)
    sd = np.nanstd(x, 0)
    moved = (walk.means.reshape(len(walk.means), -1) - np.nanmean(x, 0)) / np.where(sd > 0, sd, 1.0)
    names = columns if len(columns) == moved.shape[1] else tuple(str(j) for j in range(moved.shape[1]))
    ax = new_axes(ax, (1.5 + 0.8 * len(walk.units), 1.3 + 0.25 * len(names)))
    most = max(float(np.abs(moved).max()), 1e-12)
    picture = ax.imshow(moved.T, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    for edge in range(steps, len(moved), steps):
        ax.axvline(edge - 0.5, color="white", lw=3)
    ax.set_xticks(np.arange(len(walk.units)) * steps + (steps - 1) / 2, walk.units, fontsize="small")
    ax.set_yticks(np.arange(len(names)), names, fontsize="small")
    ax.set_title(f"each unit from -{span:g} to {span:g} sds of its prior", fontsize="medium")
    ax.figure.colorbar(picture, ax=ax, label="E[x | z], sds of the data\nfrom their mean")
    return ax


@dataclass(frozen=True)
class _Walk:
    """The units that are walked along by name, and E[x | z] at all places, unit after unit, [units * steps, *event]."""

    units: list[str]
    means: np.ndarray


def _walk(fit: Any, data: Any, units: Sequence[int] | None, start: int, places: np.ndarray) -> _Walk:
    """Walk along each unit through `places`, in sds of its prior, the others being those of the datum `start`."""
    mean, prior, codes, inputs = _spread(fit, data, start)
    chosen = list(units) if units is not None else mean.std(0).argsort(descending=True)[:MOST].tolist()
    centre, sd, steps = prior.mean(0), prior.std(0), len(places)
    rows = mean[start].repeat(len(chosen) * steps, 1)
    for i, j in enumerate(chosen):
        rows[i * steps : (i + 1) * steps, j] = centre[j] + torch.from_numpy(places).to(mean) * sd[j]
    names = codes.units()
    return _Walk([names[j] for j in chosen], means_at(fit, _by_latent(codes, rows), repeated(inputs, len(rows))))


def _spread(fit: Any, data: Any, start: int) -> tuple[Tensor, Tensor, Codes, dict[str, Tensor]]:
    """Posterior means of data, draws of the prior, the codes, and the inputs of the datum `start`."""
    model = fit.model
    with seeded_rng(fit.seed), torch.no_grad(), model.bind(fit.draw(0)), model.numeric():
        obs = model.check(data)
        with local_q(model, obs):
            codes = Codes(model, obs)
            try:
                mean = codes.moments()[0]
            except UndefinedError as why:
                raise EngineError(f"there are no walks: {why}; see pv.plots.code_usage") from None
        inputs = {name: obs.values[name][start : start + 1] for name in model.inputs}
        prior = flat(codes.draw_prior(2000, Observations(repeated(inputs, 2000))))
    return mean, prior, codes, inputs


def _by_latent(codes: Codes, rows: Tensor) -> dict[str, Tensor]:
    """Flat codes [m, units] as values of the latents; where one unit of a simplex was moved the others make room."""
    laws, events = codes.model.prototypes(codes.obs), codes.events()
    parts = rows.split([event.numel() for event in events.values()], 1)
    return {
        name: _shared_out(laws[name], part.reshape(len(rows), *event))
        for (name, event), part in zip(events.items(), parts, strict=True)
    }


def _shared_out(law: TorchDistribution, value: Tensor) -> Tensor:
    """Of a law on a simplex the point whose shares are in proportion to the value's; of others the value itself."""
    try:
        entry = of_entries(law.support)
    except NotImplementedError:  # a law of one's own need not say
        return value
    if entry is log_simplex:
        return value.log_softmax(-1)
    if entry is constraints.simplex:
        shares = value.clamp_min(0)
        return shares / shares.sum(-1, keepdim=True)
    return value


def latent_map(
    fit: Any,
    shape: Shape,
    ax: Axes | None = None,
    steps: int = 15,
    span: float = 2.5,
    inputs: Mapping[str, Any] | None = None,
) -> Axes:
    """E[x | z] over a plane: a latent of two units, each from -span to span, z0 to the right and z1 upwards.

    Parameters
    ----------
    fit : Fit
        A point fit of a model of images, with one latent of two units that the image depends on.
    shape : sequence of int
        (height, width) or (channels, height, width).
    ax : Axes, optional
        Where to draw.
    steps : int
        Images in a row.
    span : float
        In units of z.
    inputs : mapping, optional
        Of a conditional model, its inputs by name, [m, ...]; the first row is that of all images. Data of the model
        will do, of which only the inputs are read.

    Raises
    ------
    EngineError
        If there is no such latent, or the model is conditional and an input is not there.
    """
    given = repeated(inputs_of(fit.model, inputs), 1)
    name = plane_latent(fit.model, given)
    walk = torch.linspace(-span, span, steps)
    across, up = torch.meshgrid(walk, walk.flip(0), indexing="xy")
    decoded = means_at(fit, {name: torch.stack([across.flatten(), up.flatten()], 1)}, repeated(given, steps**2))
    ax = images(decoded.reshape(len(decoded), -1), shape, ax, steps)
    ax.set_title(f"{name} from -{span:g} to {span:g} in both units", fontsize="medium")
    return ax


def plane_latent(model: Any, inputs: Mapping[str, Tensor]) -> str:
    """Name of the one drawn latent, a vector of two units, that what is shown depends on.

    Raises
    ------
    EngineError
        If there is none.
    """
    parents = model._graph.nodes[shown_node(model)].parents
    with model.aside():
        drawn = model.sample_joint(1, **inputs)
    shapes = {name: tuple(drawn[name].shape[1:]) for name in parents if name in drawn}
    name = next(iter(shapes), "")
    if len(shapes) != 1 or shapes[name] != (2,) or not drawn[name].is_floating_point():
        said = ", ".join(f"{k} of shape {list(shape)}" for k, shape in shapes.items()) or "none"
        raise EngineError(
            f"latent_map needs one latent of two units below the data; {type(model).__name__} has {said}: see "
            "traversals"
        )
    return name
