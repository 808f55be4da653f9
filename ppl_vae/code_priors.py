"""Laws of discrete codes c = (c_1, ..., c_P), each of K values: small modules that return a distribution.

They are priors of a VQ-VAE's codes, given with the model or fitted to the codes that a trained one uses.
"""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.errors import DeclarationError, check_whole

__all__ = ["Autoregressive", "CodeSequence", "Independent", "Uniform"]


class Uniform(nn.Module):
    """p(c) = K^-P: every code as probable as any other.

    Parameters
    ----------
    positions : int
        P.
    n_codes : int
        K.

    Examples
    --------
    >>> -Uniform(2, 8)().log_prob(torch.tensor([0, 7])) / torch.tensor(2.0).log()  # bits
    tensor(6.)
    """

    def __init__(self, positions: int, n_codes: int) -> None:
        super().__init__()
        _check(positions, n_codes)
        self.positions, self.n_codes = positions, n_codes

    def forward(self, q: Any = None) -> TorchDistribution:
        """A distribution with event shape [P]."""
        return dist.Categorical(logits=torch.zeros(self.positions, self.n_codes)).to_event(1)


class Independent(Uniform):
    """p(c) = prod_t Categorical(c_t; pi_t), probabilities of their own at each position.

    Parameters
    ----------
    positions : int
        P.
    n_codes : int
        K.

    Examples
    --------
    >>> Independent(16, 64)().event_shape
    torch.Size([16])
    """

    def __init__(self, positions: int, n_codes: int) -> None:
        super().__init__(positions, n_codes)
        self.logits = nn.Parameter(torch.zeros(positions, n_codes))

    def forward(self, q: Any = None) -> TorchDistribution:
        """A distribution with event shape [P]."""
        return dist.Categorical(logits=self.logits).to_event(1)


class Autoregressive(Uniform):
    """p(c) = prod_t p(c_t | c_1, ..., c_{t-1}), from a gated recurrent unit that reads the codes in their order.

    Parameters
    ----------
    positions : int
        P.
    n_codes : int
        K.
    hidden : int
        Units of the recurrent layer.

    References
    ----------
    Cho et al. (2014). Learning phrase representations using RNN encoder-decoder for statistical machine translation.
    EMNLP.

    Examples
    --------
    >>> law = Autoregressive(4, 8, hidden=16)()
    >>> law.log_prob(law.sample((3,))).shape
    torch.Size([3])
    """

    def __init__(self, positions: int, n_codes: int, hidden: int = 64) -> None:
        super().__init__(positions, n_codes)
        self.embed = nn.Embedding(n_codes + 1, hidden)  # the last one stands before the first code
        self.place = nn.Parameter(0.1 * torch.randn(positions, hidden))
        self.read = nn.GRU(hidden, hidden, batch_first=True)
        self.tell = nn.Linear(hidden, n_codes)

    def logits(self, codes: Tensor) -> Tensor:
        """Of p(c_t | those before), [n, T, K], for t = 1, ..., T; codes are [n, T - 1] or longer."""
        before = nn.functional.pad(codes, (1, 0), value=self.n_codes)[:, : self.positions]
        return self.tell(self.read(self.embed(before) + self.place[: before.shape[1]])[0])

    def forward(self, q: Any = None) -> TorchDistribution:
        """A distribution with event shape [P]."""
        return CodeSequence(self)


class CodeSequence(TorchDistribution):
    """Codes one after the other, as an `Autoregressive` says.

    Examples
    --------
    >>> CodeSequence(Autoregressive(4, 8)).expand((5,)).sample().shape
    torch.Size([5, 4])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, net: Autoregressive, batch_shape: torch.Size = torch.Size()) -> None:  # noqa: B008
        self.net = net
        super().__init__(batch_shape, torch.Size([net.positions]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers below K at every position."""
        return constraints.independent(constraints.integer_interval(0, self.net.n_codes - 1), 1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "CodeSequence":
        """The same with this batch shape."""
        return CodeSequence(self.net, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """sum_t log p(c_t | c_1, ..., c_{t-1}), [...] nats."""
        codes = value.reshape(-1, self.net.positions).long()
        each = torch.log_softmax(self.net.logits(codes), -1).gather(-1, codes[..., None])
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return each.sum((-1, -2)).reshape(value.shape[:-1]).expand(shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Codes [*sample_shape, *batch_shape, P]."""
        shape = torch.Size(sample_shape) + self.batch_shape
        codes = torch.zeros(shape.numel(), 0, dtype=torch.long, device=self.net.place.device)
        with torch.no_grad():
            for _ in range(self.net.positions):
                last = self.net.logits(codes)[:, -1]
                codes = torch.cat([codes, dist.Categorical(logits=last).sample()[:, None]], 1)
        return codes.reshape(shape + self.event_shape)


def _check(positions: int, n_codes: int) -> None:
    check_whole("code_priors", error=DeclarationError, positions=positions, n_codes=n_codes)
