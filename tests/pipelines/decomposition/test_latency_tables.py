"""Tables of times: the parts of a network in context, and the rest."""

from types import SimpleNamespace

import torch
from torch import nn

from decomp.cost.latency_model import SELECT
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition import latency_tables
from tests.pipelines.digit_runs import Collected

SHAPE = (1, 8, 8)


def test_parts_in_context_are_scaled_to_the_whole_network_or_leave_the_rest(monkeypatch):
    """Each convolution takes 2 ms in context, one layer is called twice, the whole network takes 10 or 3 ms."""
    layer = SimpleNamespace(in_channels=4, out_channels=4, kind="conv")
    graph = SimpleNamespace(
        module=nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1)}),
        layer=lambda name: SimpleNamespace(**vars(layer), calls=(1, 1) if name == "b" else (1,)),
    )
    link = SimpleNamespace(in_channels=4, out_channels=4, kernel=(1, 1), geometry=None, in_hw=(2, 2))
    monkeypatch.setattr(latency_tables, "chain", lambda *sizes, geometry: [link])
    for whole, parts, rest in ((10.0, (2.0, 4.0), 4.0), (3.0, (1.0, 2.0), 0.0)):
        known = SimpleNamespace(
            in_context=True, factor=lambda *_: 2.0, save=lambda: None, compare=lambda *_, whole=whole: {"whole": whole}
        )
        assert latency_tables._parts(known, graph, ["a", "b"], (1, *SHAPE)) == ({"a": parts[0], "b": parts[1]}, rest)


class Streams(nn.Module):
    """A stream of eight channels that two layers read, one of them twice; a layer alone reads another one."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.inner, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.twice(x).relu()
        x = x + self.twice(x).relu()
        return x + self.last(self.inner(x).relu())


def test_a_convolution_that_reads_a_stream_of_others_pays_for_its_selection_at_each_call():
    asked = []

    def factor(kind, n_in, n_out):
        asked.append((kind.kernel, kind.in_hw, n_in, n_out))
        return 0.5

    torch.manual_seed(0)
    graph = NetworkGraph(trace(Streams().eval()), SHAPE)
    known = SimpleNamespace(
        block=lambda: 1, batch_size=1, in_context=False, runtime=SimpleNamespace(name="eager"), save=lambda: None,
        factor=factor, table=lambda kind, inputs, outputs: [[1.0] * len(outputs)] * len(inputs),
        within=lambda module, names, shape: (dict.fromkeys(names, 1.0), 0.0),
    )  # fmt: skip
    cost = latency_tables.latency_cost(known, graph, Collected())
    assert asked == [(SELECT, (8, 8), 8, 8)] * 2
    added = {}
    for layer in graph.layers:
        fewer, whole = (cost.layer(layer, n, layer.out_channels) for n in (layer.in_channels - 1, layer.in_channels))
        added[layer.name] = fewer - whole
    assert added == {"stem": 0.0, "twice": 1.0, "inner": 0.5, "last": 0.0}
