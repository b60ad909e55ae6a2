"""Devices by name, and the layout of images on them."""

import pytest
import torch

from decomp.errors import UsageError
from decomp.pipelines.measure.devices import pick_device, to_device


def test_an_unknown_device_is_a_usage_error():
    with pytest.raises(UsageError, match="device"):
        pick_device("toaster")
    with pytest.raises(UsageError, match="CUDA devices here"):
        pick_device("cuda:99")


def test_images_keep_their_values_and_are_laid_out_channels_last():
    images = torch.randn(2, 3, 4, 5)
    moved = to_device(images, torch.device("cpu"))
    assert torch.equal(moved, images) and moved.is_contiguous(memory_format=torch.channels_last)
    assert to_device(images.flatten(1), torch.device("cpu")).is_contiguous()
