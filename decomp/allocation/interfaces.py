"""Interfaces that the allocation needs from outside: layers, the network graph, a cost model.

The allocation imports no other folder. :class:`decomp.graph.network_graph.NetworkGraph` and the models of
:mod:`decomp.cost` have these members and name no base class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

# A width or rank, or several at once for the tables of the search; cost models are vectorised over them.
Size: TypeAlias = "int | NDArray[np.int64]"
# A cost, or one for each entry of the sizes it was computed from, in whole numbers or not.
Amount: TypeAlias = "float | NDArray[Any]"


class InputSpace(Protocol):
    """Channels that a layer reads and that can be narrowed; see :class:`decomp.graph.layer.InputSpace`."""

    @property
    def producer(self) -> str | None: ...
    @property
    def width(self) -> int: ...
    @property
    def carriers(self) -> tuple[str, ...]: ...
    @property
    def repeat(self) -> int: ...
    @property
    def sampled(self) -> bool: ...


class Layer(Protocol):
    """A convolution or linear layer of the network; see :class:`decomp.graph.layer.Layer`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def kernel(self) -> tuple[int, int]: ...
    @property
    def in_hw(self) -> tuple[int, int]: ...
    @property
    def out_hw(self) -> tuple[int, int]: ...
    @property
    def calls(self) -> Sequence[tuple[tuple[int, int], tuple[int, int]]]: ...
    @property
    def transposed(self) -> bool: ...
    @property
    def activation(self) -> str: ...
    @property
    def input_space(self) -> InputSpace | None: ...
    @property
    def left_alone(self) -> Mapping[str, str]: ...
    @property
    def fitted(self) -> bool: ...
    @property
    def input_width(self) -> int: ...
    @property
    def max_spatial_rank(self) -> int: ...


class Graph(Protocol):
    """The layers of a network in execution order; see :class:`decomp.graph.network_graph.NetworkGraph`."""

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> Sequence[Layer]: ...
    def layer(self, name: str) -> Layer: ...


class CostModel(Protocol):
    """The quantity that a plan reduces, as a sum over the layers.

    Attributes
    ----------
    name : str
        One of :data:`decomp.allocation.plan.COSTS`.
    unit : str
        In words.
    total : float
        Cost of the original network.
    rest : float
        Cost outside the layers, which no plan changes.
    """

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def total(self) -> float: ...
    @property
    def rest(self) -> float: ...

    def layer(
        self, layer: Layer, width_in: Size, width_out: Size, spatial_rank: Size | None = None,
        channel_rank: Size | None = None,
    ) -> Amount:  # fmt: skip
        """Cost of one layer that reads ``width_in`` columns and writes ``width_out`` channels, at these ranks.

        Parameters
        ----------
        width_in, width_out : int or numpy.ndarray
            Channels; for a linear layer behind a flatten the columns it reads. Arrays are broadcast.
        spatial_rank, channel_rank : int, numpy.ndarray or None
            None: the step is not applied.
        """
        ...
