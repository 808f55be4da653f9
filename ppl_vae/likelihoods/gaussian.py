"""Normal pixels, with a scale that is fixed, learned, a function of z, or the best one for the decoder's errors."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.errors import DataError, DeclarationError

__all__ = ["Gaussian", "GaussianLearned", "GaussianNetwork", "GaussianOptimal"]

RECENT = 16.0
"""eta: batch t counts (eta + 1) / (t + eta) in a running mean, which so goes back t / (eta + 1) batches."""


class Gaussian(nn.Module):
    """Normal pixels with one fixed scale: log p(x|z) = -|x - f(z)|^2 / (2 s^2) - d log s - (d/2) log(2 pi).

    The squared error has the weight 1 / (2 s^2). A squared error of weight one is therefore s = sqrt(1/2), not s = 1,
    a factor that some derivations drop.

    Parameters
    ----------
    scale : float
        s > 0, in the units of x.

    Attributes
    ----------
    width : int
        1: the decoder gives one number per pixel, its mean.

    Raises
    ------
    ValueError
        A scale that is not positive and finite.

    Examples
    --------
    >>> p = Gaussian(scale=0.5)(torch.zeros(5, 3))
    >>> p.batch_shape, p.event_shape, p.stddev[0]
    (torch.Size([5]), torch.Size([3]), tensor([0.5000, 0.5000, 0.5000]))
    """

    width = 1

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = _above("scale", scale, 0.0)  # a float, so that it is exact in the dtype of any output

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Means [..., d] to a distribution with batch shape [...] and event shape [d]."""
        return dist.Normal(output, self.scale).to_event(1)

    def extra_repr(self) -> str:
        """Show the scale in the module's repr."""
        return f"scale={self.scale:g}"


class Floored(nn.Module):
    """What the likelihoods with a free scale share: a floor relative to the data, below which no scale falls.

    Where a decoder reproduces its data exactly, a pixel that never changes for one, the density would have no bound.

    Parameters
    ----------
    floor : float
        The least scale, positive, in units of the data.
    unit : float, optional
        The data's unit, positive; None: what `adapt` finds in the data.

    Attributes
    ----------
    unit : Tensor
        [], the data's unit: the root of the mean over pixels of their variances, from `adapt`; 1 before.
    """

    unit: Tensor

    def __init__(self, floor: float, unit: float | None) -> None:
        super().__init__()
        self.floor, self.given = _above("floor", floor, 0.0), unit is not None
        self.register_buffer("unit", torch.tensor(1.0 if unit is None else _above("unit", unit, 0.0)))

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        """The law of one datum, which knows its likelihood: a model that fits it gives `adapt` the node's data."""
        law = super().__call__(output)
        _of_entries(law).likelihood = self
        return law

    def adapt(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Take the unit from data [n, d], NaN where missing, of which row i counts w_i times.

        A unit that was given stays, and so it does where data are constant.
        """
        if self.given:
            return
        w = (~x.isnan()).double() if weights is None else ~x.isnan() * weights.double()[:, None]
        seen = w.sum(0) > 0
        w, x64 = w[:, seen], x.double().nan_to_num()[:, seen]
        mean = (w * x64).sum(0) / w.sum(0)
        variance = ((w * (x64 - mean).square()).sum(0) / w.sum(0)).mean()
        if variance > torch.finfo(x.dtype).eps * mean.square().mean():
            self.unit.copy_(variance.sqrt())

    def extra_repr(self) -> str:
        """Show the floor in the module's repr."""
        return f"floor={self.floor:g}"


class GaussianLearned(Floored):
    """Normal pixels with learned scales: N(f(z), diag s^2), s = u (floor + softplus(rho)), one s or one per pixel.

    Scales are in units u of the data's standard deviation: the root of the mean of the pixels' variances, which a fit
    takes from the data of the node whose law this is; u = 1 before. Of a Dataset or a stream it takes u from a random
    sample of rows. Loaders, iterables and `svi_step` have no rows to draw: there the first batch tells u, so shuffle
    them, or give `unit`.

    Parameters
    ----------
    initial : float
        s at the start, above the floor, in units of the data.
    floor : float
        The least s, positive, in units of the data.
    pixels : int, optional
        d, for a scale of each pixel; None for one scale.
    unit : float, optional
        u, positive, to be kept whatever the data are; None: from the data.

    Attributes
    ----------
    width : int
        1: the decoder gives one number per pixel, its mean.
    rho : torch.nn.Parameter
        [] or [d], unconstrained.

    Raises
    ------
    ValueError
        A floor or a unit that is not positive, or an initial scale that is not above the floor.
    DataError
        Another number of means than pixels.

    References
    ----------
    Rybkin, Daniilidis and Levine (2021). Simple and effective VAE training with calibrated decoders. ICML.

    Examples
    --------
    >>> p = GaussianLearned(initial=0.5)
    >>> round(p.scale.item(), 6), p(torch.zeros(5, 3)).event_shape
    (0.5, torch.Size([3]))
    >>> GaussianLearned(pixels=3).scale.shape
    torch.Size([3])
    """

    width = 1

    def __init__(
        self, initial: float = 1.0, floor: float = 1e-3, pixels: int | None = None, unit: float | None = None
    ) -> None:
        super().__init__(floor, unit)
        excess = _above("initial", initial, self.floor) - self.floor
        inverse = excess + math.log(-math.expm1(-excess))  # of softplus
        self.rho = nn.Parameter(torch.full(() if pixels is None else (pixels,), inverse))

    @property
    def scale(self) -> torch.Tensor:
        """s, [] or [d]."""
        return self.unit * (self.floor + softplus(self.rho))

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Means [..., d] to a distribution with batch shape [...] and event shape [d]."""
        if self.rho.dim() and len(self.rho) != output.shape[-1]:
            raise DataError(
                f"GaussianLearned has a scale for each of pixels={len(self.rho)}; {list(output.shape)} was given. "
                f"Pass pixels={output.shape[-1]}, or leave it out for one scale of all."
            )
        return dist.Normal(output, self.scale).to_event(1)


class GaussianNetwork(Floored):
    """Normal pixels whose scales the decoder gives too: N(f(z), diag s(z)^2), s = u (floor + softplus(raw)).

    Parameters
    ----------
    floor : float
        The least scale, positive, in units u of the data, as in `GaussianLearned`.
    unit : float, optional
        u, as in `GaussianLearned`.

    Attributes
    ----------
    width : int
        2: the first half of the decoder's output are the means, the second half the raw scales.

    Raises
    ------
    ValueError
        A floor or a unit that is not positive.
    DataError
        An output of odd width.

    Examples
    --------
    >>> GaussianNetwork()(torch.zeros(5, 2 * 3)).event_shape
    torch.Size([3])
    """

    width = 2

    def __init__(self, floor: float = 1e-3, unit: float | None = None) -> None:
        super().__init__(floor, unit)

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Means and raw scales [..., 2 d] to a distribution with batch shape [...] and event shape [d]."""
        if output.shape[-1] % 2:
            raise DataError(
                f"GaussianNetwork takes [..., 2 d], means then raw scales; {list(output.shape)} was given. "
                "Make the decoder twice as wide as a datum."
            )
        loc, raw = output.chunk(2, -1)
        return dist.Normal(loc, self.unit * (self.floor + softplus(raw))).to_event(1)


class GaussianOptimal(Floored):
    """Normal pixels with the scale that suits the decoder best: N(f(z), s^2 I), s^2 the mean squared error.

    In training s^2 is the mean of (x - f(z))^2 over the pixels of the batch, each row by its weight: the maximum of the
    batch's likelihood over s, so that no step is spent on learning it. A running mean of s^2 is kept and stands for it
    in a fitted model (`model.eval()`), as in batch normalisation: of the last seventeenth of the batches or so, as
    the errors fall in training, and of no more than `memory`. Where a finite latent that is summed out is among the
    decoder's parents, there is an error for each of its values, and the best s depends on how probable they are:
    `GaussianLearned` finds it by gradient.

    Parameters
    ----------
    floor : float
        The least s, positive, in units of the data, as in `GaussianLearned`.
    memory : float
        Batches that the running mean goes back at most, at least 1.
    unit : float, optional
        The data's unit, as in `GaussianLearned`.

    Attributes
    ----------
    width : int
        1: the decoder gives one number per pixel, its mean.
    variance : torch.Tensor
        [], the running mean of s^2.

    Raises
    ------
    ValueError
        A floor or a unit that is not positive, or a memory below 1.
    DeclarationError
        In training, where the decoder's output has a value for each value of a finite latent.

    References
    ----------
    Rybkin, Daniilidis and Levine (2021). Simple and effective VAE training with calibrated decoders. ICML, section 3.
    Shamir and Zhang (2013). Stochastic gradient descent for non-smooth optimization. ICML, section 4: the running mean.

    Examples
    --------
    >>> likelihood = GaussianOptimal()
    >>> density = likelihood(torch.zeros(5, 3)).log_prob(torch.full((5, 3), 0.1))
    >>> round(likelihood.scale.item(), 4)
    0.1
    """

    width = 1
    variance: Tensor
    batches: Tensor

    def __init__(self, floor: float = 1e-3, memory: float = 100.0, unit: float | None = None) -> None:
        super().__init__(floor, unit)
        self.memory = _above("memory", memory, 1.0 - 1e-9)
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(0.0))

    @property
    def scale(self) -> torch.Tensor:
        """The s of a fitted model, []."""
        return self.variance.sqrt()

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        """Means [..., d] to a distribution with batch shape [...] and event shape [d]."""
        return Calibrated(output, self)

    def best(self, squares: Tensor, seen: Tensor) -> Tensor:
        """s^2 of a batch with these squared errors of pixels that count by `seen`; the running mean follows it."""
        with torch.no_grad():  # at the best s the bound's gradient in s is zero
            count = seen.sum()
            mean = (seen * squares).sum() / count.clamp_min(torch.finfo(count.dtype).tiny)
            found = torch.where(count > 0, mean, self.variance).clamp_min((self.floor * self.unit) ** 2)
            self.batches.add_(1)
            newest = (RECENT + 1) / (self.batches + RECENT)
            self.variance.lerp_(found, newest.clamp_min(1 / self.memory))
        return found


class Calibrated(dist.Independent):
    """Normal pixels around `loc` with the scale of a `GaussianOptimal`, in whose mean rows count by `weights`, [n]."""

    def __init__(self, loc: Tensor, likelihood: GaussianOptimal, weights: Tensor | None = None) -> None:
        self.likelihood, self.weights = likelihood, weights
        super().__init__(dist.Normal(loc, likelihood.scale), 1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Calibrated":
        """The same with this batch shape."""
        loc = self.base_dist.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return Calibrated(loc, self.likelihood, self.weights)

    def weigh(self, weights: Tensor) -> "Calibrated":
        """The same with these weights of the rows."""
        return Calibrated(self.base_dist.loc, self.likelihood, weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, [...] nats."""
        return self.marginal_log_prob(value, torch.zeros_like(value, dtype=torch.bool))

    def marginal_log_prob(self, value: Tensor, missing: Tensor) -> Tensor:
        """Log density of the pixels that are not missing, [...] nats."""
        squares = (value - self.base_dist.loc).square().masked_fill(missing, 0.0)
        if self.likelihood.training and squares.dim() > value.dim() > 1:
            raise DeclarationError(
                f"GaussianOptimal takes the mean squared error of data {list(value.shape)}; the decoder's output is "
                f"{list(self.base_dist.loc.shape)}, one for each value of a finite latent that is summed out, and "
                f"their mean over values is not the best scale: take GaussianLearned"
            )
        seen = (~missing).expand(squares.shape).to(squares)
        seen = seen if self.weights is None else seen * self.weights[..., None]
        variance = self.likelihood.best(squares, seen) if self.likelihood.training else self.likelihood.variance
        each = -0.5 * (squares / variance + (2 * math.pi * variance).log())
        return each.masked_fill(missing, 0.0).sum(-1)


def likelihood_of(law: dist.TorchDistribution) -> Floored | None:
    """The likelihood with a floor that made a law, also where more of its entries were made one event, or masked."""
    return getattr(_of_entries(law), "likelihood", None)


def _of_entries(law: Any) -> Any:
    """The law of single entries, which `to_event` keeps."""
    while isinstance(law, dist.Independent | dist.MaskedDistribution):
        law = law.base_dist
    return law


def _above(name: str, value: float, bound: float) -> float:
    if not isinstance(value, int | float) or not bound < value < math.inf:
        shown = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} = {shown} was given; a finite number above {bound:g} was expected.")
    return float(value)
