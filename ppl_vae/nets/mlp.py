"""Fully connected encoders and decoders."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ppl_vae.nets.heads import head_of
from ppl_vae.nets.sizes import checked, of_width

__all__ = ["MLPDecoder", "MLPEncoder", "mlp_decoder", "mlp_encoder"]


class MLPEncoder(nn.Module):
    """A fully connected x -> (loc, scale); see `mlp_encoder`."""

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module], covariance: str) -> None:
        super().__init__()
        *before, self.output_size = checked(sizes)
        self.input_size = before[0]
        self.head, width = head_of(covariance)
        self.net = _fully_connected((*before, width(self.output_size)), activation)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x [..., input_size] to loc [..., output_size] and scale, or Cholesky factor."""
        return self.head(self.net(of_width(x, self)))


class MLPDecoder(nn.Module):
    """A fully connected z -> f(z); see `mlp_decoder`."""

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.input_size, *_, self.output_size = checked(sizes)
        self.net = _fully_connected(sizes, activation)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [..., input_size] to [..., output_size]."""
        return self.net(of_width(z, self))


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


def _fully_connected(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1])
