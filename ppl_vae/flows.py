"""Normalising flows: Pyro's transforms, as layers that a prior or a posterior is sent through."""

from collections.abc import Iterable, Sequence
from copy import copy
from types import MethodType

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ppl_vae.errors import DeclarationError

__all__ = ["Layers", "Reverse", "autoregressive", "coupling"]


class Layers(nn.Module):
    """Invertible maps one after the other, z = T_L(... T_1(u)): log p(z) = log p(u) - sum_l log|det dT_l|.

    Parameters
    ----------
    layers : iterable of torch.distributions.Transform
        Pyro's, or any whose parameters are a module's; from vectors to vectors of the same size.
    size : int, optional
        That size, where the layers are made for one.

    Raises
    ------
    DeclarationError
        When it is used, a base of another size.

    Examples
    --------
    >>> import torch
    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> q = Layers([transforms.AffineTransform(1.0, 2.0, event_dim=1)])(base)
    >>> q.log_prob(torch.ones(2))  # log(1 / (2 pi)) - log 4
    tensor(-3.2242)
    """

    def __init__(self, layers: Iterable[Transform], size: int | None = None) -> None:
        super().__init__()
        self.layers, self.size = list(layers), size
        self.learned = nn.ModuleList(layer for layer in self.layers if isinstance(layer, nn.Module))

    def forward(self, base: TorchDistribution) -> TorchDistribution:
        """The distribution of the image of `base`."""
        if self.size is not None and base.event_shape != (self.size,):
            raise DeclarationError(
                f"a flow was made with size={self.size}; draws of shape {list(base.event_shape)} were given. Make it "
                "with the number of entries of z."
            )
        return dist.TransformedDistribution(base, [_fresh(layer) for layer in self.layers])


def _fresh(layer: Transform) -> Transform:
    """The layer with the same parameters and a cache of its own.

    Pyro's transforms remember their last point, with its graph: in the module itself that would outlive the
    distribution, could not be copied, and would mix up draws of two distributions.
    """
    new = copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, MethodType) and value.__self__ is layer:
            new.__dict__[name] = MethodType(value.__func__, new)
    if isinstance(layer, nn.Module):
        inner = {name: _fresh(m) if isinstance(m, Transform) else m for name, m in layer._modules.items()}
        new.__dict__["_modules"] = inner
    return new


class Reverse(Transform):
    """The entries of a vector in reverse order; its Jacobian is a permutation, log|det| = 0.

    Examples
    --------
    >>> import torch
    >>> Reverse()(torch.tensor([1.0, 2.0, 3.0]))
    tensor([3., 2., 1.])
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.flip(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zeros, [...]."""
        return torch.zeros_like(x[..., 0])


class InverseAutoregressive(transforms.AffineAutoregressive):
    """Pyro's, in a known order of the entries: its own inverse reads the order from a tensor and cannot be traced.

    Parameters
    ----------
    order : sequence of int
        Entry order[i] depends on the entries order[:i].
    hidden : sequence of int
        Hidden units of the masked network.
    """

    def __init__(self, order: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__(AutoRegressiveNN(len(order), list(hidden), permutation=torch.tensor(order)), stable=True)
        self.order = list(order)
        self._inverse = self._in_order

    def _in_order(self, z: Tensor) -> Tensor:
        """u, one entry after the other."""
        u = [torch.zeros_like(z[..., 0])] * len(self.order)
        for i in self.order:
            loc, logit = self.arn(torch.stack(u, -1))
            scale = torch.sigmoid(logit[..., i] + self.sigmoid_bias)
            u[i] = (z[..., i] - (1 - scale) * loc[..., i]) / scale
        self._cached_log_scale = self.logsigmoid(logit + self.sigmoid_bias)
        return torch.stack(u, -1)


def autoregressive(size: int, layers: int = 2, hidden: Sequence[int] | None = None) -> Layers:
    """Inverse autoregressive flow: z_i = s_i(u_<i) u_i + (1 - s_i(u_<i)) m_i(u_<i), drawn in parallel.

    The log density of its own draws is as fast; that of any other point takes a pass for each entry of z. It is made
    for posteriors. Every second layer takes the entries in reverse order.

    Parameters
    ----------
    size : int
        Entries of z.
    layers : int
        How many.
    hidden : sequence of int, optional
        Hidden units of each layer's masked network; 10 * size by default.

    References
    ----------
    Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016). Improved variational inference with inverse
    autoregressive flow. NeurIPS.

    Examples
    --------
    >>> q = autoregressive(2)(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([2]))
    """
    orders = [range(size), range(size - 1, -1, -1)]
    made = [InverseAutoregressive(orders[layer % 2], hidden or (10 * size,)) for layer in range(layers)]
    return Layers(made, size)


def coupling(size: int, layers: int = 4, hidden: Sequence[int] | None = None) -> Layers:
    """Affine coupling (RealNVP): one half of u stays, the other half is scaled and moved by functions of the first.

    Drawing and the log density of any point take one pass each. It is made for priors. Between two layers the entries
    change places.

    Parameters
    ----------
    size : int
        Entries of z, at least 2.
    layers : int
        How many.
    hidden : sequence of int, optional
        Hidden units of each layer's network; Pyro's choice by default.

    References
    ----------
    Dinh, Sohl-Dickstein and Bengio (2017). Density estimation using Real NVP. ICLR.

    Examples
    --------
    >>> p = coupling(2)(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    >>> p.log_prob(torch.zeros(7, 2)).shape
    torch.Size([7])
    """
    if size < 2:
        raise ValueError(f"size = {size} was given; coupling divides z into two parts: at least 2 was expected.")
    pairs = [(transforms.affine_coupling(size, hidden), Reverse()) for _ in range(layers)]
    return Layers([layer for pair in pairs for layer in pair], size)
