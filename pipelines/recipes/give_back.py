"""Results in the form of the network that was given: its class, precision, memory layout, device and trainability."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from decomp.modules.layout import channels_last
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

    A parameter that the original has under the same name is trainable and laid out as it is there. One of a layer that
    became several is trainable as any of that layer, and has its channels last where all of that layer have.
    """
    parameter = next(original.parameters(), None)
    network = network.to(device=None if parameter is None else parameter.device, dtype=dtype_of(original))
    trainable = {name: value.requires_grad for name, value in original.named_parameters()}
    layouts = {name: channels_last(value) for name, value in original.named_parameters()}
    told = {name: answer for name, answer in layouts.items() if answer is not None}
    for name, value in network.named_parameters():
        value.requires_grad_(any(_of_layer(name, trainable)))
        of_layer = _of_layer(name, told)
        if value.dim() == 4 and of_layer and all(of_layer):
            value.data = value.data.contiguous(memory_format=torch.channels_last)
    return network


def _of_layer(name: str, values: Mapping[str, bool]) -> list[bool]:
    """What is known of a parameter: its own value, or those of the innermost module around it that has some."""
    if name in values:
        return [values[name]]
    layer = name.rpartition(".")[0]
    while layer:
        of_layer = [value for other, value in values.items() if other.startswith(f"{layer}.")]
        if of_layer:
            return of_layer
        layer = layer.rpartition(".")[0]
    return list(values.values())
