"""A q of its own for every datum, found from the encoder's answer: the same family, its parameters moved freely."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import transform_to

from ppl_vae.diagnose.codes import UndefinedError
from ppl_vae.missing import Known

__all__ = ["Offsets", "moved"]

Move = Callable[[Tensor], Tensor]

SAME = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}
"""Parameters that say what another one says, if a distribution has that, which is the one that is moved."""
FIXED = ("temperature",)
"""Parameters that are settings."""


class Offsets:
    """What is added to the parameters of q(z | x_i), in free coordinates, for each of n data; zero at the start.

    Parameters
    ----------
    model : LatentVariableModel
        Whose declared posteriors are moved.
    obs : Observations
        The n data.
    """

    def __init__(self, model: Any, obs: Any) -> None:
        self.model, self.n = model, len(obs)
        self.values: dict[str, list[Tensor]] = {}
        with torch.no_grad(), model.numeric(), self.applied():
            model.bound_sites(obs)  # finds out how many parameters there are
        for value in self.tensors():
            value.requires_grad_(True)

    def tensors(self) -> list[Tensor]:
        """All offsets."""
        return [value for values in self.values.values() for value in values]

    @contextmanager
    def applied(self, to: list[Tensor] | None = None) -> Iterator[None]:
        """Within the block the model's posteriors are the moved ones, by these tensors or by its own."""
        declared, values = self.model._posterior, iter(to) if to is not None else None
        given = {name: [next(values) for _ in own] for name, own in self.values.items()} if values is not None else {}

        def posterior(node: Any, scope: Any, obs: Any, index: Tensor | None) -> TorchDistribution | None:
            q = declared(node, scope, obs, index)
            if q is None or node.name in self.model.local_posteriors:
                return q
            return moved(q, self._mover(node.name, given or self.values, len(q.batch_shape) - 1, index))

        self.model.__dict__["_posterior"] = posterior
        try:
            yield
        finally:
            del self.model.__dict__["_posterior"]

    def _mover(self, name: str, values: dict[str, list[Tensor]], axis: int, index: Tensor | None) -> Move:
        """Adds the offsets of a node to its parameters, one after the other; makes them at the first time."""
        place = iter(range(1 << 30))

        def move(u: Tensor) -> Tensor:
            own, k = values.setdefault(name, []), next(place)
            if k == len(own):
                own.append(torch.zeros_like(u))
            return u + (own[k] if index is None else own[k].index_select(axis, index))

        return move


def moved(q: TorchDistribution, move: Move) -> TorchDistribution:
    """The distribution with each of its parameters moved in free coordinates; layers of a flow stay as they are.

    Raises
    ------
    UndefinedError
        For a distribution without such parameters.

    Examples
    --------
    >>> q = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> moved(q, lambda u: u + 1.0).base_dist.scale  # exp(log 1 + 1)
    tensor([2.7183, 2.7183])
    """
    if type(q) in INSIDE:
        return INSIDE[type(q)](q, move)
    fixed = {name: getattr(q, name) for name in FIXED if hasattr(q, name)}
    names = [n for n in q.arg_constraints if n not in fixed and SAME.get(n) not in q.arg_constraints]
    if isinstance(q, dist.Delta) or not names:
        raise UndefinedError(f"q is a {type(q).__name__}, which has no parameters to move")
    try:
        maps = {name: transform_to(q.arg_constraints[name]) for name in names}
        values = {name: maps[name](move(maps[name].inv(getattr(q, name)))) for name in names}
        return type(q)(**values, **fixed, validate_args=False)
    except (NotImplementedError, TypeError) as error:
        raise UndefinedError(f"the parameters of q, a {type(q).__name__}, cannot be moved freely") from error


INSIDE: dict[type, Callable[[Any, Move], TorchDistribution]] = {
    dist.Independent: lambda q, move: moved(q.base_dist, move).to_event(q.reinterpreted_batch_ndims),
    dist.TransformedDistribution: lambda q, move: dist.TransformedDistribution(moved(q.base_dist, move), q.transforms),
    dist.MixtureSameFamily: lambda q, move: dist.MixtureSameFamily(
        moved(q.mixture_distribution, move), moved(q.component_distribution, move)
    ),
    Known: lambda q, move: Known(moved(q.base, move), q.value, q.known),
}
"""Distributions made of others."""
