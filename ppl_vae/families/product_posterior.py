"""The conjugate posterior of a product of families: one factor for each block."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.families.conjugate import Posterior, conjugate
from ppl_vae.families.family import Sums
from ppl_vae.families.product import Kernels, Product, of_block

__all__ = ["ProductPosterior"]


@dataclass(frozen=True)
class ProductPosterior(Posterior):
    """Independent factors: given the latents, the columns of one block say nothing of another block's parameters.

    Attributes
    ----------
    blocks : dict of Posterior
        By the name of the block.

    Examples
    --------
    >>> from ppl_vae.families import Categorical, CategoricalVector
    >>> people = Product({name: CategoricalVector(2, 1, batch=1, prior="weak") for name in ("left", "right")})
    >>> q = conjugate(None, people)
    >>> sorted(q.center())
    ['left.probs', 'right.probs']
    """

    family: Product
    blocks: dict[str, Posterior]

    def of(self, family: Product) -> "ProductPosterior":
        """Each block's law is of the copy's block."""
        return ProductPosterior(family, {name: q.of(getattr(family, name)) for name, q in self.blocks.items()})

    def updated(self, sums: Sums) -> "ProductPosterior":
        """Every block's posterior given its own sums."""
        return ProductPosterior(self.family, {name: q.updated(of_block(sums, name)) for name, q in self.blocks.items()})

    def kernel(self) -> Kernels:
        """Those of the blocks: expected log densities add."""
        return Kernels(self.family.names, [self.blocks[name].kernel() for name in self.family.names])

    def divergence(self, prior: "ProductPosterior") -> Tensor:
        """Sum over the blocks."""
        return torch.stack([q.divergence(prior.blocks[name]) for name, q in self.blocks.items()]).sum()

    def site(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """The block's own."""
        block, _, parameter = name.partition(".")
        return self.blocks[block].site(parameter, of_block(values, block))

    def center(self) -> dict[str, Tensor]:
        """Those of the blocks, as block.parameter."""
        return {f"{name}.{k}": value for name, q in self.blocks.items() for k, value in q.center().items()}


@conjugate.register
def _product(prior: None, family: Any) -> ProductPosterior:
    """A product has no prior of its own; no other family can do without one."""
    if not isinstance(family, Product):
        raise EngineError(
            f'{type(family).__name__} has no prior: give it a conjugate one, such as prior="weak", or fit by EM'
        )
    found = {}
    for name in family.names:
        block = getattr(family, name)
        try:
            found[name] = conjugate(block.prior, block)
        except EngineError as error:
            raise EngineError(f"{name}: {error}") from error
    return ProductPosterior(family, found)
