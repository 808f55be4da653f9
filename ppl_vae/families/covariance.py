"""Covariance matrices as a constrained space: the constraint, its bijection, and the inverse-Wishart law on it."""

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.transforms import Transform

__all__ = ["InverseWishart", "LogCholesky", "covariance_matrix"]


class _CovarianceMatrix(constraints.Constraint):
    """Symmetric positive-definite matrices [..., d, d]."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        symmetric = torch.isclose(value, value.mT, rtol=1e-6, atol=1e-30).flatten(-2).all(-1)
        return symmetric & (torch.linalg.cholesky_ex(value).info == 0)


covariance_matrix = _CovarianceMatrix()


class LogCholesky(Transform):
    r"""The bijection from vectors of d(d+1)/2 reals to covariance matrices.

    Sigma = L L', with L = diag(exp(u_1), ..., exp(u_d)) (I + V), V strictly lower triangular and free. Other units of
    feature i add a constant to u_i and change nothing else. log|det dSigma/d(u, V)| = d log 2 + (d + 1) sum_i u_i.

    Examples
    --------
    >>> import torch
    >>> sigma = LogCholesky()(torch.tensor([0.0, 1.0, 0.0]))
    >>> sigma.tolist()
    [[1.0, 1.0], [1.0, 2.0]]
    >>> LogCholesky().inv(sigma).tolist()
    [0.0, 1.0, 0.0]
    """

    domain = constraints.real_vector
    codomain = covariance_matrix
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogCholesky)

    __hash__ = object.__hash__

    @staticmethod
    def _size(length: int) -> int:
        return (math.isqrt(8 * length + 1) - 1) // 2

    def _diagonal(self, u: Tensor) -> Tensor:
        # Row i of the packed lower triangle ends at i(i+3)/2.
        d = self._size(u.shape[-1])
        return u[..., [i * (i + 3) // 2 for i in range(d)]]

    def _call(self, u: Tensor) -> Tensor:
        d = self._size(u.shape[-1])
        row, column = torch.tril_indices(d, d, device=u.device)
        packed = self._diagonal(u).exp()[..., row] * torch.where(row == column, 1.0, u)
        factor = u.new_zeros((*u.shape[:-1], d * d)).index_copy(-1, row * d + column, packed)
        factor = factor.reshape(*u.shape[:-1], d, d)
        return factor @ factor.mT

    def _inverse(self, sigma: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(sigma)
        d = sigma.shape[-1]
        row, column = torch.tril_indices(d, d, device=sigma.device)
        packed, scale = factor[..., row, column], factor[..., row, row]
        return torch.where(row == column, scale.log(), packed / scale)

    def log_abs_det_jacobian(self, u: Tensor, sigma: Tensor) -> Tensor:
        """log|det dSigma/du|, [...] for u [..., d(d+1)/2]."""
        d = sigma.shape[-1]
        return d * math.log(2) + (d + 1) * self._diagonal(u).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """[..., d(d+1)/2] to [..., d, d]."""
        d = self._size(shape[-1])
        return torch.Size((*shape[:-1], d, d))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """[..., d, d] to [..., d(d+1)/2]."""
        d = shape[-1]
        return torch.Size((*shape[:-2], d * (d + 1) // 2))


@biject_to.register(type(covariance_matrix))
@transform_to.register(type(covariance_matrix))
def _log_cholesky(constraint: constraints.Constraint) -> LogCholesky:
    return LogCholesky()


class InverseWishart(TorchDistribution):
    r"""Law of a covariance matrix whose inverse is Wishart.

    log p(Sigma) = nu/2 log|Psi| - nu d/2 log 2 - log Gamma_d(nu/2) - (nu+d+1)/2 log|Sigma| - tr(Psi Sigma^-1)/2

    Parameters
    ----------
    df : Tensor
        nu > d - 1, shape [...].
    scale : Tensor
        Psi, shape [..., d, d].

    Examples
    --------
    >>> import torch
    >>> InverseWishart(torch.tensor(4.0), torch.eye(2)).mean.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    arg_constraints = {"df": constraints.positive, "scale": covariance_matrix}  # noqa: RUF012
    support = covariance_matrix
    has_rsample = False

    def __init__(self, df: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(df.shape, scale.shape[:-2])
        self.df, self.scale = df.expand(batch), scale.expand(batch + scale.shape[-2:])
        super().__init__(batch, scale.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "InverseWishart":
        """The same law with this batch shape."""
        shape = torch.Size(batch_shape)
        return InverseWishart(self.df.expand(shape), self.scale.expand(shape + self.event_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Psi / (nu - d - 1), defined for nu > d + 1."""
        return self.scale / (self.df - self.event_shape[-1] - 1)[..., None, None]

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] in nats."""
        d = self.event_shape[-1]
        factor = torch.linalg.cholesky(value)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det_scale = torch.linalg.cholesky(self.scale).diagonal(dim1=-2, dim2=-1).log().sum(-1) * 2
        trace = torch.cholesky_solve(self.scale.expand(value.shape), factor).diagonal(dim1=-2, dim2=-1).sum(-1)
        normalizer = self.df * d / 2 * math.log(2) + torch.mvlgamma(self.df / 2, d)
        return (self.df * log_det_scale - (self.df + d + 1) * log_det - trace) / 2 - normalizer

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Sigma = C (A A')^-1 C' with Psi = C C' and A Bartlett's factor of a standard Wishart."""
        shape = self._extended_shape(sample_shape)
        d = self.event_shape[-1]
        with torch.no_grad():
            df = (self.df[..., None] - torch.arange(d, dtype=self.df.dtype, device=self.df.device)).expand(shape[:-1])
            bartlett = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device).tril(-1)
            bartlett = bartlett + torch.diag_embed((2 * torch._standard_gamma(df / 2)).sqrt())
            identity = torch.eye(d, dtype=self.scale.dtype, device=self.scale.device).expand(shape)
            inverse = torch.linalg.solve_triangular(bartlett, identity, upper=False)
            root = torch.linalg.cholesky(self.scale) @ inverse.mT
            return root @ root.mT
