"""The importance-weighted bound, with its standard or its doubly reparameterised gradient."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ppl_vae.errors import EngineError, check_whole
from ppl_vae.evidence import log_mean_exp
from ppl_vae.objectives.bound import Elbo
from ppl_vae.objectives.sites import Sites, by_datum, score

__all__ = ["Iwae", "iwae"]

GRADIENTS = ("standard", "dreg")


@dataclass(frozen=True)
class Iwae:
    """log (1/S) sum_s p(x_i, z_s) / q(z_s | x_i), z_s ~ q: tighter than the ELBO for S > 1 (Burda et al. 2016)."""

    num_particles: int = 8
    gradient: str = "standard"
    is_bound: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise ValueError(f'iwae: gradient must be "standard" or "dreg", got {self.gradient!r}')
        check_whole("iwae", error=ValueError, num_particles=self.num_particles)

    def __call__(self, sites: Sites, beta: Tensor | float = 1.0, weights: Tensor | None = None) -> Tensor:
        """Log of the mean weight over particles."""
        double = self.gradient == "dreg" and torch.is_grad_enabled()
        sites = _seen_from_draws(sites) if double else sites
        log_w = Elbo().values(sites, beta)
        value = log_mean_exp(log_w.reshape(self.num_particles, -1))
        if double and log_w.requires_grad:
            slope = doubly_reparameterised(sites, log_w, self.num_particles)
            return value.detach() + slope - slope.detach()
        # The whole bound is what a draw is credited with, not its own weight (Mnih and Rezende 2016, eq. 5).
        return value + score(sites, value.repeat(self.num_particles)).reshape(self.num_particles, -1).sum(0)


def doubly_reparameterised(sites: Sites, log_w: Tensor, num_particles: int) -> Tensor:
    """[n], of which only the gradient has a meaning: that of the importance-weighted bound (Tucker et al. 2019, eq. 8).

    With w~_s = w_s / sum w it is sum_s w~_s d log w_s / d theta for the model, and for q, whose score is left out,
    sum_s w~_s^2 (d log w_s / dz) dz / d phi. Where q(z_2 | z_1) the identity behind it holds for one latent after the
    other, with d log w / dz_1 along every way from z_1, and a factor a in log w = ... - a log q(z) (beta, or the
    probability of an enumerated value) turns w~^2 into w~ (1 - a + a w~).
    """
    names = [n for n in sites.drawn if sites.values[n].requires_grad]
    names = [n for n in names if sites.log_q[n].requires_grad]  # a point mass has no score to leave out
    normalised = torch.softmax(log_w.detach().reshape(num_particles, -1), 0).flatten()
    values, logs = [sites.values[n] for n in names], [sites.log_q[n] for n in names]
    factors = [-slope for slope in _slopes(log_w, logs)]
    along = _slopes(normalised * log_w, values)
    # The score of q taken away, where it stands in the weights.
    correction = log_w.new_zeros(()).expand_as(log_w)
    for name, z, factor in zip(names, values, factors, strict=True):
        correction = correction + by_datum(normalised * factor * sites.q[name].log_prob(z.detach()))
    for z, factor, slope in reversed(list(zip(values, factors, along, strict=True))):
        wanted = _beside(factor * (normalised - 1), z) * slope
        extra = (wanted - _slopes(correction, [z])[0]).detach() * z
        correction = correction + by_datum(extra.flatten(factor.dim()).sum(-1) if z.dim() > factor.dim() else extra)
    return (normalised * log_w + correction).reshape(num_particles, -1).sum(0)


def _seen_from_draws(sites: Sites) -> Sites:
    """The same with log q(z) as a function of z: a flow remembers what it drew z from, and takes its density there."""
    log_q = dict(sites.log_q)
    for name, q in sites.q.items():
        if name in sites.enumerated:
            continue
        if not q.has_rsample:
            raise EngineError(
                f'iwae(gradient="dreg") needs draws that follow the parameters of q, and q of {name!r}, a '
                f'{type(q).__name__}, has none; take gradient="standard"'
            )
        log_q[name] = q.log_prob(sites.values[name].clone())
    return replace(sites, log_q=log_q)


def _slopes(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of the sum of `value`, 0 where it does not depend on an input."""
    if not inputs or not value.requires_grad:
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [each.detach() for each in found]


def _beside(factor: Tensor, z: Tensor) -> Tensor:
    """A number for each draw, in front of the draw's event dimensions."""
    return factor.reshape(*factor.shape, *[1] * (z.dim() - factor.dim()))


def iwae(num_particles: int = 8, gradient: str = "standard") -> Iwae:
    """The importance-weighted bound as an objective, log (1/S) sum_s p(x_i, z_s) / q(z_s | x_i).

    The logarithm is taken for each datum; weights of the data and the scale of a minibatch stay outside of it.

    Parameters
    ----------
    num_particles : int
        S, draws of z per datum.
    gradient : {"standard", "dreg"}
        "standard": the gradient of the estimate itself. Its signal-to-noise ratio for q falls as 1/sqrt(S) (Rainforth
        et al. 2018). "dreg": the doubly reparameterised one, with the same expectation, whose ratio grows as sqrt(S)
        where S is large. It needs reparameterised draws, and one more backward pass down to z. Where the prior shares
        parameters with q, as a VampPrior does, these get the model's gradient through the prior and this one through q.

    Raises
    ------
    ValueError
        For an unknown gradient, or particles that are no whole number of at least 1.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016). Importance weighted autoencoders. ICLR.
    Rainforth et al. (2018). Tighter variational bounds are not necessarily better. ICML.
    Tucker, Lawson, Gu and Maddison (2019). Doubly reparameterized gradient estimators for Monte Carlo objectives. ICLR.

    Examples
    --------
    >>> iwae(5, gradient="dreg")
    Iwae(num_particles=5, gradient='dreg')
    """
    return Iwae(num_particles, gradient)
