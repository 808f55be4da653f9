"""Networks that compute in half precision, among nodes and densities that do not."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_map

from ppl_vae.families import Family

__all__ = ["PRECISIONS", "short_products"]


@contextmanager
def short_products(kind: str, dtype: torch.dtype) -> Iterator[None]:
    """Within the block networks take matrix products in `dtype`, on this kind of device, and give float32.

    A network is a module that is called and whose output is tensors; within it torch's autocast decides. Families
    of distributions, and all that is computed outside modules, stay as they are.

    Parameters
    ----------
    kind : str
        Such as "cpu" or "cuda".
    dtype : torch.dtype
        bfloat16.

    Examples
    --------
    >>> net, x = nn.Linear(3, 2), torch.ones(5, 3)
    >>> full = net(x)
    >>> with short_products("cpu", torch.bfloat16):
    ...     found = net(x)
    >>> found.dtype, torch.equal(found, full), torch.allclose(found, full, atol=0.02)
    (torch.float32, False, True)
    """
    short = torch.autocast(kind, dtype=dtype)
    depth = 0  # a network's own modules are called within it
    here = get_ident()  # the hooks are those of all modules, in all threads

    def aside(module: nn.Module) -> bool:
        return isinstance(module, Family) or get_ident() != here

    def before(module: nn.Module, given: Any) -> None:
        nonlocal depth
        if aside(module):
            return
        if not depth:
            short.__enter__()
        depth += 1

    def after(module: nn.Module, given: Any, found: Any) -> Any:
        nonlocal depth
        if aside(module):
            return None
        depth -= 1
        if depth:
            return None
        short.__exit__(None, None, None)
        return tree_map(widened, found)

    def widened(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == dtype else leaf

    hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


PRECISIONS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "full": lambda kind: nullcontext(),
    "bf16": lambda kind: short_products(kind, torch.bfloat16),
}
"""How networks compute matrix products, by name."""
