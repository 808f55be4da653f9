"""The states of the random generators of torch, NumPy and Python: kept, given back, lent to a fit."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ppl_vae.alone import alone
from ppl_vae.errors import EngineError

__all__ = ["own_random", "random_state", "restore_random_state"]

Device = torch.device | str


def random_state(devices: Iterable[Device] | None = None) -> dict[str, Any]:
    """The state of every global generator, as a tree that a checkpoint can hold.

    Parameters
    ----------
    devices : sequence of device, optional
        CUDA devices whose generators count, others are passed over; by default all, once CUDA is in use.

    Examples
    --------
    >>> before = random_state()
    >>> x = torch.randn(3)
    >>> restore_random_state(before)
    >>> torch.equal(torch.randn(3), x)
    True
    """
    algorithm, keys, position, *gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, numbers, pending = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": {number: torch.cuda.get_rng_state(number) for number in _numbers(devices)},
        "numpy": [algorithm, torch.tensor(np.asarray(keys, np.int64)), position, *gauss],
        "python": [version, torch.tensor(numbers), pending],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator where `random_state` found it.

    Raises
    ------
    EngineError
        If the state is of CUDA devices that are not here.
    """
    missing = [number for number in state["cuda"] if number >= torch.cuda.device_count()]
    if missing:
        raise EngineError(
            f"the random state is that of CUDA device {missing[0]}, and there are {torch.cuda.device_count()} here; "
            "go on where that device is"
        )
    algorithm, keys, *rest = state["numpy"]
    version, numbers, pending = state["python"]
    np.random.set_state((algorithm, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate((version, tuple(numbers.tolist()), pending))
    for number, generator in state["cuda"].items():
        torch.cuda.set_rng_state(generator.cpu(), number)
    torch.set_rng_state(state["torch"].cpu())


@contextmanager
def own_random(seed: int, devices: Iterable[Device] = ()) -> Iterator[None]:
    """Every generator seeded within the block, and the user's states given back at its end.

    Parameters
    ----------
    seed : int
        The same for all generators.
    devices : sequence of device
        CUDA devices to seed beside the CPU; others are passed over.

    Examples
    --------
    >>> with own_random(0):
    ...     x = torch.randn(3)
    >>> with own_random(0):
    ...     torch.equal(torch.randn(3), x)
    True
    """
    chosen = list(devices)
    with alone():
        yield from _seeded(seed, chosen)


def _seeded(seed: int, chosen: list[Device]) -> Iterator[None]:
    before = random_state(chosen)
    try:
        torch.default_generator.manual_seed(seed)
        for number in before["cuda"]:
            torch.cuda.default_generators[number].manual_seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        restore_random_state(before)


def _numbers(devices: Iterable[Device] | None) -> list[int]:
    """The numbers of the CUDA devices among these."""
    if devices is None:
        return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    found = [torch.device(device) for device in devices]
    return sorted({one.index or 0 for one in found if one.type == "cuda"})
