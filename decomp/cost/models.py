"""Counted cost models: multiply-accumulates and parameters of layers of any size."""

from decomp.cost.chain import chain_macs
from decomp.errors import check_choice

#: Names of the cost models that are counted, not measured.
COUNTED = ("macs", "params")


class MacsCost:
    """Multiply-accumulates as the cost to be shared out.

    Depthwise convolutions between two layers are counted with the layer that reads them, since they are as wide.

    What sizes are chosen for is only ever asked through ``layer`` and ``total``; :class:`ParamsCost` and
    :class:`decomp.cost.latency_model.LatencyCost` answer the same questions.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    per_layer : dict of str to int
        Counted on the network as it is, see :func:`cost`: what the graph does not treat costs what it did.
    total : int, optional
        Cost of the original, where whole channel spaces of the network have been narrowed before.

    Attributes
    ----------
    name, unit : str
    total : float
        Cost of the original network.
    rest : float
        What lies outside the layers, and stays.
    """

    name, unit = "macs", "multiply-accumulates"

    def __init__(self, graph, per_layer, total=None):
        self.per_layer, now = per_layer, sum(per_layer.values())
        self.total = now if total is None else total
        self.rest = now - sum(per_layer[layer.name] for layer in graph.layers)
        self._carried = {}
        for layer in graph.layers:
            paths = layer.input_space.carriers if layer.input_space else ()
            self._carried.update({path: layer.name for path in paths if path in per_layer})
        self._per_channel = dict.fromkeys((layer.name for layer in graph.layers), 0)
        for path, reader in self._carried.items():
            self._per_channel[reader] += per_layer[path] // graph.layer(reader).input_space.width
        self._repeats = {la.name: la.input_space.repeat for la in graph.layers if la.input_space is not None}

    def layer(self, layer, width_in, width_out, spatial_rank=None, channel_rank=None):
        """Cost of one layer after its three steps, an array where an argument is one; see :func:`chain_macs`."""
        if not layer.fitted:
            return 0 if layer.name in self._carried else self.per_layer[layer.name]
        carried = self._per_channel[layer.name] * (width_in // self._repeats.get(layer.name, 1))
        return chain_macs(layer, width_in, width_out, spatial_rank, channel_rank) + carried


class ParamsCost:
    """Parameters as the cost to be shared out; the interface of :class:`MacsCost`.

    A fitted layer has a bias, also where the original had none. Normalisation and PReLU between two layers are
    counted with the layer that reads them.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
        Its module gives what is counted.
    total : int, optional
        As for :class:`MacsCost`.
    """

    name, unit = "params", "parameters"

    def __init__(self, graph, total=None):
        module = graph.module
        now = sum(p.numel() for p in module.parameters())
        self.total = now if total is None else total
        self._unfitted, self._carried, covered = {}, {}, 0
        read = {path for layer in graph.layers if layer.input_space for path in layer.input_space.carriers}
        for layer in graph.layers:
            # A depthwise convolution between two layers is counted with the one that reads it.
            own = 0 if layer.name in read else sum(p.numel() for p in module.get_submodule(layer.name).parameters())
            self._unfitted[layer.name] = own
            space = layer.input_space
            # Tied numbers, as of a PReLU with one slope for all channels, do not go with the channels.
            carried = [p for path in space.carriers for p in module.get_submodule(path).parameters()] if space else []
            carried = sum(p.numel() for p in carried if p.numel() >= space.width)
            self._carried[layer.name] = carried / layer.in_channels
            covered += own + carried
        self.rest = now - covered

    def layer(self, layer, width_in, width_out, spatial_rank=None, channel_rank=None):
        """Cost of one layer after its three steps, see :meth:`MacsCost.layer`."""
        if not layer.fitted:
            return self._unfitted[layer.name]
        kh, kw = layer.kernel
        filters = width_out if channel_rank is None else channel_rank
        if spatial_rank is None:
            params = width_in * kh * kw * filters
        else:
            params = spatial_rank * (width_in * kh + filters * kw)
        if channel_rank is not None:
            params = params + channel_rank * width_out
        return params + width_out + self._carried[layer.name] * width_in


def counted_model(name, graph, per_layer, original):
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
