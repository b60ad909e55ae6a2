"""From a network and its frozen points to the problem of one layer."""

from contextlib import contextmanager

import torch
from torch import nn

from decomp.errors import NumericalError
from decomp.execution import replay as capture
from decomp.execution import sampled_rows
from decomp.modules.convolution import geometry
from decomp.problem.factors import Geometry
from decomp.problem.layer_problem import LayerProblem
from decomp.problem.moments import TILE_ROWS, Moments

from ...data.formats.frozen_file import shortcut_key
from .spill_store import KeptValues

HELD_OUT = 10  # one image in so many is kept out of every fit, for reporting
ROWS_BUDGET = 1 << 30  # bytes that the rows of one layer may take


class Problems:
    """Gathers layer problems from a network as it stands, walking through it front to back.

    Parameters
    ----------
    frozen : decomp.data.formats.frozen_file.FrozenFile
    graph : decomp.graph.network_graph.NetworkGraph
        Of the network; its modules may be exchanged behind the walk.
    metrics : dict of str to torch.Tensor, optional
        Output metric of each layer, to be part of its problem.
    batch_size : int
    device : torch.device
    space : decomp.pipelines.decomposition.memory.Workspace, optional
        Where values between layers are kept and how many images are taken at a time; without it, in memory.
    share : float
        Of that space's room for kept values.
    recovery : bool
        Fit the last layer in front of a sum to Y₂ + (Y₁ − Y₁'): Y₁ the original value that its output Y₂ is added
        to, Y₁' the value now (1707.06168, section 3.3). What the shortcut got wrong, the branch makes up for.
    kept : dict of str to torch.LongTensor, optional
        Outputs that stay, of the layers that lost some with a whole channel space.
    """

    def __init__(
        self, frozen, graph, *, metrics=None, batch_size=100, device="cpu", recovery=False, kept=None, space=None,
        share=1.0,
    ):  # fmt: skip
        self.frozen, self.graph, self.device, self.metrics = frozen, graph, device, metrics or {}
        self.recovery, self.kept = recovery, kept or {}
        images = (graph.module, frozen.images, frozen.n_images)
        if space is None:
            self.replay = capture.Replay(*images, batch_size=batch_size, device=device)
            self._stored = KeptValues(ROWS_BUDGET, ROWS_BUDGET, None)
        else:
            self.replay, self._stored = space.replay(*images, device, share), space.rows()
        self.n_fit = fitted_images(frozen)
        self._positions, self._rows_of = {}, None

    def problem(self, layer):
        """The problem of one layer on the images that are fitted, and the moments of the held-out ones.

        Parameters
        ----------
        layer : decomp.graph.layer.Layer
            The walk moves here; layers may only be asked for in execution order.

        Returns
        -------
        problem : decomp.problem.layer_problem.LayerProblem
            X from the network as it stands, Y from the frozen file.
        held_out : decomp.problem.moments.Moments

        Raises
        ------
        NumericalError
            Naming the layer, where activations are not finite.
        """
        node, module = self.graph.node(layer), self.graph.module.get_submodule(layer.name)
        self.replay.advance(node)
        weight = layer_weight(module, layer)
        p = weight[0].numel()
        fit = Moments.zeros(p, len(weight), device=self.device)
        held_out = Moments.zeros(p, len(weight), device=self.device)
        # Kept where there is room: fits behind the activation go over them several times.
        self._stored.clear()
        keep = self._stored.admits(4 * (p + len(weight)) * self.n_fit * self._points(layer))
        self._rows_of, n_stored = None, 0
        for fitted, rows in self._tiles(layer, module):
            (fit if fitted else held_out).update(*rows)
            if fitted and keep:
                self._stored.put(n_stored, dict(enumerate(rows)))
                n_stored += 1
        if keep:
            self._rows_of = layer.name, n_stored
        problem = LayerProblem(
            layer.name, weight.detach(), None if module.bias is None else module.bias.detach(),
            geometry(module) if layer.kind == "conv" else Geometry(), fit, layer.activation,
            lambda: self._fitted_rows(layer, module), self.metrics.get(layer.name),
        )  # fmt: skip
        return problem, held_out

    @contextmanager
    def replaced(self, layer, weight, bias):
        """Run with other weights in a layer for the length of the block."""
        module = self.graph.module.get_submodule(layer.name)
        before = module.weight.data, module.bias
        module.weight.data = weight.reshape(module.weight.shape).to(module.weight)
        module.bias = nn.Parameter(bias.to(module.weight))
        try:
            yield
        finally:
            module.weight.data, module.bias = before

    def _values(self, layer):
        """(start, stop, what the layer reads, what its output is added to or None) of every batch."""
        node, beside = self.graph.node(layer), self.graph.shortcut_node(layer) if self.recovery else None
        for start, stop, value in self.replay.inputs(node, beside):
            yield (start, stop, value, None) if beside is None else (start, stop, *value)

    def _fitted_rows(self, layer, module):
        if self._rows_of is not None and self._rows_of[0] == layer.name:
            return (tuple(self._stored.get(i, copy=False).values()) for i in range(self._rows_of[1]))
        return (rows for fitted, rows in self._tiles(layer, module) if fitted)

    def _tiles(self, layer, module):
        """Whether they are to be fitted, and rows, TILE_ROWS at a time whatever the batch: the fit is the same."""
        tiles = _Tiles()
        for start, stop, x, beside in self._values(layer):
            _require_finite(layer, x, start, stop)
            for part, fitted in (
                (slice(start, min(stop, self.n_fit)), True),
                (slice(max(start, self.n_fit), stop), False),
            ):
                if part.start < part.stop:
                    yield from tiles.add(fitted, self._rows(layer, module, x, beside, start, part))
        yield from tiles.rest()

    def _points(self, layer):
        """Rows per image."""
        height, width = self.frozen.grid_size(self.frozen.grid_of(layer.name))
        return min(self.frozen.meta["n_points"], height * width)

    def _rows(self, layer, module, x, beside, first, part):
        """Rows of the images ``part``; ``x`` and ``beside`` hold the batch that begins with image ``first``."""
        key, inside = self.frozen.grid_of(layer.name), slice(part.start - first, part.stop - first)
        if key not in self._positions:
            self._positions[key] = self.frozen.positions(key)
        positions = self._positions[key][part]
        X = sampled_rows.layer_rows(module, layer.input_space, x[inside], positions)
        Y = self._wanted(layer, layer.name, part).to(x.device)
        if beside is not None:
            wanted = self._wanted(layer, shortcut_key(layer.name), part).to(x.device)
            Y = Y + (wanted - sampled_rows.responses(beside[inside], positions))
        return X, Y.flatten(0, 1)

    def _wanted(self, layer, key, part):
        """What the original gave, in the channels that the layer still writes."""
        values = self.frozen.responses(key, part.start, part.stop)
        return values if layer.name not in self.kept else values[..., self.kept[layer.name]]


def fitted_images(frozen):
    """How many images are fitted; those behind them are held out."""
    return frozen.n_images - max(1, frozen.n_images // HELD_OUT)


class _Tiles:
    """Cuts rows that come batch by batch into tiles of TILE_ROWS; the last tile of a kind is what is left."""

    def __init__(self):
        self._kind, self._waiting = None, []

    def add(self, kind, rows):
        """(kind, tile) for each tile that is full with these rows (X, Y)."""
        if kind != self._kind:
            yield from self.rest()
        self._kind = kind
        self._waiting.append(rows)
        if sum(len(Y) for _, Y in self._waiting) >= TILE_ROWS:
            tiles = self._cut()
            if len(tiles[-1][1]) < TILE_ROWS:
                self._waiting = [tiles.pop()]
            yield from ((kind, tile) for tile in tiles)

    def rest(self):
        """(kind, tile) for what is left, if anything is."""
        if self._waiting:
            yield from ((self._kind, tile) for tile in self._cut())

    def _cut(self):
        X, Y = (torch.cat(parts) for parts in zip(*self._waiting))
        self._waiting = []
        return list(zip(X.split(TILE_ROWS), Y.split(TILE_ROWS)))


def _require_finite(layer, x, start, stop):
    bad = x.numel() - int(torch.isfinite(x).sum())
    if bad:
        raise NumericalError(
            layer.name, "the activations it reads must be finite",
            got=f"{bad} NaN or infinite values in images {start}..{stop - 1}", fix="check the weights and the images",
        )  # fmt: skip


def layer_weight(module, layer):
    """Weight of a layer as a convolution's: a linear layer's columns are laid out as the map they read."""
    if layer.kind == "conv":
        return module.weight
    map_shape = layer.input_space.map_shape if layer.input_space else (1, 1)
    return module.weight.reshape(len(module.weight), -1, *map_shape)
