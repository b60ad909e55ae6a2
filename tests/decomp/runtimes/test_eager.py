"""The eager runtime."""

import pytest
import torch
from torch import nn

from decomp.errors import UsageError
from decomp.runtimes.eager import LAYOUTS, Eager
from decomp.runtimes.timing import latencies, random_images

CPU = torch.device("cpu")


class Seen(nn.Module):
    def __init__(self, strides):
        super().__init__()
        self.strides = strides

    def __deepcopy__(self, memo):
        return Seen(self.strides)

    def forward(self, images):
        self.strides.append(images.stride())
        return images


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_weights_are_laid_out_as_given_and_the_network_stays_as_it_was(layout):
    strides = []
    network = nn.Sequential(Seen(strides), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Seen(strides)).train()
    prepared = Eager(layout).prepare(network, random_images((2, 3, 6, 6), CPU, layout))
    latencies({"": prepared}, (2, 3, 6, 6), CPU, 1, layout=layout)
    last = layout == "channels-last"
    assert set(strides) == ({(108, 1, 18, 3), (64, 1, 16, 4)} if last else {(108, 36, 6, 1), (64, 16, 4, 1)})
    assert prepared[1].weight.is_contiguous() == (not last) and network[1].weight.is_contiguous()
    assert network.training and not prepared.training
    assert prepared[2].num_batches_tracked == network[2].num_batches_tracked == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_prepared_network_computes_the_outputs_of_the_module_in_evaluation_mode(layout):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    images = random_images((2, 3, 6, 6), CPU, layout)
    outputs = Eager(layout).prepare(network, images)(images)
    assert torch.allclose(outputs, network.eval()(images), atol=1e-6)


def test_an_unknown_layout_is_refused():
    with pytest.raises(UsageError, match=r"^layout: must be one of contiguous, channels-last, got 'chanels"):
        Eager("chanels-last")
