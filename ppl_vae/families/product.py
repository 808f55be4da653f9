"""One table of mixed types in one node: a product of families over blocks of its columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.errors import DataError, DeclarationError
from ppl_vae.families.family import NOTHING, Family, Parts, Sums
from ppl_vae.families.supports import of_entries
from ppl_vae.missing import Incomplete

__all__ = ["Blocks", "Kernels", "Product", "of_block"]


class Blocks(TorchDistribution):
    """Independent distributions side by side in one vector.

    Parameters
    ----------
    parts : list of TorchDistribution
        With event shape () or (width,), and batch shapes that broadcast.
    names : sequence of str, optional
        What messages call them.

    Examples
    --------
    >>> import torch
    >>> import pyro.distributions as dist
    >>> law = Blocks([dist.Poisson(torch.tensor(2.0)), dist.Normal(torch.zeros(3), 1.0).to_event(1)])
    >>> law.event_shape, law.sample().shape
    (torch.Size([4]), torch.Size([4]))
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, parts: list[TorchDistribution], names: Sequence[str] = ()) -> None:
        self.parts = parts
        self.names = tuple(names) or tuple(str(number) for number in range(len(parts)))
        self.widths = [part.event_shape.numel() for part in parts]
        batch = torch.broadcast_shapes(*(part.batch_shape for part in parts))
        super().__init__(batch, torch.Size([sum(self.widths)]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Each column in its own set."""
        inner = [of_entries(part.support) for part in self.parts]
        return constraints.independent(constraints.cat(inner, -1, self.widths), 1)

    def split(self, value: Tensor) -> list[Tensor]:
        """The columns of each part, in its event shape."""
        pieces = value.split(self.widths, -1)
        return [piece if part.event_shape else piece[..., 0] for part, piece in zip(self.parts, pieces, strict=True)]

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Blocks":
        """The same with this batch shape."""
        return Blocks([part.expand(batch_shape) for part in self.parts], self.names)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the parts' log densities, [...] nats."""
        return sum(part.log_prob(x) for part, x in zip(self.parts, self.split(value), strict=True))

    def marginal_log_prob(self, value: Tensor, missing: Tensor) -> Tensor:
        """Log density of the entries that are not missing, [...] nats."""
        pieces = zip(self.parts, self.split(value), self.split(missing), strict=True)
        return sum((Incomplete(part, gap).log_prob(x) for part, x, gap in pieces), torch.zeros(()))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of every part."""
        return self._joined(lambda part: part.sample(sample_shape))

    @property
    def mean(self) -> Tensor:
        """Means of the parts; of categories the mean code is not defined, and is NaN."""
        return self._joined(lambda part: part.mean)

    def _joined(self, make: Callable[[TorchDistribution], Tensor]) -> Tensor:
        pieces = [(part, make(part.expand(self.batch_shape))) for part in self.parts]
        return torch.cat([x if part.event_shape else x[..., None] for part, x in pieces], -1)


class Product(Family):
    r"""p(x | k) = product over blocks b of p_b(x_b | k): a table whose columns are of different types.

    The blocks take the columns of x [n, d] in the order given, each as many as its family has features. Everything is
    the families' own: statistics, updates, floors, missing entries, priors; a block's parameters are called
    `block.parameter`. A model with several observed nodes, each with a family, is the same product for values that
    come apart; `Product` is for one table.

    Parameters
    ----------
    blocks : mapping from str to Family
        Families with the same batch, without covariates.

    Raises
    ------
    DataError
        If the table has another number of columns, and what the families raise.

    Examples
    --------
    >>> import torch
    >>> from ppl_vae.families import CategoricalVector, Normal, Poisson
    >>> people = Product({
    ...     "size": Normal(2, batch=3),
    ...     "pets": Poisson(batch=3),
    ...     "answers": CategoricalVector(4, n_features=5, batch=3),
    ... })
    >>> people(torch.tensor([[0], [1], [2]])).event_shape
    torch.Size([8])
    >>> sorted(people.values())
    ['answers.probs', 'pets.rate', 'size.covariance', 'size.loc']
    """

    def __init__(self, blocks: Mapping[str, Family]) -> None:
        batches = {name: family.batch for name, family in blocks.items()}
        if len(set(batches.values())) != 1:
            raise DeclarationError(f"Product: the blocks must have one and the same batch, got {batches}")
        super().__init__(next(iter(batches.values())))
        self.names = tuple(blocks)
        self.widths = [getattr(family, "n_features", None) or 1 for family in blocks.values()]
        self.n_features = sum(self.widths)
        self.__dict__["constraints"] = {
            f"{name}.{parameter}": family.parameter_constraint(parameter)
            for name, family in blocks.items()
            for parameter in family.constraints
        }
        for name, family in blocks.items():
            if hasattr(self, name) or not name.isidentifier():
                raise DeclarationError(
                    f"Product: {name!r} cannot be the name of a block, it is taken or no Python name; give it another"
                )
            setattr(self, name, family)

    def blocks(self) -> list[Family]:
        """The families, in the order of their columns."""
        return [getattr(self, name) for name in self.names]

    def split(self, x: Tensor) -> list[Tensor]:
        """Each block's columns, [n, width], or [n] where its event is a number."""
        if x.shape[1:] != (self.n_features,):
            raise DataError(f"Product got a table of shape {tuple(x.shape)}; [n, {self.n_features}] is expected")
        pieces = zip(x.split(self.widths, 1), self.blocks(), strict=True)
        return [piece if getattr(family, "n_features", None) else piece[:, 0] for piece, family in pieces]

    def defaults(self) -> dict[str, Tensor]:
        """Those of the blocks."""
        return {f"{name}.{k}": v for name in self.names for k, v in getattr(self, name).defaults().items()}

    def values(self) -> dict[str, Tensor]:
        """Those of the blocks that have no prior."""
        own = {name: getattr(self, name) for name in self.names if getattr(self, name).prior is None}
        return {f"{name}.{k}": v for name, family in own.items() for k, v in family.values().items()}

    def fix(self, values: Mapping[str, Tensor]) -> None:
        """Give the blocks' parameters these values for good."""
        for name in self.names:
            getattr(self, name).fix(of_block(values, name))

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """The blocks' distributions side by side."""
        return Blocks([family.distribution(index) for family in self.blocks()], self.names)

    def adapt(self, parts: Parts) -> None:
        """Let every block adapt to its columns."""
        for number, family in enumerate(self.blocks()):
            family.adapt(_Columns(self, parts, number))

    def coordinates(self, x: Tensor) -> Tensor:
        """Those of the blocks side by side, each feature of the table with the same weight."""
        pieces = zip(self.blocks(), self.split(x), strict=True)
        return torch.cat([family.coordinates(piece) for family, piece in pieces], 1)

    def features(self, x: Tensor, *given: Tensor) -> list[Any]:
        """Those of the blocks."""
        return [family.features(piece) for family, piece in zip(self.blocks(), self.split(x), strict=True)]

    def kernel(self) -> "Kernels":
        """Those of the blocks."""
        return Kernels(self.names, [family.kernel() for family in self.blocks()])

    def log_density(self, expanded: Any) -> Tensor:
        """Sum over the blocks, [K, n]."""
        kernel = self.kernel()
        return kernel.log_density(kernel.expand(expanded))

    def expect(self, expanded: Any, r: Tensor) -> Sums:
        """The blocks' sums, as block.name, and N_k."""
        kernel = self.kernel()
        return kernel.expect(kernel.expand(expanded), r)

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """Every block's own update."""
        found: dict[str, Tensor] = {}
        for name in self.names:
            family, own = getattr(self, name), of_block(fixed, name)
            new = own if len(own) == len(family.constraints) else family.maximize(of_block(sums, name), estimate, own)
            found |= {f"{name}.{parameter}": value for parameter, value in new.items()}
        return found

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """Members that one of the blocks calls degenerate."""
        return torch.stack(
            [getattr(self, name).degenerate(of_block(sums, name), of_block(values, name)) for name in self.names]
        ).any(0) | super().degenerate(sums, values)

    def remarks(self) -> list[str]:
        """Those of the blocks."""
        return [f"block {name}: {remark}" for name in self.names for remark in getattr(self, name).remarks()]

    @property
    def saturated(self) -> int:
        """The most of any block that has no prior to hold it."""
        return max((family.saturated for family in self.blocks() if family.prior is None), default=0)

    @property
    def width(self) -> int:
        """Temporaries of all blocks."""
        return sum(family.width for family in self.blocks())


class Kernels:
    """One E-step of every block."""

    def __init__(self, names: tuple[str, ...], kernels: list[Any]) -> None:
        self.names, self.kernels = names, kernels

    def expand(self, features: list[Any]) -> list[Any]:
        """Those of the blocks."""
        return [kernel.expand(own) for kernel, own in zip(self.kernels, features, strict=True)]

    def log_density(self, expanded: list[Any]) -> Tensor:
        """Sum over the blocks, [K, n]."""
        return sum(kernel.log_density(own) for kernel, own in zip(self.kernels, expanded, strict=True))

    def expect(self, expanded: list[Any], r: Tensor) -> Sums:
        """The blocks' sums, as block.name, and N_k."""
        sums = {"count": r.sum(1)}
        for name, kernel, own in zip(self.names, self.kernels, expanded, strict=True):
            sums |= {f"{name}.{key}": value for key, value in kernel.expect(own, r).items()}
        return sums


class _Columns:
    """One block's columns of the data, that can be gone through again."""

    def __init__(self, product: Product, parts: Parts, number: int) -> None:
        self.product, self.parts, self.number = product, parts, number

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for x, *rest in self.parts:
            yield self.product.split(x)[self.number], *rest


def of_block(named: Mapping[str, Tensor], block: str) -> dict[str, Tensor]:
    """What is named block.something, as something."""
    start = f"{block}."
    return {name.removeprefix(start): value for name, value in named.items() if name.startswith(start)}
