"""Joint densities without a bound: a scale at zero takes what it scales along, a prior may have none at an edge."""

import torch
from torch.distributions import constraints

from ppl_vae.declare import LatentVariableModel
from ppl_vae.families.supports import law_of_entries, of_entries
from ppl_vae.infer.mstep import Values

__all__ = ["at_an_edge", "vanishing"]

NOTHING = 1e-5
"""Part of its prior's median below which a scale counts as zero."""
DRAWS = 101
BEYOND = 20.0
"""Nats by which the density at a value exceeds that at any of some draws, where the law has no highest density."""


def vanishing(model: LatentVariableModel, values: Values) -> list[str]:
    """Positive shared latents that other shared latents depend on, and that have gone to zero."""
    above = {parent for node in model.graph().values() if node.shared for parent in node.parents}
    found = []
    with model.aside(seed=0), model.numeric(), torch.no_grad():
        for name, law in model.shared_laws().items():
            d = law(values)
            if name in above and of_entries(d.support) in (constraints.positive, constraints.nonnegative):
                typical = d.sample(torch.Size([DRAWS])).median(0).values
                if bool((values[name] < NOTHING * typical).any()):
                    found.append(name)
    return found


def at_an_edge(model: LatentVariableModel, values: Values) -> list[str]:
    """Shared latents declared by hand that sit where their own prior's density has no bound, such as Beta(0.5, 0.5)."""
    found = []
    with model.aside(seed=0), model.numeric(), torch.no_grad():
        for name in model.shared_by_hand():
            d = law_of_entries(model.shared_laws()[name](values))
            if not d.event_shape:
                usual = d.log_prob(d.sample(torch.Size([DRAWS]))).amax(0)
                if bool((d.log_prob(values[name]) > usual + BEYOND).any()):
                    found.append(name)
    return found
