"""Channel rules of view, reshape and flatten."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from decomp.graph.channel_numbers import ChannelNumbers, Layout


def reshape(channels: ChannelNumbers, node: fx.Node, source: Layout) -> None:
    """A view that keeps axis 1, or one that lays the maps out behind each other, channel by channel."""
    before, after = channels.shape(node.args[0]), channels.shape(node)
    changed = f"is reshaped from {tuple(before[1:])} to {tuple(after[1:])}"
    if len(after) < 2 or len(before) < 2 or after[0] != before[0]:
        channels.not_understood(node, changed)
        return
    entry, keeps_width = _channel_entry(node), after[1] == before[1]
    fixed = _fixed_size(channels, node, entry, keeps_width)
    if fixed is not None:
        channels.not_understood(node, fixed)
    elif keeps_width:
        _keep_axis(channels, node, source, entry)
    elif len(after) == 2 and source.map_shape == (1, 1):
        pixels = after[1] // before[1]
        map_shape = (before[2], before[3]) if len(before) == 4 else (pixels, 1)
        channels.freeze_counts_read_by(node)
        channels.layouts[node] = Layout(np.repeat(source.ids, pixels), map_shape)
    else:
        channels.not_understood(node, changed)


def _channel_entry(node: fx.Node) -> object:
    """The size that a view or reshape gives for axis 1; -1 for a flatten."""
    if node.op == "call_module" or node.target in (torch.flatten, "flatten"):
        return -1
    sizes = node.args[1:] if len(node.args) != 2 else node.args[1]
    sizes = sizes if isinstance(sizes, (tuple, list)) else (sizes,)
    return sizes[1] if len(sizes) > 1 else None


def _fixed_size(channels: ChannelNumbers, node: fx.Node, entry: object, keeps_width: bool) -> str | None:
    """Why the size given for axis 1 would be wrong with fewer channels; None for -1 and for x.shape[1] itself."""
    if isinstance(entry, int):
        return None if entry == -1 else f"is reshaped to a fixed size of {entry}; write -1 or flatten(1)"
    if keeps_width and isinstance(entry, fx.Node) and entry in channels.count_of:
        return None
    return f"is reshaped to a computed size by {node.name}"


def _keep_axis(channels: ChannelNumbers, node: fx.Node, source: Layout, entry: object) -> None:
    """Axis 1 stays as wide as it was, or as wide as that of the tensor whose number of channels is given."""
    if isinstance(entry, fx.Node):
        counted = channels.layout(channels.count_of[entry])
        if counted is None or len(counted.ids) != len(source.ids):
            channels.not_understood(node)
            return
        channels.numbers.unite(source.ids, counted.ids)
    channels.freeze_counts_read_by(node, allowed=entry)
    channels.layouts[node] = source
