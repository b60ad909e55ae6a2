"""ONNX graphs of chains, written directly."""

import pytest
import torch
from torch import nn

from decomp.modules.select import Select
from decomp.runtimes.onnx_graph import direct_graph, has_direct_graph

onnxruntime = pytest.importorskip("onnxruntime")
CHAINS = {
    "convolutions": nn.Sequential(
        nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.Sequential(nn.ReLU(), nn.Identity()),
        nn.Conv2d(4, 6, (1, 3), stride=(1, 2), dilation=(1, 2), groups=2, bias=False),
    ),
    "transposed": nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "selected": nn.Sequential(nn.Conv2d(3, 6, 1), Select.of(torch.tensor([4, 0, 5]), 6), nn.Conv2d(3, 2, 1)),
    "pooled": nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)),
}  # fmt: skip


def computed(module, images):
    session = onnxruntime.InferenceSession(direct_graph(module, images), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("name", CHAINS)
def test_the_graph_computes_the_outputs_of_the_chain(name):
    images, module = torch.randn(2, 3, 7, 9), CHAINS[name]
    assert has_direct_graph(module, images)
    assert torch.allclose(computed(module, images), module(images), atol=1e-5)


def test_linear_layers_on_vectors_compute_the_same():
    module, images = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)), torch.randn(4, 5)
    assert has_direct_graph(module, images) and torch.allclose(computed(module, images), module(images), atol=1e-5)
    assert not has_direct_graph(module, torch.randn(4, 2, 2, 5))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 3, padding="same"), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2), nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU()),
    ],
    ids=["reflected", "padded by a word", "maximum", "pooled to two", "another activation"],
)  # fmt: skip
def test_other_parts_are_left_to_the_exporter(module):
    assert not has_direct_graph(module, torch.randn(1, 3, 4, 4))
