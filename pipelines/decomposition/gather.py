"""Gatherer of layer problems: moments and rows of a layer from a network and its frozen points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from decomp import time_spent
from decomp.execution import sampled_rows
from decomp.execution.replay import Replay
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.modules.convolution import CONVOLUTIONS, Convolution, geometry, kernel_of
from decomp.problem.channel_moments import ChannelMoments, ChannelMomentSum
from decomp.problem.factors import Geometry, turned
from decomp.problem.kept_rows import sum_of_rows
from decomp.problem.layer_problem import LayerProblem
from decomp.problem.moments import Moments

from ...data.formats.frozen_file import FrozenFile
from ...data.formats.frozen_keys import keys_of, shortcut_key
from ..distributed.process_group import batches_of, count, gathered, number, own_range
from ..distributed.shared_moments import Processes, moments_of_all
from ..run.calibration import fitted_images
from .fitted_order import FittedOrder, Halves
from .memory import StageMemory
from .refusals import require_finite
from .row_tiles import Rows, fitted_layout, tiles
from .spill_store import SpillStore

ROWS_BUDGET = 1 << 30  # bytes that the rows of one layer may take


class ProblemGatherer:
    """Gathers the problems of layers in execution order from a network in its present state.

    Parameters
    ----------
    frozen : decomp.data.formats.frozen_file.FrozenFile
    graph : decomp.graph.network_graph.NetworkGraph
        Of the network; modules of layers that were gathered already may be exchanged.
    metrics : dict of str to torch.Tensor, optional
        Output metric of each layer, to be part of its problem.
    device : torch.device
    recovery : bool
        Fit the last layer in front of a sum to Y₂ + (Y₁ − Y₁'): Y₁ the original value that its output Y₂ is added
        to, Y₁' the value now (1707.06168, section 3.3). The branch makes up for the error of the shortcut.
    remaining_outputs : dict of str to torch.LongTensor, optional
        Output channels that stay, of the layers that lost some with a whole channel space.
    memory : decomp.pipelines.decomposition.memory.StageMemory, optional
        Batch size and stores; without it `batch_size`, and all values in memory.
    share : float
        Share of the bytes for stored activations.
    batch_size : int
    most_images : int, optional
        See :class:`decomp.pipelines.decomposition.fitted_order.FittedOrder`.
    """

    def __init__(
        self,
        frozen: FrozenFile,
        graph: NetworkGraph,
        *,
        metrics: Mapping[str, Tensor] | None = None,
        device: torch.device | str = "cpu",
        recovery: bool = False,
        remaining_outputs: Mapping[str, Tensor] | None = None,
        memory: StageMemory | None = None,
        share: float = 1.0,
        batch_size: int = 100,
        most_images: int | None = None,
    ) -> None:
        self.frozen, self.graph, self.device, self.metrics = frozen, graph, device, metrics or {}
        self.recovery, self.remaining_outputs = recovery, remaining_outputs or {}
        self.order = FittedOrder(frozen, most_images)
        #: Moments of the two halves of the images of the problem last gathered, where there are few; see `FittedOrder`.
        self.halves: tuple[Moments, Moments] | None = None
        if memory is None:
            self.replay = Replay(
                graph.module, self.order.images, self.order.n, batch_size=batch_size, device=device, own=own_range
            )  # fmt: skip
            # Never writes to a folder: all that it admits fits into its memory.
            self._row_store = SpillStore(ROWS_BUDGET, ROWS_BUDGET, Path())
        else:
            self.replay = memory.replay(
                graph.module, self.order.images, self.order.n, device, share, own=own_range
            )  # fmt: skip
            self._row_store = memory.row_store()
        self.n_fit = fitted_images(frozen.n_images)
        self._positions: dict[str, Tensor] = {}
        self._stored_rows: tuple[str, int] | None = None  # layer and number of tiles in the store

    def problem(self, layer: Layer) -> tuple[LayerProblem, Moments]:
        """The problem of one layer on the fitted images, and the moments of the held-out ones.

        Of several processes each gathers the rows of its share of the images. The moments are those of all rows, and
        the rows of the problem are its own ones.

        Parameters
        ----------
        layer : decomp.graph.layer.Layer
            At or behind the layers gathered before, in execution order.

        Returns
        -------
        problem : decomp.problem.layer_problem.LayerProblem
            X from the network in its present state, Y from the frozen file.
        held_out : decomp.problem.moments.Moments

        Raises
        ------
        NumericalError
            Naming the layer, where activations are not finite.
        """
        found = self._gathered(layer)
        assert found is not None
        return found

    def problem_for(self, layer: Layer, owner: int) -> tuple[LayerProblem, Moments] | None:
        """The same in the process `owner`, without rows; nothing in the others, which gather their rows for it."""
        return self._gathered(layer, owner)

    @time_spent.part("rows and moments")
    def _gathered(self, layer: Layer, owner: int | None = None) -> tuple[LayerProblem, Moments] | None:
        node, module = self.graph.node(layer), self._module(layer)
        self.replay.advance(node)
        weight = layer_weight(module, layer)
        p, n = weight[0].numel(), len(weight)
        # Stored where there is room: activation-aware fits read the rows several times.
        self._row_store.clear()
        points = sum(points for _, _, points in keys_of(layer, self.frozen.meta["n_points"]))
        n_rows = -(-self.order.n_fit // count()) * points
        # In all processes or in none: where rows are gathered again, all have to take part.
        store = owner is None and all(gathered(self._row_store.admits(4 * (p + n) * n_rows)))
        self._stored_rows, n_tiles = None, 0
        first = fitted_layout(self.order.n_fit, self._shares(), points).first(number())
        fit = Halves(self.order, points, (p, n), first, self.device)
        held_out = sum_of_rows(p, n, (self.order.n - self.order.n_fit) * points, self.device)
        for fitted, rows in self._tiles(layer, module):
            (fit if fitted else held_out).add(*rows)
            if fitted and store:
                self._row_store.put(n_tiles, dict(enumerate(rows)))
                n_tiles += 1
        if store:
            self._stored_rows = layer.name, n_tiles
        fit_of_all, held_out_of_all = moments_of_all(fit.whole(), owner), moments_of_all(held_out, owner)
        if owner is None and self.order.halves is not None:
            one, other = (moments_of_all(half) for half in fit.sums[:2])
            assert one is not None and other is not None
            self.halves = one, other
        if fit_of_all is None or held_out_of_all is None:
            return None
        problem = LayerProblem(
            layer.name, weight.detach(), None if module.bias is None else module.bias.detach(),
            Geometry() if isinstance(module, nn.Linear) else geometry(module), fit_of_all, layer.activation,
            (lambda: self._fitted_rows(layer, module)) if owner is None else None, self.metrics.get(layer.name),
            holders=Processes(),
        )  # fmt: skip
        return problem, held_out_of_all

    def channel_moments(self, layer: Layer) -> tuple[ChannelMoments, ChannelMoments]:
        """Moments of each channel of a depthwise convolution, on the fitted and on the held-out images.

        Raises
        ------
        NumericalError
            Naming the layer, where activations are not finite.
        """
        module = self._module(layer)
        self.replay.advance(self.graph.node(layer))
        assert isinstance(module, nn.Conv2d)
        c, per_channel = module.groups, module.out_channels // module.groups
        sums = [ChannelMomentSum(c, module.weight[0].numel(), per_channel, self.device) for _ in range(2)]
        for fitted, rows in self._tiles(layer, module):
            sums[0 if fitted else 1].add(*rows)
        fit, held_out = (moments_of_all(own) for own in sums)
        assert fit is not None and held_out is not None
        return fit, held_out

    @contextmanager
    def replaced(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> Iterator[None]:
        """Put other weights into a layer for the length of the block."""
        module = self._module(layer)
        weight_before, bias_before = module.weight.data, module.bias
        weight = turned(weight) if isinstance(module, nn.ConvTranspose2d) else weight
        module.weight.data = weight.reshape(module.weight.shape).to(module.weight)
        module.bias = None if bias is None else nn.Parameter(bias.to(module.weight))
        try:
            yield
        finally:
            module.weight.data, module.bias = weight_before, bias_before

    def _module(self, layer: Layer) -> Convolution | nn.Linear:
        module = self.graph.module.get_submodule(layer.name)
        assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
        return module

    def _fitted_rows(self, layer: Layer, module: Convolution | nn.Linear) -> Iterator[Rows]:
        if self._stored_rows is not None and self._stored_rows[0] == layer.name:
            stored = (self._row_store.get(i, copy=False) for i in range(self._stored_rows[1]))
            return ((tile[0], tile[1]) for tile in stored)
        return (rows for fitted, rows in self._tiles(layer, module) if fitted)

    def _tiles(self, layer: Layer, module: Convolution | nn.Linear) -> Iterator[tuple[bool, Rows]]:
        """(fitted or held out, rows), TILE_ROWS at a time for any batch size, so that the fit is the same."""
        points = sum(points for _, _, points in keys_of(layer, self.frozen.meta["n_points"]))
        return tiles(self._batches(layer, module), self.order.n_fit, self._shares(), points)

    def _shares(self) -> list[range]:
        """Images of each process."""
        return [batches_of(rank, self.order.n, self.replay.batch_size) for rank in range(count())]

    def _batches(self, layer: Layer, module: Convolution | nn.Linear) -> Iterator[tuple[int, int, Rows]]:
        """(start, stop, rows X (m, P, c, kh, kw) and Y (m, P, n)) of every batch: P points of all calls an image."""
        calls, shortcuts = self.graph.calls(layer), self.graph.shortcuts(layer) if self.recovery else {}
        keys = iter([key for key, _, _ in keys_of(layer, self.frozen.meta["n_points"])])
        named = {node: [next(keys) for _ in range(self.graph.maps(node).n)] for node in calls}
        found: list[Rows] = []
        for start, stop, node, x, shortcut in self.replay.call_inputs(calls, shortcuts):
            require_finite(x, layer.name, "the activations it reads", start, stop)
            maps = self.graph.maps(node)
            others = [None] * maps.n if shortcut is None else maps.split(shortcut)
            for key, part, other in zip(named[node], maps.split(x), others):
                X, Y = self._rows(layer, module, key, start, stop, part, other)
                # A linear layer's rows are its input itself, which the nodes before the next call may change in place.
                found.append((X.clone() if len(calls) > 1 else X, Y))
            if len(found) == len(layer.calls):
                rows = tuple(torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*found))
                found = []
                yield start, stop, (rows[0], rows[1])

    def _rows(
        self, layer: Layer, module: nn.Module, key: str, start: int, stop: int, x: Tensor, shortcut: Tensor | None
    ) -> Rows:
        """Rows X (m, P, c, kh, kw) and Y (m, P, n) at one call, whose responses are named ``key``."""
        grid = self.frozen.grid_of(key)
        if grid not in self._positions:
            self._positions[grid] = self.order.positions(grid)
        positions = self._positions[grid][start:stop]
        X = sampled_rows.layer_rows(module, layer.input_space, x, positions)
        Y = self._wanted(layer, key, start, stop).to(x.device)
        if shortcut is not None:
            wanted = self._wanted(layer, shortcut_key(key), start, stop).to(x.device)
            Y = Y + (wanted - sampled_rows.responses(shortcut, positions))
        return X.unflatten(0, (stop - start, -1)), Y

    def _wanted(self, layer: Layer, key: str, start: int, stop: int) -> Tensor:
        """Responses of the original network, in the channels that the layer still writes."""
        values = self.order.responses(key, start, stop)
        remaining = self.remaining_outputs.get(layer.name)
        return values if remaining is None else values[..., remaining]


def layer_weight(module: Convolution | nn.Linear, layer: Layer) -> Tensor:
    """Weight of a layer as of a convolution, shape (n, c, kh, kw): a linear layer's kernel is the map it reads."""
    if not isinstance(module, nn.Linear):
        return kernel_of(module)
    map_shape = layer.input_space.map_shape if layer.input_space else (1, 1)
    return module.weight.reshape(len(module.weight), -1, *map_shape)
