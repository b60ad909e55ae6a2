"""Channel rules of sizes that a network reads of its tensors: x.shape, x.size(1)."""

from __future__ import annotations

from typing import TypeGuard

from torch import fx

from decomp.graph.channel_numbers import ChannelNumbers
from decomp.graph.operations import describe


def read_size(channels: ChannelNumbers, node: fx.Node) -> None:
    """``x.shape``, ``x.size()`` or ``x.size(axis)``."""
    value = node.args[0]
    if not isinstance(value, fx.Node):
        return
    if node.op == "call_method" and len(node.args) > 1:
        _read_entry(channels, node, value, node.args[1])
    else:
        channels.size_of[node] = value


def index_size(channels: ChannelNumbers, node: fx.Node) -> None:
    """``x.shape[at]``."""
    sizes, at = node.args
    assert isinstance(sizes, fx.Node)
    _read_entry(channels, node, channels.size_of[sizes], at)


def _read_entry(channels: ChannelNumbers, node: fx.Node, value: fx.Node, at: object) -> None:
    """The number of channels read by itself can be followed; read among others, it freezes them."""
    n_axes = len(channels.shape(value))
    if n_axes < 2:
        return
    if isinstance(at, int):
        if at % n_axes == 1:
            channels.count_of[node] = value
    elif not (has_plain_bounds(at) and 1 not in range(n_axes)[at]):
        for layout in channels.all_layouts(value):
            channels.freeze(layout.ids, f"has its number of channels read by {describe(node)}")


def has_plain_bounds(index: object) -> TypeGuard[slice]:
    """Whether an index is a slice of numbers known from the graph alone."""
    return isinstance(index, slice) and all(
        bound is None or isinstance(bound, int) for bound in (index.start, index.stop, index.step)
    )
