import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from decomp.graph.exchanged_names import FACTORIES, names_exchanged, proxies_in


def test_factories_record_calls_with_proxies_of_their_tracer_and_make_tensors_otherwise():
    tracer, before = GraphAppendingTracer(fx.Graph()), [getattr(torch, name) for name in FACTORIES]
    size = tracer.create_proxy("placeholder", "size", (), {})
    with names_exchanged(tracer):
        assert torch.equal(torch.zeros(2), torch.tensor([0.0, 0.0]))
        made = torch.zeros(size, 3)
        grown = torch.ones(1, 3).expand(size, 3)
    assert (made.node.op, made.node.target, made.node.args) == ("call_function", before[-1], (size.node, 3))
    assert (grown.node.op, grown.node.target) == ("call_method", "expand")
    assert [getattr(torch, name) for name in FACTORIES] == before


def test_proxies_are_found_in_containers_and_slices():
    tracer = GraphAppendingTracer(fx.Graph())
    a, b, c = (tracer.create_proxy("placeholder", name, (), {}) for name in "abc")
    found = list(proxies_in((a, [1, {"k": b}], slice(None, c), "x")))
    assert [proxy.node.name for proxy in found] == ["a", "b", "c"]
