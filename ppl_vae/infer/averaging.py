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
        self.counts, self.origin = [0, 0], self._now()
        # Of each half, sums and sums of squares about where the parameters stood when it began to count.
        self.sums = self.origin.new_zeros(2, 2, len(self.origin))

    def _now(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1).double() for p in self.parameters])

    def seen(self, done: float) -> None:
        """Count the parameters as they are after the share `done` of the training."""
        if done <= 1 - self.part:
            return
        half, now = int(done > 1 - self.part / 2), self._now()
        if not sum(self.counts):
            self.origin = now
        self.counts[half] += 1
        moved = now - self.origin
        self.sums[half] += torch.stack([moved, moved * moved])

    @torch.no_grad()
    def apply(self) -> None:
        """Put the means in the place of parameters that only wander, if both halves were counted."""
        if not all(self.counts):
            return
        counts = self.sums.new_tensor(self.counts)
        means, squares = (self.sums / counts[:, None, None]).unbind(1)
        scatter = (squares - means**2).mean(0)
        wanders = (means[0] - means[1]) ** 2 <= 4 * scatter
        found = torch.where(wanders, self.origin + self.sums[:, 0].sum(0) / counts.sum(), self._now())
        for p, own in zip(self.parameters, found.split([p.numel() for p in self.parameters]), strict=True):
            p.copy_(own.view_as(p))

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"counts": list(self.counts), "origin": self.origin, "sums": self.sums.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.counts = list(state["counts"])
        self.origin, self.sums = state["origin"].to(self.origin), state["sums"].to(self.sums).clone()
