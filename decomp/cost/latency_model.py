"""Measured time: networks in turn on the same images, and the time of a layer's factors as a cost.

A layer's chain runs factor after factor, so its time is the sum of theirs. The time of one factor depends on its two
channel counts; it is measured on a coarse grid of them and interpolated linearly between.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from decomp.cost.chain import chain_of
from decomp.modules.convolution import geometry
from decomp.problem.factors import Geometry

# Shares of a layer's channels at which its factors are timed.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
LINEAR = "linear"


@dataclass(frozen=True)
class FactorKind:
    """A convolution or linear layer but for its channel counts.

    Attributes
    ----------
    kernel : tuple of int, or 'linear'
    geometry : decomp.problem.factors.Geometry
    in_hw : tuple of int
        Height and width of its input.
    """

    kernel: tuple | str
    geometry: Geometry = Geometry()
    in_hw: tuple = (1, 1)

    def build(self, n_in, n_out):
        """One of this kind, with random weights."""
        if self.kernel == LINEAR:
            return nn.Linear(n_in, n_out)
        return nn.Conv2d(n_in, n_out, self.kernel, **vars(self.geometry))

    def images(self, batch, n_in):
        """Shape of its input."""
        return (batch, n_in) if self.kernel == LINEAR else (batch, n_in, *self.in_hw)

    def words(self, n_in, n_out):
        """All that its time depends on, as one text."""
        g = self.geometry
        parts = [self.kernel, n_in, n_out, self.in_hw, g.stride, g.padding, g.dilation, g.padding_mode]
        return " ".join("x".join(map(str, p)) if isinstance(p, tuple) else str(p) for p in parts)


def kinds_of(layer, module):
    """The factors that a layer may become, by name.

    Parameters
    ----------
    layer : decomp.graph.layer.Layer
    module : torch.nn.Module
        The layer itself.

    Returns
    -------
    dict of str to FactorKind
        ``dense`` also stands for the filters of a channel decomposition.
    """
    if layer.kind == "linear":
        return {"dense": FactorKind(LINEAR)}
    g, (kh, kw) = geometry(module), layer.kernel
    between = layer.out_hw[0], layer.in_hw[1]
    return {
        "dense": FactorKind((kh, kw), g, tuple(layer.in_hw)),
        "vertical": FactorKind((kh, 1), g.vertical(), tuple(layer.in_hw)),
        "horizontal": FactorKind((1, kw), g.horizontal(), between),
        "pointwise": FactorKind((1, 1), Geometry(), tuple(layer.out_hw)),
    }


def channel_grids(layer, steps):
    """Channel counts at which each factor of a layer is to be timed: {name: (in, out)}.

    Parameters
    ----------
    layer : decomp.graph.layer.Layer
    steps : set of {'spatial', 'channel'}
        That may be taken.
    """

    def shares(limit):
        return sorted({max(1, round(limit * share)) for share in SHARES})

    c, n, r = shares(layer.in_channels), shares(layer.out_channels), shares(layer.max_spatial_rank)
    grids = {"dense": (c, n)}
    if "spatial" in steps:
        grids.update(vertical=(c, r), horizontal=(r, n))
    if "channel" in steps:
        grids["pointwise"] = (n, n)
    return grids


class LatencyCost:
    """Milliseconds on one device as the cost to be shared out; the interface of :class:`decomp.cost.models.MacsCost`.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    tables : dict of (str, str) to (inputs, outputs, milliseconds)
        By layer and name of the factor: two lists of channel counts and the times, shape (inputs, outputs).
    parts : dict of str to float
        Milliseconds of each fitted layer within the original network. Each table is scaled to that.
    beside : float
        Milliseconds of everything else (activations, pooling, sums). It is taken to go with what the layers put out,
        number for number.
    """

    name, unit, rest = "latency", "measured time", 0.0

    def __init__(self, graph, tables, parts, beside):
        self.total = beside + sum(parts.values())
        self._times = {key: _interpolator(*table) for key, table in tables.items()}
        fitted = [layer for layer in graph.layers if layer.fitted]
        self._scale, self._beside = dict.fromkeys(parts, 1.0), dict.fromkeys(parts, 0.0)
        numbers = sum(layer.out_channels * layer.out_hw[0] * layer.out_hw[1] for layer in fitted)
        for layer in fitted:
            alone = self.layer(layer, layer.in_channels, layer.out_channels)
            self._scale[layer.name] = parts[layer.name] / alone
            self._beside[layer.name] = beside * layer.out_hw[0] * layer.out_hw[1] / numbers

    def layer(self, layer, width_in, width_out, spatial_rank=None, channel_rank=None):
        """Cost of one layer after its three steps, see :meth:`decomp.cost.models.MacsCost.layer`."""
        if not layer.fitted:
            return 0.0  # with all that is not measured by itself, beside the layers
        total = 0.0
        for name, n_in, n_out in chain_of(width_in, width_out, spatial_rank, channel_rank):
            total = total + self._times[layer.name, name](n_in, n_out)
        return total * self._scale[layer.name] + self._beside[layer.name] * width_out


def _interpolator(inputs, outputs, milliseconds):
    """Times between the grid points, linear; a little wider is never faster, so noise is not followed."""
    table = np.maximum.accumulate(np.maximum.accumulate(np.asarray(milliseconds, float), axis=0), axis=1)
    axes = [np.asarray(inputs, float), np.asarray(outputs, float)]
    for axis in (0, 1):
        if len(axes[axis]) == 1:  # it takes two points to interpolate
            axes[axis] = np.array([axes[axis][0], axes[axis][0] + 1])
            table = np.repeat(table, 2, axis=axis)
    between = RegularGridInterpolator(axes, table)

    def at(n_in, n_out):
        n_in, n_out = (np.clip(n, axis[0], axis[-1]) for n, axis in zip((n_in, n_out), axes))
        found = between(np.stack(np.broadcast_arrays(n_in, n_out), axis=-1))
        return float(found[0]) if np.ndim(n_in) == np.ndim(n_out) == 0 else found

    return at
