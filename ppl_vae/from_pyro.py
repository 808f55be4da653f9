"""From plain Pyro to ArviZ: draws by MCMC, of a guide, or of Predictive."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.mcmc.api import AbstractMCMC
from torch import Tensor, nn

from ppl_vae.alone import seeded_rng, unvalidated
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer.each import each
from ppl_vae.pointwise import Likelihood, PyroModel

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["from_pyro"]

PREDICTIVE_DRAWS, PRIOR_DRAWS = 1000, 500


@dataclass(frozen=True)
class Draws:
    """A posterior by site, [chain, draw, *shape], the sampler's record, and what Predictive already drew."""

    posterior: dict[str, Tensor]
    stats: dict[str, Tensor] = field(default_factory=dict)
    predictive: dict[str, Tensor] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)


def from_pyro(
    result: Any,
    *args: Any,
    model: Callable[..., Any] | None = None,
    num_samples: int = 1000,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> "xr.DataTree":
    r"""An ArviZ tree of a plain Pyro result, with plates as dimensions.

    The log-likelihood of a datum is the marginal one: sites that Pyro enumerates are summed out,

    .. math:: \log p(x_i | \theta_s) = \log \sum_k p(z_i = k | \theta_s)\, p(x_i | z_i = k, \theta_s),

    not taken at a z drawn from its prior. An observed site that no enumerated site touches keeps every plate as a
    dimension, so each cell is a datum. Sites joined by enumerated ones are a datum for each element of the plates
    that they all share: words of a document whose topic is summed out count as one document. Drawn latents of each
    datum are given, not integrated out.

    Parameters
    ----------
    result : pyro.infer.MCMC, (model, guide) or mapping of Tensor
        A sampler that ran; a pair whose parameters are in Pyro's store, as after SVI; or draws by site, [draw, ...],
        such as those of `pyro.infer.Predictive`.
    *args, **kwargs
        The arguments that the model was run with, observed data included. A sampler remembers its own.
    model : callable, optional
        The Pyro program, where `result` does not know it.
    num_samples : int
        Draws of a guide.
    coords, dims : mapping, optional
        As of `arviz_base.from_dict`; they win over the plates' names.
    seed : int
        Seed of the guide's draws and of predictions.

    Returns
    -------
    xarray.DataTree
        posterior, sample_stats (divergences), log_likelihood, log_prior, posterior_predictive, prior,
        prior_predictive, observed_data, constant_data (tensors among the arguments that no site observes).

    Raises
    ------
    EngineError
        For a Fit, which has `to_datatree`; if the model is not known, draws the data in minibatches, or has latents
        that `result` does not hold.

    References
    ----------
    Vehtari, Gelman and Gabry (2017), "Practical Bayesian model evaluation using leave-one-out cross-validation and
    WAIC".

    Examples
    --------
    >>> import pyro, pyro.distributions as dist, torch
    >>> def model(x):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("datum", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    ...         pyro.sample("x", dist.Normal(mu + z, 1.0), obs=x)
    >>> tree = from_pyro({"mu": torch.zeros(3)}, torch.tensor([0.0, 1.0]), model=model)
    >>> tree["log_likelihood"]["x"].dims
    ('chain', 'draw', 'datum')
    >>> round(float(tree["log_likelihood"]["x"][0, 0, 0]), 4)  # log (N(0; 0, 1) + N(0; 1, 1)) / 2
    -1.138
    """
    if isinstance(result, Fit):
        raise EngineError("from_pyro takes what plain Pyro made, got a Fit of this package: take fit.to_datatree()")
    with seeded_rng(seed), torch.no_grad(), unvalidated():
        program, args, kwargs = _program(result, model, args, kwargs)
        pyro_model = PyroModel(program, args, kwargs)
        draws = _draws(result, pyro_model, num_samples)
        return build(pyro_model, draws, coords or {}, dims or {})


def _program(result: Any, model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, dict[str, Any]]:
    """The model, and the arguments it runs with."""
    if isinstance(result, AbstractMCMC):
        model = model or getattr(result.kernel, "model", None)
        if not args and not kwargs:
            args, kwargs = getattr(result, "_args", None) or (), getattr(result, "_kwargs", None) or {}
    elif isinstance(result, tuple):
        model = model or result[0]
    if model is None:
        raise EngineError("from_pyro needs the Pyro program, to know its sites and plates: pass model=")
    return model, args, kwargs


def _draws(result: Any, model: PyroModel, num_samples: int) -> Draws:
    for kind, read in READERS:
        if isinstance(result, kind):
            return read(result, model, num_samples)
    raise EngineError(
        f"from_pyro takes a pyro.infer.MCMC that ran, (model, guide) or draws by site; got {type(result).__name__}"
    )


def _of_mcmc(mcmc: AbstractMCMC, model: PyroModel, num_samples: int) -> Draws:
    posterior = {name: value.detach().cpu() for name, value in mcmc.get_samples(group_by_chain=True).items()}
    shape = next(iter(posterior.values())).shape[:2]
    diverging, rates = torch.zeros(shape, dtype=torch.bool), []
    for chain, found in enumerate(getattr(mcmc, "_diagnostics", None) or []):
        indices = [i for i in (found or {}).get("divergences", []) if 0 <= i < shape[1]]
        diverging[chain, indices] = True
        rates.append((found or {}).get("acceptance rate"))
    told = [float(rate) for rate in rates if rate is not None]
    attrs = {"acceptance_rate_by_chain": told} if told else {}
    return Draws(posterior, {"diverging": diverging}, attrs=attrs)


def _of_guide(pair: tuple[Any, Any], model: PyroModel, num_samples: int) -> Draws:
    _, guide = pair
    trace = poutine.trace(guide).get_trace(*model.args, **model.kwargs)
    names = [
        name
        for name, site in trace.nodes.items()
        # What the guide enumerates too is summed out in the model, exactly.
        if name in model.latents and not (site.get("infer") or {}).get("enumerate")
    ]

    def draw() -> tuple[Tensor, ...]:
        nodes = poutine.trace(guide).get_trace(*model.args, **model.kwargs).nodes
        return tuple(nodes[name]["value"] for name in names)

    columns = each(draw, [()] * num_samples)
    return Draws({name: value[None] for name, value in zip(names, columns, strict=True)})


def _of_samples(samples: Mapping[str, Any], model: PyroModel, num_samples: int) -> Draws:
    values = {name: torch.as_tensor(value).detach().cpu()[None] for name, value in samples.items()}
    observed = {name: value for name, value in values.items() if name in model.observed}
    return Draws({name: value for name, value in values.items() if name not in observed}, predictive=observed)


READERS: tuple[tuple[Any, Callable[[Any, PyroModel, int], Draws]], ...] = (
    (AbstractMCMC, _of_mcmc),
    (tuple, _of_guide),
    (Mapping, _of_samples),
)


# The tree.


def build(
    model: PyroModel, draws: Draws, coords: Mapping[str, Any], dims: Mapping[str, list[str]],
    likelihood: Mapping[str, Tensor] | None = None,
) -> "xr.DataTree":  # fmt: skip
    """The tree of these draws; `likelihood` where somebody else knows the marginal one."""
    found = model.likelihood(draws.posterior) if likelihood is None else Likelihood(dict(likelihood), {}, {}, {})
    predicted, kept = draws.predictive, None
    if not predicted:
        predicted, kept = model.predict(draws.posterior, PREDICTIVE_DRAWS)
    prior, constants, sites = model.prior(PRIOR_DRAWS), _constants(model), {**model.dims(), **dims}
    tree = assemble(
        [
            Group("posterior", draws.posterior, sites),
            Group("sample_stats", draws.stats),
            Group("log_likelihood", found.values, found.dims),
            Group("log_prior", found.log_prior),
            Group("posterior_predictive", predicted, sites, kept),
            Group("prior", {name: value for name, value in prior.items() if name in draws.posterior}, sites),
            Group("prior_predictive", {name: prior[name] for name in model.observed}, sites),
            Group("observed_data", model.observed, sites),
            Group(
                "constant_data", {n: v for n, (v, _) in constants.items()}, {n: d for n, (_, d) in constants.items()}
            ),
        ],
        coords,
    )
    for name, unit in found.units.items():
        tree["log_likelihood"][name].attrs["datum"] = unit
    tree.attrs.update({"inference_library": "pyro", "inference_library_version": pyro.__version__, **draws.attrs})
    return tree


@dataclass(frozen=True)
class Group:
    """Variables of one group of the tree, names of their dimensions, and the draws they come from if not all."""

    name: str
    values: Mapping[str, Any]
    dims: Mapping[str, list[str]] = field(default_factory=dict)
    kept: np.ndarray | None = None


def assemble(groups: list[Group], coords: Mapping[str, Any]) -> "xr.DataTree":
    """The tree of those groups that hold something."""
    import arviz_base
    import xarray as xr

    full = [group for group in groups if group.values]
    names = {name for group in full for name in group.values}
    made = {}
    for group in full:
        # A dimension may not have the name of a variable.
        dims = {
            name: [f"{dim}_plate" if dim in names else dim for dim in group.dims[name]]
            for name in group.values
            if name in group.dims
        }
        own = {**coords, **({} if group.kept is None else {"draw": group.kept})}
        arrays = {name: _array(value) for name, value in group.values.items()}
        made[group.name] = arviz_base.from_dict({group.name: arrays}, coords=own, dims=dims)[group.name].to_dataset()
    return xr.DataTree.from_dict(made)


def _array(value: Any) -> np.ndarray:
    return torch.as_tensor(value).detach().cpu().numpy()


def _constants(model: PyroModel) -> dict[str, tuple[Tensor, list[str]]]:
    """Tensors among the arguments that no site observes, by the program's own names, with their dimensions."""
    program = model.program.forward if isinstance(model.program, nn.Module) else model.program
    try:
        given = inspect.signature(program).bind(*model.args, **model.kwargs).arguments
    except (TypeError, ValueError):
        given = {f"argument_{i}": value for i, value in enumerate(model.args)} | model.kwargs
    flat = {
        (f"{name}_{i}" if isinstance(value, tuple) else name): one
        for name, value in given.items()
        for i, one in enumerate(value if isinstance(value, tuple) else (value,))
    }
    tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor) and value.dim()}
    known = list(model.observed.values())
    return {
        name: (value, model.rows(value))
        for name, value in tensors.items()
        if name not in model.observed and not any(_same(value, other) for other in known)
    }


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.to(b), b))


# A Fit of a Pyro pair.


def pair_tree(fit: Any, args: Any, posterior: dict[str, Tensor], seed: int) -> "xr.DataTree":
    """The tree of a Fit of a Pyro pair; latents of each datum that are no draws of it are integrated out."""
    pair = fit.model
    with pair.parameters_in_place(), unvalidated():
        model = PyroModel(pair.program, tuple(args), {})
        sites = {name: value for name, value in posterior.items() if name in model.latents}
        local = [name for name in model.latents if name not in sites and not model.finite(name)]
        draws = Draws(posterior, dict(fit.sample_stats))
    likelihood = None
    if local:
        name = next(iter(model.observed)) if len(model.observed) == 1 else "joint"
        likelihood = {name: fit.pointwise(args, seed=seed)}
    with pair.parameters_in_place(), unvalidated():
        return describe(build(model, draws, {}, {}, likelihood), fit)


def describe(tree: "xr.DataTree", fit: Any) -> "xr.DataTree":
    """The tree with what made it as attributes, of the whole and of its posterior, where ArviZ looks."""
    about = {
        "inference_library": f"ppl_vae {fit.engine}",
        "inference_library_version": fit.versions["ppl_vae"],
        "sampling_time": fit.seconds,
        "seed": fit.seed,
        "status": str(fit.status),
    }
    tree.attrs.update({**about, **fit.versions})
    tree["posterior"].attrs.update(about) if "posterior" in tree.children else None
    return tree
