"""Exchange a module, or its parameters, at a path of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

Weighted = TypeVar("Weighted", nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.PReLU)


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at a path.

    A network may hold one module under several names, and in lists, tuples or dicts that torch does not know of. The
    module is exchanged in all of them: otherwise a forward pass that reads another of them would still run the old one.

    Raises
    ------
    AttributeError
        There is no module at the path.
    """
    set_modules(root, {path: module})


def set_modules(root: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """The same for several modules, none of which lies within another, in one pass over the network."""
    new = {id(root.get_submodule(path)): module for path, module in modules.items()}
    # A new module may hold the old one, so all holders are found before the first exchange.
    for holder in list(root.modules()):
        _exchange_within(holder._modules, new, set())
        _exchange_within(vars(holder), new, {id(holder._modules)})


def _exchange_within(holder: Any, new: Mapping[int, nn.Module], seen: set[int]) -> Any:
    """Exchange modules, by identity, in a dict or list, in place, and in what these hold; a tuple is made anew.

    Returns
    -------
    object
        What stands for `holder` afterwards: the new module, the new tuple, or `holder` itself.
    """
    if id(holder) in new:
        return new[id(holder)]
    if not isinstance(holder, (dict, list, tuple)) or id(holder) in seen:
        return holder
    seen.add(id(holder))
    items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
    changed = {key: value for key, item in items if (value := _exchange_within(item, new, seen)) is not item}
    if isinstance(holder, tuple):
        return tuple(changed.get(key, item) for key, item in items) if changed and type(holder) is tuple else holder
    for key, value in changed.items():
        holder[key] = value
    return holder


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer with copies of a weight (n, p) and a bias (n,) or None."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return with_parameters(module, weight, bias)


def with_parameters(module: Weighted, weight: torch.Tensor, bias: torch.Tensor | None) -> Weighted:
    """The module with copies of a weight and a bias as its parameters."""
    module.weight = nn.Parameter(weight.detach().clone().contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone().contiguous())
    return module
