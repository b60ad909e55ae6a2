"""Latency model: milliseconds of a layer at any size, interpolated from measured times of its factors.

A layer's chain runs factor after factor, so its time is the sum of theirs. The time of one factor depends on its two
channel counts; it is measured on a coarse grid of them and interpolated linearly between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from decomp.allocation.interfaces import Amount, Graph, Layer, Size
from decomp.allocation.plan import STEP_TABLE
from decomp.cost.chain import ChainLink, chain, geometry_of
from decomp.modules.convolution import conv_from_weights
from decomp.modules.random_weights import random_weights
from decomp.modules.replace import linear
from decomp.modules.select import Select
from decomp.problem.factors import Geometry

# Shares of a layer's channels at which its factors are timed.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
LINEAR = "linear"
# The selection of channels in front of a layer whose input others need as well.
SELECT = "select"
# Numbers of channels that runtimes compute together (vectors of a processor).
BLOCKS = (1, 4, 8, 16)
# Of the step from one block to the next, the share that lies within a block.
WITHIN = 0.1
# Channel counts in, channel counts out, milliseconds of shape (in, out).
Table: TypeAlias = "tuple[Sequence[int], Sequence[int], Sequence[Sequence[float]]]"


@dataclass(frozen=True)
class FactorKind:
    """A convolution, linear layer or selection of channels but for its channel counts.

    Attributes
    ----------
    kernel : tuple of int, or 'linear', or 'select'
    geometry : decomp.problem.factors.Geometry
    in_hw : tuple of int
        Height and width of its input.
    """

    kernel: tuple[int, int] | str
    geometry: Geometry = Geometry()
    in_hw: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, layer: Layer, link: ChainLink) -> FactorKind:
        """The kind of a link in a layer's chain."""
        if layer.kind == "linear":
            return cls(LINEAR)
        return cls(link.kernel, link.geometry, (link.in_hw[0], link.in_hw[1]))

    def build(self, n_in: int, n_out: int) -> nn.Module:
        """A module of this kind, with random weights; a selection takes the last channels first."""
        if self.kernel == SELECT:
            return Select.of(torch.arange(n_in - 1, -1, -1)[:n_out], n_in)
        if isinstance(self.kernel, str):
            return linear(random_weights((n_out, n_in)), random_weights((n_out,)))
        weight = random_weights((n_out, n_in, *self.kernel))
        return conv_from_weights(weight, random_weights((n_out,)), self.geometry)

    def images(self, batch: int, n_in: int) -> tuple[int, ...]:
        """Shape of its input."""
        return (batch, n_in) if self.kernel == LINEAR else (batch, n_in, *self.in_hw)

    def words(self, n_in: int, n_out: int) -> str:
        """One text of everything that its time depends on: the key in a file of latencies."""
        g = self.geometry
        parts = [self.kernel, n_in, n_out, self.in_hw, g.stride, g.padding, g.dilation, g.padding_mode]
        parts += [] if g.output_padding is None else ["transposed", g.output_padding]
        return " ".join("x".join(map(str, p)) if isinstance(p, tuple) else str(p) for p in parts)


@dataclass(frozen=True)
class FactorGrid:
    """A kind of factor and the channel counts at which it is timed."""

    kind: FactorKind
    inputs: list[int]
    outputs: list[int]


def factor_grids(layer: Layer, module: nn.Module, block: int = 1) -> dict[str, FactorGrid]:
    """The factors that a layer may become, by name, and the channel counts at which each is timed.

    Parameters
    ----------
    layer : decomp.graph.layer.Layer
    module : torch.nn.Module
        The layer itself.
    block : int
        Output channels of a convolution that the runtime computes together: of outputs only whole blocks are timed, and
        the layer's own count.
    """
    block = 1 if layer.kind == "linear" else block
    ranks = [
        [None] if step.name in layer.left_alone else [None, _shares(step.largest(layer))]
        for step in STEP_TABLE
        if step.is_rank
    ]
    widths, geometry = (_shares(layer.in_channels), _shares(layer.out_channels)), geometry_of(module)
    grids = {}
    for combination in product(*ranks):
        for link in chain(layer, *widths, *combination, geometry=geometry):
            inputs, outputs = np.atleast_1d(link.in_channels).tolist(), _blocks_of(link.out_channels, block)
            grids[link.name] = FactorGrid(FactorKind.of(layer, link), inputs, outputs)
    return grids


def _shares(limit: int) -> np.ndarray:
    return np.unique([max(1, round(limit * share)) for share in SHARES])


def _blocks_of(sizes: Size, block: int) -> list[int]:
    """Channel counts rounded up to whole blocks, though not beyond the largest."""
    own = np.atleast_1d(sizes)
    return np.unique(np.minimum(_in_blocks(own, block), own.max())).tolist()


def _in_blocks(n: Any, block: int) -> Any:
    """Channel counts as the runtime computes them: rounded up to whole blocks."""
    return -(-n // block) * block


def nearest_block(sizes: Sequence[int], milliseconds: Sequence[float]) -> int:
    """The block of channels whose steps the times of a factor follow best, of :data:`BLOCKS`.

    Between the first and the last size, both whole blocks of every kind, times rise in equal steps from one block to
    the next one. Of two kinds that fit almost alike the smaller one is taken.

    Parameters
    ----------
    sizes : sequence of int
        Ascending channel counts.
    milliseconds : sequence of float

    Returns
    -------
    int
        1 where times do not rise at all.
    """
    n, times = np.asarray(sizes), np.asarray(milliseconds, float)
    rise = times[-1] - times[0]
    if rise <= 0:
        return 1
    risen = (times - times[0]) / rise
    errors = {b: float(np.abs(risen - (_in_blocks(n, b) - n[0]) / (n[-1] - n[0])).mean()) for b in BLOCKS}
    return min((b for b in BLOCKS if errors[b] <= min(errors.values()) + 0.02), default=1)


def chain_module(layer: Layer, links: Sequence[ChainLink]) -> nn.Module:
    """A chain as a module with random weights; a chain of one is the module itself."""
    modules = [FactorKind.of(layer, link).build(int(link.in_channels), int(link.out_channels)) for link in links]
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


class LatencyCost:
    """Milliseconds on one device as the cost that a plan reduces.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    tables : dict of (str, str) to (inputs, outputs, milliseconds)
        By layer and name of the factor: two lists of channel counts and the times, shape (inputs, outputs).
    parts : dict of str to float
        Milliseconds of each fitted layer within the original network. Each table is scaled to that.
    beside : float
        Milliseconds of everything else (activations, pooling, sums). It is shared among the layers in proportion to
        the numbers in their outputs.
    block : int
        Output channels of a convolution that the runtime computes together, see :func:`nearest_block`.
    selecting : dict of str to float, optional
        Milliseconds of the selection of channels in front of each layer that reads fewer than are there while others
        read them too. Added where it does.

    Attributes
    ----------
    name, unit, total, rest
        As for :class:`decomp.allocation.interfaces.CostModel`.
    """

    name, unit = "latency", "measured time"
    rest: float = 0.0

    def __init__(
        self, graph: Graph, tables: Mapping[tuple[str, str], Table], parts: Mapping[str, float], beside: float,
        block: int = 1, selecting: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self._selecting = dict(selecting or {})
        self.total: float = beside + sum(parts.values())
        blocks = {layer.name: 1 if layer.kind == "linear" else block for layer in graph.layers}
        self._times = {key: _interpolator(*table, blocks[key[0]]) for key, table in tables.items()}
        fitted = [layer for layer in graph.layers if layer.fitted]
        self._scale, self._beside = dict.fromkeys(parts, 1.0), dict.fromkeys(parts, 0.0)
        # The factors are timed at the first call; `parts` has the time of all calls.
        places = {layer.name: sum(out[0] * out[1] for _, out in layer.calls) for layer in fitted}
        numbers = sum(layer.out_channels * places[layer.name] for layer in fitted)
        for layer in fitted:
            alone = float(self.layer(layer, layer.in_channels, layer.out_channels))
            self._scale[layer.name] = parts[layer.name] / alone
            self._beside[layer.name] = beside * places[layer.name] / numbers

    def layer(
        self,
        layer: Layer,
        width_in: Size,
        width_out: Size,
        spatial_rank: Size | None = None,
        channel_rank: Size | None = None,
    ) -> Amount:
        """See :meth:`decomp.allocation.interfaces.CostModel.layer`."""
        if not layer.fitted:
            return 0.0  # with all that is not measured by itself, beside the layers
        total: Amount = 0.0
        for link in chain(layer, width_in, width_out, spatial_rank, channel_rank):
            total = total + self._times[layer.name, link.name](link.in_channels, link.out_channels)
        total = total * self._scale[layer.name] + self._beside[layer.name] * width_out
        if layer.name in self._selecting:
            total = total + self._selecting[layer.name] * (width_in < layer.in_channels)
        return total


def _interpolator(
    inputs: Sequence[int], outputs: Sequence[int], milliseconds: Sequence[Sequence[float]], block: int = 1
) -> Callable[[Size, Size], Amount]:
    """Times, linear between the grid points, of outputs in whole blocks; a wider factor is never faster.

    Within a block the time rises by :data:`WITHIN` of the step to the next one: what reads fewer channels is faster.
    """
    table = np.maximum.accumulate(np.maximum.accumulate(np.asarray(milliseconds, float), axis=0), axis=1)
    times = table.tolist()
    n_in, n_out = np.arange(inputs[-1] + 1), np.arange(outputs[-1] + 1)
    rows = _Places(np.asarray(inputs, float), n_in)
    columns = _Places(np.asarray(outputs, float), (1 - WITHIN) * _in_blocks(n_out, block) + WITHIN * n_out)

    def at(n_in: Size, n_out: Size) -> Amount:
        if np.ndim(n_in) == np.ndim(n_out) == 0:  # the search asks for single sizes far more often than for tables
            row, next_row, down = rows.of_one(int(n_in))
            column, next_column, right = columns.of_one(int(n_out))
            upper = times[row][column] * (1 - right) + times[row][next_column] * right
            lower = times[next_row][column] * (1 - right) + times[next_row][next_column] * right
            return upper * (1 - down) + lower * down
        i, next_i, low = rows.of_many(n_in)
        j, next_j, left = columns.of_many(n_out)
        above = table[i, j] * (1 - left) + table[i, next_j] * left
        below = table[next_i, j] * (1 - left) + table[next_i, next_j] * left
        return above * (1 - low) + below * low

    return at


class _Places:
    """Places on an axis at and behind sizes, and their distance from the first as a share; outside, the nearest end.

    Parameters
    ----------
    axis : numpy.ndarray
        Ascending.
    positions : numpy.ndarray
        Of the sizes 0, 1, 2, ...; larger sizes are where the last one is.
    """

    def __init__(self, axis: np.ndarray, positions: np.ndarray) -> None:
        before = np.clip(np.searchsorted(axis, positions, side="right") - 1, 0, len(axis) - 1)
        after = np.minimum(before + 1, len(axis) - 1)
        gap = np.where(after > before, axis[after] - axis[before], 1.0)
        self._many = before, after, np.clip((positions - axis[before]) / gap, 0.0, 1.0)
        self._ones = list(zip(*(values.tolist() for values in self._many), strict=True))

    def of_one(self, n: int) -> tuple[int, int, float]:
        """Of one size."""
        return self._ones[min(n, len(self._ones) - 1)]

    def of_many(self, n: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of several sizes, in their shape."""
        known = np.minimum(n, len(self._ones) - 1)
        before, after, share = self._many
        return before[known], after[known], share[known]
