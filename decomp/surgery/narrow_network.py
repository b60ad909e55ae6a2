"""Remove channels of whole channel spaces from a network, in two ways that must agree.

:func:`shrink` puts smaller modules in; :func:`mask` keeps all shapes and sets to zero the weights of the other
channels. The output of a masked network does not depend on the values of its dropped channels (an activation or a
normalisation may shift them from zero), because every layer that reads them has zero weights for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from decomp.graph.channel_numbers import Use
from decomp.graph.channel_spaces import Spaces
from decomp.modules.replace import set_module
from decomp.surgery.narrow_module import narrow_carrier, narrow_layer

BoolArray = npt.NDArray[np.bool_]


def shrink(network: nn.Module, spaces: Spaces, keep: Mapping[str, Iterable[int]]) -> list[str]:
    """Put smaller modules in, so that some channel spaces have only their kept channels.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place; has the module paths that ``spaces`` was made from.
    spaces : decomp.graph.channel_spaces.Spaces
    keep : mapping of str to iterable of int
        For each space to be narrowed, ascending places of the channels that stay.

    Returns
    -------
    list of str
        Paths of the modules that were exchanged.

    Raises
    ------
    DecompError
        For a frozen space, or places that it does not have.
    """
    changed = []
    for use, reads, writes in narrowed_uses(spaces, keep):
        module = network.get_submodule(use.path)
        if use.role == "carrier":
            narrow = narrow_carrier(module, torch.from_numpy(np.flatnonzero(reads)), len(reads))
        else:
            # A side that keeps all may have been narrowed before, with another space.
            sides = [None if stay.all() else torch.from_numpy(np.flatnonzero(stay)) for stay in (reads, writes)]
            narrow = narrow_layer(module, *sides)
        set_module(network, use.path, narrow)
        changed.append(use.path)
    return changed


def mask(network: nn.Module, spaces: Spaces, keep: Mapping[str, Iterable[int]]) -> list[str]:
    """Keep all shapes and set to zero what belongs to the channels that :func:`shrink` drops.

    Parameters and errors as for :func:`shrink`. Returns the paths of the modules that were changed.
    """
    changed = []
    with torch.no_grad():
        for use, reads, writes in narrowed_uses(spaces, keep):
            module = network.get_submodule(use.path)
            parts = list(module) if isinstance(module, nn.Sequential) else [module]
            _zero_output_channels(parts[-1], torch.from_numpy(~writes))
            _zero_input_channels(parts[0], torch.from_numpy(~reads))
            changed.append(use.path)
    return changed


def _zero_output_channels(module: nn.Module, dropped: torch.Tensor) -> None:
    """Set weights and bias of output channels to zero."""
    for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
        if not isinstance(tensor, torch.Tensor):
            continue
        if isinstance(module, nn.ConvTranspose2d) and tensor.dim() > 1:
            per_out = module.out_channels // module.groups
            if module.groups == 1:
                tensor[:, dropped.to(tensor.device)] = 0
            else:
                groups = dropped.view(module.groups, per_out).all(dim=1)
                tensor[groups.repeat_interleave(module.in_channels // module.groups).to(tensor.device)] = 0
        else:
            tensor[dropped.to(tensor.device)] = 0


def _zero_input_channels(module: nn.Module, dropped: torch.Tensor) -> None:
    """Set the weights of input channels to zero; of a grouped convolution whole groups are zero already."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        module.weight[:, dropped.to(module.weight.device)] = 0
    elif isinstance(module, nn.ConvTranspose2d):
        module.weight[dropped.to(module.weight.device)] = 0


def narrowed_uses(spaces: Spaces, keep: Mapping[str, Iterable[int]]) -> Iterator[tuple[Use, BoolArray, BoolArray]]:
    """Every module that loses channels, once: its call, and whether each of its inputs and outputs stays.

    Parameters and errors as for :func:`shrink`.
    """
    alive, seen = spaces.alive(keep), set()
    for use in spaces.uses:
        reads, writes = alive[use.reads], alive[use.writes]
        if use.path not in seen and not (reads.all() and writes.all()):
            seen.add(use.path)
            yield use, reads, writes


def shrunk_macs(spaces: Spaces, keep: Mapping[str, Iterable[int]], per_layer: Mapping[str, int]) -> int:
    """Multiply-accumulates of a network whose spaces keep only some channels, by formula.

    Parameters
    ----------
    spaces : decomp.graph.channel_spaces.Spaces
    keep : mapping of str to iterable of int
    per_layer : mapping of str to int
        Counted on the network with all channels.

    Returns
    -------
    int
        A layer's cost is proportional to the channels it reads and to those it writes; a carrier's and a grouped
        layer's to the number of its groups.
    """
    total = sum(per_layer.values())
    for use, reads, writes in narrowed_uses(spaces, keep):
        if use.path not in per_layer:
            continue
        macs = per_layer[use.path] * int(reads.sum()) // len(reads)
        if use.role == "layer" and not use.grouped:
            macs = macs * int(writes.sum()) // len(writes)
        total += macs - per_layer[use.path]
    return total


def shrunk_params(
    network: nn.Module, spaces: Spaces, keep: Mapping[str, Iterable[int]], *, without: Collection[str] = ()
) -> int:
    """Parameters of a network whose spaces keep only some channels, by formula.

    Parameters
    ----------
    network : torch.nn.Module
        With all channels; it is not changed.
    spaces : decomp.graph.channel_spaces.Spaces
    keep : mapping of str to iterable of int
    without : collection of str
        Paths of modules that do not count.

    Returns
    -------
    int
        Each parameter counts once. One that several modules share counts for each of them that is narrowed, since
        each gets its own part of it.
    """
    total, changed = 0, [network.get_submodule(path) for path in without]
    for use, reads, writes in narrowed_uses(spaces, keep):
        if use.path in without:
            continue
        module = network.get_submodule(use.path)
        changed.append(module)
        parts = list(module) if isinstance(module, nn.Sequential) else [module]
        total += sum(
            _narrowed_size(
                parameter.numel(),
                # A bias and the numbers of a carrier go with the outputs alone.
                reads if part is parts[0] and parameter.dim() > 1 and use.role == "layer" and not use.grouped else None,
                writes if part is parts[-1] else None,
            )
            for part in parts
            for parameter in part.parameters()
        )
    inside = {id(part) for module in changed for part in module.modules()}
    whole = {
        id(parameter): parameter.numel()
        for module in network.modules()
        if id(module) not in inside
        for parameter in module.parameters(recurse=False)
    }
    return total + sum(whole.values())


def _narrowed_size(size: int, reads: BoolArray | None, writes: BoolArray | None) -> int:
    """Entries of a tensor that has an axis of inputs, of outputs or both when only some of them stay."""
    for stay in (reads, writes):
        if stay is not None and size > 1:  # a PReLU may have one number for all channels
            size = size * int(stay.sum()) // len(stay)
    return size
