"""Hierarchies whose joint density has no bound: a scale that goes to zero takes what it scales along."""

import torch
from torch.distributions import constraints

from ppl_vae.declare import LatentVariableModel
from ppl_vae.families.supports import of_entries
from ppl_vae.infer.mstep import Values

__all__ = ["vanishing"]

NOTHING = 1e-5
"""Part of its prior's median below which a scale counts as zero."""
DRAWS = 101


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
