"""The compiled runtime."""

import pytest
import torch
from torch import nn

from decomp.errors import DecompError
from decomp.runtimes.compiled import Compiled
from decomp.runtimes.timing import random_images

CPU = torch.device("cpu")
#: Captures the graph as a whole, as the default does, and compiles no code.
BACKEND = "eager"


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_the_compiled_network_computes_the_outputs_of_the_module_in_evaluation_mode(layout):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    images = random_images((2, 3, 6, 6), CPU, layout)
    with torch.inference_mode():
        outputs = Compiled(layout, BACKEND).prepare(network, images)(images)
        assert network.training
        assert torch.allclose(outputs, network.eval()(images), atol=1e-6)


class Branching(nn.Module):
    def forward(self, images):
        if images.sum() > 0:
            return images
        return -images


def test_a_network_that_would_run_in_part_in_eager_mode_is_refused():
    with pytest.raises(DecompError, match=r"^compile: the network cannot be compiled .*images.sum\(\) > 0"):
        Compiled(backend=BACKEND).prepare(Branching(), random_images((1, 3, 4, 4), CPU))


def test_more_networks_than_the_limit_of_recompilation_are_compiled():
    runs, images = [], random_images((1, 2, 4, 4), CPU)
    networks = [nn.Sequential(nn.Conv2d(2, 1 + n, 1)) for n in range(10)]
    with torch.inference_mode():
        for network in networks:
            runs.append(Compiled(backend=BACKEND).prepare(network, images))
        shapes = [run(images).shape[1] for run in runs]
    assert shapes == list(range(1, 11))
