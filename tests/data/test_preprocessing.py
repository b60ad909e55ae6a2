"""Choice of shape and preprocessing of pictures: options before weights before sizes of the images before ImageNet."""

import json
from dataclasses import replace

import pytest

from decomp.data.image_options import ImageOptions
from decomp.data.preprocessing import IMAGENET, NetworkInput, Preprocessing, of_pictures
from decomp.data.transforms import Normalisation
from decomp.errors import FileError, UsageError

MEAN, STD = IMAGENET.mean, IMAGENET.std
TIMM = Preprocessing((64, 64), (72, 72), (0.5,) * 3, (0.5,) * 3, interpolation="bicubic", origin="as timm's x asks")


def chosen(network=None, common=None, **options):
    return of_pictures("photos", ImageOptions(**options), network or NetworkInput(), common)


def test_without_anything_it_is_imagenets():
    shape, steps = chosen()
    assert shape == (3, 224, 224)
    assert (steps.resize, steps.crop, steps.mean, steps.std) == ((256, 256), (224, 224), MEAN, STD)
    assert steps.describe() == (
        "short side resized to 256 (bilinear), centre 224×224, mean 0.485,0.456,0.406, std 0.229,0.224,0.225; "
        "in training cropped at a random place and mirrored at random"
    )


def test_small_images_of_one_size_are_taken_as_they_are():
    shape, steps = chosen(common=(28, 30))
    assert shape == (3, 28, 30) and steps.resize is None and steps.crop == (28, 30)
    assert "28×30, not resized" in steps.describe() and "cropped" not in steps.describe()
    assert chosen(common=(256, 256))[0] == (3, 256, 256)
    assert chosen(common=(257, 30))[0] == (3, 224, 224)
    # also where a person gives just this size, which was blown up to 32 and cropped
    assert chosen(NetworkInput((3, 28, 28)), (28, 28))[1].resize is None
    assert chosen(NetworkInput((3, 28, 28)), (30, 28))[1].resize == (32, 32)


def test_the_size_of_the_images_is_taken_where_the_network_runs_on_it():
    usual = NetworkInput((3, 224, 224), fixed=False, runs_on=lambda shape: shape[1] >= 64)
    assert chosen(usual, (96, 96))[0] == (3, 96, 96)
    assert chosen(usual, (28, 28))[0] == (3, 224, 224)
    assert chosen(replace(usual, fixed=True), (96, 96))[0] == (3, 224, 224)


def test_a_network_of_one_channel_gets_one_where_it_does_not_run_on_three():
    grey = NetworkInput(channels=1, runs_on=lambda shape: shape[0] == 1)
    shape, steps = chosen(grey, (28, 28))
    assert shape == (1, 28, 28) and steps.mean == pytest.approx((0.458971,))
    # The first convolution may read a part of the images: three channels where the network runs on them.
    assert chosen(replace(grey, runs_on=lambda shape: shape[0] == 3), (28, 28))[0] == (3, 28, 28)


def test_weights_bring_their_own():
    shape, steps = chosen(NetworkInput((3, 64, 64), own=TIMM), (64, 64))
    assert shape == (3, 64, 64) and steps == TIMM
    _, steps = chosen(NetworkInput((3, 160, 96), own=TIMM))
    assert steps.resize == (180, 108) and steps.crop == (160, 96) and steps.mean == (0.5,) * 3
    shape, steps = chosen(NetworkInput((3, 64, 64), fixed=False, own=TIMM, runs_on=lambda shape: True), (32, 32))
    assert shape == (3, 32, 32) and steps.resize is None and steps.mean == (0.5,) * 3


def test_options_come_before_the_weights():
    network = NetworkInput((3, 64, 64), own=TIMM)
    _, steps = chosen(network, mean=(0.1,), std=(0.2, 0.3, 0.4), flip=False)
    assert (steps.mean, steps.std, steps.flip) == ((0.1,) * 3, (0.2, 0.3, 0.4), False)
    assert steps.resize == (72, 72) and steps.origin == "by --mean, --std, --no-flip, otherwise as timm's x asks"
    shape, steps = chosen(None, (50, 60), resize=(40,), crop=(32,))
    assert shape == (3, 32, 32) and (steps.resize, steps.stretch, steps.crop) == ((40, 40), False, (32, 32))
    shape, steps = chosen(None, None, resize=(40, 36))
    assert shape == (3, 40, 36) and steps.stretch and not steps.random_crop
    shape, steps = chosen(None, (50, 60), crop=(32, 20))
    assert shape == (3, 32, 20) and steps.resize is None and steps.random_crop
    assert "centre 32×20, not resized" in steps.describe()


def test_a_crop_beside_another_input_size_is_refused():
    with pytest.raises(UsageError, match="the network takes images of 64×64, got --crop 32×32; leave --crop out"):
        chosen(NetworkInput((3, 64, 64)), crop=(32,))


@pytest.mark.parametrize(
    ("shape", "mean", "words"),
    [
        ((3, 8, 8), (0.1, 0.2), "--mean: must be one number, or 3 with commas: the images have 3 channels here"),
        ((1, 8, 8), (0.1, 0.2, 0.3), "--mean: must be one number: the images have 1 channel here, got 0.1,0.2,0.3"),
        ((3, 8, 8), (123.7, 116.3, 103.5), "divide --mean and --std by 255"),
    ],
)
def test_means_that_do_not_fit_are_one_line(shape, mean, words):
    with pytest.raises(UsageError, match=words):
        chosen(NetworkInput(shape), mean=mean, std=(0.5,) * len(mean))


@pytest.mark.parametrize("steps", [IMAGENET, TIMM, replace(IMAGENET, resize=None, flip=False, random_crop=False)])
def test_a_record_gives_the_same_steps(steps):
    record = json.loads(json.dumps(steps.to_json()))
    assert Preprocessing.from_json(record, "run") == steps


@pytest.mark.parametrize(
    "change", [{"crop": None}, {"mean": "a"}, {"std": [0.0]}, {"interpolation": "magic"}, {"resize": [3]}]
)
def test_a_damaged_record_is_one_line(change):
    with pytest.raises(FileError, match="the record of its preprocessing cannot be read"):
        Preprocessing.from_json({**IMAGENET.to_json(), **change}, "run.json")


def test_a_runs_normalisation_comes_before_the_weights_and_behind_the_options():
    grey = Normalisation(16.0, (0.3,), (0.4,))
    shape, steps = chosen(NetworkInput((3, 64, 64), own=TIMM, normalisation=grey))
    assert steps.mean == (0.3,) * 3 and steps.std == (0.4,) * 3
    assert (steps.resize, steps.crop) == (TIMM.resize, TIMM.crop)
    assert steps.origin == "mean and std of the run's own images, otherwise as timm's x asks"
    _, steps = chosen(NetworkInput((3, 64, 64), normalisation=grey), flip=False)
    assert steps.mean == (0.3,) * 3 and steps.origin.startswith("by --no-flip, otherwise mean and std of the run's own")
    _, steps = chosen(NetworkInput((3, 64, 64), normalisation=grey), mean=(0.5,), std=(0.2,))
    assert steps.mean == (0.5,) * 3 and "run's own" not in steps.origin
