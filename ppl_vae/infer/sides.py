"""Whose a parameter is: q's or the model's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae.declare import Observations
from ppl_vae.errors import EngineError
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.objectives import Sites

__all__ = ["belongs_to_q", "drawn"]


def belongs_to_q(climbed: ModelObjective, obs: Observations, given: Sequence[str] | None = None) -> list[bool]:
    """For each parameter, those of single data last, whether it is q's: whether a draw of q or its density uses it.

    A parameter that the model uses too, such as a VampPrior's encoder, is q's: the bound rises in both turns whatever
    the division.

    Parameters
    ----------
    climbed : ModelObjective
        With the model's parameters and their names.
    obs : Observations
        Data to look at.
    given : sequence of str, optional
        Names of q's parameters or of the modules that hold them, where the user knows better.

    Raises
    ------
    EngineError
        If one side has no parameter, or a given name does not exist.
    """
    dense = _named(climbed.names, given) if given is not None else _reached(climbed, obs)
    found = [*dense, *[True] * climbed.num_rows]
    if all(found) or not any(found):
        side = "q" if all(found) else "the model"
        raise EngineError(
            f"alternate: every parameter belongs to {side}, so there are no turns to take; finite latents without a "
            "posterior are summed out exactly and have no q of their own"
        )
    return found


def _named(names: Sequence[str], given: Sequence[str]) -> list[bool]:
    for prefix in given:
        if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
            raise EngineError(f"alternate: parameters names {prefix!r}; the model has {', '.join(names)}")
    return [any(name == prefix or name.startswith(f"{prefix}.") for prefix in given) for name in names]


def _reached(climbed: ModelObjective, obs: Observations) -> list[bool]:
    sites, shared = drawn(climbed, obs.rows(torch.arange(min(4, len(obs)), device=climbed.like.device)))
    seen = [each for each in (*sites.log_q.values(), *sites.values.values(), *shared) if each.requires_grad]
    if not seen or not climbed.dense:
        return [False] * len(climbed.dense)
    total = torch.stack([each.sum() for each in seen]).sum()
    gradients = torch.autograd.grad(total, climbed.dense, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def drawn(climbed: ModelObjective, obs: Observations, seed: int = 0) -> tuple[Sites, list[Tensor]]:
    """Factors of the model at one draw, with the shared latents' values and log q; nothing else is changed by it."""
    model = climbed.model
    index = torch.arange(len(obs), device=model.like.device) if climbed.num_rows else None
    with model.standing(), model.aside(seed), model.numeric():
        shared, log_q = model.draw_shared()
        with model.bind(shared):
            sites = model.sites(obs, index)
    return sites, [*shared.values(), log_q]
