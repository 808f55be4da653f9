"""Missing values: an entry that is NaN is integrated out of its density."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import transform_to

from ppl_vae.errors import DataError

__all__ = ["Incomplete", "Known", "conditional_mean", "fill"]


def fill(x: Tensor, missing: Tensor) -> Tensor:
    """Replace missing entries by zero, so that neither a network nor a gradient ever sees a NaN.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([1.0, float("nan")])
    >>> fill(x, x.isnan()).tolist()
    [1.0, 0.0]
    """
    return torch.where(missing, torch.zeros_like(x), x)


class Incomplete(TorchDistribution):
    """The distribution `base` of which only some entries are observed; the others are integrated out.

    Independent features drop out of the sum; a multivariate normal is marginalised exactly. Any other joint
    distribution can only miss a whole datum.

    Parameters
    ----------
    base : TorchDistribution
        Law of the complete value.
    missing : Tensor
        [n, *event] of bool, True where the entry is missing.

    Raises
    ------
    DataError
        If a datum is partly missing under a distribution that cannot be marginalised.

    Examples
    --------
    >>> import torch
    >>> import pyro.distributions as dist
    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> partly = Incomplete(base, torch.tensor([[False, True]]))
    >>> round(partly.log_prob(torch.zeros(1, 2)).item(), 4)  # one standard normal density at zero
    -0.9189
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, base: TorchDistribution, missing: Tensor) -> None:
        self.base, self.missing = base, missing
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether `base` has."""
        return self.base.has_rsample

    @property
    def support(self) -> torch.distributions.constraints.Constraint:
        """That of `base`."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """Mean of the complete value."""
        return self.base.mean

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Incomplete":
        """The same with this batch shape."""
        return Incomplete(self.base.expand(batch_shape), self.missing)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of the complete value."""
        return self.base.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised draws of the complete value."""
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the observed entries, [..., n] in nats."""
        if hasattr(self.base, "marginal_log_prob"):
            return self.base.marginal_log_prob(value, self.missing)
        if isinstance(self.base, dist.Independent) and not self.base.base_dist.event_shape:
            pointwise = self.base.base_dist.log_prob(_inside(self.base.base_dist, value, self.missing))
            seen = pointwise.masked_fill(self.missing, 0.0)
            return seen.flatten(-self.base.reinterpreted_batch_ndims).sum(-1)
        if isinstance(self.base, torch.distributions.MultivariateNormal):
            return _marginal_normal(self.base, value, self.missing)
        absent = self.missing.flatten(-self.event_dim).all(-1) if self.event_dim else self.missing
        # A number is there or not, and to look would end a trace.
        if self.event_dim and bool((partly := self.missing.flatten(-self.event_dim).any(-1) & ~absent).any()):
            raise DataError(
                f"{int(partly.sum())} rows are partly NaN under {type(self.base).__name__}, whose missing entries "
                f"cannot be integrated out; use independent features (.to_event), a MultivariateNormal, or drop rows"
            )
        return self.base.log_prob(_inside(self.base, value, self.missing)).masked_fill(absent, 0.0)


def _inside(base: TorchDistribution, value: Tensor, missing: Tensor) -> Tensor:
    """The value with its missing entries inside the support, where no density has an infinite gradient."""
    if base.support.is_discrete:
        return value
    transform = transform_to(base.support)
    point = transform(value.new_zeros(transform.inverse_shape(base.event_shape)))
    return torch.where(missing, point, value)


class Known(TorchDistribution):
    """The law `base` of a finite latent whose value is known for some data: there all mass lies on that value.

    Parameters
    ----------
    base : TorchDistribution
        Law where the value is unknown.
    value : Tensor
        [n], read where known.
    known : Tensor
        [n] of bool.

    Examples
    --------
    >>> import torch
    >>> import pyro.distributions as dist
    >>> base = dist.Categorical(torch.ones(2, 2) / 2)
    >>> q = Known(base, torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    >>> q.log_prob(torch.tensor([[0], [1]])).exp().tolist()
    [[0.0, 0.5], [1.0, 0.5]]
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, base: TorchDistribution, value: Tensor, known: Tensor) -> None:
        self.base, self.value, self.known = base, value, known
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_enumerate_support(self) -> bool:
        """Whether `base` has."""
        return self.base.has_enumerate_support

    @property
    def support(self) -> torch.distributions.constraints.Constraint:
        """That of `base`."""
        return self.base.support

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Every value of `base`, the impossible ones too."""
        return self.base.enumerate_support(expand)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Known":
        """The same with this batch shape."""
        return Known(self.base.expand(batch_shape), self.value, self.known)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, the known values where they are known."""
        drawn = self.base.sample(sample_shape)
        return torch.where(self.known, self.value.to(drawn), drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """[..., n] nats: 0 or minus infinity where the value is known."""
        certain = torch.where(value == self.value, 0.0, -torch.inf).to(self.base.log_prob(value))
        return torch.where(self.known, certain, self.base.log_prob(value))


def conditional_mean(base: TorchDistribution, value: Tensor, missing: Tensor) -> Tensor:
    """Mean of the complete value given the entries that are not missing, [..., n, *event]; read where one is missing.

    mu_h + Sigma_ho Sigma_oo^-1 (x_o - mu_o) for the hidden entries of a multivariate normal or Student-t; where
    features are independent the mean itself.

    Examples
    --------
    >>> import torch
    >>> import pyro.distributions as dist
    >>> base = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    >>> conditional_mean(base, torch.tensor([[2.0, 0.0]]), torch.tensor([[False, True]]))[0, 1].item()
    1.0
    """
    if not isinstance(base, torch.distributions.MultivariateNormal | dist.MultivariateStudentT):
        return base.mean
    matrix = base.scale_tril @ base.scale_tril.mT
    found = base.mean.expand(*torch.broadcast_shapes(base.batch_shape, value.shape[:-1]), -1).clone()
    for pattern in missing.unique(dim=0):
        rows, seen, hidden = ((missing == pattern).all(-1).nonzero()[:, 0], *((~pattern).nonzero(), pattern.nonzero()))
        if not len(seen) or not len(hidden):
            continue
        # A law that is the same for all data keeps its one matrix.
        own = matrix if matrix.shape[-3:-2] in ((), (1,)) else matrix[..., rows, :, :]
        gain = torch.linalg.solve(own[..., seen, seen.mT], own[..., seen, hidden.mT]).mT
        mean = found[..., rows, :]
        shift = (value[..., rows, :] - mean)[..., seen[:, 0], None]
        mean[..., hidden[:, 0]] += (gain @ shift)[..., 0]
        found[..., rows, :] = mean
    return found


def _marginal_normal(base: TorchDistribution, value: Tensor, missing: Tensor) -> Tensor:
    """Log density of N(loc, Sigma) at the observed entries, one pattern of missing entries at a time."""
    loc, covariance = base.loc, base.covariance_matrix
    batch = torch.broadcast_shapes(base.batch_shape, value.shape[:-1])
    loc, value = loc.expand(*batch, -1), value.expand(*batch, -1)
    covariance = covariance.expand(*batch, -1, -1)
    if torch._C._get_tracing_state():  # a graph must not depend on how many patterns there are
        return _masked_normal(loc, covariance, value, missing)
    result = value.new_zeros(batch)
    patterns, which = torch.unique(missing, dim=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        seen = (~pattern).nonzero().squeeze(-1)
        rows = (which == k).nonzero().squeeze(-1)
        if not len(seen):
            continue
        density = dist.MultivariateNormal(
            loc[..., rows, :][..., seen], covariance[..., rows, :, :][..., seen, :][..., seen], validate_args=False
        ).log_prob(value[..., rows, :][..., seen])
        result = result.index_copy(-1, rows, density)
    return result


def _masked_normal(loc: Tensor, covariance: Tensor, value: Tensor, missing: Tensor) -> Tensor:
    """The same with a covariance for every datum, in which missing entries are standard normal and on their mean."""
    seen = (~missing).to(value)
    masked = covariance * seen[..., :, None] * seen[..., None, :] + torch.diag_embed(1 - seen)
    density = dist.MultivariateNormal(torch.zeros_like(loc), masked, validate_args=False).log_prob((value - loc) * seen)
    return density + 0.5 * math.log(2 * math.pi) * (1 - seen).sum(-1)
