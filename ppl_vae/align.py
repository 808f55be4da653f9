"""Label switching: components of draws and of fits put into one order before anything is averaged."""

from collections.abc import Mapping
from itertools import combinations

import pyro
import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.model import class_probabilities

__all__ = ["align", "exchangeable", "match", "permute"]

ROWS = 300
"""Data on whose responsibilities labels are compared."""
SWEEPS = 10


def exchangeable(model: LatentVariableModel, obs: Observations, values: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Shared latents whose first axis are the components: permuting them together changes neither p(x) nor p(theta).

    The model's own symmetry is tested at one draw, so that a prior which tells components apart is respected.
    """
    with model.bind(values), torch.no_grad(), model.numeric():
        sites = model.sites(obs)
        finite = {**sites.summed, **sites.enumerated}
        if len(finite) != 1:
            return ()
        K = class_probabilities(sites, next(iter(finite)), 1).shape[1]
        before = model.log_weights(obs, 1)[0], model.log_prior(values)
    if K < 2:
        return ()
    cycle = torch.arange(K).roll(1)
    candidates = [name for name, value in values.items() if value.dim() and value.shape[0] == K]
    for size in range(len(candidates), 0, -1):
        for names in combinations(candidates, size):
            moved = {**values, **{name: values[name][cycle] for name in names}}
            with model.bind(moved), torch.no_grad(), model.numeric():
                after = model.log_weights(obs, 1)[0], model.log_prior(moved)
            if all(torch.allclose(a, b, rtol=1e-8, atol=1e-8) for a, b in zip(before, after, strict=True)):
                return names
    return ()


def align(
    model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str | None]:
    """Relabel the components of every draw by their responsibilities (Stephens 2000, algorithm 2).

    Draw s takes the permutation that minimises sum_i KL(p_s(z | x_i) || q(z | x_i)), q the mean of the relabelled
    responsibilities, in turns until nothing changes.

    Parameters
    ----------
    draws : mapping
        Shared latents, [chain, draw, *event].

    Returns
    -------
    draws, note
        The relabelled draws, and a sentence when some were switched.
    """
    if not draws or model.draws_latents(obs):
        return dict(draws), None
    few = obs.rows(torch.linspace(0, len(obs) - 1, min(ROWS, len(obs))).long())
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    with pyro.validation_enabled(False):
        names = exchangeable(model, few, {name: value[0] for name, value in flat.items()})
        if not names:
            return dict(draws), None
        order = _stephens(_responsibilities(model, few, flat))
    switched = int((order != torch.arange(order.shape[1])).any(1).sum())
    if not switched:
        return dict(draws), None
    for name in names:
        index = order.reshape(*order.shape, *[1] * (flat[name].dim() - 2)).expand(flat[name].shape)
        flat[name] = flat[name].gather(1, index)
    shape = next(iter(draws.values())).shape[:2]
    note = f"component labels of {switched} of {len(order)} draws were switched back (Stephens 2000)"
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in flat.items()}, note


def _responsibilities(model: LatentVariableModel, obs: Observations, flat: Mapping[str, Tensor]) -> Tensor:
    """p_s(z | x_i), [draw, n, K]."""

    def one(values: dict[str, Tensor]) -> Tensor:
        with model.bind(values), model.numeric():
            sites = model.sites(obs)
            return class_probabilities(sites, next(iter({**sites.summed, **sites.enumerated})), 1)

    with torch.no_grad():
        return torch.vmap(one, chunk_size=max(1, (1 << 18) // len(obs)))(dict(flat))


def _stephens(p: Tensor) -> Tensor:
    """For each draw, which old component takes each place, [draw, K]."""
    S, _, K = p.shape
    order = torch.arange(K).expand(S, K).clone()
    reference = p[0]
    for _ in range(SWEEPS):
        # sum_i p_s(j) log q(k): the entropy of p_s does not depend on the permutation.
        gain = torch.einsum("snj,nk->sjk", p, reference.clamp_min(1e-300).log())
        fresh = torch.stack([_assignment(g) for g in gain])
        if bool((fresh == order).all()) and _ > 0:
            break
        order = fresh
        reference = p.gather(2, order[:, None, :].expand(p.shape)).mean(0)
    return order


def _assignment(gain: Tensor) -> Tensor:
    """Old component for each place, the total gain [old, place] at its largest."""
    from scipy.optimize import linear_sum_assignment

    old, place = linear_sum_assignment(gain.numpy(), maximize=True)
    order = torch.empty(len(old), dtype=torch.long)
    order[torch.as_tensor(place)] = torch.as_tensor(old)
    return order


def match(reference: Tensor, r: Tensor) -> Tensor:
    """Which component of `r` takes the place of each component of `reference`, from responsibilities [n, K].

    Examples
    --------
    >>> import torch
    >>> a = torch.eye(3)
    >>> match(a, a[:, [2, 0, 1]]).tolist()
    [1, 2, 0]
    """
    return _assignment(r.mT @ reference)


def permute(values: Mapping[str, Tensor], names: tuple[str, ...], order: Tensor, axis: int = 0) -> dict[str, Tensor]:
    """Values with the component axis of `names` in this order."""
    return {k: v.index_select(axis, order) if k in names else v for k, v in values.items()}
