"""Memory layout of weights: contiguous, or with the channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_last(weight: Tensor) -> bool | None:
    """Whether a weight of four axes has its channels last in memory; None where its shape leaves this open."""
    if weight.dim() != 4 or weight.is_contiguous() is weight.is_contiguous(memory_format=torch.channels_last):
        return None
    return weight.is_contiguous(memory_format=torch.channels_last)


def lay_out_like(new: nn.Module, old: nn.Module) -> nn.Module:
    """Put the weights of a module into the layout of those of another one, in place.

    Parameters
    ----------
    new : torch.nn.Module
        With contiguous weights.
    old : torch.nn.Module
        Decides where all of its weights, as far as their shapes tell, have their channels last.

    Returns
    -------
    torch.nn.Module
        `new`.
    """
    told = [answer for answer in map(channels_last, old.parameters()) if answer is not None]
    return new.to(memory_format=torch.channels_last) if told and all(told) else new


def lay_out_plainly(module: nn.Module) -> None:
    """Make all parameters and buffers contiguous, in place."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()
