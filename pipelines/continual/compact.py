"""Compact network of one task: channels that no layer reads are removed."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from decomp.graph.channel_spaces import Spaces
from decomp.graph.network_graph import NetworkGraph
from decomp.surgery.narrow_network import shrink


def compact(network: fx.GraphModule, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """A copy of a network without the channels that every layer reads with zero weights.

    The outputs stay the same but for the order of sums. Removing a channel may leave others unread, which go too.
    """
    network = copy.deepcopy(network)
    while True:
        spaces = NetworkGraph(network, input_shape).spaces
        keep = {}
        for space in spaces.all:
            if space.frozen is not None or not space.consumers:
                continue
            read = _channels_read(network, spaces, space.name)
            if read is not None and not bool(read.all()):
                read[0] |= not bool(read.any())  # a module needs one channel
                keep[space.name] = read.nonzero().flatten().tolist()
        keep = {name: places for name, places in keep.items() if len(places) < spaces[name].width}
        if not keep:
            return network
        shrink(network, spaces, keep)


def _channels_read(network: nn.Module, spaces: Spaces, name: str) -> torch.Tensor | None:
    """Which channels of a space some layer reads with a weight other than 0; None where that is not known."""
    space = spaces[name]
    place = {root: number for number, root in enumerate(space.roots.tolist())}
    read = torch.zeros(space.width, dtype=torch.bool)
    for path in space.consumers:
        module, use = network.get_submodule(path), spaces.use(path)
        if use is None or type(module) not in (nn.Conv2d, nn.Linear) or getattr(module, "groups", 1) != 1:
            return None
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        columns = module.weight.detach().transpose(0, 1).flatten(1).ne(0).any(1)
        for root, used in zip(spaces.roots_of(use.reads).tolist(), columns.tolist()):
            if used and root in place:
                read[place[root]] = True
    return read
