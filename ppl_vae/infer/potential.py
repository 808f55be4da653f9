"""The log joint of everything that NUTS samples, on one flat unconstrained vector, traced once."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError

__all__ = ["Potential", "value_and_gradient"]


@dataclass(frozen=True)
class _Site:
    name: str
    shape: torch.Size
    transform: Transform
    start: int
    stop: int


class Potential:
    """log p(X, theta) + log|d theta / d u| at theta = T(u): shared latents, and continuous latents of each datum.

    Finite latents are summed out. Minus this is the potential energy that Hamiltonian samplers use.

    Parameters
    ----------
    model : LatentVariableModel
        Without free parameters.
    obs : Observations
        The data.
    weights : Tensor
        [n]: datum i counts w_i times.
    """

    def __init__(self, model: LatentVariableModel, obs: Observations, weights: Tensor) -> None:
        self.model, self.obs, self.weights = model, obs, weights
        self.local = model.draws_without_posterior(obs)
        self.sites = self._layout()
        self.size = self.sites[-1].stop if self.sites else 0

    def _layout(self) -> list[_Site]:
        sites, stop, values = [], 0, dict(self.model.family_defaults())
        with torch.random.fork_rng([]), self.model.numeric():
            for name, law in self.model.shared_laws().items():
                d = law(values)
                values.setdefault(name, d.sample())
                sites.append(_site(name, d.event_shape, d.support, stop))
                stop = sites[-1].stop
        laws = self.model.prototypes(self.obs)
        for name in self.local:
            shape = torch.Size((len(self.obs), *laws[name].event_shape))
            sites.append(_site(name, shape, laws[name].support, stop))
            stop = sites[-1].stop
        return sites

    def constrain(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Theta = T(u) by name, and log|d theta / d u|."""
        values: dict[str, Tensor] = {}
        log_jacobian = u.new_zeros(())
        for site in self.sites:
            raw = u[site.start : site.stop].reshape(site.transform.inverse_shape(site.shape))
            values[site.name] = site.transform(raw)
            log_jacobian = log_jacobian + site.transform.log_abs_det_jacobian(raw, values[site.name]).sum()
        return values, log_jacobian

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """U with T(u) = theta."""
        parts = [site.transform.inv(values[site.name]).reshape(-1) for site in self.sites]
        return torch.cat(parts) if parts else torch.zeros(0)

    def prior_draw(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A draw of every site from the prior, given those already in `values`."""
        drawn = dict(values)
        with self.model.numeric(), torch.no_grad():
            for name, law in self.model.shared_laws().items():
                if name not in drawn:
                    drawn[name] = law(drawn).sample()
            with self.model.bind(drawn):
                if self.local:
                    inputs = {n: self.obs.values[n] for n in self.model.inputs}
                    joint = self.model.sample_joint(len(self.obs), **inputs)
                    drawn |= {name: joint[name] for name in self.local}
        return drawn

    def log_density(self, u: Tensor) -> Tensor:
        """Log p(X, theta) + log|d theta / d u|, total nats."""
        values, log_jacobian = self.constrain(u)
        local = {name: values.pop(name) for name in self.local}
        obs = Observations({**self.obs.values, **local}, self.obs.missing, self.obs.columns)
        with self.model.bind(values), self.model.numeric():
            per_datum = self.model.log_weights(obs, 1)[0]
            return (self.weights * per_datum).sum() + self.model.log_prior(values) + log_jacobian


def _site(name: str, shape: torch.Size, support: torch.distributions.constraints.Constraint, start: int) -> _Site:
    transform = biject_to(support)
    return _Site(name, shape, transform, start, start + transform.inverse_shape(shape).numel())


def value_and_gradient(
    function: Callable[[Tensor], Tensor], at: Tensor, check: Tensor
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], bool]:
    """U to (value, gradient), traced into one graph where the function allows it.

    Parameters
    ----------
    function : callable
        u [size] to a scalar, without randomness.
    at : Tensor
        Where it is traced.
    check : Tensor
        Another point, at which the graph must agree with the function.

    Returns
    -------
    callable, bool
        The function, and whether it is a graph; a graph may be called from several threads.
    """

    def eager(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        value = function(u)
        (gradient,) = torch.autograd.grad(value, u)
        return value.detach(), gradient

    try:
        graph = make_fx(eager)(at)
        expected, found = eager(check), graph(check)
        pairs = zip(expected, found, strict=True)
        same = all(torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True) for a, b in pairs)
        if not same:
            raise EngineError("the traced graph and the model disagree at a second point: control flow on values")
    except Exception as error:  # whatever a user's node does that a tracer cannot follow
        warnings.warn(f"the model runs eagerly, since it cannot be traced: {error}", stacklevel=2)
        return eager, False
    return graph, True
