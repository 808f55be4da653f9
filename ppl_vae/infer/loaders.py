"""Data that come piece by piece as batches: datasets, loaders and iterables."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from ppl_vae.data.readers import only_once
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.identity import fingerprint
from ppl_vae.errors import DataError
from ppl_vae.infer.batch import Batch, Intake, Recipe, ahead, order_of, seed_of, shared_rows, taken
from ppl_vae.infer.weights import check_weights

__all__ = ["BEFORE", "DRAWN", "Indexed", "Loaded", "Pieces", "begun", "named", "place"]

SOME = 256
"""Items of a Dataset that are looked at before a fit."""
SAMPLE = 4096
"""Rows that are drawn to tell units and starts, at most."""
NUMBERS = 1 << 25
"""Numbers in these rows, at most (128 MB), for images too."""
BEFORE = -1
"""In place of an epoch in the seed of these rows."""
DRAWN = "rows drawn before the first epoch"
"""What these rows are, for messages."""


def named(data: Any) -> str:
    """What the data are, for messages."""
    inner = _set_of(data)
    kind = type(data).__name__ if not callable(data) else getattr(data, "__name__", type(data).__name__)
    return kind if inner is None else f"{kind} of {type(inner).__name__}"


def begun(batches: Iterator[Any], data: Any) -> Any:
    """The first batch of a pass over these data.

    Raises
    ------
    DataError
        If there is none.
    """
    for first in batches:
        return first
    dropped = " (drop_last leaves out what does not fill a batch)" if getattr(data, "drop_last", False) else ""
    raise DataError(f"{named(data)}: there is no batch{dropped}; at least one with 1 row is needed")


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let what draws from torch's default generator draw from this one instead."""
    default = torch.default_generator
    outer = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(outer)


class Pieces:
    """What batches of every such kind share: the recipe, the first batch, the given weights.

    Parameters
    ----------
    model : LatentVariableModel
        Whose nodes the data are for.
    data : object
        A Dataset, a loader, an iterable or a Stream.
    first : object
        Its first batch.
    recipe : Recipe
        Batch size, seed, share and whether to shuffle.
    """

    def __init__(self, model: LatentVariableModel, data: Any, first: Any, recipe: Recipe) -> None:
        self.data, self.recipe, self.name = data, recipe, named(data)
        self.device = model.like.device
        self.intake = Intake(model, first, self.name)
        self.first = self.intake.first
        self.batch_size = len(self.first)
        self.all_weights: Tensor | None = None

    @property
    def size(self) -> int | None:
        """Rows of the data set, None where nobody knows."""
        raise NotImplementedError

    @property
    def weights(self) -> Tensor | None:
        """Weights of the first rows, None for ones."""
        return None if self.all_weights is None else self.all_weights[: len(self.first)].to(self.intake.model.like)

    @property
    def total(self) -> float | None:
        """Sum of the weights, None where nobody knows."""
        if self.all_weights is not None:
            return float(self.all_weights.sum())
        return None if self.size is None else float(self.size)

    def sample(self) -> tuple[Observations, Tensor | None]:
        """Rows that tell units and starts, with their weights: the first ones, where no others can be drawn."""
        return self.first, self.weights

    def most(self) -> int:
        """Rows that `sample` has at most: no fewer than the first ones, which are in memory."""
        width = sum(value[0].numel() for value in self.first.values.values() if isinstance(value, Tensor))
        return max(len(self.first), min(SAMPLE, NUMBERS // max(width, 1)))

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Epoch `number` from its batch `start` on."""
        return ahead(self.drawn(number, start), self.device)

    def drawn(self, number: int, start: int) -> Iterator[Batch]:
        """The batches, each prepared when it is asked for."""
        raise NotImplementedError

    def own_rows(self) -> int:
        """Rows of a batch in this process."""
        return -(-self.batch_size // self.recipe.share.world)

    def fingerprint(self) -> str:
        """What tells these data from others without reading them all: kind, rows, and the first batch's numbers."""
        rows = {name: (str(v.dtype), tuple(v.shape[1:])) for name, v in self.first.values.items()}
        numbers = fingerprint({**self.first.values, "weights": self.all_weights})
        return f"{self.name}, {self.size} rows, batches of {self.batch_size}, {rows}, {numbers}"


class Indexed(Pieces):
    """Batches of a map-style Dataset: items in an order of our own, collated by torch.

    What an item draws from torch's default generator depends on the seed, the epoch and the batch only.
    """

    exact = indexed = True

    def __init__(self, model: LatentVariableModel, data: Any, weights: Any, recipe: Recipe) -> None:
        count = len(data)
        if not count:
            raise DataError(f"{named(data)}: the data set has no rows; at least 1 is needed")
        size = min(recipe.batch_size or count, count)
        self.count, self.steps = count, -(-count // size)
        few = next(_collated(data, [torch.arange(min(size, SOME))], [seed_of(recipe.seed)], model.like.device))
        super().__init__(model, data, few, recipe)
        self.batch_size = size
        self.all_weights = None if weights is None else check_weights(weights, count)

    @property
    def size(self) -> int:
        """Items of the data set."""
        return self.count

    def sample(self) -> tuple[Observations, Tensor | None]:
        """Items drawn without replacement from those that count, in their order; the same for one seed."""
        if len(self.first) == self.count:
            return super().sample()
        counted = torch.arange(self.count) if self.all_weights is None else self.all_weights.nonzero()[:, 0]
        shuffle = len(counted) > self.most()
        rows = counted[order_of(len(counted), shuffle, self.recipe.seed, BEFORE)[: self.most()]].sort().values
        items = next(_collated(self.data, [rows], [seed_of(self.recipe.seed, BEFORE)], self.device))
        obs = self.intake.observe(items, DRAWN, rows)
        return obs, None if self.all_weights is None else self.all_weights[rows].to(self.intake.model.like)

    def drawn(self, number: int, start: int) -> Iterator[Batch]:
        """The batches, each prepared when it is asked for."""
        recipe = self.recipe
        order = order_of(self.count, recipe.shuffle and self.steps > 1, recipe.seed, number)
        rows, real = shared_rows(order, self.batch_size, recipe.share)
        wanted = list(rows[start:])
        seeds = (seed_of(recipe.seed, number, step, recipe.share.rank) for step in range(start, self.steps))
        for step, items in enumerate(_collated(self.data, wanted, seeds, self.device), start):
            obs, own = self.intake.observe(items, place(number, step)), wanted[step - start]
            weights = None if self.all_weights is None else self.all_weights[own]
            yield self.intake.weighed(obs, weights, own, real[step])


def _collated(data: Dataset[Any], rows: Iterable[Tensor], seeds: Iterable[int], device: torch.device) -> Iterator[Any]:
    """Batches of a Dataset's items by torch's loader in this process, each drawn from a seed of its own."""
    own = torch.Generator()
    loader = DataLoader(data, batch_sampler=(r.tolist() for r in rows), pin_memory=device.type == "cuda")
    with drawing_from(own):
        batches = iter(loader)
    for seed in seeds:
        with drawing_from(own.manual_seed(seed)):
            items = next(batches)
        yield items


class Loaded(Pieces):
    """Batches of a DataLoader, or of any iterable that gives its batches anew at every pass.

    A pass draws from generators that are seeded with the seed and the epoch; to start in the middle of an epoch the
    batches before are drawn again and thrown away.
    """

    exact = indexed = False

    def __init__(
        self, model: LatentVariableModel, data: Any, start: Callable[[], Iterator[Any]], recipe: Recipe
    ) -> None:
        if isinstance(getattr(data, "sampler", None), DistributedSampler):
            raise DataError(
                f"{named(data)}: a DistributedSampler gives each process other batches; leave it out: every batch is "
                "shared out to the processes here"
            )
        self.start, self.last = start, iter(())
        self.recipe, self.data = recipe, data
        super().__init__(model, data, begun(self._pass(0), data), recipe)
        if recipe.batch_size not in (None, self.batch_size):
            raise DataError(
                f"{self.name}: its batches have {self.batch_size} rows, and batch_size={recipe.batch_size} was given; "
                "leave batch_size out, or give a Dataset, which is cut into batches here"
            )

    @cached_property
    def steps(self) -> int | None:
        """Batches of an epoch, None where nobody knows."""
        known = isinstance(self.data, list | tuple | DataLoader)
        # A loader of an iterable data set only guesses its length.
        return len(self.data) if known and not isinstance(_set_of(self.data), IterableDataset) else None

    @cached_property
    def size(self) -> int | None:
        """Rows that the sampler goes over; of a list of batches their sum; None of other iterables."""
        for known in (getattr(self.data, "sampler", None), _set_of(self.data)):
            if isinstance(known, Sized):
                return len(known)
        return sum(map(_length, self.data)) if isinstance(self.data, list | tuple) else None

    def drawn(self, number: int, start: int) -> Iterator[Batch]:
        """The batches, each prepared when it is asked for."""
        step = -1
        for step, batch in enumerate(self._pass(number)):
            if step >= start:
                yield self._share(self.intake.observe(batch, place(number, step)), place(number, step))
        if step + 1 < max(start, 1):
            raise DataError(
                f"{self.name}: epoch {number} has only {step + 1} batches, and batch {start} was asked for; the data "
                "must be the same whenever they are gone over"
            )

    def _share(self, obs: Observations, place: str) -> Batch:
        count = len(obs)
        if count > self.batch_size:
            raise DataError(
                f"{self.name}, {place}: a batch of {count} rows, and the first one has {self.batch_size}, which all "
                "others are filled up to; make the first batch the largest, or give pv.data.stream(...) of this "
                "iterable, which cuts batches of one size"
            )
        obs = self.intake.filled(obs, self.batch_size)
        ((rows,), (own,)) = shared_rows(torch.arange(self.batch_size), self.batch_size, self.recipe.share)
        if self.recipe.share.world > 1:
            obs = taken(obs, rows.to(self.device))
        return self.intake.weighed(obs, None, None, int((rows[:own] < count).sum()))

    def _pass(self, number: int) -> Iterator[Any]:
        """One pass over the batches, with generators seeded by the epoch."""
        seed = seed_of(self.recipe.seed, number)
        sampler = getattr(self.data, "sampler", None)
        for owner in (self.data, sampler, getattr(self.data, "batch_sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                generator.manual_seed(seed)
        own = torch.Generator().manual_seed(seed)
        with drawing_from(own):
            batches = iter(self.start())
        if not isinstance(self.data, DataLoader):  # whose iterator may be one that it resets
            if batches is self.last:
                raise only_once(named(self.data))
            self.last = batches
        while True:
            with drawing_from(own):
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch


_END = object()


def _set_of(loader: Any) -> Any:
    return getattr(loader, "dataset", None)


def place(number: int, step: int) -> str:
    """Which batch, for messages."""
    return f"epoch {number}, batch {step}"


def _length(batch: Any) -> int:
    """Rows of a batch: of its first entry where it has several."""
    while isinstance(batch, dict | list | tuple):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)
