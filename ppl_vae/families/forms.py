"""The four covariance forms: each owns its shape, its floor, its E-step and its law."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.families.covariance import InverseWishart, covariance_matrix
from ppl_vae.families.gaps import WithGaps, split_by_pattern
from ppl_vae.families.kernels import (
    SHARPEST,
    Centred,
    CentredNorms,
    Kernel,
    Norms,
    Products,
    Shared,
    Squares,
    Triangular,
    inverse_factor,
)

__all__ = ["FORMS", "Form"]

FLAT = 1e-12
"""Share of the features' variance below which a direction of the data counts as having no spread of its own."""
SMALLEST = 1e-12
"""Share of the features' variance below which a matrix of doubles does not hold a direction to four digits."""


class Form:
    """A covariance form. Its statistics live in whitened coordinates y = R^-1 (x - c), its parameters in the data's.

    The E-step works on y as columns, [d, n]. `R` is the form's own reference scale of the data: a Cholesky factor
    [d, d], standard deviations [d], or one number. Whitening keeps sums of squares free of cancellation and makes
    every floor relative to the data.
    """

    name: ClassVar[str]
    constraint: ClassVar[Constraint]

    def shape(self, K: int, d: int) -> tuple[int, ...]:
        """Shape of the covariance parameter, scikit-learn's own."""
        raise NotImplementedError

    def identity(self, K: int, d: int, like: Tensor) -> Tensor:
        """Unit covariance in the parameter's shape."""
        raise NotImplementedError

    def root(self, covariance: Tensor) -> Tensor:
        """Standard deviations, or L with L L' = Sigma, in the covariance parameter's shape."""
        return covariance.sqrt()

    def select(self, root: Tensor, index: Tensor) -> Tensor:
        """The root, or covariance, of members `index`."""
        return root[index]

    def distribution(self, loc: Tensor, root: Tensor) -> TorchDistribution:
        """The normal with this mean [..., d] and root of its covariance, already selected by index."""
        raise NotImplementedError

    def moment(self, centred: Tensor, weights: Tensor) -> Tensor:
        """What of the second moments of centred data [n, d] the reference needs; it adds over chunks."""
        return weights @ centred.square()

    def variances(self, moment: Tensor) -> Tensor:
        """[d] of a moment."""
        return moment

    def reference(self, moment: Tensor, scale: Tensor) -> Tensor:
        """R from the moment of the whole data, weights summing to one, and feature scales [d]."""
        raise NotImplementedError

    def lowest(self, moment: Tensor, scale: Tensor, floor: float) -> Tensor:
        """G, in the shape of R: covariances are held above G G', `floor` of the data's own."""
        return floor**0.5 * self.reference(moment, scale)

    def whiten(self, centred: Tensor, R: Tensor) -> Tensor:
        """R^-1 (x - c), [..., d]."""
        return centred / R

    def restored(self, m: Tensor, R: Tensor) -> Tensor:
        """R m, the way back, [..., d]."""
        return m * R

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        """Log |R|."""
        raise NotImplementedError

    def gaps(self, centred: Tensor, missing: Tensor, R: Tensor) -> Any:
        """Features of centred rows [n, d] with missing entries: (y, seen), [d, n] each, y 0 where unseen."""
        return self.whiten(centred.nan_to_num(), R).mT.contiguous(), (~missing).to(centred).mT.contiguous()

    def width(self, K: int, d: int) -> int:
        """Numbers per datum of an E-step's largest temporary, the densities apart."""
        return 2 * d + 1

    def kernel(self, m: Tensor, covariance: Tensor, R: Tensor) -> Kernel:
        """E-step of N(y; m_k, R^-1 Sigma_k R^-T) for whitened means m [K, d]."""
        raise NotImplementedError

    def pooled(self, weight: Tensor, v: Tensor) -> Tensor:
        """The sum of weight_k v_k v_k' in the covariance parameter's shape, weight [K, 1 or d] and v [K, d]."""
        raise NotImplementedError

    def restore(self, scatter: Tensor, R: Tensor) -> Tensor:
        """From whitened coordinates to the data's."""
        return scatter * R.square()

    def degrees(self, count: Tensor, d: int) -> Tensor:
        """What a pooled scatter is divided by at maximum likelihood, for count [K, 1 or d]."""
        raise NotImplementedError

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        """What the prior's mode adds to the degrees, the mean's normalising term included."""
        raise NotImplementedError

    def clip(self, covariance: Tensor, R: Tensor, floor: float) -> Tensor:
        """The constrained maximum: variances relative to the data's scale are at least `floor`."""
        return torch.maximum(covariance, floor * R.square())

    def smallest(self, covariance: Tensor, R: Tensor, K: int) -> Tensor:
        """Smallest variance of each member relative to the data's scale, [K]."""
        return (covariance / R.square()).reshape(K, -1).amin(-1)

    def directions(self, d: int) -> int:
        """Number of variances of a member."""
        return d

    def saturated(self, d: int) -> int:
        """How many data a member's own mean and covariance fit equally well wherever they are."""
        return 2

    def excused(self, flat: int, rows: int, d: int) -> int:
        """In how many directions a member may be flat because all of the data, so many rows, are."""
        return flat

    def on_floor(self, covariance: Tensor, R: Tensor, K: int, floor: float) -> Tensor:
        """Number of directions, [K], in which a member's variance relative to the data's is at most `floor`."""
        d = covariance.shape[-1] if covariance.dim() > 1 else 1
        return ((covariance / R.square()).reshape(K, d) <= floor).sum(1)

    def flat(self, moment: Tensor, scale: Tensor) -> int:
        """Number of directions in which the data do not spread."""
        return int((moment <= FLAT * scale.square()).sum())

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

    def root(self, covariance: Tensor) -> Tensor:
        return torch.linalg.cholesky(covariance)

    def distribution(self, loc: Tensor, root: Tensor) -> TorchDistribution:
        return dist.MultivariateNormal(loc, scale_tril=root)

    def moment(self, centred: Tensor, weights: Tensor) -> Tensor:
        return (weights[:, None] * centred).mT @ centred

    def variances(self, moment: Tensor) -> Tensor:
        return moment.diagonal()

    def reference(self, moment: Tensor, scale: Tensor) -> Tensor:
        value, vector = self._spread(moment, scale)
        return scale[:, None] * torch.linalg.cholesky((vector * value) @ vector.mT)

    def lowest(self, moment: Tensor, scale: Tensor, floor: float) -> Tensor:
        value, vector = self._spread(moment, scale)
        held = (floor * value).clamp_min(min(floor, SMALLEST))
        return scale[:, None] * torch.linalg.cholesky((vector * held) @ vector.mT)

    def _spread(self, moment: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Variances of scaled features and their directions; one without spread gets the features' own variance."""
        value, vector = torch.linalg.eigh(moment / scale / scale[:, None])
        return torch.where(value > FLAT, value, 1.0), vector

    def whiten(self, centred: Tensor, R: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(R, centred.mT, upper=False).mT

    def restored(self, m: Tensor, R: Tensor) -> Tensor:
        return m @ R.mT

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        return R.diagonal().log().sum()

    def gaps(self, centred: Tensor, missing: Tensor, R: Tensor) -> Any:
        return split_by_pattern(centred, missing, self.whiten(centred.nan_to_num(), R), R.norm(dim=1))

    def width(self, K: int, d: int) -> int:
        return K * d // 4 if d > Products.WIDEST else 1 + d + d * (d + d // 8 + 1) // 2

    def relative(self, covariance: Tensor, R: Tensor) -> Tensor:
        """R^-1 Sigma R^-T."""
        half = torch.linalg.solve_triangular(R, covariance, upper=False)
        return torch.linalg.solve_triangular(R, half.mT, upper=False)

    def kernel(self, m: Tensor, covariance: Tensor, R: Tensor) -> Kernel:
        inverse, log_det = inverse_factor(self.relative(covariance, R))
        constant = -log_det - self.log_determinant(R, m.shape[1])
        products = m.shape[1] <= Products.WIDEST and bool(inverse.square().sum((1, 2)).max() <= SHARPEST)
        inner = (Products if products else Triangular)(m, inverse, constant)
        return WithGaps(inner, m, covariance, R)

    def pooled(self, weight: Tensor, v: Tensor) -> Tensor:
        return (weight * v)[:, :, None] * v[:, None, :]

    def saturated(self, d: int) -> int:
        return d + 1

    def degrees(self, count: Tensor, d: int) -> Tensor:
        return count[:, :, None]

    def restore(self, scatter: Tensor, R: Tensor) -> Tensor:
        return R @ scatter @ R.mT

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        return df + d + 2

    def clip(self, covariance: Tensor, R: Tensor, floor: float) -> Tensor:
        relative = self.relative(covariance, R)
        identity = torch.eye(relative.shape[-1], dtype=relative.dtype, device=relative.device)
        if not bool(torch.linalg.cholesky_ex(relative - floor * identity).info.any()):
            return covariance
        value, vector = torch.linalg.eigh(relative)
        return self.restore((vector * value.clamp_min(floor)[..., None, :]) @ vector.mT, R)

    def smallest(self, covariance: Tensor, R: Tensor, K: int) -> Tensor:
        return torch.linalg.eigvalsh(self.relative(covariance, R)).amin(-1).expand(K)

    def excused(self, flat: int, rows: int, d: int) -> int:
        # As many rows as the data have directions, and one, are that flat wherever they lie.
        return 0 if rows <= d - flat + 1 else flat

    def on_floor(self, covariance: Tensor, R: Tensor, K: int, floor: float) -> Tensor:
        relative = self.relative(covariance, R)
        identity = torch.eye(relative.shape[-1], dtype=relative.dtype, device=relative.device)
        if not bool(torch.linalg.cholesky_ex(relative - floor * identity).info.any()):
            return torch.zeros(K, dtype=torch.long, device=relative.device)
        return (torch.linalg.eigvalsh(relative) <= floor).sum(-1).expand(K)

    def flat(self, moment: Tensor, scale: Tensor) -> int:
        return int((torch.linalg.eigvalsh(moment / scale / scale[:, None]) <= FLAT).sum())

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

    def select(self, root: Tensor, index: Tensor) -> Tensor:
        return root

    def kernel(self, m: Tensor, covariance: Tensor, R: Tensor) -> Kernel:
        inverse, log_det = inverse_factor(self.relative(covariance, R)[None])
        inner = Shared(m, inverse[0], -log_det - self.log_determinant(R, m.shape[1]))
        return WithGaps(inner, m, covariance, R)

    def width(self, K: int, d: int) -> int:
        return 2 * d

    def pooled(self, weight: Tensor, v: Tensor) -> Tensor:
        return (weight * v).mT @ v

    def saturated(self, d: int) -> int:
        return 1

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

    def distribution(self, loc: Tensor, root: Tensor) -> TorchDistribution:
        return dist.Normal(loc, root).to_event(1)

    def reference(self, moment: Tensor, scale: Tensor) -> Tensor:
        return scale

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        return R.log().sum()

    def kernel(self, m: Tensor, covariance: Tensor, R: Tensor) -> Kernel:
        deviation = covariance.sqrt()
        kind = Centred if bool((deviation / R).min() ** -2 > SHARPEST) else Squares
        return kind(m, deviation / R, deviation.log())

    def pooled(self, weight: Tensor, v: Tensor) -> Tensor:
        return weight * v.square()

    def degrees(self, count: Tensor, d: int) -> Tensor:
        return count

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

    def distribution(self, loc: Tensor, root: Tensor) -> TorchDistribution:
        return dist.Normal(loc, root[..., None]).to_event(1)

    def reference(self, moment: Tensor, scale: Tensor) -> Tensor:
        return scale.square().mean().sqrt()

    def log_determinant(self, R: Tensor, d: int) -> Tensor:
        return d * R.log()

    def kernel(self, m: Tensor, covariance: Tensor, R: Tensor) -> Kernel:
        deviation = covariance.sqrt()[:, None].expand(m.shape)
        kind = CentredNorms if bool((deviation / R).min() ** -2 > SHARPEST) else Norms
        return kind(m, deviation / R, deviation.log())

    def pooled(self, weight: Tensor, v: Tensor) -> Tensor:
        return (weight * v.square()).sum(1)

    def degrees(self, count: Tensor, d: int) -> Tensor:
        return count.expand(-1, d).sum(1)

    def prior_degrees(self, df: float, K: int, d: int) -> float:
        return df + 2 + d

    def directions(self, d: int) -> int:
        return 1

    def law(self, df: float, scale: Tensor, K: int, d: int) -> TorchDistribution:
        return dist.InverseGamma(scale.new_full((K,), df / 2), (scale / 2).expand(K)).to_event(1)


FORMS: dict[str, Form] = {form.name: form for form in (Full(), Tied(), Diagonal(), Spherical())}
