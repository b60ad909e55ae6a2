"""Channel numbers of the values of a traced network while it is read, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import fx

from decomp.graph.operations import describe
from decomp.graph.union_find import IntArray, UnionFind


@dataclass(frozen=True, eq=False)
class Layout:
    """The channel numbers along axis 1 of a value.

    Attributes
    ----------
    ids : numpy.ndarray of int64
    map_shape : tuple of int
        (H, W) of the map that a flatten laid out channel by channel; (1, 1) otherwise.
    """

    ids: IntArray
    map_shape: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False)
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
    role: Literal["layer", "carrier"]
    reads: IntArray
    writes: IntArray
    map_shape: tuple[int, int] = (1, 1)
    grouped: bool = False


class ChannelNumbers:
    """Layouts of the values read so far, the unions among their numbers, and the numbers that are frozen.

    The rules for single operations (:mod:`decomp.graph.layer_rules`, :mod:`decomp.graph.tensor_rules`,
    :mod:`decomp.graph.reshape_rules`, :mod:`decomp.graph.size_rules`) write into it.

    Parameters
    ----------
    shapes : mapping of torch.fx.Node to tuple of int
        Of every tensor, for a batch of two.

    Attributes
    ----------
    numbers : UnionFind
    layouts : dict of torch.fx.Node to Layout or tuple of Layout
        Several for a node that gives several tensors.
    uses : list of Use
    events : list of (str, numpy.ndarray)
        What unites or joins channels, in words, and the numbers it concerns.
    origins : list of (str, numpy.ndarray)
        Nodes that no layer writes (the image, operations that are not understood), by name, and the numbers they give.
    frozen : list of (numpy.ndarray, str)
        Numbers that must stay and the reason.
    size_of : dict of torch.fx.Node to torch.fx.Node
        For a node that holds x.shape: x.
    count_of : dict of torch.fx.Node to torch.fx.Node
        For a node that holds x.shape[1]: x.
    """

    def __init__(self, shapes: Mapping[fx.Node, tuple[int, ...]]):
        self._shapes = shapes
        self.numbers = UnionFind()
        self.layouts: dict[fx.Node, Layout | tuple[Layout, ...]] = {}
        self.uses: list[Use] = []
        self.events: list[tuple[str, IntArray]] = []
        self.origins: list[tuple[str, IntArray]] = []
        self.frozen: list[tuple[IntArray, str]] = []
        self.size_of: dict[fx.Node, fx.Node] = {}
        self.count_of: dict[fx.Node, fx.Node] = {}
        self._first_call: dict[str, Use] = {}

    def shape(self, value: object) -> tuple[int, ...]:
        """Shape of a node's tensor; () where it is not a tensor."""
        return self._shapes.get(value, ()) if isinstance(value, fx.Node) else ()

    def layout(self, value: object) -> Layout | None:
        """The layout of an argument that is one tensor with known channels."""
        layout = self.layouts.get(value) if isinstance(value, fx.Node) else None
        return layout if isinstance(layout, Layout) else None

    def all_layouts(self, node: fx.Node) -> tuple[Layout, ...]:
        """The layouts of all tensors that a node gives."""
        layout = self.layouts.get(node)
        return () if layout is None else layout if isinstance(layout, tuple) else (layout,)

    def freeze(self, ids: IntArray, reason: str) -> None:
        """These channels must stay; the reason ends a sentence that begins with "it"."""
        self.frozen.append((ids, reason))

    def freeze_counts_read_by(self, node: fx.Node, allowed: object = None) -> None:
        """Freeze the channels whose number a node computes with: with fewer it would compute something else."""
        for source in node.all_input_nodes:
            value = self.count_of.get(source, self.size_of.get(source))
            if value is not None and source is not allowed:
                for layout in self.all_layouts(value):
                    self.freeze(layout.ids, f"has its number of channels read by {describe(node)}")

    def unite_event(self, words: str, ids: IntArray) -> None:
        """Note in words an operation that unites or joins channels."""
        self.events.append((words, ids))

    # -- results of a node ---------------------------------------------------------------------------------

    def pass_on(self, node: fx.Node, source: Layout) -> None:
        """Every channel comes out as it went in."""
        shape = self.shape(node)
        if len(shape) < 2 or shape[1] != len(source.ids):
            self.not_understood(node)
            return
        self.freeze_counts_read_by(node)
        self.layouts[node] = source

    def start(self, node: fx.Node, reason: str) -> None:
        """The node gives new channels, which must stay."""
        shape = self.shape(node)
        if len(shape) >= 2:
            ids = self.numbers.add(shape[1])
            self.freeze(ids, reason)
            self.origins.append((node.name, ids))
            self.layouts[node] = Layout(ids)

    def not_understood(self, node: fx.Node, reason: str | None = None) -> None:
        """Freeze the channels that go into a node and those that come out of it."""
        reason = reason or f"goes through {describe(node)}"
        for source in node.all_input_nodes:
            for layout in self.all_layouts(source):
                self.freeze(layout.ids, reason)
        self.freeze_counts_read_by(node)
        self.start(node, f"comes out of {describe(node)}")

    def call(self, node: fx.Node, use: Use) -> None:
        """Note a call of a module; one that is called again must be cut alike in all its calls."""
        first = self._first_call.setdefault(use.path, use)
        if first.reads is not use.reads or first.writes is not use.writes:
            if len(first.reads) != len(use.reads) or len(first.writes) != len(use.writes):
                self.not_understood(node)
                return
            self.numbers.unite(first.reads, use.reads)
            self.numbers.unite(first.writes, use.writes)
            self.unite_event(f"{use.path} is called several times", np.concatenate([use.reads, use.writes]))
        self.uses.append(use)
        self.layouts[node] = Layout(use.writes, use.map_shape if use.role == "carrier" else (1, 1))
