"""OpenVINO."""

import pytest
import torch
from torch import nn

from decomp.errors import DecompError, UsageError
from decomp.runtimes.names import lacking
from decomp.runtimes.openvino import OpenVino
from decomp.runtimes.timing import random_images

CPU = torch.device("cpu")
absent = bool(lacking("openvino"))


@pytest.mark.skipif(absent, reason="openvino is not installed")
def test_the_converted_network_computes_the_outputs_of_the_module_in_evaluation_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    images = random_images((2, 3, 6, 6), CPU)
    (got,) = OpenVino().prepare(network, images)(images)
    assert network.training
    assert torch.allclose(torch.from_numpy(got), network.eval()(images), atol=1e-4)
    assert OpenVino().version


@pytest.mark.skipif(not absent, reason="openvino is installed")
def test_without_the_package_it_is_refused_with_its_extra():
    with pytest.raises(DecompError, match=r'^openvino: .* needs openvino, not installed; pip inst.*openvino\]"'):
        OpenVino().prepare(nn.Identity(), random_images((1, 3, 4, 4), CPU))


def test_the_only_layout_is_contiguous():
    with pytest.raises(UsageError, match="^layout: must be one of contiguous, got 'channels-last'"):
        OpenVino("channels-last")
