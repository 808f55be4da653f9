"""Tensors that a program takes from around it: buffers, frozen weights, whatever it has enclosed."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Around", "around_kept", "values_kept"]


class Around(TorchFunctionMode):
    """Within the block every tensor that operations take and none of them made is noted, with its value.

    Parameters
    ----------
    given : iterable of Tensor
        Arguments of the programs, which are not noted.

    Attributes
    ----------
    taken : list of Tensor
        Those of floating dtype, after the block.
    changed : list of Tensor
        Those of any dtype that the programs changed, as batch normalisation its running statistics, after the block.
    buffers : list of Tensor
        The floating buffers of modules that were called.
    """

    def __init__(self, given: Iterable[Any] = ()) -> None:
        super().__init__()
        self.given = {id(one) for one in given}
        self.made: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        self.before: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.modules: set[int] = set()
        self.buffers: list[Tensor] = []
        self.taken: list[Tensor] = []
        self.changed: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation itself."""
        if getattr(func, "__name__", "") != "__get__":  # a shape or a dtype, say
            for one in _tensors([*args, *(kwargs or {}).values()]):
                self.meet(one)
        result = func(*args, **(kwargs or {}))
        for one in _tensors([result]):
            if id(one) not in self.before:
                self.made[id(one)] = one
        return result

    def meet(self, tensor: Tensor) -> None:
        """Note a tensor that an operation takes, before it is changed."""
        key = id(tensor)
        if key in self.before or key in self.given or self.made.get(key) is tensor or not _is_ordinary(tensor):
            return
        self.before[key] = tensor, None if tensor.requires_grad else tensor.clone()

    def look(self, module: nn.Module, _: Any) -> None:
        """Note the buffers of a module that is called: within TorchScript no operation shows them."""
        if id(module) not in self.modules:
            self.modules.add(id(module))
            found = {id(b): b for b in self.buffers}
            for b in module.buffers():
                self.meet(b)
                if b.is_floating_point() and id(b) in self.before:
                    found[id(b)] = b
            self.buffers = list(found.values())

    def put_back(self) -> None:
        """Give what was changed the values from before."""
        for tensor, value in self.before.values():
            if value is not None and not torch.equal(tensor, value):
                tensor.copy_(value)
                self.changed.append(tensor)
        floating = [weakref.ref(t) for t, _ in self.before.values() if t.is_floating_point()]
        self.before = {}
        # What an operation of C++ made on the way is gone by now.
        self.taken = [alive for alive in (one() for one in floating) if alive is not None]


@contextmanager
def around_kept(given: Iterable[Any] = ()) -> Iterator[Around]:
    """Run programs and leave what is around them as it was; what they took is known afterwards."""
    around = Around(given)
    hook = nn.modules.module.register_module_forward_pre_hook(around.look)
    try:
        with around:
            yield around
    finally:
        hook.remove()
        with torch.no_grad():
            around.put_back()


@contextmanager
def values_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put back the values that these tensors had before the block."""
    before = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in before:
            tensor.copy_(value)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from _tensors(value)


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor may outlive the operations: no result with a gradient, none of a transform such as vmap."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and tensor.grad_fn is None and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
