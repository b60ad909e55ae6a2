"""Tables of times: the parts of a network in context, and the rest."""

from types import SimpleNamespace

from torch import nn

from decomp.pipelines.decomposition import latency_tables

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
