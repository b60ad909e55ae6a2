"""Put layers with masks into a network, which compute what smaller layers would.

Unlike :func:`decomp.surgery.narrow_network.mask`, which sets weights to zero once, this leaves the weights as they are,
and what is masked stays zero when the network is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import nn

from decomp.errors import DecompError
from decomp.graph.channel_spaces import Spaces
from decomp.modules.masked import MaskedConv2d, MaskedLinear, set_masks
from decomp.modules.replace import set_module
from decomp.surgery.narrow_network import narrowed_uses


def put_masks(network: nn.Module, spaces: Spaces, keep: Mapping[str, Iterable[int]]) -> list[str]:
    """Exchange convolutions and linear layers that lose channels for masked ones, in place.

    Normalisations and other carriers stay: no layer reads what they make of dropped channels.

    Parameters
    ----------
    network : torch.nn.Module
        Has the module paths that ``spaces`` was made from. Its parameters stay the same objects.
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
        For a frozen space, places that it does not have, or a layer of another class.
    """
    found = [(use, reads, writes) for use, reads, writes in narrowed_uses(spaces, keep) if use.role == "layer"]
    changed: dict[str, MaskedLinear | MaskedConv2d] = {}
    for use, reads, writes in found:
        layer = network.get_submodule(use.path)
        masked: MaskedLinear | MaskedConv2d
        if type(layer) is nn.Linear:
            masked = MaskedLinear.of(layer)
        elif type(layer) is nn.Conv2d and layer.groups == 1:
            masked = MaskedConv2d.of(layer)
        else:
            kind = type(layer).__name__ + (" of several groups" if use.grouped else "")
            raise DecompError(
                use.path, f"a {kind} has no masked form", fix="keep all channels that it reads and writes"
            )
        set_masks(masked, np.flatnonzero(reads).tolist(), np.flatnonzero(writes).tolist())
        changed[use.path] = masked
    for path, masked in changed.items():  # once it is known that all can be exchanged
        set_module(network, path, masked)
    return list(changed)
