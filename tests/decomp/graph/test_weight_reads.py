import pytest
import torch
from torch import nn

from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.graph.weight_reads import unchangeable
from decomp.surgery.batchnorm import fold_bn
from decomp.surgery.narrow_network import shrink

SHAPE = (3, 6, 6)


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.a, self.b, self.c = body, *(nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.bn = nn.BatchNorm2d(8)
        nn.init.uniform_(self.bn.weight), self.bn.running_mean.normal_()

    def forward(self, x):
        return self.c(self.body(self, x))


def by_shape(net, x):
    n = net.b.weight.shape[0]
    return net.b(net.a(x)).relu().reshape(-1, n, *x.shape[2:])


def by_size_in_a_branch(net, x):
    w = net.b.weight
    y = net.b(net.a(x)) / w.numel() * len(w) * w.size(1) ** -0.5
    return y if w.dim() == 4 and w.ndim == 4 and torch.numel(net.b.bias) == 8 else y * 0


def by_type(net, x):
    x = x.to(net.a.weight).type_as(net.b.bias).to(net.b.weight.dtype).type(net.a.weight.type())
    return net.b(net.a(x)).to(net.a.weight.data.device)


def new_tensors(net, x):
    y = net.a.weight.new_zeros(8) + net.b.weight.new_full((8,), 2.0) + torch.zeros_like(net.b.bias)
    return net.b(net.a(x)) + (y + torch.ones_like(net.b.bias, dtype=torch.float32))[:, None, None]


@pytest.mark.parametrize("body", [by_shape, by_size_in_a_branch, by_type, new_tensors])
def test_a_layer_that_is_asked_for_size_or_type_can_be_exchanged(body):
    torch.manual_seed(0)
    module, x = Net(body).eval(), torch.randn(2, *SHAPE)
    traced = trace(module, shape=SHAPE)
    assert not any(node.op == "get_attr" for node in traced.graph.nodes) and unchangeable(traced) == {}
    with torch.no_grad():
        wanted = module(x)
        assert torch.equal(traced(x), wanted)
        traced.b, traced.a = nn.Sequential(traced.b), nn.Sequential(traced.a)
        assert torch.equal(traced(x), wanted)


def test_sizes_stay_those_of_the_original_when_the_layer_loses_channels():
    torch.manual_seed(0)
    module, x = Net(lambda net, x: (net.b(net.a(x)) / net.b.weight.shape[0]).relu()).eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        for parameter in (module.b.weight, module.b.bias):
            parameter[5:] = 0
        traced = trace(module, shape=SHAPE)
        graph = NetworkGraph(traced, SHAPE)
        shrink(traced, graph.spaces, {"b": range(5)})
        assert traced.b.out_channels == 5
        torch.testing.assert_close(traced(x), module(x))


def bias(net, x):
    return net.b(net.a(x)) - net.b.bias[None, :, None, None]


def mean_of_a_weight(net, x):
    return net.b(net.a(x)) * net.b.weight.data.abs().mean()


def weight_of_a_normalisation(net, x):
    return net.bn(net.b(net.a(x))) + net.bn.weight.sum()


def bias_before_a_normalisation(net, x):
    return net.bn(net.b(net.a(x))) + net.b.bias.sum()


@pytest.mark.parametrize(("body", "path"), [
    (bias, "b"), (mean_of_a_weight, "b"), (weight_of_a_normalisation, "bn"), (bias_before_a_normalisation, "b"),
])  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_whose_values_are_read_besides_stays_as_it_is(body, path, nested):
    torch.manual_seed(0)
    module, x = Net(body).eval(), torch.randn(2, *SHAPE)
    module, path = (nn.Sequential(module, nn.ReLU()), f"0.{path}") if nested else (module, path)
    traced = trace(module, shape=SHAPE)
    (reason,) = unchangeable(traced).values()
    assert reason.startswith(f"forward also reads {path}.") and fold_bn(traced) == []
    with torch.no_grad():
        assert torch.equal(traced(x), module(x))
    graph = NetworkGraph(traced, SHAPE)
    if path.endswith("b"):
        layer = graph.layer(path)
        assert not layer.fitted and set(layer.left_alone.values()) == {reason}
    reads, writes = (graph.spaces.read_by(path), graph.spaces.written_by(path))
    assert all(space.frozen for space in [*reads, *writes]) and reads


def test_a_convolution_that_is_left_as_it_is_keeps_its_channels():
    module = nn.Sequential(*(nn.Conv2d(i, 8, 3) for i in (3, 8, 8, 8)))
    layers = {layer.name: layer for layer in NetworkGraph(trace(module, leaves=["1"]), (3, 12, 12)).layers}
    assert set(layers["1"].left_alone.values()) == {"it is left as it is, as asked"} and not layers["1"].fitted
    assert layers["2"].input_space.sampled and layers["3"].input_space.producer == "2"
