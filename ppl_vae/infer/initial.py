"""Where the gradient engines start: at a few EM iterations where EM applies, else where the guide does."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.alone import forked_rng
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.families.supports import of_entries
from ppl_vae.fit import Fit
from ppl_vae.infer.assignment import alike
from ppl_vae.infer.em import EM
from ppl_vae.infer.starts import given_values, take_networks
from ppl_vae.likelihoods.gaussian import Floored

__all__ = ["begins_at_data", "initial_values"]

ROWS = 2000
"""Data of the start of a model whose M-step takes gradients, at most."""
NEXT_TO_NOTHING = 1e-3
"""Part of its expectation below which a probability or a rate counts as zero."""


def initial_values(
    start: Any, model: LatentVariableModel, obs: Observations, weights: Tensor | None, seed: int
) -> dict[str, Tensor] | None:
    """Values of shared latents and family parameters to start from, or None to leave it to the guide.

    Parameters
    ----------
    start : "auto", None, mapping or Fit
        "auto": short EM runs from k-means++ starts, ten if the model is one that EM fits in closed form; of other
        mixtures, whose M-step takes gradients, five on some of the data. Where EM fits the model in closed form, it
        also finds what a mapping leaves out. A Fit of the same declaration gives its networks too.
    """
    values = _values(start, model, obs, weights, seed)
    return None if values is None else {**values, **_off_the_edge(model, values, len(obs))}


def _values(
    start: Any, model: LatentVariableModel, obs: Observations, weights: Tensor | None, seed: int
) -> dict[str, Tensor] | None:
    if start is None:
        return None
    if isinstance(start, Mapping | Fit):
        if isinstance(start, Fit) and type(start.model) is type(model):
            take_networks(start, model)
        given = given_values(start, model, _shapes(model)) or {}
        if isinstance(start, Fit) or set(start) >= set(given) or not em_applies(model, obs):
            return given
    elif not isinstance(start, str) or start != "auto":
        raise EngineError(f'start must be "auto", None, parameters by name or a Fit; got {start!r}')
    if em_applies(model, obs):
        own: dict[str, Any] = {} if isinstance(start, str) else {"start": start, "frozen": tuple(start)}
        fit = EM(n_init=10, max_iter=100, tol=1e-6, seed=seed, progress=False, **own).fit(model, obs, weights)
    elif mode_is_typical(model, obs) or all_alike(model, obs):
        chosen = obs.spaced(ROWS)
        w = None if weights is None else weights[chosen.to(weights.device)]
        try:
            fit = EM(n_init=5, max_iter=30, tol=1e-4, seed=seed, progress=False).fit(model, obs.rows(chosen), w)
        except EngineError:  # it was a help, not what was asked for
            return None
        if fit.status.code not in ("converged", "max_iter"):
            return None
        take_networks(fit, model)
    else:
        return None
    return {name: value.to(model.like) for name, value in fit.parameters.items()}


def _off_the_edge(model: LatentVariableModel, values: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Shared probabilities and rates that are zero as about what they are expected to be.

    The mode of a Dirichlet(1), Beta(1, 1) or Gamma(1) posterior is zero where nothing was seen; gradients see it
    infinitely far away.
    """
    found, defaults = {}, _shapes(model)
    for name, made in model.shared_laws().items():
        law, value = made(defaults), values[name]
        support = of_entries(law.support)
        if support is constraints.simplex:
            p = _raised(value, torch.tensor(1 / (n + value.shape[-1])))
            found[name] = p / p.sum(-1, keepdim=True)
        elif support is constraints.unit_interval:
            share = torch.tensor(1 / (n + 2))
            found[name] = 1 - _raised(1 - _raised(value, share), share)
        elif isinstance(getattr(law, "base_dist", law), dist.Gamma):
            found[name] = _raised(value, law.mean / (n + 1))
    return found


def _raised(value: Tensor, expected: Tensor) -> Tensor:
    return torch.where(value < NEXT_TO_NOTHING * expected, expected.to(value), value)


def begins_at_data(model: LatentVariableModel) -> bool:
    """Whether the data tell where parameters start or what they count in, and not only their shapes."""
    return bool(model.families() or model.shared_laws()) or any(isinstance(m, Floored) for m in model.modules())


def em_applies(model: LatentVariableModel, obs: Observations) -> bool:
    """Whether every latent of each datum is finite and families make every observed node."""
    latents = [n for n in model.local_nodes() if n.kind == "latent"]
    observed = {n.name for n in model.local_nodes() if n.kind == "observed"}
    families = model.observed_families(obs)
    return bool(latents) and not model.penalties and not model.draws_latents(obs) and set(families) == observed


def mode_is_typical(model: LatentVariableModel, obs: Observations) -> bool:
    """Whether a mode of the parameters is near where the posterior is: a mixture of shared latents declared by hand.

    Networks are not, which a short EM leaves untrained; nor is a hierarchy, whose mode may be where a scale is zero.
    """
    if not model.finite_latents(obs) or model.penalties or model.draws_latents(obs) or not model.shared_laws():
        return False
    return not model.free_parameters() and not any(node.parents for node in model.graph().values() if node.shared)


def all_alike(model: LatentVariableModel, obs: Observations) -> bool:
    """Whether a model's own parameters make all components the same, from where no gradient leads apart."""
    if not model.finite_latents(obs) or model.penalties or model.draws_latents(obs) or model.shared_laws():
        return False
    r = model.responsibilities(obs.rows(obs.spaced(ROWS)))
    return all(alike(one.mT) for one in (r.values() if isinstance(r, dict) else [r]))


def _shapes(model: LatentVariableModel) -> dict[str, Tensor]:
    values = model.family_defaults()
    with forked_rng(), model.numeric():
        for name, law in model.shared_laws().items():
            if name not in values:
                values[name] = law(values).sample()
    return values
