"""The normal family's conjugate posterior: normal-inverse-Wishart, and normal-inverse-gamma for variances."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import DeclarationError
from ppl_vae.families.conjugate import Posterior, conjugate
from ppl_vae.families.covariance import InverseWishart
from ppl_vae.families.family import Sums
from ppl_vae.families.normal import Normal, NormalInverseWishartPrior

__all__ = ["NormalPosterior"]


def log_gamma(a: Tensor, p: int) -> Tensor:
    """Log of the p-variate gamma function, without its constant."""
    return torch.stack([(a - j / 2).lgamma() for j in range(p)]).sum(0)


def digamma(a: Tensor, p: int) -> Tensor:
    """Its derivative."""
    return torch.stack([(a - j / 2).digamma() for j in range(p)]).sum(0)


class Scales(Protocol):
    """Inverse-Wishart laws over p x p matrices; what differs between covariances and variances, where p is 1."""

    def order(self, d: int) -> int:
        """The p of the matrices."""
        ...

    def each(self, degrees: Tensor, scale: Tensor) -> Tensor:
        """Degrees of freedom, in any shape that divides `scale`, one for each law."""
        ...

    def over(self, scale: Tensor, df: Tensor) -> Tensor:
        """Quotient scale / df."""
        ...

    def log_det(self, scale: Tensor) -> Tensor:
        """log|scale| of each law."""
        ...

    def ratio(self, a: Tensor, b: Tensor) -> Tensor:
        """tr(a b^-1) of each law."""
        ...

    def square(self, v: Tensor, scale: Tensor) -> Tensor:
        """v_k' scale_k^-1 v_k, [K, 1], or its terms by feature, [K, d]."""
        ...

    def law(self, df: Tensor, scale: Tensor) -> TorchDistribution:
        """Law of the covariance parameter."""
        ...

    def mean_law(self, loc: Tensor, covariance: Tensor, strength: Tensor, draws: torch.Size) -> TorchDistribution:
        """N(loc_k, covariance_k / strength_k) of all means, `draws` the covariance's leading dimensions."""
        ...

    def expected(self, inner: Any, shift: Tensor) -> Any:
        """The E-step `inner` with `shift` added to its log densities."""
        ...


class Matrices:
    """Full and tied covariances."""

    def order(self, d: int) -> int:
        return d

    def each(self, degrees: Tensor, scale: Tensor) -> Tensor:
        return degrees.reshape(scale.shape[:-2])

    def over(self, scale: Tensor, df: Tensor) -> Tensor:
        return scale / df[..., None, None]

    def log_det(self, scale: Tensor) -> Tensor:
        return 2 * torch.linalg.cholesky(scale).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def ratio(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cholesky_solve(a, torch.linalg.cholesky(b)).diagonal(dim1=-2, dim2=-1).sum(-1)

    def square(self, v: Tensor, scale: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(torch.linalg.cholesky(scale), v[:, :, None], upper=False).square().sum(1)

    def law(self, df: Tensor, scale: Tensor) -> TorchDistribution:
        return InverseWishart(df, scale).to_event(df.dim())

    def mean_law(self, loc: Tensor, covariance: Tensor, strength: Tensor, draws: torch.Size) -> TorchDistribution:
        factor = torch.linalg.cholesky(covariance.reshape(*draws, -1, *covariance.shape[-2:]))
        return dist.MultivariateNormal(loc, scale_tril=factor / strength.sqrt()[:, :, None]).to_event(1)

    def expected(self, inner: Any, shift: Tensor) -> "Expected":
        return Expected(inner, shift)


class Variances:
    """Diagonal and spherical covariances: given the variances, features are independent."""

    def order(self, d: int) -> int:
        return 1

    def each(self, degrees: Tensor, scale: Tensor) -> Tensor:
        return degrees.expand(scale.shape)

    def over(self, scale: Tensor, df: Tensor) -> Tensor:
        return scale / df

    def log_det(self, scale: Tensor) -> Tensor:
        return scale.log()

    def ratio(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def square(self, v: Tensor, scale: Tensor) -> Tensor:
        return v.square() / scale.reshape(len(v), -1)

    def law(self, df: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.InverseGamma(df / 2, scale / 2).to_event(df.dim())

    def mean_law(self, loc: Tensor, covariance: Tensor, strength: Tensor, draws: torch.Size) -> TorchDistribution:
        deviation = covariance.reshape(*draws, len(loc), -1).sqrt() / strength.sqrt()
        return dist.Normal(loc, deviation).to_event(2)

    def expected(self, inner: Any, shift: Tensor) -> "Expected":
        return ExpectedByFeature(inner, shift.expand(len(shift), inner.d))


SCALES: dict[str, Scales] = {
    "full": Matrices(),
    "tied": Matrices(),
    "diagonal": Variances(),
    "spherical": Variances(),
}


@dataclass(frozen=True)
class Expected:
    """The E-step `inner` of a normal at the mean precision, its log density shifted to the expected one."""

    inner: Any
    shift: Tensor

    def expand(self, features: Any) -> Any:
        """That of `inner`."""
        return self.inner.expand(features)

    def log_density(self, expanded: Any) -> Tensor:
        """E_q[log N(x_i; mu_k, Sigma_k)], [K, n]."""
        return self.inner.log_density(expanded).add_(self.shift)

    def expect(self, expanded: Any, r: Tensor) -> Sums:
        """That of `inner`."""
        return self.inner.expect(expanded, r)


class ExpectedByFeature(Expected):
    """The same with a shift for each feature [K, d], which counts where the feature is seen."""

    def log_density(self, expanded: Any) -> Tensor:
        """E_q[log N(x_i; mu_k, Sigma_k)] of what is seen, [K, n]."""
        seen = expanded[0]
        shift = self.shift.sum(1, keepdim=True) if seen is None else self.shift @ seen
        return self.inner.log_density(expanded).add_(shift)


@dataclass(frozen=True)
class NormalPosterior(Posterior):
    r"""mu_k | Sigma_k ~ N(loc_k, Sigma_k / strength_k), Sigma_k ~ inverse-Wishart(df_k, scale_k).

    Tied covariances have one Sigma; diagonal and spherical ones have inverse-gamma(df/2, scale/2) variances, the
    inverse-Wishart laws of 1 x 1 matrices. With N_k, xbar_k and S_k the count, mean and scatter of the data,
    data add N_k to strength and df, and S_k + strength N_k / (strength + N_k) (xbar_k - loc)(xbar_k - loc)' to scale
    (Bishop 2006, (10.60) to (10.63)). E_q[log N(x; mu_k, Sigma_k)] is the log density at mean loc_k and precision
    df_k scale_k^-1, plus (psi_p(df_k / 2) - p log(df_k / 2) - p / strength_k) / 2, psi_p the p-variate digamma.

    Missing entries of diagonal and spherical normals are left out of the likelihood, which is exact. Those of
    matrices are latents of their datum with a normal q(x_h | z), the best there is for this q(theta).

    Attributes
    ----------
    strength : Tensor
        [K, 1], or [K, d] where every feature has its own count.
    loc : Tensor
        [K, d].
    df : Tensor
        One number for each inverse-Wishart law: [K], [], [K, d], [K].
    scale : Tensor
        In the shape of the covariance parameter.

    Examples
    --------
    >>> family = Normal(1, prior=NormalInverseWishartPrior(torch.zeros(1), strength=1.0, df=3.0, scale=torch.eye(1)))
    >>> x = torch.tensor([[-1.0, 4.0]])
    >>> sums = {"count": torch.tensor([2.0]), "first": x.sum(1)[:, None], "second": (x @ x.mT)[None]}
    >>> q = conjugate(family.prior, family).updated(sums)
    >>> q.strength.item(), q.loc.item(), q.df.item(), q.scale.item()
    (3.0, 1.0, 5.0, 15.0)
    """

    family: Normal
    strength: Tensor
    loc: Tensor
    df: Tensor
    scale: Tensor

    @property
    def scales(self) -> Scales:
        """The rules of the covariance form."""
        return SCALES[self.family.form.name]

    @property
    def order(self) -> int:
        """The p of the matrices."""
        return self.scales.order(self.family.n_features)

    def updated(self, sums: Sums) -> "NormalPosterior":
        """The posterior of the data in the sums."""
        family, form, R = self.family, self.family.form, self.family.reference
        n = sums.get("seen", sums["count"][:, None])
        m = sums["first"] / n.clamp_min(1e-300)
        off = form.restored(m, R) + (family.center - self.loc)
        strength = self.strength + n
        scatter = form.restore(sums["second"] - form.pooled(n, m), R)
        return replace(
            self,
            strength=strength,
            loc=self.loc + n / strength * off,
            df=self.df + self.scales.each(form.degrees(n, family.n_features), self.scale),
            scale=self.scale + scatter + form.pooled(self.strength * n / strength, off),
        )

    def kernel(self) -> Any:
        """The form's E-step at the mean precision, and what its log density lacks."""
        family, p = self.family, self.order
        m = family.form.whiten(self.loc - family.center, family.reference)
        inner = family.form.kernel(m, self.scales.over(self.scale, self.df), family.reference)
        half = self._by_member(self.df) / 2
        shift = (digamma(half, p) - p * half.log() - p / self.strength) / 2
        return self.scales.expected(inner, shift)

    def _by_member(self, df: Tensor) -> Tensor:
        """One number for each law as [K or 1, 1 or d]."""
        return df.reshape(len(df) if df.dim() else 1, -1)

    def divergence(self, prior: "NormalPosterior") -> Tensor:
        """KL of the covariances' laws, and the expected KL of the means' laws given the covariances."""
        scales, p = self.scales, self.order
        share = prior.strength / self.strength
        moved = scales.square(self.loc - prior.loc, self.scale) * self._by_member(self.df) * prior.strength
        means = (moved + p * (share - 1 - share.log())).sum() / 2
        half, before = self.df / 2, prior.df / 2
        covariances = (
            before * (scales.log_det(self.scale) - scales.log_det(prior.scale))
            + half * (scales.ratio(prior.scale, self.scale) - p)
            + log_gamma(before, p)
            - log_gamma(half, p)
            + (half - before) * digamma(half, p)
        )
        return means + covariances.sum()

    def site(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """q(covariance), then q(loc | covariance)."""
        if name == "covariance":
            return self.scales.law(self.df, self.scale)
        covariance = values["covariance"]
        draws = covariance.shape[: covariance.dim() - self.scale.dim()]
        return self.scales.mean_law(self.loc, covariance, self.strength, draws)

    def center(self) -> dict[str, Tensor]:
        """The inverse of the mean precision, and the mean."""
        return {"covariance": self.scales.over(self.scale, self.df), "loc": self.loc}


@conjugate.register
def _normal(prior: NormalInverseWishartPrior, family: Any) -> NormalPosterior:
    form, K, d = family.form, family.batch, family.n_features
    scale = family.prior_scale.expand(form.shape(K, d)).clone()
    scales, zero = SCALES[form.name], family.prior_mean.new_zeros(K, 1)
    least = scales.order(d) - 1
    if not family.prior_df > least:
        raise DeclarationError(
            f"NormalInverseWishartPrior: df must be above {least} for a law over {form.name} covariances of {d} "
            f"features, got {family.prior_df:g}"
        )
    df = torch.full_like(scales.log_det(scale), family.prior_df)
    strength = (zero + prior.strength).expand(K, d if scales.order(d) == 1 else 1)
    return NormalPosterior(family, strength, family.prior_mean.expand(K, d), df, scale)
