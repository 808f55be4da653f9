"""Labels of several fits: responsibilities of each, the first fit's order for all, and what is said of that."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.align import matched, symmetries
from ppl_vae.datatree import posterior_draws
from ppl_vae.declare import Observations
from ppl_vae.fit import Fit
from ppl_vae.invariants import over_draws

__all__ = ["agreement", "label_notes", "matched_draws", "responsibilities"]

DRAWS = 200
"""Draws over which responsibilities are averaged, at most."""


def responsibilities(fit: Fit, obs: Observations) -> dict[str, Tensor]:
    """p(z = k | x_i) of each finite latent, mean over evenly spaced draws, [n, K]; none where one is continuous."""
    names = [] if fit.model.draws_latents(obs) else fit.model.finite_latents(obs)
    if not names:
        return {}
    chosen = fit.spaced(min(DRAWS, fit.num_draws))
    draws = {name: value.flatten(0, 1)[chosen][None] for name, value in fit.draws.items()}

    def ask(_: Any) -> tuple[Tensor, ...]:
        return tuple(fit.model.class_probabilities(obs, names).values())

    if draws:
        found = [r.mean((0, 1)) for r in over_draws(ask, fit.model, draws, len(obs))]
    else:
        with torch.no_grad(), fit.model.numeric():
            found = list(ask({}))
    return {name: r.double() for name, r in zip(names, found, strict=True)}


def agreement(known: np.ndarray | None, reference: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> float | None:
    """Adjusted Rand index of a fit's labels with the known ones, else with the first fit's, of the only latent."""
    from sklearn.metrics import adjusted_rand_score

    if len(own) != 1 or (known is None and len(reference) != 1):
        return None
    (r,) = own.values()
    against = known if known is not None else next(iter(reference.values())).argmax(-1).cpu().numpy()
    return float(adjusted_rand_score(against, r.argmax(-1).cpu().numpy()))


def _alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two fits have the same finite latents, with as many components."""
    return {name: r.shape for name, r in a.items()} == {name: r.shape for name, r in b.items()}


def matched_draws(
    fit: Fit, obs: Observations, reference: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The fit's draws with components in the order of the first fit's, and the latents whose labels could be traded."""
    draws = posterior_draws(fit)
    if not draws or not own or not _alike(reference, own):
        return draws, []
    found = symmetries(fit.model, obs, {name: value.flatten(0, 1)[0] for name, value in draws.items()})
    traded = [name for symmetry in found for name in symmetry.latents]
    return matched(draws, found, own, reference, next(iter(draws.values())).shape[:2]), traded


def label_notes(
    fits: Mapping[str, Fit], r: Mapping[str, Mapping[str, Tensor]], traded: Mapping[str, list[str]]
) -> list[str]:
    """How labels were treated, fits with the same answer together."""
    said: dict[str, list[str]] = {}
    first, reference = next(iter(r.items()))
    for name, fit in fits.items():
        own = r[name]
        if not own:
            continue
        if "labels" in fit.settings:
            said.setdefault(f"labels of its draws: {fit.settings['labels']}", []).append(name)
        if name != first and reference:
            left = [latent for latent, one in own.items() if one.shape[1] > 1 and latent not in traded[name]]
            why = (
                ": no trade of labels found that leaves p(x) and p(theta) as they are" if _alike(own, reference) else ""
            )
            for latents, how, end in ((traded[name], "matched", " by responsibilities"), (left, "not matched", why)):
                if latents:
                    which = f" of {', '.join(latents)}" if len(own) > 1 else ""
                    said.setdefault(f"components{which} {how} to those of {first}{end}", []).append(name)
    return [f"{', '.join(names)}: {sentence}" for sentence, names in said.items()]
