"""Which channels of a network stand or fall together: every channel gets a number, followed through the graph.

Each output channel of a layer is a new number. A value's *layout* is the numbers along its axis 1. Adding two
values unites their numbers one by one, concatenating joins the layouts, a flatten repeats each number once per
pixel, a grouped convolution unites all numbers of a group, chunks of equal parts unite place by place. So no
case has to be thought of twice: whatever the graph does, two numbers are united exactly if one channel cannot go
without the other. Whatever is not understood freezes the channels that go into it, with the reason, and gives
new channels that are frozen too.
"""

import operator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from decomp.graph import operations
from decomp.graph.operations import argument, axes_of, describe

_HARMLESS = ("dtype", "device", "ndim", "is_cuda", "requires_grad")  # say nothing of channels


@dataclass(frozen=True)
class Layout:
    """The channel numbers along axis 1 of a value.

    Attributes
    ----------
    ids : numpy.ndarray of int64
    map_shape : tuple of int
        (H, W) of the map that a flatten laid out channel by channel; (1, 1) otherwise.
    """

    ids: np.ndarray
    map_shape: tuple = (1, 1)


@dataclass(frozen=True)
class Use:
    """One call of a module that holds numbers per channel.

    Attributes
    ----------
    path : str
    role : {'layer', 'carrier'}
        A layer reads some channels and writes others; a carrier (normalisation, PReLU, depthwise convolution)
        passes each channel on by itself.
    reads, writes : numpy.ndarray of int64
        Channel numbers of its input and of its output.
    map_shape : tuple of int
    grouped : bool
        A convolution of several groups that is not depthwise.
    """

    path: str
    role: str
    reads: np.ndarray
    writes: np.ndarray
    map_shape: tuple = (1, 1)
    grouped: bool = False


class ChannelMap:
    """Channel numbers of every value of a traced network.

    Parameters
    ----------
    module : torch.fx.GraphModule
    shapes : dict of torch.fx.Node to tuple of int
        Of every tensor, for a batch of two.

    Attributes
    ----------
    layouts : dict of torch.fx.Node to Layout
    uses : list of Use
        In execution order.
    events : list of (str, numpy.ndarray)
        What unites or joins channels, in words, and the numbers it concerns.
    origins : list of (str, numpy.ndarray)
        Nodes that no layer writes (the image, what is not understood), by name, and the numbers they give.
    """

    def __init__(self, module, shapes):
        self.module, self.shapes = module, shapes
        self.layouts, self.uses, self.events, self.origins = {}, [], [], []
        self._modules = dict(module.named_modules())
        self._parent, self._frozen = [], []
        self._sizes, self._counts = {}, {}  # nodes that hold x.shape, and nodes that hold x.shape[1]: of which x
        self._of_module = {}
        for node in module.graph.nodes:
            self._follow(node)
        self.roots = np.array([self._find(i) for i in range(len(self._parent))], dtype=np.int64)
        # The first reason met in the order of the graph is told; what is united shares it.
        self.reasons = {}
        for ids, reason in self._frozen:
            for root in np.unique(self.roots[ids]).tolist():
                self.reasons.setdefault(root, reason)

    # -- numbers -------------------------------------------------------------------------------------------

    def _new(self, count):
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def _find(self, i):
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def _unite(self, a, b):
        """Unite two layouts' numbers place by place; the lower number stands for both."""
        for i, j in zip(a.tolist(), b.tolist()):
            i, j = self._find(i), self._find(j)
            if i != j:
                self._parent[max(i, j)] = min(i, j)

    def _freeze(self, ids, reason):
        self._frozen.append((ids, reason))

    def _opaque(self, node, reason=None):
        """Nothing is known of what this node does with channels: what goes in and what comes out is frozen."""
        reason = reason or f"goes through {describe(node)}"
        for source in node.all_input_nodes:
            for layout in self._parts(source):
                self._freeze(layout.ids, reason)
        self._freeze_sizes(node)
        self._set_new(node, f"comes out of {describe(node)}")

    def _set_new(self, node, reason):
        shape = self.shapes.get(node)
        if shape is not None and len(shape) >= 2:
            ids = self._new(shape[1])
            self._freeze(ids, reason)
            self.origins.append((node.name, ids))
            self.layouts[node] = Layout(ids)

    def _freeze_sizes(self, node, allowed=None):
        """A number of channels that is computed with would no longer be the one that was meant."""
        for source in node.all_input_nodes:
            value = self._counts.get(source, self._sizes.get(source))
            if value is not None and source is not allowed:
                for layout in self._parts(value):
                    self._freeze(layout.ids, f"has its number of channels read by {describe(node)}")

    def _parts(self, node):
        layout = self.layouts.get(node)
        return () if layout is None else layout if isinstance(layout, tuple) else (layout,)

    def _single(self, node):
        layout = self.layouts.get(node) if isinstance(node, fx.Node) else None
        return layout if isinstance(layout, Layout) else None

    # -- one node ------------------------------------------------------------------------------------------

    def _follow(self, node):
        if node.op == "placeholder":
            self._set_new(node, "is the image itself")
        elif node.op == "output":
            for source in node.all_input_nodes:
                for layout in self._parts(source):
                    self._freeze(layout.ids, "is the network's output")
            self._freeze_sizes(node)
        elif node.op == "call_module":
            self._follow_module(node, self._modules[node.target])
        elif node.op in ("call_function", "call_method"):
            self._follow_call(node)

    def _follow_module(self, node, module):
        source = self._single(node.args[0]) if node.args else None
        if source is None or len(node.all_input_nodes) != 1:
            self._opaque(node)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            self._convolution(node, module, source)
        elif isinstance(module, nn.Linear):
            self._linear(node, module, source)
        elif isinstance(module, operations.CARRIER_MODULES):
            self._carrier(node, module, source)
        elif isinstance(module, nn.Flatten):
            self._reshape(node, source)
        elif operations.is_channelwise(node, module):
            self._same(node, source)
        else:
            self._opaque(node, f"goes through {node.target} ({type(module).__name__})")

    def _follow_call(self, node):
        source = self._single(node.args[0]) if node.args else None
        if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            self._size(node)
        elif node.target in ("dim", "is_floating_point") or (node.target is getattr and node.args[1] in _HARMLESS):
            return
        elif node.target is operator.getitem:
            self._item(node)
        elif node.target in operations.UNITING:
            self._meet(node)
        elif node.target in operations.CONCATENATIONS:
            self._concatenate(node)
        elif source is None:
            self._opaque(node)
        elif node.target in ("view", "reshape", torch.flatten, "flatten", torch.reshape):
            self._reshape(node, source)
        elif node.target in (torch.chunk, "chunk"):
            self._chunk(node, source)
        elif node.target == "expand_as":
            self._meet(node)
        elif node.target is F.pad and self._pads_only_space(node):
            self._same(node, source)
        elif operations.is_reduction(node) and self._reduces_only_space(node):
            self._same(node, source)
        elif operations.is_channelwise(node) and self._sources(node) == 1:
            self._same(node, source)
        else:
            self._opaque(node)

    def _sources(self, node):
        return sum(bool(self._parts(source)) for source in node.all_input_nodes)

    def _same(self, node, source):
        """Every channel comes out as what it went in."""
        shape = self.shapes.get(node)
        if shape is None or len(shape) < 2 or shape[1] != len(source.ids):
            self._opaque(node)
            return
        self._freeze_sizes(node)
        self.layouts[node] = source

    # -- modules with numbers per channel ------------------------------------------------------------------

    def _use(self, node, role, reads, writes, map_shape=(1, 1), grouped=False):
        """Note a call; a module that is called again must be cut alike for all its calls."""
        before = self._of_module.setdefault(node.target, (reads, writes))
        if before[0] is not reads or before[1] is not writes:
            if len(before[0]) != len(reads) or len(before[1]) != len(writes):
                self._opaque(node)
                return
            self._unite(before[0], reads)
            self._unite(before[1], writes)
            self.events.append((f"{node.target} is called several times", np.concatenate([reads, writes])))
        self.uses.append(Use(node.target, role, reads, writes, map_shape, grouped))
        self.layouts[node] = Layout(writes, map_shape if role == "carrier" else (1, 1))

    def _convolution(self, node, module, source):
        if type(module) not in (nn.Conv2d, nn.ConvTranspose2d) or len(source.ids) != module.in_channels:
            self._opaque(node, f"goes through {node.target} ({type(module).__name__})")
            return
        groups = module.groups
        if groups == module.in_channels == module.out_channels and groups > 1:
            self._use(node, "carrier", source.ids, source.ids)
            return
        writes = self._new(module.out_channels)
        if groups > 1:
            for reads, written in zip(np.split(source.ids, groups), np.split(writes, groups)):
                group = np.concatenate([reads, written])
                self._unite(group, np.full_like(group, group[0]))
            self.events.append((f"groups of {node.target}", np.concatenate([source.ids, writes])))
        self._use(node, "layer", source.ids, writes, grouped=groups > 1)

    def _linear(self, node, module, source):
        if type(module) is not nn.Linear or len(self.shapes.get(node, ())) != 2:
            # Channels last: its columns are not along axis 1.
            self._opaque(node, f"goes through {node.target} ({type(module).__name__} on more than two axes)")
            return
        self._use(node, "layer", source.ids, self._new(module.out_features), source.map_shape)

    def _carrier(self, node, module, source):
        width = module.num_parameters if isinstance(module, nn.PReLU) else module.num_features
        if isinstance(module, nn.PReLU) and width == 1:
            self._same(node, source)
        elif width != len(source.ids):
            self._opaque(node)
        else:
            self._use(node, "carrier", source.ids, source.ids, source.map_shape)

    # -- calls that move channels --------------------------------------------------------------------------

    def _meet(self, node):
        """Entry by entry: channels of equal number unite, a single one is spread over all of the other's."""
        tensors = [s for s in node.all_input_nodes if len(self.shapes.get(s, ())) > 0]
        layouts = [self._single(s) for s in tensors]
        known = [layout for layout in layouts if layout is not None]
        shape = self.shapes.get(node, ())
        if not known:
            self._opaque(node)
            return
        for tensor, layout in zip(tensors, layouts):
            own = self.shapes[tensor]
            if layout is None and len(own) >= len(shape) - 1 and (1, *own)[-len(shape) + 1] != 1:
                self._opaque(node, f"meets a free tensor in {describe(node)}")
                return
            if layout is not None and len(own) != len(shape):
                self._opaque(node)
                return
        wide = [layout for layout in known if len(layout.ids) > 1] or known
        for other in wide[1:]:
            if len(other.ids) != len(wide[0].ids):
                self._opaque(node)
                return
            self._unite(wide[0].ids, other.ids)
        if len(wide) > 1:
            word = operations.UNITING.get(node.target, describe(node))
            self.events.append((f"{word} ({node.name})", wide[0].ids))
        self._same(node, wide[0])

    def _concatenate(self, node):
        parts = argument(node, 0, "tensors")
        layouts = [self._single(part) for part in parts] if isinstance(parts, (tuple, list)) else [None]
        shape = self.shapes.get(node, ())
        axes = axes_of(argument(node, 1, "dim", 0), max(len(shape), 1))
        if any(layout is None for layout in layouts) or axes is None or len(shape) < 2:
            self._opaque(node)
        elif axes == {1}:
            ids = np.concatenate([layout.ids for layout in layouts])
            # Columns of flattened maps of one size stay blocks of one size.
            maps = {layout.map_shape for layout in layouts}
            self.layouts[node] = Layout(ids, maps.pop() if len(maps) == 1 else (1, 1))
            self.events.append((f"cat ({node.name})", ids))
        else:
            for other in layouts[1:]:
                self._unite(layouts[0].ids, other.ids)
            self._same(node, layouts[0])

    def _chunk(self, node, source):
        """Equal parts of the channels: cut alike, they are equal parts again."""
        shape = self.shapes[node.args[0]]
        count, axes = argument(node, 1, "chunks"), axes_of(argument(node, 2, "dim", 0), len(shape))
        if not isinstance(count, int) or axes is None or source.map_shape != (1, 1):
            self._opaque(node)
        elif axes == {1} and len(source.ids) % count == 0:
            parts = np.split(source.ids, count)
            for part in parts[1:]:
                self._unite(parts[0], part)
            self.layouts[node] = tuple(Layout(part) for part in parts)
            self.events.append((f"chunk ({node.name})", source.ids))
        elif min(axes) > 1:
            self.layouts[node] = (source,) * min(count, shape[min(axes)])
        else:
            self._opaque(node, f"is cut into uneven parts by {describe(node)}")

    def _item(self, node):
        value, index = node.args
        if value in self._sizes:
            self._size_item(node, value, index)
            return
        layouts = self.layouts.get(value)
        if isinstance(layouts, tuple):
            if isinstance(index, int) and -len(layouts) <= index < len(layouts):
                self.layouts[node] = layouts[index]
            else:
                self._opaque(node)
            return
        index = index if isinstance(index, tuple) else (index,)
        plain = all(isinstance(i, int) or (isinstance(i, slice) and _is_plain(i)) for i in index)
        if layouts is None or not plain or not isinstance(index[0], slice):
            self._opaque(node)
        elif len(index) < 2 or index[1] == slice(None):
            self._same(node, layouts)
        elif isinstance(index[1], slice):
            self._freeze(layouts.ids, f"is cut at fixed channels by {node.name}")
            self.layouts[node] = Layout(layouts.ids[index[1]])
        else:
            self._opaque(node)

    def _reshape(self, node, source):
        """A view that keeps axis 1, or one that lays the maps out behind each other, channel by channel."""
        before, after = self.shapes.get(node.args[0], ()), self.shapes.get(node, ())
        entry, fixed = self._channel_entry(node), None
        if len(after) < 2 or len(before) < 2 or after[0] != before[0]:
            self._opaque(node, f"is reshaped from {tuple(before[1:])} to {tuple(after[1:])}")
            return
        kept = after[1] == before[1]
        if isinstance(entry, int) and entry != -1:
            fixed = f"is reshaped to a fixed size of {entry}; write -1 or flatten(1)"
        elif entry != -1 and not (kept and self._counts.get(entry) is not None):
            fixed = f"is reshaped to a computed size by {node.name}"
        if fixed is None and kept:
            if isinstance(entry, fx.Node):
                counted = self._single(self._counts[entry])
                if counted is None or len(counted.ids) != len(source.ids):
                    self._opaque(node)
                    return
                self._unite(source.ids, counted.ids)
            self._freeze_sizes(node, allowed=entry)
            self.layouts[node] = source
        elif fixed is None and len(after) == 2 and source.map_shape == (1, 1):
            pixels = after[1] // before[1]
            map_shape = tuple(before[2:]) if len(before) == 4 else (pixels, 1)
            self._freeze_sizes(node)
            self.layouts[node] = Layout(np.repeat(source.ids, pixels), map_shape)
        else:
            self._opaque(node, fixed or f"is reshaped from {tuple(before[1:])} to {tuple(after[1:])}")

    def _channel_entry(self, node):
        """What a view or reshape says about axis 1; -1 for a flatten."""
        if node.op == "call_module" or node.target in (torch.flatten, "flatten"):
            return -1
        sizes = node.args[1:] if len(node.args) != 2 else node.args[1]
        sizes = sizes if isinstance(sizes, (tuple, list)) else (sizes,)
        return sizes[1] if len(sizes) > 1 else None

    # -- sizes that the network reads ----------------------------------------------------------------------

    def _size(self, node):
        value = node.args[0]
        if node.op == "call_method" and len(node.args) > 1:
            self._size_item(node, value, node.args[1], of=value)
        else:
            self._sizes[node] = value

    def _size_item(self, node, sizes, index, of=None):
        value = of if of is not None else self._sizes[sizes]
        n_axes = len(self.shapes.get(value, ()))
        if n_axes < 2:
            return
        if isinstance(index, int):
            if index % n_axes == 1:
                self._counts[node] = value
        elif not isinstance(index, slice) or not _is_plain(index) or 1 in range(n_axes)[index]:
            for layout in self._parts(value):
                self._freeze(layout.ids, f"has its number of channels read by {describe(node)}")

    # -- conditions on arguments ---------------------------------------------------------------------------

    def _pads_only_space(self, node):
        pads, shape = argument(node, 1, "pad"), self.shapes.get(node.args[0], ())
        return isinstance(pads, (tuple, list)) and len(pads) <= 2 * (len(shape) - 2)

    def _reduces_only_space(self, node):
        axes = axes_of(argument(node, 1, "dim"), len(self.shapes.get(node.args[0], ())) or 1)
        return axes is not None and min(axes) > 1


def _is_plain(index):
    return all(v is None or isinstance(v, int) for v in (index.start, index.stop, index.step))
