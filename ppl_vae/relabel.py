"""Label switching: the components of every draw put into one order before anything is averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vae.align import Axis, Symmetry, assignments, permute, symmetries
from ppl_vae.alone import unvalidated
from ppl_vae.convergence import convergence
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, check_fit
from ppl_vae.invariants import over_draws, remarks

__all__ = ["Ordering", "Relabelled", "Relabelling", "Stephens", "relabel", "relabel_draws"]

ROWS = 300
"""Data on whose responsibilities labels are compared, at most."""
NUMBERS = 1 << 24
"""Responsibilities held in memory, at most."""
SWEEPS = 20


@dataclass(frozen=True)
class Relabelled:
    """Draws in one order of components.

    Attributes
    ----------
    draws : dict of Tensor
        [chain, draw, *event].
    said : str
        How the labels were treated.
    switched : int
        Number of draws whose labels changed.
    """

    draws: dict[str, Tensor]
    said: str
    switched: int = 0


class Relabelling(Protocol):
    """A way to find the order of components of each draw."""

    def orders(
        self, model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor], symmetry: Symmetry
    ) -> tuple[Tensor, str]:
        """Old component for each place, [draw, K], from draws [draw, *event]; and how it was found."""
        ...


@dataclass(frozen=True)
class Stephens:
    """The order by responsibilities (Stephens 2000, algorithm 2).

    Draw s takes the permutation that minimises sum_i KL(p_s(z | x_i) || q(z | x_i)), q the mean of the relabelled
    responsibilities, in turns until nothing changes. The start is the draw of highest p(x, theta).

    Parameters
    ----------
    rows : int
        Data whose responsibilities are compared, evenly spaced; fewer where memory would not hold them.

    References
    ----------
    Stephens (2000), "Dealing with label switching in mixture models", JRSS B 62(4).

    Examples
    --------
    >>> import torch
    >>> p = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.1, 0.9], [0.7, 0.3]]])  # the second draw is switched
    >>> Stephens().minimise(p, p[0], torch.ones(2, 2, dtype=torch.bool)).tolist()
    [[0, 1], [1, 0]]
    """

    rows: int = ROWS

    def orders(
        self, model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor], symmetry: Symmetry
    ) -> tuple[Tensor, str]:
        """Old component for each place, [draw, K], and how it was found."""
        S = len(next(iter(draws.values())))
        count = min(len(obs), self.rows, max(20, NUMBERS // (S * symmetry.size)))
        few = obs.rows(obs.spaced(count))
        p, log_joint = _responsibilities(model, few, draws, symmetry.latents)
        order = self.minimise(p.cpu(), p[log_joint.argmax()].cpu(), symmetry.allowed)
        return order, f"Stephens (2000), by responsibilities of {count} of {len(obs)} data"

    def minimise(self, p: Tensor, reference: Tensor, allowed: Tensor) -> Tensor:
        """The orders [S, K] for responsibilities p [S, n, K], from a first reference [n, K]."""
        S, _, K = p.shape
        order = torch.full((S, K), -1)
        for _ in range(SWEEPS):
            # sum_i p_s(j) log q(k): the entropy of p_s does not depend on the permutation.
            gain = p.mT @ reference.clamp_min(torch.finfo(p.dtype).tiny).log()
            fresh = assignments(gain, allowed)
            if torch.equal(fresh, order):
                break
            order = fresh
            moved = (part.gather(2, o[:, None, :].expand(part.shape)) for part, o in _chunks(p, order))
            reference = torch.stack([part.sum(0) for part in moved]).sum(0) / S
        return order


@dataclass(frozen=True)
class Ordering:
    """The order in which one parameter increases, such as the components' means.

    Parameters
    ----------
    parameter : str
        Its name, as in `fit.draws`; it must have a component axis.
    index : int
        Which of a component's numbers is compared, where it has several.

    Raises
    ------
    EngineError
        If there is no such parameter or number, or it carries no components.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.VB(num_draws=20, progress=False).fit(gmm, pv.data.faithful())
    >>> loc = pv.relabel(fit, pv.Ordering("components.loc", index=1)).draws["components.loc"]
    >>> bool((loc[..., 0, 1] < loc[..., 1, 1]).all())
    True
    """

    parameter: str
    index: int = 0

    def orders(
        self, model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor], symmetry: Symmetry
    ) -> tuple[Tensor, str]:
        """Old component for each place, [draw, K], and how it was found."""
        axes = {name: move for name, (move, *_) in symmetry.moves.items() if isinstance(move, Axis)}
        if self.parameter not in axes:
            raise EngineError(
                f"Ordering: {self.parameter!r} does not carry the components of {', '.join(symmetry.latents)}; order "
                f"by one of {', '.join(axes)}"
            )
        carried = axes[self.parameter]
        value = draws[self.parameter].movedim(1 + carried.axis, 1)
        each = value.flatten(2).cpu() if value.dim() > 2 else value[..., None].cpu()
        if not -each.shape[2] <= self.index < each.shape[2]:
            raise EngineError(
                f"Ordering: index {self.index} of {self.parameter!r}, of which each component has {each.shape[2]}; "
                f"indices start at 0"
            )
        key = each[..., self.index]
        order = torch.arange(symmetry.size).repeat(len(key), 1)
        for block in map(torch.tensor, symmetry.blocks):
            order[:, block] = block[key[:, block - carried.first].argsort(1)]
        return order, f"ordered by {self.parameter}" + (f"[..., {self.index}]" if each.shape[2] > 1 else "")


def relabel(fit: Fit, by: Relabelling | None = None, data: Any = None) -> Fit:
    """A fit whose draws have their components in one order; `settings["labels"]` says how it was found.

    Engines do so by responsibilities before they judge their draws; call this for another order.

    Parameters
    ----------
    fit : Fit
        With draws of shared latents; a point estimate is returned as it is.
    by : Stephens or Ordering
        `Stephens()` by default.
    data : optional
        The training data, for a fit that was loaded from a file.

    Returns
    -------
    Fit
        With its draws in the new order, and a status that judges them so.

    Raises
    ------
    EngineError
        For an Ordering by a parameter that carries no components.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 2, prior="weak")
    >>> fit = pv.VB(num_draws=20, progress=False).fit(gmm, pv.data.faithful())
    >>> pv.relabel(fit, pv.Ordering("components.loc")).settings["labels"]
    'ordered by components.loc[..., 0]; ... of 20 draws switched'
    """
    check_fit("relabel", fit)
    if fit.is_point:
        return fit
    obs = fit.data if data is None else fit.model.check(data)
    done = relabel_draws(fit.model, obs, fit.draws, by)
    found = replace(fit, draws=done.draws, settings={**fit.settings, "labels": done.said})
    chains = convergence(fit), convergence(found)
    before, after = (remarks(one, obs, its) for one, its in zip((fit, found), chains, strict=True))
    notes = tuple(note for note in fit.status.notes if note not in before) + after
    message = fit.status.message.replace(str(chains[0]), str(chains[1]))
    return replace(found, status=replace(fit.status, message=message, notes=notes))


def relabel_draws(
    model: Any, obs: Observations | None, draws: Mapping[str, Tensor], by: Relabelling | None = None
) -> Relabelled:
    """Draws of shared latents [chain, draw, *event] in one order of components.

    Parameters
    ----------
    model : LatentVariableModel
        The declaration.
    obs : Observations, optional
        The data; without them nothing is done.
    draws : mapping
        Shared latents; others are passed on.
    by : Relabelling, optional
        `Stephens()` by default.
    """
    if by is not None and not hasattr(by, "orders"):
        raise EngineError(f"labels are put in order by pv.Stephens() or pv.Ordering(parameter), got {by!r}")
    reason = _why_not(model, obs, draws)
    if reason is not None or obs is None:
        return Relabelled(dict(draws), f"as drawn: {reason}")
    shape = next(iter(draws.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    shared = {name: flat[name] for name in model.shared_laws()}
    said, switched = [], torch.zeros(shape.numel(), dtype=torch.bool)
    with unvalidated():
        for symmetry in symmetries(model, obs, {name: value[0] for name, value in shared.items()}):
            order, how = (by or Stephens()).orders(model, obs, shared, symmetry)
            switched |= (order != torch.arange(symmetry.size)).any(1)
            shared = permute(shared, symmetry.moves, order)
            said.append(how)
    if not said:
        return Relabelled(dict(draws), "as drawn: no components were found that can trade labels")
    moved = {name: value.reshape(*shape, *value.shape[1:]) for name, value in {**flat, **shared}.items()}
    count = int(switched.sum())
    return Relabelled(moved, f"{'; '.join(dict.fromkeys(said))}; {count} of {len(switched)} draws switched", count)


def _why_not(model: Any, obs: Observations | None, draws: Mapping[str, Tensor]) -> str | None:
    """Why labels cannot be aligned; None if they can."""
    if not isinstance(model, LatentVariableModel):
        return "a Pyro program does not say which of its sites carry components"
    if not draws or not model.shared_laws():
        return "no parameter has draws"
    if obs is None:
        return "the data are not held"
    if model.draws_latents(obs):
        return "a continuous latent of each datum is not summed out"
    return None


def _responsibilities(
    model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor], latents: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """p_s(z | x_i) of each of these latents in turn, [draw, latents * n, K], and log p(x, theta_s), [draw]."""

    def ask(values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        joint = model.log_weights(obs, 1)[0].sum() + model.log_prior(values)
        return torch.cat(list(model.class_probabilities(obs, list(latents)).values())), joint

    p, joint = over_draws(ask, model, {name: value[None] for name, value in draws.items()}, len(obs))
    return p[0], joint[0]


def _chunks(p: Tensor, order: Tensor) -> list[tuple[Tensor, Tensor]]:
    at_once = max(1, (1 << 20) // p[0].numel())
    return list(zip(p.split(at_once), order.split(at_once), strict=True))
