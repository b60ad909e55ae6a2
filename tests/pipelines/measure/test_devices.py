"""Devices by name, and the layout of images on them."""

from pathlib import Path

import pytest
import torch

from decomp.errors import UsageError
from decomp.pipelines.measure.devices import autocast, full_name, pick_device, to_device, usual_precision


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


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        assert pick_device("auto") == torch.device(device)
    assert pick_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    "precision, dtype", [(None, torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_autocast_leaves_float32_on_a_cpu_unless_asked(precision, dtype):
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("supported", [True, False])
def test_the_usual_precision_of_a_gpu_is_bfloat16_where_it_computes_it(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert usual_precision(torch.device("cuda")) == ("bfloat16" if supported else "float32")
    assert usual_precision(torch.device("cpu")) == "float32"


def test_the_name_of_the_processor_is_that_of_the_system(monkeypatch):
    text = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nprocessor\t: 1\nmodel name\t: Other\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **options: text)
    assert full_name(torch.device("cpu")) == "CPU Some CPU @ 2.0GHz"
