"""Counted cost models: multiply-accumulates and parameters of layers of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from decomp.allocation.interfaces import Amount, CostModel, Graph, Layer, Size
from decomp.cost.chain import chain, chain_macs, chain_params
from decomp.cost.count import Cost
from decomp.errors import check_choice

#: Names of the cost models that are counted, not measured.
COUNTED = ("macs", "params")


class ModuleGraph(Graph, Protocol):
    """A graph with its network; see :class:`decomp.graph.network_graph.NetworkGraph`."""

    @property
    def module(self) -> nn.Module: ...


class MacsCost:
    """Multiply-accumulates as the cost that a plan reduces.

    Depthwise convolutions between two layers are counted with the layer that reads them, since they are as wide.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    per_layer : dict of str to int
        Counted on the network as it is, see :func:`decomp.cost.count.cost`; layers that are not fitted keep it.
    total : int, optional
        Cost of the original, where whole channel spaces of the network have been narrowed before.

    Attributes
    ----------
    name, unit, total, rest
        As for :class:`decomp.allocation.interfaces.CostModel`.
    """

    name, unit = "macs", "multiply-accumulates"

    def __init__(self, graph: Graph, per_layer: Mapping[str, int], total: int | None = None) -> None:
        self.per_layer, now = per_layer, sum(per_layer.values())
        self.total: float = now if total is None else total
        self.rest: float = now - sum(per_layer[layer.name] for layer in graph.layers)
        self._carried: dict[str, str] = {}
        for layer in graph.layers:
            paths = layer.input_space.carriers if layer.input_space else ()
            self._carried.update({path: layer.name for path in paths if path in per_layer})
        self._per_channel = dict.fromkeys((layer.name for layer in graph.layers), 0)
        for path, reader in self._carried.items():
            self._per_channel[reader] += per_layer[path] // graph.layer(reader).input_width
        self._repeats = {la.name: la.input_space.repeat for la in graph.layers if la.input_space is not None}

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
            return 0 if layer.name in self._carried else self.per_layer[layer.name]
        carried = self._per_channel[layer.name] * (width_in // self._repeats.get(layer.name, 1))
        return chain_macs(chain(layer, width_in, width_out, spatial_rank, channel_rank)) + carried


class ParamsCost:
    """Parameters as the cost that a plan reduces.

    A fitted layer has a bias, also where the original had none. Normalisation and PReLU between two layers are
    counted with the layer that reads them.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
        The parameters of its module are counted.
    total : int, optional
        As for :class:`MacsCost`.
    """

    name, unit = "params", "parameters"

    def __init__(self, graph: ModuleGraph, total: int | None = None) -> None:
        now = _n_params(graph.module)
        self.total: float = now if total is None else total
        self._unfitted: dict[str, int] = {}
        self._carried: dict[str, float] = {}
        read = {path for layer in graph.layers if layer.input_space for path in layer.input_space.carriers}
        covered = 0
        for layer in graph.layers:
            # A depthwise convolution between two layers is counted with the one that reads it.
            own = 0 if layer.name in read else _n_params(graph.module.get_submodule(layer.name))
            carried = _carried_params(graph.module, layer)
            self._unfitted[layer.name] = own
            self._carried[layer.name] = carried / layer.in_channels
            covered += own + carried
        self.rest: float = now - covered

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
            return self._unfitted[layer.name]
        own = chain_params(chain(layer, width_in, width_out, spatial_rank, channel_rank))
        return own + self._carried[layer.name] * width_in


def _n_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _carried_params(module: nn.Module, layer: Layer) -> int:
    """Parameters of the modules between a layer and its producer that are as many as the channels or a multiple."""
    space = layer.input_space
    if space is None:
        return 0
    # Tied numbers, as of a PReLU with one slope for all channels, do not go with the channels.
    between = [p for path in space.carriers for p in module.get_submodule(path).parameters()]
    return sum(p.numel() for p in between if p.numel() >= space.width)


def counted_model(name: str, graph: ModuleGraph, per_layer: Mapping[str, int], original: Cost) -> CostModel:
    """The cost model of a name.

    Parameters
    ----------
    name : {'macs', 'params'}
    graph : decomp.graph.network_graph.NetworkGraph
    per_layer : dict of str to int
        Multiply-accumulates counted on the graph's network.
    original : decomp.cost.count.Cost
        Of the original network.

    Returns
    -------
    MacsCost or ParamsCost

    Raises
    ------
    UsageError
        There is no counted cost of that name.
    """
    if check_choice("cost", name, COUNTED) == "params":
        return ParamsCost(graph, original.params)
    return MacsCost(graph, per_layer, original.macs)
