"""Pixels that take one of a few grey levels: every level has a probability, and they sum to one."""

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from ppl_vae.errors import DataError

__all__ = ["Categorical", "DiscretisedLogistic", "LogisticMixture", "PixelLevels"]


class Categorical(nn.Module):
    """Independent pixels with a free probability for each grey level: log p(x|z) = sum_j log softmax(f_j(z))[k_j].

    x_j = k_j / (levels - 1) with whole k_j: images scaled to [0, 1], as `data.images` gives them.

    Parameters
    ----------
    levels : int
        256 for 8-bit images.

    Attributes
    ----------
    width : int
        `levels`: the decoder gives a logit for every level, all pixels' first level first.

    Raises
    ------
    ValueError
        Fewer than two levels.

    References
    ----------
    van den Oord, Kalchbrenner and Kavukcuoglu (2016). Pixel recurrent neural networks. ICML.

    Examples
    --------
    >>> p = Categorical(levels=4)(torch.zeros(5, 4 * 3))
    >>> p.log_prob(torch.ones(5, 3)).exp()[0].item() * 4**3
    1.0
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels = self.width = _levels(levels)

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        """Logits [..., levels * d] to a distribution with batch shape [...] and event shape [d]."""
        logits = _per_pixel(self, output, self.levels)
        return PixelLevels(dist.Categorical(logits=logits), self.levels, "likelihoods.Categorical").to_event(1)

    def extra_repr(self) -> str:
        """Show the number of levels in the module's repr."""
        return f"levels={self.levels}"


class LogisticMixture(nn.Module):
    """Independent pixels, each a mixture of logistics rounded to its grey level.

        P(k) = sum_m w_m [sigmoid((k + 1/2 - a_m) / s_m) - sigmoid((k - 1/2 - a_m) / s_m)]

    with the tails beyond the first and the last level counted to them. x = k / (levels - 1) with whole k: images scaled
    to [0, 1], as `data.images` gives them. Each colour of a pixel has a mixture of its own, without the links between
    channels of the reference. The decoder's numbers are w's logits, then a, then s before its softplus, where [-1, 1]
    is the range of the levels.

    Parameters
    ----------
    components : int
        Logistics per pixel.
    levels : int
        256 for 8-bit images.
    floor : float
        The least s, positive, as a part of half the range of the levels.

    Attributes
    ----------
    width : int
        3 * components.

    Raises
    ------
    ValueError
        Fewer than two levels, no component, or a floor that is not positive.

    References
    ----------
    Salimans, Karpathy, Chen and Kingma (2017). PixelCNN++. ICLR.

    Examples
    --------
    >>> likelihood = LogisticMixture(components=5)
    >>> p = likelihood(torch.zeros(2, likelihood.width * 3))
    >>> p.event_shape, bool((p.log_prob(torch.zeros(2, 3)) < 0).all())
    (torch.Size([3]), True)
    """

    def __init__(self, components: int = 5, levels: int = 256, floor: float = 1e-3) -> None:
        super().__init__()
        if components < 1 or not floor > 0:
            raise ValueError(f"components = {components} and floor = {floor} were given; both must be above 0.")
        self.components, self.levels, self.floor = components, _levels(levels), float(floor)
        self.width = 3 * components

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        """Numbers [..., 3 * components * d] to a distribution with batch shape [...] and event shape [d]."""
        logits, loc, raw = _per_pixel(self, output, self.width).chunk(3, -1)
        half = (self.levels - 1) / 2
        logistics = DiscretisedLogistic(half * (1 + loc), half * (self.floor + softplus(raw)), self.levels)
        mixed = dist.MixtureSameFamily(dist.Categorical(logits=logits), logistics)
        return PixelLevels(mixed, self.levels, "likelihoods.LogisticMixture").to_event(1)

    def extra_repr(self) -> str:
        """Show the sizes in the module's repr."""
        return f"components={self.components}, levels={self.levels}, floor={self.floor:g}"


class DiscretisedLogistic(dist.TorchDistribution):
    """A logistic rounded to 0, ..., levels - 1; see `LogisticMixture`.

    With upper u = (k + 1/2 - a) / s and lower l = u - 1/s the probability is sigmoid(u) sigmoid(-l) (1 - e^(-1/s)), so
    that no difference of nearly equal numbers is taken.
    """

    arg_constraints: ClassVar[dict] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers below `levels`."""
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "DiscretisedLogistic":
        """The same with this batch shape."""
        return DiscretisedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log P(k)."""
        first, last = value < 0.5, value > self.levels - 1.5
        below = logsigmoid((value + 0.5 - self.loc) / self.scale)
        above = logsigmoid((self.loc - value + 0.5) / self.scale)
        between = (-torch.expm1(-1 / self.scale)).log()
        zero = torch.zeros_like(between)
        inside = torch.where(last, zero, below) + torch.where(first, zero, above)
        return inside + torch.where(first | last, zero, between)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of k."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            drawn = self.loc + self.scale * torch.logit(u, eps=torch.finfo(u.dtype).tiny)
            return drawn.round().clamp(0, self.levels - 1)


class PixelLevels(dist.TorchDistribution):
    """x = k / (levels - 1) with k drawn from `base`, a distribution over 0, ..., levels - 1; `title` is its name."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, base: dist.TorchDistribution, levels: int, title: str) -> None:
        self.base, self.levels, self.title = base, levels, title
        super().__init__(base.batch_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The levels."""
        return Levels(self.levels)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "PixelLevels":
        """The same with this batch shape."""
        return PixelLevels(self.base.expand(batch_shape), self.levels, self.title)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log P(x)."""
        return self.base.log_prob((value * (self.levels - 1)).round())

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of x."""
        return self.base.sample(sample_shape).to(torch.get_default_dtype()) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """Sum of x P(x), level by level: all levels at once would not fit in memory."""
        x = torch.linspace(0, 1, self.levels).unbind()
        return sum(one * self.log_prob(one).exp() for one in x)  # type: ignore[return-value]


class Levels(constraints.Constraint):
    """0, 1 / (levels - 1), ..., 1, to a thousandth of a step, or rounded to half precision where that tells them apart.

    Examples
    --------
    >>> third = torch.tensor(1 / 3)
    >>> Levels(256).check(torch.stack([third, third.half().float(), third + 1e-4]))
    tensor([ True,  True, False])
    """

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.advice = (
            f"; the likelihood has {levels} grey levels, and a pixel is one of 0, 1/{levels - 1}, ..., 1: divide "
            f"whole numbers by {levels - 1} in float32, since bfloat16 and many levels in float16 are too coarse, or "
            "give the likelihood the images' number of levels"
        )
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is a level."""
        k = value * (self.levels - 1)
        off = (k - k.round()).abs()
        half = (k.round() / (self.levels - 1)).half() == value
        return (value >= 0) & (value <= 1) & ((off < 1e-3) | half & (off < 0.25))


def _levels(levels: int) -> int:
    if levels < 2:
        raise ValueError(f"levels = {levels} was given; at least 2 were expected, 256 for 8-bit images.")
    return levels


def _per_pixel(likelihood: nn.Module, output: Tensor, width: int) -> Tensor:
    """[..., width * d], all pixels' first numbers first, as [..., d, width]."""
    if output.shape[-1] % width:
        raise DataError(
            f"{type(likelihood).__name__} takes [..., {width} d]; {list(output.shape)} was given. Make the decoder "
            f"{width} times as wide as a datum."
        )
    return output.unflatten(-1, (width, -1)).movedim(-2, -1)
