"""Compact network of one task: channels that nobody reads, and constants of filters without weights, are removed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from decomp import seeds
from decomp.graph.channel_spaces import ChannelSpace, Spaces
from decomp.graph.network_graph import NetworkGraph
from decomp.surgery.constant_channels import move_constants
from decomp.surgery.narrow_network import shrink


@torch.no_grad()
def compact(network: fx.GraphModule, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """A copy of a network without the channels that its outputs do not need.

    A channel goes if every layer reads it with zero weights; or if all weights of its filters are 0, so that it is
    constant, and its constant can be moved into the biases of its readers exactly. The outputs stay the same but for
    rounding. Removing a channel may leave others unread, which go too.
    """
    network = copy.deepcopy(network)
    images = torch.randn(2, *input_shape, generator=seeds.generator(0, "compact"))
    while True:
        spaces = NetworkGraph(network, input_shape).spaces
        keep: dict[str, list[int]] = {}
        for space in spaces.all:
            if space.frozen is None and space.consumers:
                dropped = _unread(network, spaces, space)
                if not dropped:
                    dropped = _constant(network, spaces, space, images)
                stay = [place for place in range(space.width) if place not in dropped] or [0]
                if len(stay) < space.width:
                    keep = {space.name: stay}
                    break
        if not keep:
            return network
        move_constants(network, spaces, keep, [images])
        shrink(network, spaces, keep)


def _plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear or type(module) is nn.Conv2d and module.groups == 1


def _unread(network: nn.Module, spaces: Spaces, space: ChannelSpace) -> set[int]:
    """Channels that every layer reads with zero weights; none where a reader is of another kind."""
    place = {root: number for number, root in enumerate(space.roots.tolist())}
    read: set[int] = set()
    for path in space.consumers:
        module, use = network.get_submodule(path), spaces.use(path)
        if use is None or not _plain(module):
            return set()
        columns = _weight(module).transpose(0, 1).flatten(1).ne(0).any(1)
        roots = spaces.roots_of(use.reads).tolist()
        read |= {place[root] for root, used in zip(roots, columns.tolist()) if used and root in place}
    return set(range(space.width)) - read


def _constant(network: fx.GraphModule, spaces: Spaces, space: ChannelSpace, images: Tensor) -> set[int]:
    """Channels whose filters have no weight other than 0, as far as their constants can be moved exactly."""
    if not space.producers or not all(_plain(network.get_submodule(path)) for path in space.producers):
        return set()
    rows = [_weight(network.get_submodule(path)).flatten(1).ne(0).any(1) for path in space.producers]
    if any(len(row) != space.width for row in rows):
        return set()
    empty = [number for number in range(space.width) if not any(bool(row[number]) for row in rows)]
    if not empty or len(empty) == space.width:
        return set()
    if _moves_exactly(network, spaces, space, empty, images):
        return set(empty)
    return {number for number in empty if _moves_exactly(network, spaces, space, [number], images)}


def _moves_exactly(
    network: fx.GraphModule, spaces: Spaces, space: ChannelSpace, dropped: Sequence[int], images: Tensor
) -> bool:
    stay = [number for number in range(space.width) if number not in dropped]
    moved = move_constants(copy.deepcopy(network), spaces, {space.name: stay}, [images])
    return all(entry.inexact is None for entry in moved)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    return module.weight.detach()
