import pytest
import torch
from torch import nn

from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.console.options import FreezeOptions
from decomp.pipelines.decomposition.refusals import no_convolution, not_finite


class Made(nn.Module):
    """A convolution whose weight is made from the images."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.w * x.mean())


@pytest.mark.parametrize(("module", "leaves", "words"), [
    (nn.Sequential(nn.ReLU()), (), "net: has no convolution; give a convolutional network."),
    (nn.Sequential(Made()), (),
     "but 1 have weights that are computed from the images; give another network or part of it."),
    (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))), ("0",),
     "but 2 are of class Conv2d; give another network or part of it without --leaf 0."),
])  # fmt: skip
def test_the_reason_why_no_convolution_can_be_made_cheaper(module, leaves, words):
    graph = NetworkGraph(trace(module, leaves=leaves, shape=(3, 6, 6)), (3, 6, 6))
    said = str(no_convolution(graph, FreezeOptions(model="net", data="digits", leaves=leaves)))
    assert said.endswith(words)


def test_the_first_layer_with_values_that_are_not_finite_is_named():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        module[2].weight[0, 0] = float("inf")
    said = str(not_finite("net", module, torch.ones(3, 1, 4, 4)))
    assert said.startswith("net, 2: the responses must be finite") and "48" in said
