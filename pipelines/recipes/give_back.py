"""Results in the form of the network that was given: its class, precision, memory layout, device and trainability."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from decomp.modules.replace import set_module

from ...data.formats import network_file
from ...data.plain_network import dtype_of


def in_class_of(model: nn.Module, path: Path) -> tuple[nn.Module, str]:
    """The network in the class of the original where that gives the same outputs, else the traced one and why.

    Parameters
    ----------
    model : torch.nn.Module
        The original; of a network that is a part of a bigger model, the bigger model.
    path : Path
        A network directory.

    Returns
    -------
    network : torch.nn.Module
    reason : str
        Why it is not in the class of the original; empty where it is.
    """
    network, cause = network_file.in_original_class(path, model)
    if network is not None:
        return network, ""
    part = network_file.read_structure(path).get("part")
    inner = model.get_submodule(part) if part else model
    alone = network_file.load(path, leaves_of=inner)
    reason = f"a traced network, not a {type(inner).__name__}: the layers do not go into that class ({cause})"
    if not part:
        return alone, reason
    whole = copy.deepcopy(model)
    set_module(whole, part, alone)
    return whole, f"{part} is {reason}"


def as_it_came(network: nn.Module, original: nn.Module) -> nn.Module:
    """The network in the precision, memory layout and trainability of the original, and on its device; in place.

    A parameter that the original has under the same name is trainable as it is there; one of a layer that became
    several, as any of that layer.
    """
    parameter = next(original.parameters(), None)
    network = network.to(device=None if parameter is None else parameter.device, dtype=dtype_of(original))
    if _is_channels_last(original):
        network = network.to(memory_format=torch.channels_last)
    trainable = {name: value.requires_grad for name, value in original.named_parameters()}
    for name, value in network.named_parameters():
        value.requires_grad_(_is_trainable(name, trainable))
    return network


def _is_channels_last(module: nn.Module) -> bool:
    """Whether every weight whose layout can be told has its channels last in memory."""
    weights = [value for value in module.parameters() if value.dim() == 4]
    told = [value for value in weights if value.is_contiguous() is not _has_channels_last(value)]
    return bool(told) and all(_has_channels_last(value) for value in told)


def _has_channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def _is_trainable(name: str, trainable: dict[str, bool]) -> bool:
    if name in trainable:
        return trainable[name]
    layer = name.rpartition(".")[0]
    while layer:
        of_layer = [value for other, value in trainable.items() if other.startswith(f"{layer}.")]
        if of_layer:
            return any(of_layer)
        layer = layer.rpartition(".")[0]
    return any(trainable.values())
