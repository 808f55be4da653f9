"""Which components of a model can trade labels, and how labels of two fits are matched."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.model import class_probabilities

__all__ = ["Symmetry", "assignments", "match", "permute", "symmetries"]

ROWS = 50
"""Data on which a symmetry is tested."""
TRIES = 256
"""Sets of parameters that are tried at most."""


@dataclass(frozen=True)
class Symmetry:
    """Components of a finite latent whose names mean nothing: trading them changes neither p(x) nor p(theta).

    Attributes
    ----------
    latent : str
        The finite latent.
    axes : dict of int
        Component axis of each parameter that is traded with the label.
    blocks : tuple of tuple of int
        Components that can trade places with each other, two or more in each.
    size : int
        Number of components K.
    """

    latent: str
    axes: dict[str, int]
    blocks: tuple[tuple[int, ...], ...]
    size: int

    @property
    def allowed(self) -> Tensor:
        """Whether component j may take place k, [K, K] of bool."""
        found = torch.eye(self.size, dtype=torch.bool)
        for block in self.blocks:
            found[torch.tensor(block)[:, None], torch.tensor(block)] = True
        return found


def symmetries(model: LatentVariableModel, obs: Observations, values: Mapping[str, Tensor]) -> list[Symmetry]:
    """The label symmetries of a model, one for each finite latent that has one.

    They are read off the model itself at one value of its parameters: a swap of two components must leave log p(x_i)
    and log p(theta) as they are and swap the responsibilities. A prior or a tied parameter that tells components
    apart, or a datum whose component is known, is respected.

    Parameters
    ----------
    model : LatentVariableModel
        The declaration, whose latents of each datum are finite.
    obs : Observations
        Data.
    values : mapping
        One value of every shared latent and family parameter that may carry components, [*event].
    """
    few = obs.rows(_rows(obs))
    with model.bind(values), torch.no_grad(), model.numeric():
        sites = model.sites(few)
        sizes = {name: class_probabilities(sites, name, 1).shape[1] for name in {**sites.summed, **sites.enumerated}}
    found = (_symmetry(model, few, values, name, K) for name, K in sizes.items() if K > 1)
    return [symmetry for symmetry in found if symmetry is not None]


def _rows(obs: Observations) -> Tensor:
    """Evenly spaced data, and some of those whose partly observed entries are known."""
    rows = [torch.linspace(0, len(obs) - 1, min(ROWS, len(obs))).long()]
    for missing in obs.missing.values():
        rows.append((~missing.reshape(len(obs), -1).all(1)).nonzero()[:ROWS, 0].cpu())
    return torch.cat(rows).unique()


def _symmetry(
    model: LatentVariableModel, obs: Observations, values: Mapping[str, Tensor], latent: str, K: int
) -> Symmetry | None:
    before = _answers(model, obs, values, latent)
    tries: list[dict[str, int]] = list(_candidates(values, K))
    leader = list(range(K))
    for i, j in combinations(range(K), 2):
        if leader[i] == leader[j]:
            continue  # (i k) and (k j) make (i j)
        order = torch.arange(K)
        order[i], order[j] = j, i
        for axes in tries:
            after = _answers(model, obs, permute(values, axes, order), latent)
            if _equal(after, (*before[:2], before[2][:, order])):
                tries = [axes]
                leader = [leader[i] if own == leader[j] else own for own in leader]
                break
    blocks = tuple(tuple(k for k in range(K) if leader[k] == own) for own in sorted(set(leader)))
    kept = tuple(block for block in blocks if len(block) > 1)
    return Symmetry(latent, tries[0], kept, K) if kept else None


def _candidates(values: Mapping[str, Tensor], K: int) -> Iterator[dict[str, int]]:
    """Sets of parameters with an axis of K entries each, first axes first, large sets first."""
    options = {name: [a for a, size in enumerate(value.shape) if size == K] for name, value in values.items()}
    options = {name: axes for name, axes in options.items() if axes}
    if (1 + len(options)) * 2 ** len(options) > TRIES:
        options = {name: axes[:1] for name, axes in options.items()}
    sets = [
        {name: axis for name, axis in zip(options, chosen, strict=True) if axis is not None}
        for chosen in product(*[[*axes, None] for axes in options.values()])
    ]
    yield from sorted((s for s in sets if s), key=lambda axes: (sum(map(bool, axes.values())), -len(axes)))[:TRIES]


def _answers(
    model: LatentVariableModel, obs: Observations, values: Mapping[str, Tensor], latent: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x_i), log p(theta) and responsibilities."""
    with model.bind(values), torch.no_grad(), model.numeric():
        r = class_probabilities(model.sites(obs), latent, 1)
        return model.log_weights(obs, 1)[0], torch.as_tensor(model.log_prior(values)), r


def _equal(a: Collection[Tensor], b: Collection[Tensor]) -> bool:
    """Whether tensors are equal up to the rounding of a sum in another order."""
    return all(
        torch.allclose(x, y, rtol=(eps := torch.finfo(x.dtype).eps ** 0.6), atol=eps) for x, y in zip(a, b, strict=True)
    )


def assignments(gain: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Old component for each place, [draw, K], the total gain [draw, old, place] at its largest among the allowed."""
    from scipy.optimize import linear_sum_assignment

    own = gain if allowed is None else gain.masked_fill(~allowed, -torch.inf)
    # Transposed, so that rows are places: rows come back in order, and columns are the answer.
    orders = [linear_sum_assignment(one, maximize=True)[1] for one in own.mT.cpu().numpy()]
    return torch.as_tensor(np.stack(orders), dtype=torch.long)


def match(reference: Tensor, r: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Which component of `r` takes the place of each component of `reference`, from responsibilities [n, K].

    Examples
    --------
    >>> import torch
    >>> a = torch.eye(3)
    >>> match(a, a[:, [2, 0, 1]]).tolist()
    [1, 2, 0]
    """
    return assignments((r.mT @ reference)[None], allowed)[0]


def permute(values: Mapping[str, Tensor], axes: Mapping[str, int], order: Tensor, skip: int = 0) -> dict[str, Tensor]:
    """Values with the component axes in this order; `skip` leading dimensions are of draws."""
    return {k: v.index_select(axes[k] + skip, order.to(v.device)) if k in axes else v for k, v in values.items()}
