"""Encoders and decoders of gated layers, as published numbers of VAEs with an MLP use them."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ppl_vae.nets.sizes import checked, of_width

__all__ = ["Gated", "GatedDecoder", "GatedEncoder", "gated_decoder", "gated_encoder"]


class Gated(nn.Module):
    """A fully connected layer with a gate for each of its outputs: h = (W x + b) * sigmoid(V x + c).

    Parameters
    ----------
    input_size, output_size : int
        Numbers that go in and come out.

    References
    ----------
    Dauphin, Fan, Auli and Grangier (2017). Language modeling with gated convolutional networks. ICML.

    Examples
    --------
    >>> Gated(784, 300)(torch.rand(5, 784)).shape
    torch.Size([5, 300])
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.value, self.gate = _linear(input_size, output_size), _linear(input_size, output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [..., input_size] to [..., output_size]."""
        return self.value(x) * torch.sigmoid(self.gate(x))


class GatedEncoder(nn.Module):
    """Gated layers x -> (loc, scale); see `gated_encoder`."""

    def __init__(self, sizes: Sequence[int], log_variance: tuple[float, float]) -> None:
        super().__init__()
        *before, self.output_size = checked(sizes)
        self.input_size, self.log_variance = before[0], _interval(log_variance)
        self.hidden = _gated(before)
        self.loc, self.raw = _linear(before[-1], self.output_size), _linear(before[-1], self.output_size)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x [..., input_size] to loc and scale [..., output_size]."""
        h = self.hidden(of_width(x, self))
        return self.loc(h), torch.exp(self.raw(h).clamp(*self.log_variance) / 2)


class GatedDecoder(nn.Module):
    """Gated layers z -> f(z); see `gated_decoder`."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        *before, self.output_size = checked(sizes)
        self.input_size = before[0]
        self.net = nn.Sequential(_gated(before), _linear(before[-1], self.output_size))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [..., input_size] to [..., output_size]."""
        return self.net(of_width(z, self))


def gated_encoder(*sizes: int, log_variance: tuple[float, float] = (-6.0, 2.0)) -> GatedEncoder:
    """Make an encoder of gated layers: x -> (m(x), s(x)), log s^2 cut off at both ends of an interval.

    Each hidden layer is h = (W x + b) * sigmoid(V x + c). Weights start as draws of N(0, 2 / inputs).

    Parameters
    ----------
    *sizes : int
        Input, hidden sizes (none, one or more), output (the dimension of z).
    log_variance : (float, float)
        Smallest and largest log s^2, nats; beyond them its gradient is zero.

    Returns
    -------
    GatedEncoder
        x [..., input] -> loc [..., output], scale [..., output].

    Raises
    ------
    ValueError
        Fewer than two sizes, a size that is not a positive whole number, or an empty interval.

    References
    ----------
    Tomczak and Welling (2018). VAE with a VampPrior. AISTATS.

    Examples
    --------
    >>> loc, scale = gated_encoder(784, 300, 300, 40)(torch.rand(5, 784))
    >>> loc.shape, bool((scale.log() * 2 >= -6).all())
    (torch.Size([5, 40]), True)
    """
    return GatedEncoder(sizes, log_variance)


def gated_decoder(*sizes: int) -> GatedDecoder:
    """Make a decoder of gated layers: z -> f(z), raw numbers that a likelihood reads (logits, means, ...).

    Each hidden layer is h = (W z + b) * sigmoid(V z + c). Weights start as draws of N(0, 2 / inputs).

    Parameters
    ----------
    *sizes : int
        Input (the dimension of z), hidden sizes (none, one or more), output: the number of pixels times the
        likelihood's `width`.

    Returns
    -------
    GatedDecoder
        z [..., input] -> [..., output].

    Raises
    ------
    ValueError
        Fewer than two sizes, or a size that is not a positive whole number.

    References
    ----------
    Tomczak and Welling (2018). VAE with a VampPrior. AISTATS.

    Examples
    --------
    >>> gated_decoder(40, 300, 300, 784)(torch.zeros(3, 5, 40)).shape
    torch.Size([3, 5, 784])
    """
    return GatedDecoder(sizes)


def _gated(sizes: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*[Gated(*pair) for pair in pairwise(sizes)])


def _linear(input_size: int, output_size: int) -> nn.Linear:
    """A linear layer that starts as that of He et al. (2015)."""
    layer = nn.Linear(input_size, output_size)
    nn.init.kaiming_normal_(layer.weight)
    return layer


def _interval(log_variance: tuple[float, float]) -> tuple[float, float]:
    low, high = map(float, log_variance)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"log_variance must be (smallest, largest), such as (-6, 2); {log_variance!r} was given.")
    return low, high
