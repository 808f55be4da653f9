"""Linear encoders and decoders: with a Gaussian likelihood and z ~ N(0, I) they make probabilistic PCA."""

import torch
from torch import nn

from ppl_vae.nets.sizes import checked, of_width

__all__ = ["LinearDecoder", "LinearEncoder", "linear_decoder", "linear_encoder"]


class LinearEncoder(nn.Module):
    """A linear x -> loc, with a scale that does not depend on x; see `linear_encoder`."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = checked((input_size, output_size))
        self.loc = nn.Linear(input_size, output_size)
        self.log_scale = nn.Parameter(torch.zeros(output_size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x [..., input_size] to loc and scale [..., output_size]."""
        loc = self.loc(of_width(x, self))
        return loc, self.log_scale.exp().expand_as(loc)


class LinearDecoder(nn.Linear):
    """A linear z -> W z + b, W [output_size, input_size] in `weight`; see `linear_decoder`."""

    def __init__(self, input_size: int, output_size: int) -> None:
        checked((input_size, output_size))
        super().__init__(input_size, output_size)
        self.input_size, self.output_size = input_size, output_size

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [..., input_size] to [..., output_size]."""
        return super().forward(of_width(z, self))


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
