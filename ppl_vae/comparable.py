"""Whether the scores of several fits are of the same thing: the same data, weights and densities."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.counted import same_data
from ppl_vae.declare import Observations
from ppl_vae.fit import Fit
from ppl_vae.infer.weights import check_weights

__all__ = ["common_weights", "other_data", "other_nodes"]


def common_weights(fits: Mapping[str, Fit], seen: Mapping[str, Observations], weights: Any) -> tuple[Tensor, list[str]]:
    """How many times each datum compared on counts, [n], the same for every fit, and what to know of it."""
    n = len(next(iter(seen.values())))
    if weights is not None:
        return check_weights(weights, n), []
    holders = [name for name, fit in fits.items() if fit.data is not None and same_data(fit.data, seen[name])]
    own = [check_weights(fits[name].weights, n) for name in holders]
    if not all(_alike(own[0], w) for w in own[1:]):
        said = (
            f"{', '.join(holders)} were fitted to these data under different weights: in what is compared on them each "
            "datum counts once; pass compare(..., weights=) for others"
        )
        return torch.ones(n, dtype=torch.float64), [said]
    return own[0] if own else torch.ones(n, dtype=torch.float64), []


def other_data(fits: Mapping[str, Fit]) -> list[str]:
    """Fits whose likelihoods cannot be held against the first one's."""
    (name, first), *others = fits.items()
    return [
        f"{other} was fitted {how}: their log likelihoods, information criteria and leave-one-out scores are of "
        "different things"
        for other, fit in others
        if fit.data is not None and first.data is not None and (how := _otherwise(fit, first, name))
    ]


def _otherwise(fit: Fit, first: Fit, name: str) -> str:
    """In what the training data of a fit differ from the first one's; nothing where they do not."""
    n = len(first.data)
    if len(fit.data) != n:
        return f"to other data ({len(fit.data)} rows, {n}) than {name}"
    if (modelled := _modelled(fit, fit.data)) != (own := _modelled(first, first.data)):
        return f"as a law of {', '.join(modelled)} and {name} as one of {', '.join(own)}"
    theirs, ours = fit.data.values, first.data.values
    if not all(_alike(theirs[key], ours[key]) for key in theirs.keys() & ours.keys()):
        return f"to other data than {name}"
    same = _alike(check_weights(fit.weights, n), check_weights(first.weights, n))
    return "" if same else f"under other weights than {name}"


def _modelled(fit: Fit, obs: Observations) -> list[str]:
    """Names of the data that a fit gives a density of; it is given the others."""
    return sorted(obs.values.keys() - {*fit.model.inputs})


def other_nodes(fits: Mapping[str, Fit], seen: Mapping[str, Observations]) -> list[str]:
    """Fits whose predictions are densities of other things than the first one's."""
    modelled = {name: _modelled(fit, seen[name]) for name, fit in fits.items()}
    (name, own), *others = modelled.items()
    return [
        f"log_predictive of {other} is the density of {', '.join(theirs)}, that of {name} of {', '.join(own)}: they "
        "cannot be held against each other"
        for other, theirs in others
        if theirs != own
    ]


def _alike(a: Any, b: Any) -> bool:
    """Whether values are the same as far as single precision tells, in which one of the fits may have read them."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return True  # inputs of any kind are not looked into
    return a.shape == b.shape and torch.equal(a.cpu().float(), b.cpu().float())
