"""Several processes started by torchrun: each sums its share of the blocks, and the sums are added over all."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ppl_vae.errors import EngineError

__all__ = ["LostError", "Share", "joined", "mapped"]

Tree = TypeVar("Tree")
"""A tensor, or a mapping or sequence of such trees."""

TIMEOUT = timedelta(minutes=5)
"""How long a process waits for the others: longer than their slowest pass over the data may differ from its own."""


CPU = torch.device("cpu")


class LostError(EngineError):
    """Another process has ended or does not answer."""


@dataclass(frozen=True)
class Share:
    """One of the `world` processes of a fit: the blocks i with i % world == rank are its own.

    All processes must call its methods in the same order. With one process they cost nothing.

    Parameters
    ----------
    rank, world : int
        This process, and how many there are.
    device : torch.device
        Where the group of processes adds.

    Examples
    --------
    >>> Share().sum({"a": torch.ones(2)})
    {'a': tensor([1., 1.])}
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this is the process that shows progress and writes files."""
        return self.rank == 0

    def sum(self, tree: Tree) -> Tree:
        """Every tensor summed over the processes, all of them in one float64 message.

        Raises
        ------
        LostError
            If a process has ended or is silent for longer than the group's timeout.
        """
        if self.world == 1:
            return tree
        leaves = list(_leaves(tree))
        flat = torch.cat([leaf.detach().reshape(-1).to(self.device, torch.float64) for leaf in leaves])
        with _told():
            dist.all_reduce(flat)
        parts = flat.split([leaf.numel() for leaf in leaves])
        summed = (part.view(leaf.shape).to(leaf) for part, leaf in zip(parts, leaves, strict=True))
        return mapped(tree, lambda _: next(summed))

    def add(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of one dtype summed over the processes, in one message of that dtype: gradients.

        Raises
        ------
        LostError
            As in `sum`.
        """
        if self.world == 1:
            return tensors
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self.device)
        with _told():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape).to(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def same(self, tree: Tree) -> Tree:
        """The first process's tensors, in every process."""
        return self.sum(tree if self.leads else mapped(tree, torch.zeros_like))

    def stacked(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, [world, ...]."""
        table = tensor.new_zeros(self.world, *tensor.shape)
        table[self.rank] = tensor
        return self.sum(table)

    def agree(self, what: str, content: Any) -> None:
        """Refuse to go on when a process has other content, JSON, than the first one.

        Raises
        ------
        EngineError
            In every process, naming those that differ, and in what.
        """
        leaves = dict(_by_name(content))
        found = self.stacked(torch.tensor([_digest(content), len(leaves)], dtype=torch.float64))
        others = (found[:, 0] != found[0, 0]).nonzero().flatten().tolist()
        if others:
            where = self._where(leaves) if bool((found[:, 1] == found[0, 1]).all()) else ""
            raise EngineError(
                f"{what} of process {', '.join(map(str, others))} differs from that of process 0{where}; every process "
                "must run the same script on all of the data: the engine shares the data out"
            )

    def _where(self, leaves: Mapping[str, Any]) -> str:
        """In words, the names under which processes with as many names each have different values."""
        parts = self.stacked(torch.tensor([_digest(leaf) for leaf in leaves.items()], dtype=torch.float64))
        same = (parts == parts[0]).all(0).tolist()
        names = [name for name, alike in zip(leaves, same, strict=True) if name and not alike]
        return f" in {', '.join(names)}" if names else ""

    def place(self, device: torch.device) -> torch.device:
        """Give a process its own GPU where a script, the same for all, asks for one; `device` otherwise."""
        if device.type != "cuda" or self.world == 1 or "LOCAL_RANK" not in os.environ:
            return device
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def _by_name(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What is no mapping within nested mappings, with the names that lead there."""
    if not isinstance(content, dict):
        yield name, content
        return
    for key, value in content.items():
        yield from _by_name(value, f"{name}.{key}" if name else key)


def _digest(content: Any) -> int:
    """48 bits, which float64 holds exactly."""
    return int.from_bytes(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()[:6])


@contextmanager
def joined(device: torch.device) -> Iterator[Share]:
    """Share a fit on `device` with the group that there is, else with torchrun's processes in a group made for it.

    A group made here is put away at the end. It adds on the CPU, where a peer that ends is an error in the others;
    NCCL would end them without a word.
    """
    if dist.is_available() and dist.is_initialized():
        on_cpu = "gloo" in dist.get_backend_config() or "mpi" in dist.get_backend_config()
        yield Share(dist.get_rank(), dist.get_world_size(), CPU if on_cpu else device)
        return
    rank, world = os.environ.get("RANK"), int(os.environ.get("WORLD_SIZE", "1"))
    if rank is None or world == 1:
        yield Share()
        return
    store, number = _meeting_place()
    with _told():
        # torchrun starts lost processes again at the same store, which remembers the addresses of the lost ones.
        name = f"ppl_vae/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(number)}"
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(name, store), rank=int(rank), world_size=world, timeout=TIMEOUT
        )
    try:
        yield Share(int(rank), world)
    finally:
        dist.destroy_process_group()


@cache
def _meeting_place() -> tuple[Any, Iterator[int]]:
    """The store where torchrun's processes find each other, which can be opened once, and the numbers of its groups."""
    with _told():
        return next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))[0], count()


@contextmanager
def _told() -> Iterator[None]:
    """What torch says of a broken group, as `LostError`, without its source files and its advice."""
    try:
        yield
    except RuntimeError as error:
        first = re.sub(r"^(\[.*?\] )?(.*?)(\. .*)?$", r"\2", str(error).strip().splitlines()[0])
        raise LostError(f"another process has ended or does not answer ({first})") from error


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
        return
    for part in tree.values() if isinstance(tree, Mapping) else tree:
        yield from _leaves(part)


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tree with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: mapped(part, change) for name, part in tree.items()}
    return [mapped(part, change) for part in tree]
