"""Measured time: networks in turn on the same images, and the time of a layer's factors as a cost.

A layer's chain runs factor after factor, so its time is the sum of theirs. The time of one factor depends on its two
channel counts; it is measured on a coarse grid of them and interpolated linearly between.
"""

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from decomp import seeds
from decomp.factors import Geometry
from decomp.surgery import geometry

WARM_UP = 3
#: Slow networks are timed in fewer rounds: no new one starts after this long, though never fewer than five.
MAX_SECONDS, MIN_ROUNDS = 120.0, 5
# Shares of a layer's channels at which its factors are timed.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
LINEAR = "linear"
#: How the numbers of an image and of a kernel lie in memory. Factors are small: what it takes to bring them into the
#: order in which a processor convolves weighs more in them, and most of that is saved with the channels last.
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def laid_out(network, layout):
    """A copy of a network with its weights in one of :data:`LAYOUTS`."""
    return copy.deepcopy(network).to(memory_format=LAYOUTS[layout])


def latencies(networks, shape, device, rounds, *, layout="contiguous", max_seconds=None, min_rounds=None):
    """Time networks in turn (A B C A B C ...) on the same random images.

    Parameters
    ----------
    networks : dict of name to torch.nn.Module
        On `device`, in eval mode.
    shape : tuple of int
        ``(batch_size, C, H, W)``.
    device : torch.device
    rounds : int
        Fewer are made of slow networks: none starts after `max_seconds` once there are `min_rounds`.
    layout : str
        That of the images, of :data:`LAYOUTS`; the networks are taken as they are, see :func:`laid_out`.
    max_seconds, min_rounds : float and int, optional
        :data:`MAX_SECONDS` and :data:`MIN_ROUNDS` where not given.

    Returns
    -------
    dict of name to list of float
        Milliseconds of each round; equally many for every network. Warm-up runs are not among them.
    """
    max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
    min_rounds = MIN_ROUNDS if min_rounds is None else min_rounds
    images = torch.randn(*shape, generator=seeds.generator(0, "evaluate", "latency")).to(device)
    if images.dim() == 4:
        images = images.contiguous(memory_format=LAYOUTS[layout])
    times = {name: [] for name in networks}
    with torch.inference_mode():
        for network in networks.values():
            for _ in range(WARM_UP):
                network(images)
        start = time.monotonic()
        while len(times[next(iter(times))]) < rounds:
            for name, network in networks.items():
                times[name].append(_milliseconds(network, images, device))
            if time.monotonic() - start > max_seconds and len(times[name]) >= min_rounds:
                break
    return times


def _milliseconds(network, images, device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    network(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def times_within(network, names, shape, device, rounds, *, layout="contiguous", max_seconds=None):
    """Median milliseconds of some of a network's modules while it runs, and of the rest.

    A layer in its network finds other things in the caches than a layer that is timed by itself.

    Parameters
    ----------
    network : torch.nn.Module
    names : list of str
        Paths of modules that are called once.
    shape, device, rounds, layout, max_seconds
        As for :func:`latencies`.

    Returns
    -------
    parts : dict of str to float
    rest : float
    """
    started, parts = {}, {name: [] for name in names}

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() * 1e3

    def start(name):
        return lambda *_: started.update({name: now()})

    def stop(name):
        return lambda *_: parts[name].append(now() - started[name])

    modules = {name: network.get_submodule(name) for name in names}
    hooks = [module.register_forward_pre_hook(start(name)) for name, module in modules.items()]
    hooks += [module.register_forward_hook(stop(name)) for name, module in modules.items()]
    try:
        times = latencies({"": network}, shape, device, rounds, layout=layout, max_seconds=max_seconds)
    finally:
        for hook in hooks:
            hook.remove()
    whole = np.array(times[""])
    within = {name: np.array(values[WARM_UP:]) for name, values in parts.items()}
    rest = np.median(whole - sum(within.values()))
    return {name: float(np.median(values)) for name, values in within.items()}, max(0.0, float(rest))


@dataclass(frozen=True)
class FactorKind:
    """A convolution or linear layer but for its channel counts.

    Attributes
    ----------
    kernel : tuple of int, or 'linear'
    geometry : decomp.factors.Geometry
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
    layer : decomp.graph.Layer
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


def chain_of(width_in, width_out, spatial_rank=None, channel_rank=None):
    """The factors of a layer after its three steps: [(name, channels in, channels out)], first applied first."""
    filters = width_out if channel_rank is None else channel_rank
    if spatial_rank is None:
        chain = [("dense", width_in, filters)]
    else:
        chain = [("vertical", width_in, spatial_rank), ("horizontal", spatial_rank, filters)]
    return chain if channel_rank is None else [*chain, ("pointwise", channel_rank, width_out)]


def channel_grids(layer, steps):
    """Channel counts at which each factor of a layer is to be timed: {name: (in, out)}.

    Parameters
    ----------
    layer : decomp.graph.Layer
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
    """Milliseconds on one device as the cost to be shared out; the interface of :class:`decomp.cost.MacsCost`.

    Parameters
    ----------
    graph : decomp.graph.NetworkGraph
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
        """Cost of one layer after its three steps, see :meth:`decomp.cost.MacsCost.layer`."""
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
