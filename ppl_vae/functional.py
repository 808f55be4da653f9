"""A module called with other tensors in the place of its own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ppl_vae.errors import EngineError

__all__ = ["called_with"]


def called_with(module: nn.Module, tensors: Mapping[str, Tensor], *args: Any) -> Any:
    """module(*args) with these in the place of its parameters and buffers, wherever it holds them; then its own again.

    Of a module that is registered under two names torch's functional_call leaves the replacements behind: here every
    module has its tensors replaced once.

    Parameters
    ----------
    module : Module
        What is called.
    tensors : dict of Tensor
        By the names of `named_parameters` and `named_buffers`.

    Raises
    ------
    EngineError
        If a name is of none of these.

    Examples
    --------
    >>> import torch
    >>> tied = nn.Linear(2, 1, bias=False)
    >>> both = nn.ModuleList([tied, nn.Sequential(tied)])
    >>> both.forward = lambda x: both[1](both[0](x) * x)
    >>> called_with(both, {"0.weight": torch.ones(1, 2)}, torch.tensor([1.0, 2.0]))
    tensor([9.])
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if unknown := sorted(tensors.keys() - own.keys()):
        raise EngineError(f"{type(module).__name__} has no parameter or buffer {', '.join(unknown)}")
    given = {id(own[name]): tensor for name, tensor in tensors.items()}
    places = {
        f"{path}.{name}" if path else name: given[id(held)]
        for path, part in module.named_modules()
        for name, held in (*part._parameters.items(), *part._buffers.items())
        if id(held) in given
    }
    return functional_call(module, places, args, tie_weights=False)
