"""Averaged iterates: about an optimum a constant step keeps parameters moving, and their mean lies closer to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Averaging"]


class Averaging:
    """Means of parameters over the last part of a training, (1 / (T - t_0)) sum_{t > t_0} theta_t.

    A parameter on its way to the optimum keeps its last value, since a mean lags behind it: one whose means m_1, m_2
    over the two halves of that part differ by more than twice its scatter s within them. Each number of each tensor
    is judged by itself.

    Parameters
    ----------
    parameters : sequence of Tensor
        What is averaged.
    part : float
        Between 0 and 1: the last part of the training that counts.

    References
    ----------
    Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging. Of q's parameters, and comparing
    iterates like chains: Dhaka et al. (2020), Robust, accurate stochastic optimization for variational inference.

    Examples
    --------
    >>> p = torch.zeros(2)
    >>> mean = Averaging([p], part=1.0)
    >>> for step, (wandering, moving) in enumerate([(1.0, 1.0), (3.0, 2.0), (1.0, 6.0), (3.0, 7.0)], 1):
    ...     p[0], p[1] = wandering, moving
    ...     mean.seen(done=step / 4)
    >>> mean.apply()
    >>> p
    tensor([2., 7.])
    """

    def __init__(self, parameters: Sequence[Tensor], part: float) -> None:
        self.parameters, self.part = list(parameters), part
        self.counts = [0, 0]
        # Of each half, sums and sums of squares about where the parameters stood when it began to count.
        self.origins = [torch.zeros_like(p, dtype=torch.float64) for p in self.parameters]
        self.sums = [p.new_zeros(2, 2, *p.shape, dtype=torch.float64) for p in self.parameters]

    @torch.no_grad()
    def seen(self, done: float) -> None:
        """Count the parameters as they are after the share `done` of the training."""
        if done <= 1 - self.part:
            return
        half = int(done > 1 - self.part / 2)
        if not sum(self.counts):
            self.origins = [p.detach().clone().double() for p in self.parameters]
        self.counts[half] += 1
        for p, origin, sums in zip(self.parameters, self.origins, self.sums, strict=True):
            moved = p - origin
            sums[half, 0] += moved
            sums[half, 1] += moved * moved

    @torch.no_grad()
    def apply(self) -> None:
        """Put the means in the place of parameters that only wander, if both halves were counted."""
        if not all(self.counts):
            return
        counts = torch.tensor(self.counts, dtype=torch.float64)
        for p, origin, sums in zip(self.parameters, self.origins, self.sums, strict=True):
            each = counts.to(p.device).view(2, 1, *[1] * p.dim())
            means, squares = (sums / each).unbind(1)
            scatter = (squares - means**2).mean(0)
            wanders = (means[0] - means[1]) ** 2 <= 4 * scatter
            p.copy_(torch.where(wanders, origin + sums[:, 0].sum(0) / counts.sum().item(), p))

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        copies = {name: [t.clone() for t in getattr(self, name)] for name in ("origins", "sums")}
        return {"counts": list(self.counts), **copies}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.counts = list(state["counts"])
        for name in ("origins", "sums"):
            setattr(self, name, [t.to(p.device) for t, p in zip(state[name], self.parameters, strict=True)])
