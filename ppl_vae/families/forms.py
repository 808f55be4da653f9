"""The four covariance forms: each owns its shape, its density, its statistics and its law."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.families.covariance import InverseWishart, covariance_matrix

__all__ = ["FORMS", "Form"]

LOG_2PI = math.log(2 * math.pi)


class Form:
    """A covariance form. Its statistics live in whitened coordinates y = R^-1 (x - c), its parameters in the data's.

    `R` is the form's own reference scale of the data: a Cholesky factor [d, d], standard deviations [d], or one
    number. Whitening keeps sums of squares free of cancellation and makes every floor relative to the data.
    """

    name: ClassVar[str]
    constraint: ClassVar[Constraint]

    def shape(self, K: int, d: int) -> tuple[int, ...]:
        """Shape of the covariance parameter, scikit-learn's own."""
        raise NotImplementedError

    def identity(self, K: int, d: int, like: Tensor) -> Tensor:
        """Unit covariance in the parameter's shape."""
        raise NotImplementedError

    def distribution(self, loc: Tensor, covariance: Tensor) -> TorchDistribution:
        """The normal with this mean [..., d] and covariance, already selected by index."""
        raise NotImplementedError

    def select(self, covariance: Tensor, index: Tensor) -> Tensor:
        """The covariance of members `index`."""
        return covariance[index]

    def reference(self, centred: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        """R from centred data [n, d], feature scales [d] and weights that sum to one."""
        raise NotImplementedError

    def whiten(self, centred: Tensor, R: Tensor) -> Tensor:
        """R^-1 (x - c), [..., d]."""
        return centred / R

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        """Log |R|."""
        raise NotImplementedError

    def log_density(self, y: Tensor, m: Tensor, covariance: Tensor, R: Tensor) -> Tensor:
        """Log N(y; m_k, R^-1 Sigma_k R^-T), [K, n], for whitened y [n, d] and means m [K, d]."""
        raise NotImplementedError

    def second(self, y: Tensor, r: Tensor) -> Tensor:
        """sum_i r_ki y_i y_i' in the form's shape, K first."""
        return r @ y.square()

    def outer(self, v: Tensor) -> Tensor:
        """v_k v_k' in the shape of `second`, for v [K, d]."""
        return v.square()

    def weigh(self, count: Tensor, second: Tensor) -> Tensor:
        """count_k times second_k."""
        return count.reshape(-1, *[1] * (second.dim() - 1)) * second

    def restore(self, scatter: Tensor, R: Tensor) -> Tensor:
        """From whitened coordinates to the data's."""
        return scatter * R.square()

    def pool(self, scatter: Tensor) -> Tensor:
        """From one scatter per member to the shape of the covariance parameter."""
        return scatter

    def degrees(self, count: Tensor, d: int) -> Tensor:
        """What a pooled scatter is divided by at maximum likelihood."""
        return count

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        """What the prior's mode adds to the degrees, the mean's normalising term included."""
        raise NotImplementedError

    def clip(self, covariance: Tensor, R: Tensor, floor: float) -> Tensor:
        """The constrained maximum: variances relative to the data's scale are at least `floor`."""
        return torch.maximum(covariance, floor * R.square())

    def smallest(self, covariance: Tensor, R: Tensor, K: int) -> Tensor:
        """Smallest variance of each member relative to the data's scale, [K]."""
        return (covariance / R.square()).reshape(K, -1).amin(-1)

    def prior_scale(self, R: Tensor, K: int, d: int) -> Tensor:
        """Scale of the weak prior: the data's covariance over K^(2/d) (Fraley and Raftery 2007)."""
        return self.data_covariance(R) / K ** (2 / d)

    def data_covariance(self, R: Tensor) -> Tensor:
        """The data's covariance in this form, without the members' dimension."""
        return R.square()

    def law(self, df: float, scale: Tensor, K: int, d: int) -> TorchDistribution:
        """Prior of the whole covariance parameter, in its event shape."""
        raise NotImplementedError


class Full(Form):
    """A covariance matrix for each member, [K, d, d]."""

    name = "full"
    constraint = covariance_matrix

    def shape(self, K: int, d: int) -> tuple[int, ...]:
        return (K, d, d)

    def identity(self, K: int, d: int, like: Tensor) -> Tensor:
        return torch.eye(d, dtype=like.dtype, device=like.device).repeat(K, 1, 1)

    def distribution(self, loc: Tensor, covariance: Tensor) -> TorchDistribution:
        return dist.MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(covariance))

    def reference(self, centred: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        z = centred / scale
        correlation = (weights[:, None] * z).mT @ z
        value, vector = torch.linalg.eigh(correlation)
        # Directions without any spread get a tiny one of their own, so that R can be inverted.
        floored = (vector * value.clamp_min(1e-13)) @ vector.mT
        return scale[:, None] * torch.linalg.cholesky(floored)

    def whiten(self, centred: Tensor, R: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(R, centred.mT, upper=False).mT

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        return R.diagonal().log().sum()

    def relative(self, covariance: Tensor, R: Tensor) -> Tensor:
        """R^-1 Sigma R^-T."""
        half = torch.linalg.solve_triangular(R, covariance, upper=False)
        return torch.linalg.solve_triangular(R, half.mT, upper=False)

    def log_density(self, y: Tensor, m: Tensor, covariance: Tensor, R: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(self.relative(covariance, R))  # [K or 1, d, d]
        identity = torch.eye(y.shape[1], dtype=y.dtype, device=y.device).expand(factor.shape)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        shift = (inverse @ m[..., None]).mT  # [K, 1, d]
        z = torch.baddbmm(-shift, y.expand(len(m), *y.shape), inverse.mT.expand(len(m), -1, -1))  # [K, n, d]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        return -0.5 * (z.square().sum(-1) + y.shape[1] * LOG_2PI) - log_det

    def second(self, y: Tensor, r: Tensor) -> Tensor:
        return (r[..., None] * y).mT @ y

    def outer(self, v: Tensor) -> Tensor:
        return v[:, :, None] * v[:, None, :]

    def restore(self, scatter: Tensor, R: Tensor) -> Tensor:
        return R @ scatter @ R.mT

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        return df + d + 2

    def clip(self, covariance: Tensor, R: Tensor, floor: float) -> Tensor:
        value, vector = torch.linalg.eigh(self.relative(covariance, R))
        if bool((value >= floor).all()):
            return covariance
        clipped = (vector * value.clamp_min(floor)[..., None, :]) @ vector.mT
        return self.restore(clipped, R)

    def smallest(self, covariance: Tensor, R: Tensor, K: int) -> Tensor:
        return torch.linalg.eigvalsh(self.relative(covariance, R)).amin(-1).expand(K)

    def data_covariance(self, R: Tensor) -> Tensor:
        return R @ R.mT

    def law(self, df: float, scale: Tensor, K: int, d: int) -> TorchDistribution:
        return InverseWishart(scale.new_full((K,), df), scale.expand(K, d, d)).to_event(1)


class Tied(Full):
    """One covariance matrix for all members, [d, d]."""

    name = "tied"

    def shape(self, K: int, d: int) -> tuple[int, ...]:
        return (d, d)

    def identity(self, K: int, d: int, like: Tensor) -> Tensor:
        return torch.eye(d, dtype=like.dtype, device=like.device)

    def select(self, covariance: Tensor, index: Tensor) -> Tensor:
        return covariance

    def log_density(self, y: Tensor, m: Tensor, covariance: Tensor, R: Tensor) -> Tensor:
        return super().log_density(y, m, covariance[None], R)

    def pool(self, scatter: Tensor) -> Tensor:
        return scatter.sum(0)

    def degrees(self, count: Tensor, d: int) -> Tensor:
        return count.sum()

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        return df + d + 1 + K

    def law(self, df: float, scale: Tensor, K: int, d: int) -> TorchDistribution:
        return InverseWishart(scale.new_tensor(df), scale)


class Diagonal(Form):
    """A variance for each member and feature, [K, d]."""

    name = "diagonal"
    constraint = constraints.positive

    def shape(self, K: int, d: int) -> tuple[int, ...]:
        return (K, d)

    def identity(self, K: int, d: int, like: Tensor) -> Tensor:
        return like.new_ones(self.shape(K, d))

    def distribution(self, loc: Tensor, covariance: Tensor) -> TorchDistribution:
        return dist.Normal(loc, covariance.sqrt()).to_event(1)

    def reference(self, centred: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        return scale

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        return R.log().sum()

    def log_density(self, y: Tensor, m: Tensor, covariance: Tensor, R: Tensor) -> Tensor:
        precision = R.square() / covariance  # [K, d]
        quadratic = (m.square() * precision).sum(1, keepdim=True)
        quadratic = quadratic - 2 * (m * precision) @ y.mT + precision @ y.mT.square()
        return -0.5 * (quadratic + y.shape[1] * LOG_2PI - precision.log().sum(1, keepdim=True))

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        return df + 3

    def law(self, df: float, scale: Tensor, K: int, d: int) -> TorchDistribution:
        return dist.InverseGamma(scale.new_full((K, d), df / 2), (scale / 2).expand(K, d)).to_event(2)


class Spherical(Form):
    """One variance for each member, [K]."""

    name = "spherical"
    constraint = constraints.positive

    def shape(self, K: int, d: int) -> tuple[int, ...]:
        return (K,)

    def identity(self, K: int, d: int, like: Tensor) -> Tensor:
        return like.new_ones(K)

    def distribution(self, loc: Tensor, covariance: Tensor) -> TorchDistribution:
        return dist.Normal(loc, covariance.sqrt()[..., None]).to_event(1)

    def reference(self, centred: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        return scale.square().mean().sqrt()

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        return d * R.log()

    def log_density(self, y: Tensor, m: Tensor, covariance: Tensor, R: Tensor) -> Tensor:
        expanded = covariance[:, None].expand(m.shape)
        return FORMS["diagonal"].log_density(y, m, expanded, R)

    def pool(self, scatter: Tensor) -> Tensor:
        return scatter.sum(1)

    def degrees(self, count: Tensor, d: int) -> Tensor:
        return count * d

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        return df + 2 + d

    def law(self, df: float, scale: Tensor, K: int, d: int) -> TorchDistribution:
        return dist.InverseGamma(scale.new_full((K,), df / 2), (scale / 2).expand(K)).to_event(1)


FORMS: dict[str, Form] = {form.name: form for form in (Full(), Tied(), Diagonal(), Spherical())}
