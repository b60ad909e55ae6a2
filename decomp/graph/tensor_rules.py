"""Channel rules of functions on tensors: elementwise operations, concatenation, chunks, slices, padding, reductions."""

from __future__ import annotations

import numpy as np
from torch import fx

from decomp.graph import operations
from decomp.graph.channel_numbers import ChannelNumbers, Layout
from decomp.graph.operations import argument, axes_of, describe
from decomp.graph.size_rules import has_plain_bounds


def elementwise(channels: ChannelNumbers, node: fx.Node) -> None:
    """Tensors met entry by entry: channels of equal number unite, a single one is spread over those of the other."""
    tensors = [s for s in node.all_input_nodes if len(channels.shape(s)) > 0]
    layouts = [channels.layout(s) for s in tensors]
    known = [layout for layout in layouts if layout is not None]
    shape = channels.shape(node)
    if not known:
        channels.not_understood(node)
        return
    for tensor, layout in zip(tensors, layouts):
        own = channels.shape(tensor)
        if layout is None and len(own) >= len(shape) - 1 and (1, *own)[-len(shape) + 1] != 1:
            channels.not_understood(node, f"meets a free tensor in {describe(node)}")
            return
        if layout is not None and len(own) != len(shape):
            channels.not_understood(node)
            return
    wide = [layout for layout in known if len(layout.ids) > 1] or known
    for other in wide[1:]:
        if len(other.ids) != len(wide[0].ids):
            channels.not_understood(node)
            return
        channels.numbers.unite(wide[0].ids, other.ids)
    if len(wide) > 1:
        word = operations.UNITING.get(node.target, describe(node))
        channels.unite_event(f"{word} ({node.name})", wide[0].ids)
    channels.pass_on(node, wide[0])


def concatenate(channels: ChannelNumbers, node: fx.Node) -> None:
    """Along axis 1 the layouts are joined; along another axis the parts' channels unite."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):  # what chunk or split gives
        found: list[Layout | None] = [*channels.all_layouts(parts)] or [None]
    else:
        found = [channels.layout(part) for part in parts]
    layouts = [layout for layout in found if layout is not None]
    shape = channels.shape(node)
    axes = axes_of(argument(node, 1, "dim", 0), max(len(shape), 1))
    if len(layouts) < len(found) or axes is None or len(shape) < 2:
        channels.not_understood(node)
    elif axes == {1} and sum(len(layout.ids) for layout in layouts) != shape[1]:
        channels.not_understood(node)  # the number of parts of a split is not known
    elif axes == {1}:
        ids = np.concatenate([layout.ids for layout in layouts])
        # Columns of flattened maps of one size stay blocks of one size.
        maps = {layout.map_shape for layout in layouts}
        channels.layouts[node] = Layout(ids, maps.pop() if len(maps) == 1 else (1, 1))
        channels.unite_event(f"cat ({node.name})", ids)
    else:
        for other in layouts[1:]:
            channels.numbers.unite(layouts[0].ids, other.ids)
        channels.pass_on(node, layouts[0])


def chunk(channels: ChannelNumbers, node: fx.Node, source: Layout) -> None:
    """Equal parts of the channels unite place by place: cut alike, they are equal parts again."""
    shape = channels.shape(node.args[0])
    count, axes = argument(node, 1, "chunks"), axes_of(argument(node, 2, "dim", 0), len(shape))
    if not isinstance(count, int) or axes is None or source.map_shape != (1, 1):
        channels.not_understood(node)
    elif axes == {1} and len(source.ids) % count == 0:
        parts = np.split(source.ids, count)
        for part in parts[1:]:
            channels.numbers.unite(parts[0], part)
        channels.layouts[node] = tuple(Layout(part) for part in parts)
        channels.unite_event(f"chunk ({node.name})", source.ids)
    elif 1 not in axes:
        channels.layouts[node] = (source,) * min(count, shape[min(axes)])
    else:
        channels.not_understood(node, f"is cut into uneven parts by {describe(node)}")


def split(channels: ChannelNumbers, node: fx.Node, source: Layout) -> None:
    """Parts along another axis than that of the channels have all of them; parts of the channels freeze them."""
    shape = channels.shape(node.args[0])
    axes = axes_of(argument(node, 2, "dim", 0), len(shape))
    if axes is None or 1 in axes:
        channels.not_understood(node)
    else:
        channels.freeze_counts_read_by(node)
        channels.layouts[node] = (source,) * shape[min(axes)]


def index(channels: ChannelNumbers, node: fx.Node) -> None:
    """One of several tensors, or a slice of one: a slice of the channels freezes them."""
    value, at = node.args
    layout = channels.layouts.get(value) if isinstance(value, fx.Node) else None
    if isinstance(layout, tuple):
        if isinstance(at, int) and -len(layout) <= at < len(layout):
            channels.layouts[node] = layout[at]
        else:
            channels.not_understood(node)
        return
    # Bounds along the batch may be computed, as in `x[:len(x) // 2]`.
    places = at if isinstance(at, tuple) else (at,)
    plain = all(isinstance(i, int) or has_plain_bounds(i) for i in places[1:])
    if layout is None or not plain or not isinstance(places[0], slice):
        channels.not_understood(node)
    elif len(places) < 2 or places[1] == slice(None):
        channels.pass_on(node, layout)
    elif isinstance(places[1], slice):
        channels.freeze(layout.ids, f"is cut at fixed channels by {node.name}")
        channels.layouts[node] = Layout(layout.ids[places[1]])
    else:
        channels.not_understood(node)


def pads_only_space(channels: ChannelNumbers, node: fx.Node) -> bool:
    """Whether F.pad leaves batch and channels as they are."""
    pads, shape = argument(node, 1, "pad"), channels.shape(node.args[0])
    return isinstance(pads, (tuple, list)) and len(pads) <= 2 * (len(shape) - 2)


def reduces_only_space(channels: ChannelNumbers, node: fx.Node) -> bool:
    """Whether a mean, sum or extreme value is taken over neither batch nor channels."""
    axes = axes_of(argument(node, 1, "dim"), len(channels.shape(node.args[0])) or 1)
    return axes is not None and min(axes) > 1
