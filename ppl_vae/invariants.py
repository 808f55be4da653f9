"""What of a draw does not depend on the names of components: moments of x, densities at data, log p(X, theta)."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.align import symmetries
from ppl_vae.alone import unvalidated
from ppl_vae.convergence import RHAT_LIMIT, Convergence, convergence, rhat
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.fit import Fit
from ppl_vae.objectives import Sites

__all__ = ["disagreement", "invariants", "log_joint", "over_draws", "remarks"]

AT = (0.1, 0.5, 0.9)
"""Where in the order of the first feature the data lie whose densities are followed."""
ELEMENTS = 1 << 17
TAIL = 0.05
CLEARLY = 1.05
"""R-hat above which a reason is looked for why chains disagree."""


def invariants(model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Label-invariant summaries of every draw of theta, [chain, draw, ...].

    "mean of x" and "variance of x" are those of p(x | theta), per feature, where all latents of a datum are finite and
    nothing is conditioned on; "log p(x[i])" is the log density at three data, latents summed out, in nats.

    Parameters
    ----------
    model : LatentVariableModel
        The declaration.
    obs : Observations
        Data, of which three are taken as points.
    draws : mapping
        Parameters, [chain, draw, *event].
    """
    if not draws or model.draws_latents(obs):
        return {}
    rows = _points(model, obs)
    density = over_draws(lambda values: model.log_weights(obs.rows(rows), 1)[0], model, draws)
    found = {f"log p(x[{i}])": density[..., j] for j, i in enumerate(rows.tolist())}
    finite = [n.name for n in model.local_nodes() if n.kind == "latent"]
    if not finite or model.inputs:
        return found
    names = [n.name for n in model.local_nodes() if n.kind == "observed"]
    one = Observations({name: torch.nan_to_num(obs.values[name][:1]) for name in names})
    try:
        moments = over_draws(lambda values: _moments(model.bound_sites(one), names), model, draws)
    except NotImplementedError:  # a law without moments in closed form
        return found
    named = {
        f"{moment} of {name}": moments[2 * i + j] for i, name in enumerate(names) for j, moment in enumerate(KINDS)
    }
    return {name: value for name, value in named.items() if bool(value.isfinite().all())} | found


KINDS = ("mean", "variance")


def _points(model: LatentVariableModel, obs: Observations) -> Tensor:
    """Rows of the data at which densities are followed."""
    name = next(n.name for n in model.local_nodes() if n.kind == "observed")
    first = obs.values[name].reshape(len(obs), -1)[:, 0].cpu()
    return first.argsort()[[round(q * (len(obs) - 1)) for q in AT]].unique()


def _moments(sites: Sites, names: list[str]) -> tuple[Tensor, ...]:
    """Mean and variance of each observed node, its finite parents summed out, [*event] each."""
    log_p: Any = 0.0
    for name, value in sites.log_p.items():
        if name not in names:
            log_p = log_p + value
    weight = torch.softmax(log_p.reshape(-1), 0).reshape(log_p.shape)
    found = []
    for name in names:
        d = sites.p[name]
        w = weight.reshape(*weight.shape, *[1] * len(d.event_shape))
        mean = (w * d.mean).sum(tuple(range(log_p.dim())))
        square = (w * (d.variance + d.mean.square())).sum(tuple(range(log_p.dim())))
        found += [mean, square - mean.square()]
    return tuple(found)


def over_draws(ask: Any, model: LatentVariableModel, draws: Mapping[str, Tensor], rows: int = 4) -> Any:
    """An answer of the model for every draw of its shared latents, [chain, draw, ...] of each tensor in it."""
    shape = next(iter(draws.values())).shape[:2]

    def one(values: dict[str, Tensor]) -> Any:
        with model.bind(values), model.numeric():
            return ask(values)

    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    with torch.no_grad(), unvalidated():
        try:
            found = torch.vmap(one, chunk_size=max(1, ELEMENTS // rows))(flat)
        except RuntimeError:  # a model whose operations depend on values goes draw by draw
            each = [one({name: value[s] for name, value in flat.items()}) for s in range(shape.numel())]
            parts = isinstance(each[0], tuple)
            found = tuple(map(torch.stack, zip(*each, strict=True))) if parts else torch.stack(each)
    if isinstance(found, tuple):
        return tuple(value.reshape(*shape, *value.shape[1:]) for value in found)
    return found.reshape(*shape, *found.shape[1:])


def log_joint(
    model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor], weights: Tensor | None = None
) -> Tensor:
    """Log p(X, theta) at every draw, [chain, draw] total nats."""

    def one(values: Mapping[str, Tensor]) -> Tensor:
        per_datum = model.log_weights(obs, 1)[0]
        return (per_datum if weights is None else weights * per_datum).sum() + model.log_prior(values)

    return over_draws(one, model, draws, len(obs))


def remarks(fit: Fit, obs: Observations | None, found: Convergence | None = None) -> tuple[str, ...]:
    """What speaks against a fit's chains, a sentence each, and why they disagree, where they do.

    Parameters
    ----------
    fit : Fit
        With draws.
    obs : Observations, optional
        Its training data; without them the reason is not looked for.
    found : Convergence, optional
        Its R-hat and effective draws, where they are known.
    """
    found = found or convergence(fit)
    if found is None:
        return ()
    # Below it, chains that are short for their autocorrelation are enough.
    if not found.rhat > CLEARLY or found.chains < 2 or obs is None:
        return found.warnings()
    shared = {name: fit.draws[name] for name in fit.model.shared_laws()}
    if not shared:
        return found.warnings()
    why = disagreement(fit.model, obs, shared, fit.weights)
    return found.warnings() if why is None else (*found.warnings(), why)


def disagreement(
    model: LatentVariableModel, obs: Observations, draws: Mapping[str, Tensor], weights: Tensor | None = None
) -> str | None:
    """Why chains disagree, judged by what does not depend on labels; None where that cannot be told.

    Chains sit in different modes where the central 90% intervals of an invariant do not overlap. Where every invariant
    has R-hat at most 1.01, the chains agree on p(x) and, where the model has labels that can be traded, only these are
    not identified.

    Parameters
    ----------
    model, obs, draws
        As of `invariants`; several chains.
    weights : Tensor, optional
        [n]: datum i counts w_i times.
    """
    if model.draws_latents(obs):
        return None
    joint = log_joint(model, obs, draws, weights)
    summaries = invariants(model, obs, draws).values()
    columns = [joint, *(one for value in summaries for one in value.reshape(*value.shape[:2], -1).unbind(-1))]
    numbers = [column.double().cpu().numpy() for column in columns]
    if all(np.ptp(column) == 0 or rhat(column) <= RHAT_LIMIT for column in numbers):
        with unvalidated():
            traded = symmetries(model, obs, {name: value[0, 0] for name, value in draws.items()})
        if not traded:
            return None
        return (
            f"the chains agree on all that does not depend on the components' labels (R-hat at most {RHAT_LIMIT} for "
            f"log p(X, theta), the density at data and the moments of x): labels are not identified here, read the "
            f"label-invariant summaries instead of single components"
        )
    groups = _groups(numbers)
    if len(groups) < 2:
        return None
    level = joint.mean(1).double().cpu().numpy()
    spoken = "; ".join(f"{_named(group)} at {level[group].mean():.1f}" for group in groups)
    return (
        f"the posterior has several modes, and chains sit in different ones (mean log p(X, theta): {spoken} nats): how "
        f"many draws each mode has is what the starts made it, not its probability; a mode far below the others is a "
        f"place where chains were caught"
    )


def _groups(columns: list[np.ndarray]) -> list[list[int]]:
    """Chains by mode: two are apart when the intervals of some column do not overlap."""
    chains = len(columns[0])
    leader = list(range(chains))
    bounds = [np.quantile(column, [TAIL, 1 - TAIL], axis=1) for column in columns]
    for a, b in combinations(range(chains), 2):
        if all(low[a] <= high[b] and low[b] <= high[a] for low, high in bounds):
            leader = [leader[a] if own == leader[b] else own for own in leader]
    return [[c for c in range(chains) if leader[c] == own] for own in sorted(set(leader))]


def _named(chains: list[int]) -> str:
    return f"chain{'s' * (len(chains) > 1)} {', '.join(str(c + 1) for c in chains)}"
