"""From a network and its frozen points to the problem of one layer."""

from contextlib import contextmanager

import torch
from torch import nn

from decomp import capture
from decomp.errors import NumericalError
from decomp.factors import Geometry
from decomp.moments import Moments
from decomp.pipelines.points import shortcut_key
from decomp.problem import LayerProblem
from decomp.surgery import geometry

HELD_OUT = 10  # one image in so many is kept out of every fit, for reporting
ROWS_BUDGET = 1 << 30  # bytes that the rows of one layer may take


class Problems:
    """Gathers layer problems from a network as it stands, walking through it front to back.

    Parameters
    ----------
    frozen : decomp.data.frozen.FrozenFile
    graph : decomp.graph.NetworkGraph
        Of the network; its modules may be exchanged behind the walk.
    metrics : dict of str to torch.Tensor, optional
        Output metric of each layer, to be part of its problem.
    batch_size : int
    budget : int
        Bytes for values kept between layers.
    device : torch.device
    recovery : bool
        Fit the last layer in front of a sum to Y₂ + (Y₁ − Y₁'): Y₁ the original value that its output Y₂ is added
        to, Y₁' the value now (1707.06168, section 3.3). What the shortcut got wrong, the branch makes up for.
    kept : dict of str to torch.LongTensor, optional
        Outputs that stay, of the layers that lost some with a whole channel space.
    """

    def __init__(
        self, frozen, graph, *, metrics=None, batch_size=100, budget=2 << 30, device="cpu", recovery=False, kept=None
    ):
        self.frozen, self.graph, self.device, self.metrics = frozen, graph, device, metrics or {}
        self.recovery, self.kept = recovery, kept or {}
        self.replay = capture.Replay(
            graph.module, frozen.images, frozen.n_images, batch_size=batch_size, budget=budget, device=device
        )
        self.n_fit = frozen.n_images - max(1, frozen.n_images // HELD_OUT)
        self._positions, self._kept_rows = {}, None

    def problem(self, layer):
        """The problem of one layer on the images that are fitted, and the moments of the held-out ones.

        Parameters
        ----------
        layer : decomp.graph.Layer
            The walk moves here; layers may only be asked for in execution order.

        Returns
        -------
        problem : decomp.problem.LayerProblem
            X from the network as it stands, Y from the frozen file.
        held_out : decomp.moments.Moments

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
        # Fits behind the activation go over the rows several times: kept, where they are not too many.
        self._kept_rows, kept = None, []
        room = 4 * (p + len(weight)) * self.n_fit * self._points(layer) <= ROWS_BUDGET
        for start, stop, x, beside in self._values(layer):
            bad = int((~torch.isfinite(x)).sum())
            if bad:
                raise NumericalError(
                    layer.name, "the activations it reads must be finite", got=f"{bad} NaN or infinite values",
                    fix="check the weights and the images",
                )  # fmt: skip
            for part, moments in (
                (slice(start, min(stop, self.n_fit)), fit),
                (slice(max(start, self.n_fit), stop), held_out),
            ):
                if part.start < part.stop:
                    rows = self._rows(layer, module, x, beside, start, part)
                    moments.update(*rows)
                    if moments is fit and room:
                        kept.append(rows)
        if room:
            self._kept_rows = (layer.name, kept)
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
        if self._kept_rows is not None and self._kept_rows[0] == layer.name:
            yield from self._kept_rows[1]
            return
        for start, stop, x, beside in self._values(layer):
            if start < min(stop, self.n_fit):
                yield self._rows(layer, module, x, beside, start, slice(start, min(stop, self.n_fit)))

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
        X = capture.layer_rows(module, layer.input_space, x[inside], positions)
        Y = self._wanted(layer, layer.name, part).to(x.device)
        if beside is not None:
            wanted = self._wanted(layer, shortcut_key(layer.name), part).to(x.device)
            Y = Y + (wanted - capture.responses(beside[inside], positions))
        return X, Y.flatten(0, 1)

    def _wanted(self, layer, key, part):
        """What the original gave, in the channels that the layer still writes."""
        values = self.frozen.responses(key, part.start, part.stop)
        return values if layer.name not in self.kept else values[..., self.kept[layer.name]]


def layer_weight(module, layer):
    """Weight of a layer as a convolution's: a linear layer's columns are laid out as the map they read."""
    if layer.kind == "conv":
        return module.weight
    map_shape = layer.input_space.map_shape if layer.input_space else (1, 1)
    return module.weight.reshape(len(module.weight), -1, *map_shape)
