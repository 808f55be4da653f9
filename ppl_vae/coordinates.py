"""The free coordinates of a model: every parameter as a vector of unconstrained reals."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from ppl_vae.alone import forked_rng
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import EngineError

__all__ = ["Coordinates", "coordinates", "held"]

POSTERIORS = ("local_posteriors.", "shared_guide.")
"""Parameters of q, which are no part of the model."""


@dataclass(frozen=True)
class Coordinates:
    """Maps between parameters by name and one vector of unconstrained reals.

    Attributes
    ----------
    sets : dict of Constraint
        The set that each parameter lives in, in the order of the vector.
    shapes : dict of torch.Size
        Shape of each parameter.
    networks : frozenset of str
        Those that are parameters of a network rather than of a family or shared latents.
    """

    sets: dict[str, Constraint]
    shapes: dict[str, torch.Size]
    networks: frozenset[str]

    def transform(self, name: str) -> Transform:
        """From reals to the set of a parameter."""
        return biject_to(self.sets[name])

    def free_shape(self, name: str) -> torch.Size:
        """Shape of a parameter's unconstrained values: [K - 1] for a simplex of K."""
        return self.transform(name).inverse_shape(self.shapes[name])

    @property
    def size(self) -> int:
        """Number of free scalars P."""
        return sum(self.free_shape(name).numel() for name in self.sets)

    def owners(self) -> list[str]:
        """The parameter that each entry of the vector belongs to, P names."""
        return [name for name in self.sets for _ in range(self.free_shape(name).numel())]

    def vector(self, values: Mapping[str, Tensor]) -> Tensor:
        """The unconstrained values, [P].

        Raises
        ------
        EngineError
            If a parameter is on the boundary of its set, where it has no finite coordinate.
        """
        parts = []
        for name in self.sets:
            part = self.transform(name).inv(values[name].detach()).flatten()
            if not bool(torch.isfinite(part).all()):
                raise EngineError(
                    f"{name} is on the boundary of its set (a probability of 0 or 1, a variance of 0), where the "
                    f"likelihood has no curvature to read; keep it out with EM(frozen=({name!r},)), or use a prior"
                )
            parts.append(part)
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def values(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters at a vector [P], by name."""
        found, start = {}, 0
        for name in self.sets:
            shape = self.free_shape(name)
            found[name] = self.transform(name)(vector[start : start + shape.numel()].reshape(shape))
            start += shape.numel()
        return found


def coordinates(model: LatentVariableModel, frozen: Collection[str] = ()) -> Coordinates:
    """Free coordinates of family parameters, shared latents and networks, without the frozen ones.

    Parameters
    ----------
    model : LatentVariableModel
        A declaration, fitted or not.
    frozen : collection of str
        Names of parameters that are not estimated, such as "components.loc".

    Examples
    --------
    >>> import ppl_vae as pv
    >>> free = coordinates(pv.models.GaussianMixture(3, 2, covariance="tied"))
    >>> free.size  # 2 weights, 3 x 2 means, 3 entries of one covariance
    11
    """
    values = model.family_defaults()
    sets: dict[str, Constraint] = {
        f"{path}.{name}": family.parameter_constraint(name)
        for path, family in model.families().items()
        for name in family.constraints
    }
    with forked_rng(), torch.no_grad():
        for name, law in model.shared_laws().items():
            if name not in values:
                d = law(values)
                values[name], sets[name] = d.sample(), cast(Constraint, d.support)
    networks = _networks(model)
    values |= networks
    sets |= dict.fromkeys(networks, constraints.real)
    kept = [name for name in values if name not in frozen]
    return Coordinates(
        {name: sets[name] for name in kept},
        {name: values[name].shape for name in kept},
        frozenset(networks) & frozenset(kept),
    )


def held(model: LatentVariableModel, frozen: Collection[str] = ()) -> tuple[str, ...]:
    """Names of what a fit does not move: what it was told, and what its owner froze by `requires_grad_(False)`.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> class Known(pv.LatentVariableModel):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
    >>> held(Known())
    ('scale',)
    """
    return (*frozen, *(name for name in model.frozen_parameters() if name not in frozen))


def _networks(model: LatentVariableModel) -> dict[str, Tensor]:
    """Parameters of p that no family owns, by their name in the module."""
    free = model.free_parameters()
    return {name: parameter.detach() for name, parameter in free.items() if not name.startswith(POSTERIORS)}
