"""Fewer channels: of one module, and of whole channel spaces of a network, in two ways that must agree.

:func:`shrink` puts smaller modules in; :func:`mask` keeps all shapes and sets to zero what belongs to the other
channels. What a masked network computes does not depend on the value its dropped channels take (an activation or
a normalisation may lift them off zero), because every layer that reads them reads them with weight zero.
"""

import numpy as np
import torch
from torch import nn

from decomp.modules.replace import set_module
from decomp.surgery.narrow_module import narrow_carrier, narrow_layer

# -- one module ------------------------------------------------------------------------------------------------


# -- a network -------------------------------------------------------------------------------------------------


def shrink(network, spaces, keep):
    """Put smaller modules in, so that some channel spaces have only their kept channels.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place; has the module paths that ``spaces`` was made from.
    spaces : decomp.graph.channel_spaces.Spaces
    keep : dict of str to sequence of int
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
    for path, role, reads, writes in _cuts(spaces, keep):
        module = network.get_submodule(path)
        # A side that keeps all may have been narrowed before, with another space.
        places = [None if stay.all() else torch.from_numpy(np.flatnonzero(stay)) for stay in (reads, writes)]
        if role == "carrier":
            set_module(network, path, narrow_carrier(module, places[0], len(reads)))
        else:
            set_module(network, path, narrow_layer(module, *places))
        changed.append(path)
    return changed


def mask(network, spaces, keep):
    """Keep all shapes and set to zero what belongs to the channels that :func:`shrink` drops.

    Parameters and errors as for :func:`shrink`. Returns the paths of the modules that were changed.
    """
    changed = []
    with torch.no_grad():
        for path, _, reads, writes in _cuts(spaces, keep):
            module = network.get_submodule(path)
            parts = list(module) if isinstance(module, nn.Sequential) else [module]
            _silence(parts[-1], torch.from_numpy(~writes))
            _deafen(parts[0], torch.from_numpy(~reads))
            changed.append(path)
    return changed


def _silence(module, dropped):
    """Output channels at zero, as far as weights and bias decide it."""
    for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
        if tensor is None:
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


def _deafen(module, dropped):
    """Input channels read with weight zero; groups are silent as a whole already."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        module.weight[:, dropped.to(module.weight.device)] = 0
    elif isinstance(module, nn.ConvTranspose2d):
        module.weight[dropped.to(module.weight.device)] = 0


def _cuts(spaces, keep):
    """(path, role, inputs that stay, outputs that stay) of every module that loses channels, each once."""
    alive, seen = spaces.alive(keep), set()
    for use in spaces.uses:
        reads, writes = alive[use.reads], alive[use.writes]
        if use.path not in seen and not (reads.all() and writes.all()):
            seen.add(use.path)
            yield use.path, use.role, reads, writes


def shrunk_macs(spaces, keep, per_layer):
    """Multiply-accumulates of a network whose spaces keep only some channels, by formula.

    Parameters
    ----------
    spaces : decomp.graph.channel_spaces.Spaces
    keep : dict of str to sequence of int
    per_layer : dict of str to int
        Counted on the network with all channels.

    Returns
    -------
    int
        A layer's cost goes with the channels it reads and with those it writes; a carrier's and a grouped layer's
        with its groups.
    """
    alive = spaces.alive(keep)
    total = sum(per_layer.values())
    for path in {use.path for use in spaces.uses}:
        use = spaces.use(path)
        reads, writes = alive[use.reads], alive[use.writes]
        if path not in per_layer or (reads.all() and writes.all()):
            continue
        macs = per_layer[path] * int(reads.sum()) // len(reads)
        if use.role == "layer" and not use.grouped:
            macs = macs * int(writes.sum()) // len(writes)
        total += macs - per_layer[path]
    return total
