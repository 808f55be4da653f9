"""SQUAREM: two steps of EM tell where they lead, and the next point is sought there."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ppl_vae.coordinates import Coordinates, coordinates
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import EngineError
from ppl_vae.infer.mstep import Values

__all__ = ["ACCELERATIONS", "Plain", "Squarem"]

GROWTH = 4.0
"""What the longest step is multiplied by when it was taken and held, and divided by when it was refused."""


class Plain:
    """No acceleration: every M-step's result is the next point."""

    leapt = False
    """Whether the next E-step is at an extrapolated point, which is no M-step's result."""
    trial = False
    """Whether the next E-step may lead back to `fallback`."""

    def __init__(self, model: LatentVariableModel, values: Values, frozen: Collection[str]) -> None:
        self.fallback = values

    def rejects(self, objective: float) -> bool:
        """Whether the point just tried must be left for `fallback`."""
        return False

    def propose(self, values: Values, objective: float) -> Values:
        """The next point, from an M-step's result and the objective before that step."""
        return values

    def restart(self) -> None:
        """Forget the steps so far: the objective has changed, or the parameters were set by hand."""

    def state(self) -> dict[str, Any]:
        """What the next iteration needs, for a checkpoint."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        vars(self).update(state)


class Squarem(Plain):
    """Squared extrapolation in unconstrained coordinates u of the parameters (Varadhan and Roland 2008, scheme S3).

    From u_0 and two steps of EM, r = u_1 - u_0 and v = (u_2 - u_1) - r, the next point is

        u_0 + 2 a r + a^2 v,    a = |r| / |v|, between 1 (which is u_2) and a limit that adapts.

    One more step of EM is taken from there. When the objective at the extrapolated point, or after that step, is below
    the one reached, the run goes back to u_2: it never falls, and each refusal costs an E-step. Coordinates are
    measured by how far each has moved so far, so that units do not matter.

    Parameters
    ----------
    model : LatentVariableModel
        Its families say which sets the parameters live in.
    values : dict of Tensor
        Where the run starts.
    frozen : collection of str
        Parameters that stay.

    References
    ----------
    Varadhan, R. and Roland, C. (2008). Simple and globally convergent methods for accelerating the convergence of any
    EM algorithm. Scandinavian Journal of Statistics 35, 335-353.
    """

    def __init__(self, model: LatentVariableModel, values: Values, frozen: Collection[str]) -> None:
        super().__init__(model, values, frozen)
        free = coordinates(model, frozen)
        kept = {name: constraint for name, constraint in free.sets.items() if name in values}
        self.free = Coordinates(kept, free.shapes, frozenset())
        self.restart()

    def state(self) -> dict[str, Any]:
        """The steps so far."""
        return {name: value for name, value in vars(self).items() if name != "free"}

    def restart(self) -> None:
        """Forget the steps so far."""
        self.path: list[Tensor] = []
        self.moved: Tensor | None = None
        self.limit, self.stretch = 1.0, 1.0
        self.leapt, self.trial, self.reached = False, False, -math.inf

    def rejects(self, objective: float) -> bool:
        """Whether the objective is below the one reached before the extrapolation."""
        if not self.trial or objective >= self.reached:
            return False
        self.limit = max(1.0, self.stretch / GROWTH)
        self.leapt = self.trial = False
        self.path = self._with([], self.fallback)
        return True

    def propose(self, values: Values, objective: float) -> Values:
        """The M-step's result, and after every two of them the extrapolated point."""
        if self.leapt:  # one step of EM from the extrapolated point, to be judged by the next E-step
            self.leapt, self.path = False, self._with([], values)
            return values
        if self.trial and self.stretch == self.limit:
            self.limit *= GROWTH
        self.trial, self.reached = False, objective
        self.path = self._with(self.path, values)
        return values if len(self.path) < 3 else self._leap(values)

    def _leap(self, values: Values) -> Values:
        start, first, second = self.path
        r, v = first - start, second - 2 * first + start
        step = (self._length(r) / self._length(v).clamp_min(1e-300)).item()
        self.stretch = min(max(1.0, step), self.limit)
        if self.stretch == 1.0:
            self.path = [second]
            self.limit = self.limit if step <= 1.0 else self.limit * GROWTH
            return values
        found = self.free.values(start + 2 * self.stretch * r + self.stretch**2 * v)
        if not all(bool(torch.isfinite(value).all()) for value in found.values()):
            self.path = [second]
            return values
        self.fallback, self.leapt, self.trial = values, True, True
        return {**values, **found}

    def _length(self, u: Tensor) -> Tensor:
        assert self.moved is not None
        return (u.square() / self.moved.clamp_min(1e-300)).sum().sqrt()

    def _with(self, path: list[Tensor], values: Values) -> list[Tensor]:
        """The path with one more point; empty where a parameter is on the boundary of its set, or next to it."""
        try:
            u = self.free.vector(values)
        except (EngineError, torch.linalg.LinAlgError):
            return []
        if path:
            step = (u - path[-1]).square()
            self.moved = step if self.moved is None else self.moved + step
        return [*path, u]


ACCELERATIONS: dict[str | None, type[Plain]] = {None: Plain, "squarem": Squarem}
"""Acceleration by name."""
