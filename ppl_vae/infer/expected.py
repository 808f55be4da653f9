"""What q(theta) puts in the place of p(theta): priors that data update, an E-step under q, and what has neither."""

from typing import Any

import torch

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.families import Family, Posterior, conjugate
from ppl_vae.infer.expectation import Plan
from ppl_vae.infer.parts import Parts

__all__ = ["ExpectedPlan", "Posteriors", "factors", "priors", "refuse", "refuse_laws"]

Posteriors = dict[str, Posterior]
"""q(theta), one factor for each family, by path."""


def priors(model: LatentVariableModel) -> Posteriors:
    """p(theta), one factor for each family, by path; each is a posterior that has seen no data."""
    return {path: conjugate(family.prior, family) for path, family in factors(model).items()}


def factors(model: LatentVariableModel) -> dict[str, Family]:
    """The families by path, without the blocks of a product, which speaks for them."""
    families = model.families()
    return {path: family for path, family in families.items() if path.rpartition(".")[0] not in families}


def refuse(model: LatentVariableModel) -> None:
    """Say what of a declaration keeps it from having a conjugate posterior.

    Raises
    ------
    EngineError
        Naming the parameter, and what to declare instead.
    """
    for path, family in factors(model).items():
        try:
            conjugate(family.prior, family)
        except EngineError as error:
            raise EngineError(f"VB cannot update {path}: {error}") from error
    free = model.free_parameters()
    for name in [*free, *model.shared_by_hand()]:
        kind = "free parameter" if name in free else "shared latent declared by hand"
        raise EngineError(
            f"VB updates the parameters of families with conjugate priors, and {name} is a {kind}: use a family for "
            f"it, or fit by SVI"
        )
    if not model.families():
        raise EngineError(f"{type(model).__name__} has no parameter with a prior: there is nothing for VB to fit")


def refuse_laws(model: LatentVariableModel, parts: Parts, few: Observations) -> None:
    """Say which node's law cannot be averaged over q(theta).

    Raises
    ------
    EngineError
        If a latent of a datum is not finite, or a node uses a parameter without calling its family.
    """
    if continuous := model.draws_latents(few):
        raise EngineError(f"VB needs every latent of a datum to be finite, and {continuous[0]!r} is not: fit by SVI")
    values = {name: value.requires_grad_() for name, value in model.family_defaults().items()}
    with torch.enable_grad(), model.bind(values):
        plan = ExpectedPlan(model, few, priors(model))
        # Families' log densities are averaged over q, so whatever still depends on a parameter is not.
        if any(plan.joint(chunk).value.requires_grad for chunk in parts.cut(few, None, 0)):
            own = [name for name, law in model.prototypes(few).items() if not hasattr(law, "origin")]
            raise EngineError(
                f"VB averages over q(theta) what a family's own call returns, and {', '.join(own)} uses a parameter "
                f"otherwise: let the node return family(index), or fit by SVI"
            )


class ExpectedPlan(Plan):
    """An E-step in which each family's log density is its expectation under q(theta)."""

    def __init__(self, model: LatentVariableModel, few: Observations, q: Posteriors) -> None:
        self.q = q
        super().__init__(model, few)

    def kernel(self, family: Family) -> Any:
        """That of the family's posterior."""
        return self.q[self.paths[id(family)]].kernel()

    def _each_chunk(self, name: str, few: Observations) -> None:
        super()._each_chunk(name, few)
        if name in self.dims and hasattr(self.model.law(name, {**self.model.scope(few), **self.values}), "origin"):
            raise EngineError(f"VB needs a law of {name!r} that is the same for every datum; fit this model by SVI")
