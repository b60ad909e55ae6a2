"""Preprocessing of weights: torchvision's presets and timm's configurations give torchvision's and timm's pixels."""

import pytest
import torch
from torch import nn
from torchvision import models

from decomp.data import weights
from decomp.data.own_preprocessing import from_preset, of_timm, of_torchvision, of_weights, of_zoo
from decomp.data.preprocessing import IMAGENET


def test_torchvisions_weights_bring_their_transforms():
    own = of_torchvision("vgg16", "DEFAULT")
    assert (own.resize, own.crop, own.mean, own.std) == ((256, 256), (224, 224), IMAGENET.mean, IMAGENET.std)
    own = of_torchvision("efficientnet_b0", "imagenet1k_v1")
    assert (own.resize, own.crop, own.interpolation, own.stretch) == ((256, 256), (224, 224), "bicubic", False)
    own = of_torchvision("vgg16", "IMAGENET1K_FEATURES")
    assert own.std == (1.0 / 255,) * 3  # values from 0 to 255
    assert own.origin == "as torchvision's IMAGENET1K_FEATURES asks"
    assert of_torchvision("vgg16", "random") is None and of_torchvision("vgg16", "my.pth") is None


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "regnet_y_16gf"])
def test_a_preset_prepares_as_torchvision_does(name):
    from decomp.data.pictures import StandardPreparation
    from tests.data.test_pictures import picture

    for member in models.get_model_weights(name):
        preset, image = member.transforms(), picture(500, 430)
        steps = from_preset(preset, "")
        preparation = StandardPreparation(steps, (3, *steps.crop))
        got = preparation.batch([preparation.one(image, False)], torch.tensor([0]), None)
        assert torch.allclose(got[0], preset(image), atol=1e-5), member


def test_another_object_than_a_preset_has_none():
    assert from_preset(nn.Identity(), "") is None


def test_timms_configuration():
    config = {"input_size": (3, 240, 240), "crop_pct": 0.882, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    own = of_timm("x", {**config, "interpolation": "bicubic"})
    assert (own.crop, own.resize, own.stretch, own.interpolation) == ((240, 240), (272, 272), False, "bicubic")
    assert (own.mean, own.std) == ((0.5,) * 3, (0.25,) * 3)
    assert of_timm("x", {**config, "crop_mode": "squash"}).stretch
    assert of_timm("x", {**config, "interpolation": "random"}).interpolation == "bilinear"
    assert of_timm("x", {}) is None
    padded = of_timm("x", {**config, "crop_pct": 1.15})
    assert padded.resize == (240, 240) and padded.origin == "as timm's x asks, without its black border"


def test_networks_of_the_zoo_bring_their_data_sets():
    own = of_zoo("vgg-fashion")
    assert (own.resize, own.crop, own.mean, own.std, own.flip) == ((28, 28), (28, 28), (0.2860,), (0.3530,), True)
    assert not of_zoo("vgg-digits").flip


def test_weights_trained_here_bring_the_record_of_their_training(tmp_path):
    file, steps = tmp_path / "w.safetensors", {**IMAGENET.to_json(), "mean": (0.1,) * 3}
    weights.write({"a": torch.ones(1)}, file, input_shape=(3, 8, 8), n_classes=2, preprocessing=steps)
    own = of_weights("zoo", "vgg-digits", file, nn.Identity())
    assert own.mean == (0.1,) * 3 and own.origin == "as recorded with the weights"
    weights.write({"a": torch.ones(1)}, file, input_shape=(3, 8, 8), n_classes=2)
    assert of_weights("", "nets.py:build", file, nn.Identity()) is None
    assert weights.read_shape(file) == ((3, 8, 8), 2)
