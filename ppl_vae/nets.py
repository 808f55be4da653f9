"""Encoders and decoders: plain modules, tensors in, tensors or tuples of tensors out.

Every module has `input_size` and `output_size`: the width of what it takes and of what it gives. An encoder's
`output_size` and a decoder's `input_size` are the dimension of the latent space.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import nn

from ppl_vae.errors import DataError

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "LinearDecoder",
    "LinearEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "conv_decoder",
    "conv_encoder",
    "linear_decoder",
    "linear_encoder",
    "loc_and_scale",
    "loc_and_tril",
    "mlp_decoder",
    "mlp_encoder",
    "raw_of_tril",
]

_MOST_LOG_SCALE = 7.0
_SLOPE = math.pi / (2 * _MOST_LOG_SCALE)


def loc_and_scale(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a network's output into the location and the scale of a normal: log s = (2 L / pi) atan(pi u / (2 L)).

    With L = 7 the scale lies between exp(-7) = 9.1e-4 and exp(7) = 1.1e3, whatever the network says, so that no
    density overflows. Near u = 0 it is exp(u), and its gradient fades only as 1 / u^2.

    Parameters
    ----------
    raw : torch.Tensor
        [..., 2 k].

    Returns
    -------
    loc, scale : torch.Tensor
        [..., k] each; scale > 0.

    Examples
    --------
    >>> loc_and_scale(torch.tensor([2.0, 0.0]))
    (tensor([2.]), tensor([1.]))
    """
    loc, u = raw.chunk(2, -1)
    return loc, torch.exp(torch.atan(u * _SLOPE) / _SLOPE)


def loc_and_tril(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a network's output into the location and the Cholesky factor L of a normal's covariance L L'.

    L's diagonal is made as the scale of `loc_and_scale`; what lies below it is the network's as it is.

    Parameters
    ----------
    raw : torch.Tensor
        [..., k (k + 3) / 2]: k locations, k numbers for the diagonal, and the rows below it.

    Returns
    -------
    loc, tril : torch.Tensor
        [..., k] and [..., k, k].

    Examples
    --------
    >>> loc_and_tril(torch.tensor([1.0, 2.0, 0.0, 0.0, 3.0]))
    (tensor([1., 2.]), tensor([[1., 0.],
            [3., 1.]]))
    """
    k = (math.isqrt(9 + 8 * raw.shape[-1]) - 3) // 2
    loc, scale = loc_and_scale(raw[..., : 2 * k])
    below = raw.new_zeros(*loc.shape, k)
    row, column = torch.tril_indices(k, k, -1, device=raw.device)
    below[..., row, column] = raw[..., 2 * k :]
    return loc, torch.diag_embed(scale) + below


def raw_of_tril(loc: torch.Tensor, tril: torch.Tensor) -> torch.Tensor:
    """The inverse of `loc_and_tril`, [..., k (k + 3) / 2], for diagonals in (9.1e-4, 1.1e3).

    Examples
    --------
    >>> raw_of_tril(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
    tensor([1., 2., 0., 0., 3.])
    """
    most = _MOST_LOG_SCALE * (1 - 1e-6)
    log_scale = tril.diagonal(dim1=-2, dim2=-1).log().clamp(-most, most)
    row, column = torch.tril_indices(loc.shape[-1], loc.shape[-1], -1, device=loc.device)
    return torch.cat([loc, torch.tan(log_scale * _SLOPE) / _SLOPE, tril[..., row, column]], -1)


HEADS = {"diagonal": (loc_and_scale, lambda k: 2 * k), "full": (loc_and_tril, lambda k: k * (k + 3) // 2)}
"""From an encoder's last layer to what it returns, and the numbers that takes for k latent units."""


def _head(covariance: str) -> tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], Callable[[int], int]]:
    if covariance not in HEADS:
        raise ValueError(f"covariance must be one of {', '.join(HEADS)}; {covariance!r} was given.")
    return HEADS[covariance]


# Fully connected


class MLPEncoder(nn.Module):
    """A fully connected x -> (loc, scale); see `mlp_encoder`."""

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module], covariance: str) -> None:
        super().__init__()
        *before, self.output_size = _checked(sizes)
        self.input_size = before[0]
        self.head, width = _head(covariance)
        self.net = _fully_connected((*before, width(self.output_size)), activation)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x [..., input_size] to loc [..., output_size] and scale, or Cholesky factor."""
        return self.head(self.net(_of_width(x, self)))


class MLPDecoder(nn.Module):
    """A fully connected z -> f(z); see `mlp_decoder`."""

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.input_size, *_, self.output_size = _checked(sizes)
        self.net = _fully_connected(sizes, activation)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [..., input_size] to [..., output_size]."""
        return self.net(_of_width(z, self))


def mlp_encoder(*sizes: int, activation: type[nn.Module] = nn.Softplus, covariance: str = "diagonal") -> MLPEncoder:
    """Make a fully connected encoder: x -> (m(x), s(x)), the parameters of q(z|x) = N(m(x), diag s(x)^2).

    Parameters
    ----------
    *sizes : int
        Input, hidden sizes (none, one or more), output (the dimension of z).
    activation : type
        The nonlinearity after each hidden layer.
    covariance : {"diagonal", "full"}
        Form of q's covariance. "full" gives its Cholesky factor for `ppl_vae.posteriors.Full`.

    Returns
    -------
    MLPEncoder
        x [..., input] -> loc [..., output], scale [..., output] in [9.1e-4, 1.1e3], or L [..., output, output] with
        such a diagonal (see `loc_and_tril`).

    Raises
    ------
    ValueError
        Fewer than two sizes, or a size that is not a positive whole number.

    Examples
    --------
    >>> loc, scale = mlp_encoder(784, 400, 20)(torch.rand(5, 784))
    >>> loc.shape, bool((scale > 0).all())
    (torch.Size([5, 20]), True)
    """
    return MLPEncoder(sizes, activation, covariance)


def mlp_decoder(*sizes: int, activation: type[nn.Module] = nn.Softplus) -> MLPDecoder:
    """Make a fully connected decoder: z -> f(z), raw numbers that a likelihood reads (logits, means, ...).

    Parameters
    ----------
    *sizes : int
        Input (the dimension of z), hidden sizes (none, one or more), output: the number of pixels times the
        likelihood's `width`.
    activation : type
        The nonlinearity after each hidden layer.

    Returns
    -------
    MLPDecoder
        z [..., input] -> [..., output].

    Raises
    ------
    ValueError
        Fewer than two sizes, or a size that is not a positive whole number.

    Examples
    --------
    >>> mlp_decoder(20, 400, 784)(torch.zeros(3, 5, 20)).shape
    torch.Size([3, 5, 784])
    """
    return MLPDecoder(sizes, activation)


def _checked(sizes: Sequence[int]) -> Sequence[int]:
    if len(sizes) < 2 or not all(isinstance(size, Integral) and size > 0 for size in sizes):
        raise ValueError(
            f"sizes {tuple(sizes)} were given; an input size, any hidden sizes and an output size were expected, "
            "whole numbers above 0, such as (784, 400, 20)."
        )
    return sizes


def _fully_connected(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1])


def _of_width(x: torch.Tensor, module: "_Sized") -> torch.Tensor:
    if x.shape[-1:] != (module.input_size,):
        raise DataError(
            f"{type(module).__name__} takes [..., {module.input_size}]; {list(x.shape)} was given. Flatten each datum "
            "to one row, or make the network with another input size."
        )
    return x


# Convolutional. Kernel 4, stride 2, padding 1: each layer halves (or doubles) height and width exactly.


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
        _checked((shape[0], *channels, output))
        self.shape, self.input_size, self.output_size = tuple(shape), math.prod(shape), output
        layers = [
            layer
            for pair in pairwise((shape[0], *channels))
            for layer in (nn.Conv2d(*pair, kernel_size=4, stride=2, padding=1), activation())
        ]
        self.head, numbers = _head(covariance)
        last = nn.Linear(channels[-1] * height * width, numbers(output))
        self.net = nn.Sequential(*layers, nn.Flatten(), last)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x [..., channels * height * width] to loc [..., output_size] and scale, or Cholesky factor."""
        raw = self.net(_of_width(x, self).reshape(-1, *self.shape))
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
        _checked((latent, *channels, shape[0], width))
        self.shape, self.input_size, self.output_size = tuple(shape), latent, width * math.prod(shape)
        layers = [
            layer
            for pair in pairwise((*channels, width * shape[0]))
            for layer in (activation(), nn.ConvTranspose2d(*pair, kernel_size=4, stride=2, padding=1))
        ]
        self.net = nn.Sequential(nn.Linear(latent, math.prod(small)), nn.Unflatten(-1, small), *layers, nn.Flatten())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [..., input_size] to [..., output_size]."""
        flat = self.net(_of_width(z, self).reshape(-1, self.input_size))
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


# Linear: with a Gaussian likelihood and z ~ N(0, I) these make probabilistic PCA


class LinearEncoder(nn.Module):
    """A linear x -> loc, with a scale that does not depend on x; see `linear_encoder`."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = _checked((input_size, output_size))
        self.loc = nn.Linear(input_size, output_size)
        self.log_scale = nn.Parameter(torch.zeros(output_size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x [..., input_size] to loc and scale [..., output_size]."""
        loc = self.loc(_of_width(x, self))
        return loc, self.log_scale.exp().expand_as(loc)


class LinearDecoder(nn.Linear):
    """A linear z -> W z + b, W [output_size, input_size] in `weight`; see `linear_decoder`."""

    def __init__(self, input_size: int, output_size: int) -> None:
        _checked((input_size, output_size))
        super().__init__(input_size, output_size)
        self.input_size, self.output_size = input_size, output_size

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [..., input_size] to [..., output_size]."""
        return super().forward(_of_width(z, self))


def linear_encoder(d: int, k: int) -> LinearEncoder:
    """Make a linear encoder: q(z|x) = N(V x + a, diag s^2), s free and shared by all x.

    With a linear decoder, z ~ N(0, I) and isotropic noise this family holds the exact posterior, once the columns of
    the decoder's W are orthogonal: its covariance (I + W' W / s^2)^-1 is then diagonal and does not depend on x.

    Parameters
    ----------
    d, k : int
        Dimensions of x and of z.

    Returns
    -------
    LinearEncoder
        x [..., d] -> loc [..., k], scale [..., k] > 0.

    References
    ----------
    Lucas, Tucker, Grosse and Norouzi (2019). Don't blame the ELBO! A linear VAE perspective on posterior collapse.
    NeurIPS.

    Examples
    --------
    >>> loc, scale = linear_encoder(5, 2)(torch.zeros(3, 5))
    >>> loc.shape, scale.unique()
    (torch.Size([3, 2]), tensor([1.], grad_fn=<Unique2Backward0>))
    """
    return LinearEncoder(d, k)


def linear_decoder(k: int, d: int) -> LinearDecoder:
    """Make a linear decoder: f(z) = W z + b.

    Parameters
    ----------
    k, d : int
        Dimensions of z and of x.

    Returns
    -------
    LinearDecoder
        z [..., k] -> [..., d].

    References
    ----------
    Tipping and Bishop (1999). Probabilistic principal component analysis. JRSS B 61, 611-622.

    Examples
    --------
    >>> linear_decoder(2, 5)(torch.zeros(3, 2)).shape
    torch.Size([3, 5])
    """
    return LinearDecoder(k, d)


_Sized = MLPEncoder | MLPDecoder | ConvEncoder | ConvDecoder | LinearEncoder | LinearDecoder
