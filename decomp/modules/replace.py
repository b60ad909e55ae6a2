"""Exchange a module, or its parameters, at a path of a network."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Weighted = TypeVar("Weighted", nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.PReLU)


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at a path."""
    parent, _, name = path.rpartition(".")
    holder = root.get_submodule(parent) if parent else root
    if isinstance(holder, (nn.Sequential, nn.ModuleList)):
        holder[int(name) if name.isdigit() else list(holder._modules).index(name)] = module
    else:
        setattr(holder, name, module)


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
