"""From a Fit to ArviZ, and what a fit is worth: convergence, cross-validation, KL per latent unit."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.convergence import Convergence, convergence
from ppl_vae.errors import EngineError
from ppl_vae.evidence import log_mean_exp
from ppl_vae.fit import Fit
from ppl_vae.objectives import Sites, has_analytic_kl

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Convergence", "Evaluation", "convergence", "elbo_total", "evaluate", "leave_one_out", "to_datatree"]

ACTIVE = 0.01
"""A unit is active when the variance over data of its posterior mean is at least this (Burda et al. 2016)."""
PREDICTIVE_DRAWS = 200


@dataclass(frozen=True)
class Evaluation:
    """What a fit says of data, in nats per datum.

    Attributes
    ----------
    n : int
        Number of data.
    elbo, elbo_se : float
        Mean bound and its standard error over data.
    log_prob, log_prob_se : float
        Mean log p(x) and its standard error over data, that of the importance weights included.
    min_ess : float
        Smallest effective sample size of a datum's importance weights; infinite when exact.
    method : str
        "exact" or "importance".
    kl_per_unit : Tensor or None
        Mean KL(q(z_j | x) || p(z_j)) of each latent unit, [units]; None where prior and q do not factorise.
    active_units : int or None
        Units whose posterior mean varies over the data.
    """

    n: int
    elbo: float
    elbo_se: float
    log_prob: float
    log_prob_se: float
    min_ess: float
    method: str
    kl_per_unit: Tensor | None
    active_units: int | None

    def __str__(self) -> str:
        lines = [
            f"{'held-out ELBO':<28}{self.elbo:10.4f} ± {self.elbo_se:.4f} nats per datum",
            f"{'log p(x), ' + self.method:<28}{self.log_prob:10.4f} ± {self.log_prob_se:.4f} nats per datum",
            f"{'gap':<28}{self.log_prob - self.elbo:10.4f}",
        ]
        if self.kl_per_unit is None:
            lines.append(f"{'KL per unit':<28}not defined: prior and q do not factorise")
        else:
            units = "  ".join(f"{v:.2f}" for v in self.kl_per_unit.sort(descending=True).values.tolist())
            lines.append(f"{'KL per unit':<28}{units}")
            lines.append(f"{'active units':<28}{self.active_units} of {len(self.kl_per_unit)}")
        return "\n".join(lines)


def evaluate(fit: Fit, data: Any, num_particles: int = 100, seed: int = 0) -> Evaluation:
    """Bound, log p(x) and what the latent units carry, on data the fit may not have seen.

    Parameters
    ----------
    fit : Fit
        Any fit.
    data : Tensor, array, data frame or mapping
        n rows.
    num_particles : int
        Draws of q per datum for log p(x), where it is not exact.
    seed : int
        Seed of those draws.
    """
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        obs = fit.model.check(data)
        bound = fit.elbo(obs).double()
        if fit.is_point:
            with fit.model.bind(fit.draw(0) if fit.draws else {}):
                evidence = fit.model.evidence(obs, num_particles)
            value, error = evidence.value.double(), evidence.standard_error.double()
            ess, method = evidence.effective_sample_size.min().item(), evidence.method
        else:
            value = fit.log_predictive(obs, num_particles).double()
            error, ess, method = torch.zeros_like(value), float("inf"), "exact"
        kl, active = _units(fit, obs) if fit.is_point else (None, None)
    n = len(obs)
    return Evaluation(
        n=n,
        elbo=bound.mean().item(),
        elbo_se=standard_error(bound),
        log_prob=value.mean().item(),
        log_prob_se=float(np.hypot(standard_error(value), error.square().sum().sqrt().item() / n)),
        min_ess=ess,
        method=method,
        kl_per_unit=kl,
        active_units=active,
    )


def standard_error(values: Tensor) -> float:
    """Standard error of a mean over data.

    Examples
    --------
    >>> import torch
    >>> standard_error(torch.tensor([0.0, 2.0]))
    1.0
    """
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")


def _units(fit: Fit, obs: Any) -> tuple[Tensor | None, int | None]:
    """Mean KL of each unit of the one continuous latent, and how many units are active."""
    with fit.model.bind(fit.draw(0) if fit.draws else {}), fit.model.numeric():
        if fit.model.draws_without_posterior(obs):
            return None, None
        sites = fit.model.sites(obs)
    factors = _factors(sites)
    if factors is None:
        return None, None
    q, p = factors
    kl = dist.kl.kl_divergence(q, p)
    variance = q.mean.var(0) if len(obs) > 1 else torch.zeros_like(q.mean[0])
    return kl.mean(0).double(), int((variance >= ACTIVE).sum())


def _factors(sites: Sites) -> tuple[Any, Any] | None:
    names = [name for name in sites.q if name not in sites.enumerated]
    if len(names) != 1 or sites.enumerated or sites.summed:
        return None
    q, p = sites.q[names[0]], sites.p[names[0]]
    independent = isinstance(q, dist.Independent) and isinstance(p, dist.Independent)
    if not independent or q.base_dist.event_shape or not has_analytic_kl(q.base_dist, p.base_dist):
        return None
    return q.base_dist, p.base_dist


# ArviZ.


def to_datatree(fit: Fit, data: Any = None, seed: int = 0) -> "xr.DataTree":
    """Posterior, pointwise marginal log-likelihood, predictive draws, data and sampler record, for ArviZ.

    log_likelihood holds log p(x_i | theta_s) with the latents of each datum integrated out, which is what
    leave-one-out needs; a point estimate is one chain of one draw.

    Parameters
    ----------
    fit : Fit
        Any fit.
    data : optional
        Observed values; by default the training data, which a loaded Fit no longer has.

    Raises
    ------
    EngineError
        If there are no data.
    """
    import arviz_base

    obs = _data_of(fit, data)
    draws = {name: value.numpy() for name, value in posterior_draws(fit).items()}
    coords, dims = _coords(fit, obs)
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": draws}
    observed = [node.name for node in fit.model.local_nodes() if node.kind == "observed"]
    pointwise = _seeded(seed, lambda: fit.pointwise(obs))
    groups["log_likelihood"] = {observed[0] if len(observed) == 1 else "joint": pointwise.numpy()}
    groups["posterior_predictive"] = _seeded(seed, lambda: _predictive(fit, obs, observed))
    groups["observed_data"] = {name: _with_gaps(obs, name) for name in observed}
    if fit.sample_stats:
        groups["sample_stats"] = {name: value.numpy() for name, value in fit.sample_stats.items()}
    groups = {name: values for name, values in groups.items() if values}
    tree = arviz_base.from_dict(groups, coords=coords, dims=dims)
    tree.attrs.update({"inference_library": f"ppl_vae {fit.engine}", "seed": fit.seed, **fit.versions})
    return tree


def posterior_draws(fit: Fit) -> dict[str, Tensor]:
    """Draws of shared latents, and family parameters as one chain of one draw, [chain, draw, *event]."""
    if fit.draws:
        return fit.draws
    return {name: value[None, None] for name, value in fit.parameters.items()}


def _data_of(fit: Fit, data: Any) -> Any:
    if data is None and fit.data is None:
        raise EngineError("this fit was loaded from a file, which holds no data: pass the data")
    return fit.data if data is None else fit.model.check(data)


def _seeded(seed: int, function: Any) -> Any:
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        return function()


def _with_gaps(obs: Any, name: str) -> np.ndarray:
    value = obs.values[name]
    missing = obs.missing.get(name)
    return (value if missing is None else value.masked_fill(missing, torch.nan)).numpy()


def _predictive(fit: Fit, obs: Any, observed: list[str]) -> dict[str, np.ndarray]:
    inputs = {name: obs.values[name] for name in fit.model.inputs}
    chains, length = next(iter(fit.draws.values())).shape[:2] if fit.draws else (1, 1)
    keep = np.linspace(0, length - 1, min(length, max(1, PREDICTIVE_DRAWS // chains))).round().astype(int)
    rows = []
    for s in (chain * length + j for chain in range(chains) for j in keep):
        with fit.model.bind(fit.draw(int(s)) if fit.draws else {}):
            rows.append(fit.model.sample(len(obs), **inputs))
    if len(observed) == 1:
        return {observed[0]: torch.stack(rows).reshape(chains, len(keep), *rows[0].shape).numpy()}
    stacked = {name: torch.stack([row[name] for row in rows]) for name in observed}
    return {name: value.reshape(chains, len(keep), *value.shape[1:]).numpy() for name, value in stacked.items()}


def _coords(fit: Fit, obs: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Names of dimensions: components, and features by column."""
    coords: dict[str, Any] = {}
    dims: dict[str, list[str]] = {}
    for path, family in fit.model.families().items():
        width = getattr(family, "n_features", None)
        for name, value in family.defaults().items():
            labels = []
            for axis, size in enumerate(value.shape):
                feature = width is not None and size == width and (axis > 0 or value.shape[:1] != (family.batch,))
                labels.append(f"{path}_feature" if feature else f"{path}_component")
            if len(set(labels)) < len(labels):
                labels[-1] += "_bis"
            dims[f"{path}.{name}"] = labels
            coords |= {label: np.arange(size) for label, size in zip(labels, value.shape, strict=True)}
    for name, columns in obs.columns.items():
        if columns and obs.values[name].dim() == 2 and obs.values[name].shape[1] == len(columns):
            dims[name] = [f"{name}_row", f"{name}_column"]
            coords |= {f"{name}_row": np.arange(len(obs)), f"{name}_column": list(columns)}
    return coords, dims


# Cross-validation.


def leave_one_out(fit: Fit, data: Any = None) -> Any:
    """ArviZ's ELPDData by Pareto-smoothed importance sampling over the draws of a posterior; None for other fits."""
    if fit.is_point or fit.engine == "bootstrap":
        return None
    import arviz_base
    from arviz_stats import loo

    pointwise = _seeded(0, lambda: fit.pointwise(_data_of(fit, data)))
    tree = arviz_base.from_dict(
        {"posterior": {n: v.numpy() for n, v in fit.draws.items()}, "log_likelihood": {"x": pointwise.numpy()}}
    )
    with warnings.catch_warnings():
        # Bad Pareto k are counted and worded by the table.
        warnings.simplefilter("ignore", UserWarning)
        return loo(tree, pointwise=True)


def elbo_total(fit: Fit) -> tuple[float, float, float] | None:
    """The bound on log p(X) with the shared latents integrated: (bound, importance-weighted log p(X), ESS share).

    elbo_total = E_q(theta)[log p(X | theta) + log p(theta) - log q(theta)], total nats; the same draws weighted by
    p(X, theta) / q(theta) estimate log p(X), and the difference is KL(q || p(theta | X)). VB has a bound of its own in
    closed form, which is lower because its q(z) does not know theta.
    """
    if fit.is_point or "log_q" not in fit.sample_stats or fit.data is None:
        return None
    obs = _data_of(fit, None)
    pointwise = _seeded(0, lambda: fit.pointwise(obs))
    weights = torch.ones(len(obs)) if fit.weights is None else fit.weights
    likelihood = (pointwise * weights.to(pointwise)).sum(-1)
    log_w = (likelihood + fit.sample_stats["log_prior"] - fit.sample_stats["log_q"]).flatten().double()
    share = torch.softmax(log_w, 0)
    ess = 1 / share.square().sum() / len(log_w)
    bound = fit.trace["bound"][-1] if fit.engine == "VB" else log_w.mean()
    return bound.item(), log_mean_exp(log_w).item(), ess.item()
