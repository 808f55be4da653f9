"""A sum over blocks of data by several threads, each with one of torch's own: small matrices gain nothing from more."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from itertools import chain, islice
from typing import Generic, TypeVar

import torch

__all__ = ["Lanes", "lanes", "single_threaded"]

Item = TypeVar("Item")
Total = TypeVar("Total")

WAITING = 2
"""Blocks that may wait for each lane: the bound on what a stream holds in memory."""


@contextmanager
def single_threaded() -> Iterator[int]:
    """One thread for torch within the block, and the number there was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


class Lanes(Generic[Total]):
    """Threads that each add up every so-many-th item, so that the order of the additions never varies."""

    def __init__(self, count: int) -> None:
        self.pools = [ThreadPoolExecutor(1, initializer=_one_thread) for _ in range(count)]

    def sum(
        self,
        work: Callable[[Item], Total],
        items: Iterable[Item],
        add: Callable[[Total, Total], Total],
        nothing: Callable[[], Total],
    ) -> Total:
        """The sum of work(item) over the items; nothing() where there are none."""
        items = iter(items)
        some = list(islice(items, 2))
        if len(some) < 2:  # waking a thread costs more than a small block
            return work(some[0]) if some else nothing()
        waiting: deque[Future[Total]] = deque()
        totals: list[Total | None] = [None] * len(self.pools)
        number = 0

        def collect() -> None:
            lane = (number - len(waiting)) % len(self.pools)
            value, have = waiting.popleft().result(), totals[lane]
            totals[lane] = value if have is None else add(have, value)

        for item in chain(some, items):
            waiting.append(self.pools[number % len(self.pools)].submit(work, item))
            number += 1
            if len(waiting) > WAITING * len(self.pools):
                collect()
        while waiting:
            collect()
        found = [total for total in totals if total is not None]
        return reduce(add, found)


@contextmanager
def lanes(count: int) -> Iterator[Lanes]:
    """`count` threads that live within the block."""
    made: Lanes = Lanes(count)
    try:
        yield made
    finally:
        for pool in made.pools:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    # Responsibilities far from every datum are denormal numbers, a hundred times slower and worth nothing.
    torch.set_flush_denormal(True)
