"""One way from any data to batches: memory, datasets, loaders, iterables, streams."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ppl_vae.alone import forked_rng
from ppl_vae.data import Stream
from ppl_vae.data.readers import Memory, starter
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import DataError, check_whole
from ppl_vae.infer.batch import Batch, Batches, Recipe
from ppl_vae.infer.loaders import Indexed, Loaded, begun, named
from ppl_vae.infer.processes import Share
from ppl_vae.infer.resident import Resident
from ppl_vae.infer.streamed import Streamed

__all__ = [
    "Batch",
    "Batches",
    "data_dtype",
    "example",
    "held",
    "in_memory",
    "index_needed",
    "make_batches",
    "size_needed",
]

ALONE = Share()


def make_batches(
    model: LatentVariableModel,
    data: Any,
    weights: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
    share: Share = ALONE,
    shuffle: bool = True,
) -> Batches:
    """The data of a fit as epochs of batches, checked against the model.

    Every batch of an epoch has the same number of rows: a short one is filled with other rows at weight zero. Which
    rows a batch has depends on the seed, the epoch and its place in the epoch only.

    Parameters
    ----------
    model : LatentVariableModel
        Whose nodes the data are for; batches are in its dtype and on its device.
    data : object
        - What fits in memory: a tensor, an array, a data frame, a Table, a mapping by name, a DynamicBinary. It is
          held on the model's device, and shuffled anew for every epoch.
        - A map-style torch Dataset of items: shuffled anew for every epoch, and collated by torch.
        - A torch DataLoader, or an IterableDataset with a batch_size.
        - Any iterable of batches that starts anew at every pass, a list of batches, or a generator function.
        - A Stream: its blocks in their order, shuffled within a block.

        A batch or item is a tensor, a mapping by name, or a sequence such as (x, label): observed nodes in the order of
        `model.graph()`, then inputs, further entries being left out.
    weights : Tensor, optional
        [n], for data whose rows have numbers: not for loaders and iterables.
    batch_size : int, optional
        Rows of a batch over all processes. None: all rows in one batch; of a stream a block; loaders and iterables
        bring their own.
    seed : int
        Of the shuffling.
    share : Share
        Which of the fit's processes this is: it gets every `world`-th row of each batch.
    shuffle : bool
        False for data to be gone over in their order, as for validation. Loaders and iterables have their own order.

    Raises
    ------
    DataError
        Data that are none of these or that do not fit the model; an iterator that can be read only once; weights or a
        batch size where there can be none; a batch larger than the first.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> gmm = pv.models.GaussianMixture(2, 1).double()
    >>> batches = make_batches(gmm, torch.arange(5.0), batch_size=2, seed=0)
    >>> batches.size, batches.total, batches.steps
    (5, 5.0, 3)
    >>> [(batch.obs.values["x"].shape, batch.weights.tolist()) for batch in batches.epoch(0)]
    [(torch.Size([2, 1]), [1.0, 1.0]), (torch.Size([2, 1]), [1.0, 1.0]), (torch.Size([2, 1]), [1.0, 0.0])]
    """
    if batch_size is not None:
        check_whole("batches", error=DataError, batch_size=batch_size)
    return _maker(data)(model, data, weights, Recipe(batch_size, seed, share, shuffle))


def in_memory(data: Any) -> bool:
    """Whether these are all rows at once, and no loader, stream, Dataset or iterable of batches.

    Examples
    --------
    >>> import torch
    >>> in_memory(torch.zeros(2, 3)), in_memory([torch.zeros(2, 3)])
    (True, False)
    """
    return _maker(data) is Resident


def example(data: Any) -> Any:
    """A first value of the data, whose dtype says in which one to compute: the data themselves, or their first batch.

    Examples
    --------
    >>> import torch
    >>> example([torch.zeros(2, 3)]).shape
    torch.Size([2, 3])
    """
    with forked_rng():
        return _first(_FIRSTS[_maker(data)](data))


def size_needed(batches: Batches) -> str:
    """What to say when a model with shared latents gets data whose number nobody knows."""
    return (
        f"{batches.name} does not say how many rows it has, and shared latents count once for all rows, so that each "
        "batch has its share of them: give a tensor, a Dataset, or pv.data.stream(...), which counts its rows"
    )


def index_needed(batches: Batches, latents: str) -> str:
    """What to say when latents with parameters for every datum get data whose rows have no numbers."""
    return (
        f"{batches.name} gives rows without their numbers, and {latents} has no posterior, so that every datum has "
        "parameters of its own: give a tensor, a Dataset or a pv.data.stream, or declare a posterior"
    )


# Kinds of data


def _is_iterable(data: Any) -> bool:
    """Batches, and no container of rows: of lists those of tensors, of sequences of tensors, and of mappings."""
    if isinstance(data, list | tuple):
        return bool(data) and isinstance(_first(data[0]), Tensor | Mapping)
    held = Memory.takes(data) or isinstance(data, Observations) or hasattr(data, "probabilities")
    return not held and not isinstance(data, str) and (isinstance(data, Iterable) or callable(data))


def _loaded(model: LatentVariableModel, data: Any, weights: Any, recipe: Recipe) -> Batches:
    if weights is not None:
        raise DataError(
            f"{named(data)}: weights [n] cannot be told apart in batches that come without numbers of rows; give a "
            "Dataset, a tensor or a pv.data.stream with weights"
        )
    return Loaded(model, data, starter(data, named(data)), recipe)


def _iterable_set(model: LatentVariableModel, data: Any, weights: Any, recipe: Recipe) -> Batches:
    if recipe.batch_size is None:
        raise DataError(f"{named(data)}: an IterableDataset gives single rows; say batch_size=")
    # The loader cuts the batches, of which the first may be short: a small set fills none.
    loader = DataLoader(data, batch_size=recipe.batch_size)
    return _loaded(model, loader, weights, replace(recipe, batch_size=None))


Maker = Callable[[LatentVariableModel, Any, Any, Recipe], Batches]

_KINDS: tuple[tuple[Callable[[Any], bool], Maker], ...] = (
    (lambda data: isinstance(data, Stream), Streamed),
    (lambda data: isinstance(data, DataLoader), _loaded),
    (lambda data: isinstance(data, IterableDataset), _iterable_set),
    (lambda data: isinstance(data, Dataset), Indexed),
    (_is_iterable, _loaded),
)

_FIRSTS: dict[Maker, Callable[[Any], Any]] = {
    Streamed: lambda data: next(iter(data)).values,
    _loaded: lambda data: begun(starter(data, named(data))(), data),
    _iterable_set: lambda data: begun(iter(data), data),
    Indexed: lambda data: data[0],
    Resident: lambda data: data,
}


def _maker(data: Any) -> Maker:
    return next((make for takes, make in _KINDS if takes(data)), Resident)


def _first(value: Any) -> Any:
    """The first entry of a sequence such as (x, label)."""
    pair = isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)
    return value[0] if pair else value


def held(batches: Batches) -> bool:
    """Whether all rows are in memory, as `batches.first`."""
    return len(batches.first) == batches.size


def data_dtype(data: Any, default: torch.dtype) -> torch.dtype:
    """Dtype of the first floating tensor or array in the data; data frames and tables are float64.

    Half precision is for keeping data, not for computing: there the model's own dtype is taken.
    """
    values = data.values() if isinstance(data, dict) else [data]
    for value in values:
        dtype: Any = getattr(getattr(value, "probabilities", value), "dtype", None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return dtype if dtype.itemsize >= 4 else default
        if getattr(dtype, "kind", None) == "f":
            return {2: default, 4: torch.float32}.get(dtype.itemsize, torch.float64)
        if dtype is None and not isinstance(value, list | tuple):
            return torch.float64
    return default
