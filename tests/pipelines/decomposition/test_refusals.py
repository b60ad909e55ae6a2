import pytest
import torch
from torch import nn

from decomp.errors import NumericalError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.console.options import FreezeOptions
from decomp.pipelines.decomposition.refusals import does_not_run, no_layer, not_finite, require_finite


class Made(nn.Module):
    """A convolution whose weight is made from the images."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.w * x.mean())


@pytest.mark.parametrize(("module", "leaves", "words"), [
    (nn.Sequential(nn.ReLU()), (), "net: has neither a convolution nor a linear layer; give a convolutional network."),
    (nn.Sequential(Made()), (),
     "but 1 have weights that are computed from the images; give another network or part of it."),
    (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))), ("0",),
     "but 2 are of class Conv2d; give another network or part of it without --leaf 0."),
])  # fmt: skip
def test_the_reason_why_no_layer_can_be_made_cheaper(module, leaves, words):
    graph = NetworkGraph(trace(module, leaves=leaves, shape=(3, 6, 6)), (3, 6, 6))
    said = str(no_layer(graph, FreezeOptions(model="net", data="digits", leaves=leaves)))
    assert said.endswith(words)


def test_the_first_layer_with_values_that_are_not_finite_is_named():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        module[2].weight[0, 0] = float("inf")
    said = str(not_finite("net", module, torch.ones(3, 1, 4, 4), {}))
    assert said.startswith("net, 2: the responses must be finite") and "48" in said


def test_an_output_that_is_not_finite_behind_all_layers_is_named():
    outputs = {"a": torch.ones(3, 2), "b": torch.tensor([[1.0, float("nan")], [0, float("inf")]])}
    said = str(not_finite("net", nn.Conv2d(1, 2, 1), torch.ones(3, 1, 4, 4), outputs))
    assert said.startswith("net, output b: the responses must be finite, got 2 of 4 values")


@pytest.mark.parametrize(("shape", "fix"), [
    ((8, 6, 3), "its first convolution takes 3 channels: put them in front, images.permute(0, 3, 1, 2)."),
    ((1, 8, 6), "its first convolution takes 3 channels: give --input-size 3x8x6."),
    ((3, 8, 6), "give --input-size or other --data."),
    ((5, 8, 6), "give --input-size or other --data."),
])  # fmt: skip
def test_images_whose_channels_do_not_fit_are_refused_with_the_likely_reason(shape, fix):
    error = RuntimeError("expected 3 channels\nand more")
    said = str(does_not_run("net", nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(2, *shape), error))
    size = "x".join(map(str, shape))
    assert said == f"net: does not run on images of {size} (expected 3 channels); {fix}"


def test_values_of_images_that_are_not_finite_are_counted_and_named():
    require_finite(torch.zeros(3, 4), "conv", "the responses", 5, 8)
    values = torch.zeros(3, 4)
    values[1, :2] = torch.tensor([float("nan"), float("-inf")])
    line = r"^conv: the responses must be finite, got 2 NaN or infinite values in images 5\.\.7; check the weights"
    with pytest.raises(NumericalError, match=line):
        require_finite(values, "conv", "the responses", 5, 8)
