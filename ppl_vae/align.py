"""Which components of a model can trade labels, and how labels of two fits are matched."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.program import Placed
from ppl_vae.families.supports import of_entries

__all__ = ["Axis", "Mirror", "Symmetry", "assignments", "match", "matched", "permute", "symmetries"]

ROWS = 50
"""Data on which a symmetry is tested."""
TRIES = 256
"""Ways to move the parameters of factors that are tried for one swap at most, beyond the first way of each factor."""


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter whose entry a belongs to component `first` + a."""

    axis: int
    first: int = 0

    def components(self, shape: Sequence[int]) -> range:
        """Those that have an entry in a value of this event shape."""
        return range(self.first, self.first + shape[self.axis])

    def move(self, value: Tensor, order: Tensor) -> Tensor:
        """Entries of [*batch, *event] in the order [*batch, K] of components, which leaves those without one alone."""
        batch = order.dim() - 1
        dim = batch + self.axis
        count = value.shape[dim]
        index = order[..., self.first : self.first + count] - self.first
        shape = [*order.shape[:-1], *[1] * (value.dim() - batch)]
        shape[dim] = count
        return value.gather(dim, index.to(value.device).reshape(shape).expand(value.shape))


@dataclass(frozen=True)
class Mirror:
    """A number that tells two components apart, such as the second one's probability: v becomes 2 about - v."""

    about: float

    def components(self, shape: Sequence[int]) -> range:
        """Both, whatever the event shape."""
        return range(2)

    def move(self, value: Tensor, order: Tensor) -> Tensor:
        """Numbers [*batch, *event], mirrored where the order [*batch, 2] trades the two components."""
        traded = (order[..., 0] == 1).to(value.device)
        shape = [*traded.shape, *[1] * (value.dim() - traded.dim())]
        return torch.where(traded.reshape(shape), 2 * self.about - value, value)


Steps = tuple[Axis | Mirror, ...]
Moves = Mapping[str, Steps]
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
    """The label symmetries of a model: of each finite latent, with those that only trade together with it.

    They are read off the model itself at one value of its parameters: a swap of two components must leave log p(x_i)
    and log p(theta) as they are and swap the responsibilities. It does so where each factor p(node | parents) has its
    components swapped, and each prior is as it was. A prior or a tied parameter that tells components apart, or a
    datum whose component is known, is respected.

    A parameter can know components by an axis of K entries or several (a table of transitions), by an axis of fewer
    (the rates of all components but the one at zero), or, of two components, as numbers: probabilities p that become
    1 - p, logits or coefficients of them that become their negatives.

    Parameters
    ----------
    model : LatentVariableModel
        The declaration, whose latents of each datum are finite.
    obs : Observations
        Data.
    values : mapping
        One value of every shared latent and family parameter that may carry components, [*event].
    """
    factors = Factors(model, obs, values)
    found: list[Symmetry] = []
    traded: set[str] = set()
    for name in factors.sizes:
        symmetry = None if name in traded else _symmetry(factors, name)
        if symmetry is not None and not traded & {*symmetry.latents}:
            found.append(symmetry)
            traded |= {*symmetry.latents}
    return found


class Factors:
    """Log p(node | parents) of each node of a datum, and log p of each parameter under its prior, at some of the data.

    Attributes
    ----------
    sizes, dims : dict of int
        Number of components of each finite latent, and its (negative) dimension.
    at : dict of Tensor
        Each factor at the given values, [*enumerated, n]; a prior [].
    parameters : dict of list of str
        What enters each factor.
    priors : list of str
        Those of the factors that are priors, each before the priors of what it depends on.
    """

    def __init__(self, model: LatentVariableModel, obs: Observations, values: Mapping[str, Tensor]) -> None:
        self.model, self.values, self.laws = model, values, model.shared_laws()
        # Autograd knows what a factor was computed from.
        with torch.inference_mode(False), torch.enable_grad():
            self.obs = obs.rows(_rows(obs))
            leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
            with model.bind(leaves), model.numeric():
                sites, laws = model.bound_sites(self.obs), {name: law(leaves) for name, law in self.laws.items()}
                self.priors = list(reversed(laws))  # a law depends on parameters before its own
                at = {**sites.log_p, **{name: laws[name].log_prob(leaves[name]) for name in self.priors}}
        self.dims = {**sites.summed, **sites.enumerated}
        self.sizes = {name: len(sites.values[name]) for name in self.dims}
        self.latents = {name: Placed(sites.values[name], sites.p[name].event_dim) for name in self.dims}
        self.at = {name: factor.detach() for name, factor in at.items()}
        used = {name: _leaves(factor) for name, factor in at.items()}
        self.parameters = {name: [p for p, leaf in leaves.items() if leaf in own] for name, own in used.items()}
        self.mirrors = {name: _mirrors(law.support) for name, law in laws.items()}

    def __call__(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """One factor at other values."""
        with self.model.bind(values), torch.no_grad(), self.model.numeric():
            if name in self.laws:
                return self.laws[name](values).log_prob(values[name])
            scope = {**self.model.scope(self.obs), **self.latents}
            log_p = self.model.distribution(name, scope, self.obs).log_prob(scope[name].value)
            return self.model.restrict(name, scope[name].value, self.obs, log_p)

    def of(self, name: str) -> list[str]:
        """The finite latents that a factor depends on."""
        shape = self.at[name].shape
        return [latent for latent, dim in self.dims.items() if -dim <= len(shape) and shape[dim] > 1]

    def ways(self, name: str, K: int) -> list[Steps]:
        """How a parameter can carry K components."""
        return [*_ways(self.values[name].shape, K), *(self.mirrors.get(name, []) if K == 2 else [])]

    def shared_by(self, name: str, steps: Steps, *components: int) -> int:
        """How many of these components a parameter has entries of, if it carries them so."""
        return len({*components} & {*steps[0].components(self.values[name].shape)})


def _rows(obs: Observations) -> Tensor:
    """Evenly spaced data, and some of those whose partly observed entries are known."""
    rows = [obs.spaced(ROWS)]
    for missing in obs.missing.values():
        rows.append((~missing.reshape(len(obs), -1).all(1)).nonzero()[:ROWS, 0].cpu())
    return torch.cat(rows).unique()


def _leaves(value: Tensor) -> set[Tensor]:
    """What autograd would differentiate a value by; nothing is differentiated."""
    seen, ahead = set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    return {node.variable for node in seen if hasattr(node, "variable")}


def _ways(shape: Sequence[int], K: int) -> list[Steps]:
    """How a parameter of this shape can carry K components: by axes of K entries, or by one of fewer."""
    axes = [Axis(a) for a, size in enumerate(shape) if size == K]
    whole: list[Steps] = [chosen for count in range(1, 1 + len(axes)) for chosen in combinations(axes, count)]
    return whole + [(Axis(a, k),) for a, size in enumerate(shape) if 1 < size < K for k in range(K - size, -1, -1)]


def _mirrors(support: Any) -> list[Steps]:
    """How numbers of this support can tell two components apart."""
    if (entry := of_entries(support)) is constraints.unit_interval:
        return [(Mirror(0.5),)]
    return [(Mirror(0.0),)] if entry is constraints.real else []


def _symmetry(factors: Factors, name: str) -> Symmetry | None:
    """The trades of a latent's components, put together from swaps of two."""
    K = factors.sizes[name]
    latents: tuple[str, ...] = (name,)
    moves: dict[str, Steps] = {}
    ways = {p: factors.ways(p, K) for p in factors.values}
    leader = list(range(K))
    for i, j in combinations(range(K), 2):
        if leader[i] == leader[j]:
            continue  # (i k) and (k j) make (i j)
        if any(factors.shared_by(p, steps, i, j) == 1 for p, steps in moves.items()):
            continue  # one of them has no entry there
        both = {p: [steps for steps in own if factors.shared_by(p, steps, i, j) == 2] for p, own in ways.items()}
        options: dict[str, list[Steps]] = {p: own if p in moves and own else [*own, ()] for p, own in both.items()}
        search = _Search(factors, latents, options, i, j)
        found = search.moves()
        while not found and not moves and (grown := search.grown()) != search.latents:
            search = _Search(factors, grown, options, i, j)
            found = search.moves()
        if not found:
            continue
        latents, moves = search.latents, {**moves, **found}
        leader = [leader[i] if own == leader[j] else own for own in leader]
        # What a swap left unmoved carries neither of its components.
        left = {p: [steps for steps in own if not factors.shared_by(p, steps, i, j)] for p, own in ways.items()}
        ways = {p: [moves[p]] if p in moves else left[p] for p in ways}
    blocks = tuple(tuple(k for k in range(K) if leader[k] == own) for own in sorted(set(leader)))
    kept = tuple(block for block in blocks if len(block) > 1)
    return Symmetry(latents, {p: moves[p] for p in factors.values if p in moves}, kept, K) if kept else None


class _Search:
    """The search for what a swap of components i and j of some latents does to the parameters.

    Factors that depend on these latents are taken in turn: each must be the old one with the components swapped, by a
    move of its parameters, and a parameter is moved as the first factor that it enters asks for. Priors of what was
    moved, and other factors that it enters, must be the old ones.

    Parameters
    ----------
    factors : Factors
        Of the model.
    latents : tuple of str
        Finite latents of one size.
    options : mapping
        How the swap may move each parameter; () leaves it as it is.
    i, j : int
        Components.
    """

    def __init__(
        self, factors: Factors, latents: tuple[str, ...], options: Mapping[str, list[Steps]], i: int, j: int
    ) -> None:
        self.factors, self.latents, self.options = factors, latents, options
        self.order = torch.arange(factors.sizes[latents[0]])
        self.order[i], self.order[j] = j, i
        self.own = [name for name in factors.at if {*factors.of(name)} & {*latents}]
        others = [name for name in factors.at if name not in self.own and name not in factors.priors]
        self.names = [*self.own, *factors.priors, *others]
        self.reached = self.tries = 0

    def moves(self) -> Moves:
        """What the swap does to each parameter; empty if no move of parameters makes it a symmetry."""
        trials = [self._trials(0, {})]
        while trials:
            name = self.names[len(trials) - 1]
            fits = next((decided for decided in trials[-1] if self._holds(name, decided)), None)
            if fits is None:
                self.reached = max(self.reached, len(trials) - 1)
                trials.pop()
            elif len(trials) < len(self.names):
                trials.append(self._trials(len(trials), fits))
            else:
                return {p: steps for p, steps in fits.items() if steps}
        return {}

    def grown(self) -> tuple[str, ...]:
        """The latents, with those of the same size in the factor that no move of parameters got past."""
        sizes, among = self.factors.sizes, {*self.latents, *self.factors.of(self.names[self.reached])}
        return tuple(name for name in sizes if name in among and sizes[name] == len(self.order))

    def _trials(self, number: int, decided: Moves) -> Iterator[Moves]:
        """Decisions made before a factor, with each for the parameters that are left to it."""
        name = self.names[number]
        left: list[str] = []
        if name in self.own or (name in self.factors.priors and self._moved(name, decided)):
            left = [p for p in self.factors.parameters[name] if p not in decided]
        for first, chosen in enumerate(_choices([self.options[p] for p in left])):
            self.tries += first > 0
            if self.tries > TRIES:
                return
            yield {**decided, **dict(zip(left, chosen, strict=True))}

    def _moved(self, name: str, decided: Moves) -> bool:
        return any(decided.get(p) for p in self.factors.parameters[name])

    def _holds(self, name: str, decided: Moves) -> bool:
        """Whether a factor is what the swap makes of it, up to rounding."""
        wanted = self.factors.at[name]
        for latent in self.factors.of(name):
            if latent in self.latents:
                wanted = wanted.index_select(self.factors.dims[latent], self.order.to(wanted.device))
        found = self.factors.at[name]
        if self._moved(name, decided):
            try:
                found = self.factors(name, permute(self.factors.values, decided, self.order))
            except (torch.linalg.LinAlgError, ValueError):  # moved so, a parameter is none: no covariance, no order
                return False
        return torch.allclose(found, wanted, rtol=(eps := torch.finfo(wanted.dtype).eps ** 0.6), atol=eps)


def _choices(options: Sequence[Sequence[Steps]]) -> Iterator[Sequence[Steps]]:
    """One option of each, first ones first, and of these the most moves first."""
    if prod(map(len, options)) > TRIES:  # most likely all of them move, or all but a few
        for count in range(1 + len(options)):
            for out in combinations(range(len(options)), count):
                yield [own[-1] if k in out else own[0] for k, own in enumerate(options)]
        return

    def rank(chosen: Sequence[Steps]) -> tuple[int, int]:
        moved = [own.index(steps) for own, steps in zip(options, chosen, strict=True) if steps]
        return sum(moved), -len(moved)

    yield from sorted(product(*options), key=rank)


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
