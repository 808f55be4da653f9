"""Convolutional encoders and decoders.

Kernel 4, stride 2, padding 1: each layer halves (or doubles) height and width exactly.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ppl_vae.nets.heads import head_of
from ppl_vae.nets.sizes import checked, of_width

__all__ = ["ConvDecoder", "ConvEncoder", "conv_decoder", "conv_encoder"]


class ConvEncoder(nn.Module):
    """A convolutional x -> (loc, scale); see `conv_encoder`."""

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        output: int,
        activation: type[nn.Module],
        covariance: str,
    ) -> None:
        super().__init__()
        height, width = _smallest(shape, channels)
        checked((shape[0], *channels, output))
        self.shape, self.input_size, self.output_size = tuple(shape), math.prod(shape), output
        layers = [
            layer
            for pair in pairwise((shape[0], *channels))
            for layer in (nn.Conv2d(*pair, kernel_size=4, stride=2, padding=1), activation())
        ]
        self.head, numbers = head_of(covariance)
        last = nn.Linear(channels[-1] * height * width, numbers(output))
        self.net = nn.Sequential(*layers, nn.Flatten(), last)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x [..., channels * height * width] to loc [..., output_size] and scale, or Cholesky factor."""
        raw = self.net(of_width(x, self).reshape(-1, *self.shape))
        return self.head(raw.reshape(*x.shape[:-1], raw.shape[-1]))


class ConvDecoder(nn.Module):
    """A convolutional z -> f(z); see `conv_decoder`."""

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        channels: Sequence[int],
        width: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        small = (channels[0], *_smallest(shape, channels))
        checked((latent, *channels, shape[0], width))
        self.shape, self.input_size, self.output_size = tuple(shape), latent, width * math.prod(shape)
        layers = [
            layer
            for pair in pairwise((*channels, width * shape[0]))
            for layer in (activation(), nn.ConvTranspose2d(*pair, kernel_size=4, stride=2, padding=1))
        ]
        self.net = nn.Sequential(nn.Linear(latent, math.prod(small)), nn.Unflatten(-1, small), *layers, nn.Flatten())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [..., input_size] to [..., output_size]."""
        flat = self.net(of_width(z, self).reshape(-1, self.input_size))
        return flat.reshape(*z.shape[:-1], self.output_size)


def conv_encoder(
    shape: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (32, 64),
    output: int = 20,
    activation: type[nn.Module] = nn.ReLU,
    covariance: str = "diagonal",
) -> ConvEncoder:
    """Make a convolutional encoder of flat images: x -> (m(x), s(x)).

    Each layer has kernel 4, stride 2 and padding 1 and halves height and width; a linear layer follows the last one.

    Parameters
    ----------
    shape : sequence of int
        (channels, height, width) of an image; height and width divisible by 2 ** len(channels).
    channels : sequence of int
        Channels after each layer.
    output : int
        The dimension of z.
    activation : type
        The nonlinearity after each layer.
    covariance : {"diagonal", "full"}
        As of `mlp_encoder`.

    Returns
    -------
    ConvEncoder
        x [..., channels * height * width] -> loc [..., output], scale [..., output] in [9.1e-4, 1.1e3], or L.

    Raises
    ------
    ValueError
        An image whose sides cannot be halved so often.

    Examples
    --------
    >>> loc, scale = conv_encoder((1, 8, 8), channels=(8, 16), output=2)(torch.rand(5, 64))
    >>> loc.shape, scale.shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """
    return ConvEncoder(shape, channels, output, activation, covariance)


def conv_decoder(
    latent: int = 20,
    shape: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (64, 32),
    width: int = 1,
    activation: type[nn.Module] = nn.ReLU,
) -> ConvDecoder:
    """Make a convolutional decoder to flat images: z -> f(z), raw numbers that a likelihood reads.

    A linear layer gives channels[0] small images; each transposed convolution (kernel 4, stride 2, padding 1) doubles
    height and width.

    Parameters
    ----------
    latent : int
        The dimension of z.
    shape : sequence of int
        (channels, height, width) of an image; height and width divisible by 2 ** len(channels).
    channels : sequence of int
        Channels before each transposed convolution.
    width : int
        Numbers per pixel, the likelihood's `width`; all pixels' first numbers come first.
    activation : type
        The nonlinearity before each transposed convolution.

    Returns
    -------
    ConvDecoder
        z [..., latent] -> [..., width * channels * height * width of the image].

    Raises
    ------
    ValueError
        An image whose sides cannot be halved so often.

    Examples
    --------
    >>> conv_decoder(2, shape=(1, 8, 8), channels=(16, 8))(torch.zeros(3, 5, 2)).shape
    torch.Size([3, 5, 64])
    """
    return ConvDecoder(latent, shape, channels, width, activation)


def _smallest(shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    factor = 2 ** len(channels)
    if len(shape) != 3 or not channels or any(side < 1 or side % factor for side in shape[1:]):
        raise ValueError(
            f"shape {tuple(shape)} and {len(channels)} layers {tuple(channels)} were given; each layer halves the "
            f"image, so (channels, height, width) with height and width divisible by {factor} was expected. "
            "Take fewer layers, or pad the images."
        )
    return shape[1] // factor, shape[2] // factor
