"""Which components of a model can trade labels, and how labels of two fits are matched."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice, product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.answers import class_probabilities
from ppl_vae.families.supports import of_entries

__all__ = ["Axis", "Mirror", "Symmetry", "assignments", "match", "matched", "permute", "symmetries"]

ROWS = 50
"""Data on which a symmetry is tested."""
TRIES = 256
"""Sets of parameters, each with what a trade does to it, that are tried at most."""


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter whose entry a belongs to component `first` + a."""

    axis: int
    first: int = 0

    def move(self, value: Tensor, order: Tensor) -> Tensor:
        """Entries of [*batch, *event] in the order [*batch, K] of components."""
        batch = order.dim() - 1
        dim = batch + self.axis
        count = value.shape[dim]
        # Components without an entry trade with none that has one; clamping lets such an order be tried and refused.
        index = (order[..., self.first : self.first + count] - self.first).clamp(0, count - 1)
        shape = [*order.shape[:-1], *[1] * (value.dim() - batch)]
        shape[dim] = count
        return value.gather(dim, index.to(value.device).reshape(shape).expand(value.shape))


@dataclass(frozen=True)
class Mirror:
    """A number that tells two components apart, such as the second one's probability: v becomes 2 about - v."""

    about: float

    def move(self, value: Tensor, order: Tensor) -> Tensor:
        """Numbers [*batch, *event], mirrored where the order [*batch, 2] trades the two components."""
        traded = (order[..., 0] == 1).to(value.device)
        shape = [*traded.shape, *[1] * (value.dim() - traded.dim())]
        return torch.where(traded.reshape(shape), 2 * self.about - value, value)


Moves = Mapping[str, tuple[Axis | Mirror, ...]]
"""What trading components does to each parameter that knows them."""


@dataclass(frozen=True)
class Symmetry:
    """Components whose names mean nothing: trading them changes neither p(x) nor p(theta).

    Attributes
    ----------
    latents : tuple of str
        The finite latent whose values are traded; several where they share parameters, as the states of a chain do.
    moves : dict
        What the trade does to each parameter that knows the components.
    blocks : tuple of tuple of int
        Components that can trade places with each other, two or more in each.
    size : int
        Number of components K.
    """

    latents: tuple[str, ...]
    moves: Moves
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
    """The label symmetries of a model: of each finite latent, and of those of one size that only trade together.

    They are read off the model itself at one value of its parameters: a swap of two components must leave log p(x_i)
    and log p(theta) as they are and swap the responsibilities. A prior or a tied parameter that tells components
    apart, or a datum whose component is known, is respected.

    A parameter can know components by an axis of K entries or several (a table of transitions), by an axis of fewer
    (the rates of all components but the one at zero), or, of two components, as a number: a probability p that
    becomes 1 - p, a logit that becomes its negative.

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
        sites, laws = model.sites(few), model.shared_laws()
        sizes = {name: class_probabilities(sites, name, 1).shape[1] for name in {**sites.summed, **sites.enumerated}}
        mirrors = {name: _mirrors(law(values).support) for name, law in laws.items()}
    ask = partial(_answers, model, few, list(sizes))

    def search(names: tuple[str, ...]) -> Symmetry | None:
        K = sizes[names[0]]
        return _symmetry(ask, values, names, K, list(_candidates(values, K, mirrors if K == 2 else {})))

    alone = {name: search((name,)) for name, K in sizes.items() if K > 1}
    rest: dict[int, tuple[str, ...]] = {}
    for name, symmetry in alone.items():
        if symmetry is None:
            rest[sizes[name]] = (*rest.get(sizes[name], ()), name)
    together = [search(names) for names in rest.values() if len(names) > 1]
    return [symmetry for symmetry in [*alone.values(), *together] if symmetry is not None]


def _rows(obs: Observations) -> Tensor:
    """Evenly spaced data, and some of those whose partly observed entries are known."""
    rows = [obs.spaced(ROWS)]
    for missing in obs.missing.values():
        rows.append((~missing.reshape(len(obs), -1).all(1)).nonzero()[:ROWS, 0].cpu())
    return torch.cat(rows).unique()


def _mirrors(support: Any) -> list[tuple[Mirror]]:
    """How numbers of this support can tell two components apart."""
    if (entry := of_entries(support)) is constraints.unit_interval:
        return [(Mirror(0.5),)]
    return [(Mirror(0.0),)] if entry is constraints.real else []


def _symmetry(
    ask: Callable[[Mapping[str, Tensor]], "Answers"],
    values: Mapping[str, Tensor],
    latents: tuple[str, ...],
    K: int,
    tries: list[Moves],
) -> Symmetry | None:
    before = ask(values)
    leader = list(range(K))
    for i, j in combinations(range(K), 2):
        if leader[i] == leader[j]:
            continue  # (i k) and (k j) make (i j)
        order = torch.arange(K)
        order[i], order[j] = j, i
        wanted = [*before[:2], *(r[:, order] if name in latents else r for name, r in before[2].items())]
        for moves in tries:
            try:
                after = ask(permute(values, moves, order))
            except torch.linalg.LinAlgError:  # rows of one covariance are no components
                continue
            if _equal([*after[:2], *after[2].values()], wanted):
                tries = [moves]
                leader = [leader[i] if own == leader[j] else own for own in leader]
                break
    blocks = tuple(tuple(k for k in range(K) if leader[k] == own) for own in sorted(set(leader)))
    kept = tuple(block for block in blocks if len(block) > 1)
    return Symmetry(latents, tries[0], kept, K) if kept else None


def _candidates(
    values: Mapping[str, Tensor], K: int, mirrors: Mapping[str, list[tuple[Mirror]]]
) -> Iterator[dict[str, tuple[Axis | Mirror, ...]]]:
    """Sets of parameters with what a trade does to each, first ways first, large sets first."""
    ways = {name: _ways(value.shape, K) or mirrors.get(name, []) for name, value in values.items()}
    ways = {name: own for name, own in ways.items() if own}
    if prod(1 + len(own) for own in ways.values()) > TRIES:  # most likely all of them, or all but a few
        left_out = (names for count in range(len(ways)) for names in combinations(ways, count))
        for names in islice(left_out, TRIES):
            yield {name: own[0] for name, own in ways.items() if name not in names}
        return
    numbers = product(*[[*range(len(own)), None] for own in ways.values()])
    sets = [{name: k for name, k in zip(ways, chosen, strict=True) if k is not None} for chosen in numbers]
    for chosen in sorted((s for s in sets if s), key=lambda s: (sum(s.values()), -len(s))):
        yield {name: ways[name][k] for name, k in chosen.items()}


def _ways(shape: tuple[int, ...], K: int) -> list[tuple[Axis, ...]]:
    """How a parameter of this shape can carry K components: by axes of K entries, else by one of fewer."""
    axes = [Axis(a) for a, size in enumerate(shape) if size == K]
    whole = [chosen for count in range(1, 1 + len(axes)) for chosen in combinations(axes, count)]
    return whole or [(Axis(a, k),) for a, size in enumerate(shape) if 1 < size < K for k in range(K - size, -1, -1)]


Answers = tuple[Tensor, Tensor, dict[str, Tensor]]
"""Log p(x_i), log p(theta) and the responsibilities of each finite latent."""


def _answers(
    model: LatentVariableModel, obs: Observations, latents: list[str], values: Mapping[str, Tensor]
) -> Answers:
    with model.bind(values), torch.no_grad(), model.numeric():
        r = model.class_probabilities(obs, latents)
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


def matched(
    values: Mapping[str, Tensor],
    found: Iterable[Symmetry],
    r: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    batch: tuple[int, ...] = (),
) -> dict[str, Tensor]:
    """Values [*batch, *event] in the labels of a reference, from responsibilities [n, K] of each finite latent."""
    moved = dict(values)
    for symmetry in found:
        a, b = (torch.cat([one[name] for name in symmetry.latents]) for one in (reference, r))
        order = match(a, b, symmetry.allowed)
        moved = permute(moved, symmetry.moves, order.expand(*batch, symmetry.size))
    return moved


def permute(values: Mapping[str, Tensor], moves: Moves, order: Tensor) -> dict[str, Tensor]:
    """Values [*batch, *event] with their components in the order [*batch, K]: the old component for each place."""
    moved = dict(values)
    for name, steps in moves.items():
        for step in steps:
            moved[name] = step.move(moved[name], order)
    return moved
