import pytest
import torch
from torch import nn

from decomp.graph.folded_maps import MapsOfCall
from decomp.graph.network_graph import MOST_MAPS, NetworkGraph
from decomp.graph.tracing import trace

SHAPE = (12, 6, 6)


class Folded(nn.Module):
    """A convolution on a batch that a function makes of the images, four maps of three channels for each."""

    def __init__(self, fold, channels=3):
        super().__init__()
        self.conv, self.fold = nn.Conv2d(channels, 5, 3), fold

    def forward(self, x):
        n = x.shape[0]
        return self.conv(self.fold(x)).reshape(n, -1)


def halves_twice(x):
    """Halves one behind the other in the batch, each with its two frames side by side."""
    return torch.cat((x[:, :6], x[:, 6:]), 0).reshape(-1, 3, 6, 6)


FOLDS = {
    "view": (lambda x: x.view(-1, 3, 6, 6), MapsOfCall(4, 4)),
    "cat": (lambda x: torch.cat(x.split(3, 1), 0), MapsOfCall(4, 1)),
    "stack": (lambda x: torch.stack(x.chunk(4, 1), 1).flatten(0, 1), MapsOfCall(4, 4)),
    "stack in front": (lambda x: torch.stack(x.chunk(4, 1), 0).flatten(0, 1), MapsOfCall(4, 1)),
    "both": (halves_twice, MapsOfCall(4, 2)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_the_maps_of_an_image_are_found_for_any_order_in_the_batch(name):
    fold, order = FOLDS[name]
    graph = NetworkGraph(trace(Folded(fold).eval(), shape=SHAPE), SHAPE)
    (layer,) = graph.layers
    assert graph.maps(graph.node(layer)) == order
    assert layer.fitted and [out for _, out in layer.calls] == [(4, 4)] * 4
    images = torch.randn(7, *SHAPE)
    maps = order.split(fold(images))
    # Each image's maps are its own frames, in one order for all images.
    assert len(maps) == 4 and all(part.shape == (7, 3, 6, 6) for part in maps)
    assert torch.equal(torch.cat(maps, 1), images)


def test_one_map_an_image_is_the_batch_itself():
    x = torch.randn(3, 2)
    assert MapsOfCall().split(x)[0] is x


@pytest.mark.parametrize(
    "fold",
    [
        lambda x: torch.cat((x[:, :3], x[:, 3:6].flip(0)), 0),
        lambda x: torch.cat((x[:, :3], x[:, 3:6].mean(0, keepdim=True)), 0),
        lambda x: torch.cat((x[:, :3], x[:, 3:6].roll(1, 0)), 0),
    ],
)
def test_rows_in_an_order_of_their_own_are_left_alone_with_the_reason(fold):
    (layer,) = NetworkGraph(trace(Folded(fold).eval(), shape=SHAPE), SHAPE).layers
    assert not layer.fitted and layer.left_alone["spatial"] == "the rows of its batch do not belong to one image each"


def test_very_many_maps_are_left_alone_with_the_number():
    conv = Folded(lambda x: x.reshape(-1, 1, 3, 2), 1)
    conv.conv = nn.Conv2d(1, 5, (3, 1))
    (layer,) = NetworkGraph(trace(conv.eval(), shape=SHAPE), SHAPE).layers
    assert not layer.fitted and f"72 maps for each image, more than {MOST_MAPS}" in layer.left_alone["channel"]
