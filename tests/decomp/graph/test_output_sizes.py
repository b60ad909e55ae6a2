import pytest
import torch
from torch import nn

from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


class Decoder(nn.Module):
    """Halves a map and doubles it again, to the size that it had."""

    def __init__(self, body=None):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 3, 2, 1), nn.ConvTranspose2d(6, 4, 3, 2, 1)
        self.body = body or (lambda net, x: net.up(net.down(x).relu(), output_size=x.shape[2:]))

    def forward(self, x):
        return self.body(self, x)


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 6), (1, 1)), ((3, 7, 6), (0, 1)), ((3, 9, 5), (0, 0))])
def test_the_output_size_becomes_the_output_padding_that_gives_it(shape, padding):
    module, x = Decoder().eval(), torch.randn(2, *shape)
    traced = trace(module, shape=shape)
    assert traced.up.output_padding == padding and module.up.output_padding == (0, 0)
    assert torch.equal(traced(x), module(x))
    layer = NetworkGraph(traced, shape).layer("up")
    assert layer.fitted and layer.out_hw == shape[1:]
    assert traced.meta["branches"] == ["output size of up"]  # of even images it is another one than of odd ones


def test_a_size_by_position_and_one_that_no_image_changes():
    module = Decoder(lambda net, x: net.up(net.down(x), [2 * net.down(x).shape[2], 2 * net.down(x).shape[3]]))
    traced = trace(module.eval(), shape=(3, 8, 6))
    assert traced.up.output_padding == (1, 1) and traced.meta["branches"] == []
    assert torch.equal(traced(torch.ones(1, 3, 11, 6)), module(torch.ones(1, 3, 11, 6)))


def test_calls_that_need_several_paddings_keep_their_sizes():
    def twice(net, x):
        y = net.down(x)
        return net.up(y, output_size=x.shape[2:]).sum(1) + net.up(y, output_size=(7, 5)).sum((1, 2, 3), True)[:, 0]

    module, x = Decoder(twice).eval(), torch.randn(2, 3, 8, 6)
    traced = trace(module, shape=(3, 8, 6))
    assert traced.up.output_padding == (0, 0) and torch.equal(traced(x), module(x))
    assert "such as an output size" in NetworkGraph(traced, (3, 8, 6)).layer("up").left_alone["spatial"]
