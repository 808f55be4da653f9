"""The multivariate Student t, a normal whose precision is drawn anew for every datum: robust components."""

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.errors import DataError, DeclarationError, check_whole
from ppl_vae.families.ellipses import ELLIPSES, Columns, columns
from ppl_vae.families.family import NOTHING, Family, Parts, Sums
from ppl_vae.families.located import InUnits
from ppl_vae.families.newton import solve_log_minus_digamma
from ppl_vae.families.scales import flat_remark, middle, thinned

__all__ = ["StudentT"]

DF_RANGE = (0.1, 1000.0)
"""Where degrees of freedom are looked for; at the upper end the distribution is a normal for all purposes."""
FLAT = 1e-12
"""Variance in units of the features below which a direction of the data counts as having no spread of its own."""


class StudentT(Family):
    r"""The multivariate t: x = mu_k + w^-1/2 e, e ~ N(0, S_k), w ~ Gamma(nu_k/2, nu_k/2), d features.

    EM takes w as a second latent (Liu and Rubin 1995, "ML estimation of the t distribution using EM"; Peel and
    McLachlan 2000 for mixtures). With delta the squared distance of the d_i entries seen of x_i, at the current
    parameters E[w] = u_ki = (nu + d_i) / (nu + delta_ki), and the M-step is

    mu_k = sum_i r_ki u_ki x_i / sum_i r_ki u_ki,   S_k = N_k^-1 sum_i r_ki u_ki (x_i - mu_k)(x_i - mu_k)',
    log(nu/2) - psi(nu/2) = -1 - N_k^-1 sum_i r_ki (E[log w] - E[w]),  nu between 0.1 and 1000.

    Missing entries (NaN) are integrated out exactly. The unit of each feature is the distance of its quartiles over
    that of N(0, 1), which no outlier sets. Eigenvalues of S in these units are clipped at `floor` times the data's
    smallest spread in any direction, the maximum under that constraint, or where float64 resolves no less (16 times its
    rounding of the member's sums of squares around the median). A member there is reported: the likelihood has no
    bound.

    Parameters
    ----------
    n_features : int
        d; the event shape is (d,).
    batch : int
        Number of members K.
    form : {"full", "diagonal"}
        Form of the scale matrix S; parameter shapes [K, d, d] and [K, d]. The covariance is nu / (nu - 2) S.
    df : float, optional
        Degrees of freedom nu of every member; None estimates one for each, the parameter df [K].
    floor : float
        Smallest squared scale allowed relative to the data's.

    Raises
    ------
    DataError
        For infinite values.

    Examples
    --------
    >>> import torch
    >>> robust = StudentT(2, batch=3, df=4.0)
    >>> robust(torch.tensor([[0], [2]])).batch_shape
    torch.Size([2, 1])
    """

    constraints = {  # noqa: RUF012
        "df": constraints.positive,
        "loc": constraints.real_vector,
        "scale_matrix": constraints.dependent,
    }

    center: Tensor
    scale: Tensor
    lowest: Tensor
    flat: Tensor
    excused: Tensor

    def __init__(
        self, n_features: int, *, batch: int, form: str = "full", df: float | None = None, floor: float = 1e-8
    ) -> None:
        if form not in ELLIPSES:
            raise DeclarationError(f"StudentT: form must be one of {', '.join(ELLIPSES)}; got {form!r}")
        check_whole("StudentT", error=DeclarationError, n_features=n_features, batch=batch)
        if df is not None and not df > 0:
            raise DeclarationError(f"StudentT: df must be positive, got {df}")
        super().__init__(batch)
        self.n_features, self.form, self.floor = n_features, ELLIPSES[form], floor
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("lowest", torch.tensor(floor), persistent=False)
        self.register_buffer("flat", torch.tensor(0), persistent=False)
        self.register_buffer("excused", torch.tensor(0), persistent=False)
        self.estimates_df = df is None
        if df is not None:  # not a parameter, for any engine
            self.__dict__["constraints"] = {name: c for name, c in self.constraints.items() if name != "df"}
            self.register_buffer("df", torch.full((batch,), float(df)))
        self.register()

    def parameter_constraint(self, name: str) -> Constraint:
        """The scale matrix's set depends on its form; locations are seen in units of the data."""
        if name == "loc":
            return InUnits(self)
        return self.form.constraint if name == "scale_matrix" else self.constraints[name]

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """Place and scale of each feature of the data seen by `adapt`, [d] each; zeros and ones before that."""
        return self.center, self.scale

    def defaults(self) -> dict[str, Tensor]:
        """The data's medians and scales, ten degrees of freedom."""
        K, d = self.batch, self.n_features
        values = {
            "df": self.center.new_full((K,), 10.0),
            "loc": self.center.expand(K, d).clone(),
            "scale_matrix": self.form.absolute(self.form.identity(K, self.center), self.scale),
        }
        return {name: values[name] for name in self.constraints}

    def adapt(self, parts: Parts) -> None:
        """Take center and scale of the features and the floor, and check every value."""
        loc = self.values()["loc"].clone()
        x, weights = thinned(((_finite(x), w) for x, w in parts), self.center)
        self.center, self.scale = middle(x, weights)
        self.loc = loc  # the same in the new units
        y = ((x - self.center) / self.scale).nan_to_num()
        # Rows far out count for less, as they do for a t: exact dependence of features survives, an outlier does not.
        near = weights / (1 + y.square().sum(1))
        spread = self.form.spread(y, near / near.sum().clamp_min(1e-300))
        proper = spread[spread > FLAT]
        flat = self.n_features - len(proper)
        smallest = proper.min() if len(proper) else torch.ones_like(self.center[0])
        self.lowest = (self.floor * smallest.clamp_max(1.0)).clamp_min(min(self.floor, FLAT))
        self.flat = torch.tensor(flat, device=x.device)
        self.excused = torch.tensor(self.form.excused(flat, len(x), self.n_features), device=x.device)

    def _floor(self, matrix: Tensor, loc: Tensor) -> Tensor:
        """Smallest eigenvalue of members with these moments in the data's units, [K]."""
        # A sum of squares around the data's center holds no less of what is far from it, or wide in another direction.
        squares = (self.form.variances(matrix) + loc.square()).sum(1)
        return torch.maximum(self.lowest, 16 * torch.finfo(loc.dtype).eps * squares)

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """MultivariateStudentT, with batch shape that of `index`."""
        index = torch.zeros((), dtype=torch.long, device=self.loc.device) if index is None else index
        factor = self.form.factor(self.scale_matrix[index])
        return MarginalStudentT(self.df[index], self.loc[index], factor)

    def features(self, x: Tensor, *given: Tensor) -> Columns:
        """Standardised data (x - center) / scale as columns, with what is seen."""
        return columns((_finite(x).to(self.center) - self.center) / self.scale)

    def kernel(self) -> "_Kernel":
        """The E-step at the current parameters."""
        return _Kernel(self)

    def log_density(self, expanded: Columns) -> Tensor:
        """Log t(x_i; nu_k, mu_k, S_k), [K, n]."""
        kernel = self.kernel()
        return kernel.log_density(kernel.expand(expanded))

    def expect(self, expanded: Columns, r: Tensor) -> Sums:
        """N_k, sums of r u (1, y, y y'), and of r (E[log w] - E[w])."""
        kernel = self.kernel()
        return kernel.expect(kernel.expand(expanded), r)

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """Weighted mean and scatter, then the degrees of freedom."""
        loc = sums["first"] / sums["weight"].clamp_min(1e-300)
        if "loc" in fixed:
            loc = (fixed["loc"] - self.center) / self.scale
        matrix = self.form.scatter(sums, loc)
        matrix = self.form.clip(matrix, self._floor(matrix, loc))
        mean_shape = sums["shape"] / sums["count"].clamp_min(1e-300)
        values = {
            "df": (2 * solve_log_minus_digamma(-1 - mean_shape)).clamp(*DF_RANGE),
            "loc": self.center + loc * self.scale,
            "scale_matrix": self.form.absolute(matrix, self.scale),
        }
        return {name: fixed.get(name, values[name]) for name in self.constraints}

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """Empty members, and members on the floor in a direction in which the data spread, or in all."""
        matrix = self.form.relative(values["scale_matrix"], self.scale)
        floor = self._floor(matrix, (values["loc"] - self.center) / self.scale)
        directions = (self.form.eigenvalues(matrix) <= floor[:, None] * (1 + 1e-3)).sum(1)
        return super().degenerate(sums, values) | (directions > self.excused) | (directions == self.n_features)

    def remarks(self) -> list[str]:
        """What of the data is worth knowing: features without spread."""
        return flat_remark(int(self.flat), self.n_features, self.floor)

    @property
    def saturated(self) -> int:
        """As of normals with this form of covariance: one more than a full matrix has directions."""
        return self.form.saturated(self.n_features)

    @property
    def width(self) -> int:
        """Distances of a datum, feature by feature."""
        return self.batch * (self.n_features + 2)


class _Kernel:
    """One E-step: squared distances, and from them densities and the moments of w."""

    def __init__(self, family: StudentT) -> None:
        loc = (family.loc - family.center) / family.scale
        self.ellipse = family.form.at(loc, family.form.relative(family.scale_matrix, family.scale))
        self.half_df, self.log_scale = family.df[:, None] / 2, family.scale.log()

    def expand(self, features: Columns) -> Any:
        """The columns, squared distances [K, n], log|S|/2 of what is seen, and what the sums reuse."""
        return features, *self.ellipse.distances(features)

    def log_density(self, expanded: Any) -> Tensor:
        """The log of Gamma((nu + d)/2) - log Gamma(nu/2) - d/2 log(nu pi) - log|S|/2 - (nu + d)/2 log(1 + delta/nu)."""
        y, distance, half_log_det, _ = expanded
        a, half = self.half_df, y.sizes / 2
        constant = (a + half).lgamma() - a.lgamma() - half * (2 * math.pi * a).log() - y.total(self.log_scale)
        return constant - half_log_det - (a + half) * (distance / (2 * a)).log1p()

    def expect(self, expanded: Any, r: Tensor) -> Sums:
        """Given x, w is Gamma((nu + d)/2, (nu + delta)/2)."""
        y, distance, _, reused = expanded
        concentration, rate = self.half_df + y.sizes / 2, self.half_df + distance / 2
        u = concentration / rate
        log_minus_w = concentration.digamma() - rate.log() - u
        sums = self.ellipse.moments(y, reused, r * u, r)
        return {"count": r.sum(1), "shape": (r * log_minus_w).sum(1), **sums}


class MarginalStudentT(dist.MultivariateStudentT):
    """MultivariateStudentT that integrates missing entries out: what is left is a t with the same df."""

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "MarginalStudentT":
        """The same law with this batch shape."""
        new: MarginalStudentT = self._get_checked_instance(MarginalStudentT, _instance)
        return super().expand(batch_shape, new)

    def marginal_log_prob(self, value: Tensor, missing: Tensor) -> Tensor:
        """Log density of the entries seen, for missing [n, d], one pattern of missing entries at a time."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        df, loc = self.df.expand(batch), self.loc.expand(*batch, -1)
        matrix = (self.scale_tril @ self.scale_tril.mT).expand(*batch, -1, -1)
        value, found = value.expand(*batch, -1), value.new_zeros(batch)
        for pattern in missing.unique(dim=0):
            seen, rows = (~pattern).nonzero()[:, 0], (missing == pattern).all(-1).nonzero()[:, 0]
            if not len(seen):
                continue
            factor = torch.linalg.cholesky(matrix[..., rows, :, :][..., seen, :][..., seen])
            law = dist.MultivariateStudentT(df[..., rows], loc[..., rows, :][..., seen], factor, validate_args=False)
            found = found.index_copy(-1, rows, law.log_prob(value[..., rows, :][..., seen]))
        return found


def _finite(x: Tensor) -> Tensor:
    if bool(x.isinf().any()):
        row, column = x.isinf().nonzero()[0].tolist()
        raise DataError(f"StudentT: row {row} (counted from 0), feature {column} is infinite; remove or repair it")
    return x
