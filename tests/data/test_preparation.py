"""Choice between a user's transforms, recorded steps and steps from options."""

import numpy as np
import pytest
import torch
from PIL import Image

from decomp.data.image_options import ImageOptions
from decomp.data.preparation import prepare
from decomp.data.preprocessing import IMAGENET, NetworkInput
from decomp.errors import FileError, UsageError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8))


def prepared(options=None, network=None, recorded=None, first=lambda: PICTURE):
    options, network = options or ImageOptions(), network or NetworkInput()
    return prepare("photos", options, network, lambda: (9, 8), first, recorded)


def pixels(made):
    image = PICTURE.convert(made.preparation.mode())
    return made.preparation.batch([made.preparation.one(image, False)], torch.tensor([0]), None)


@pytest.fixture
def transforms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "t.py").write_text(f"from torchvision.transforms import *\ndef f(): return Compose([{text}])\n")
        return ImageOptions(transforms="t.py:f")

    return write


def test_a_record_comes_before_what_would_be_chosen_now():
    recorded = {**IMAGENET.to_json(), "crop": (6, 6), "resize": (7, 7)}
    made = prepared(network=NetworkInput((3, 6, 6)), recorded=recorded)
    assert made.record == recorded and pixels(made).shape == (1, 3, 6, 6)
    chosen = prepared()
    assert chosen.record["crop"] == (9, 8) and chosen.shape == (3, 9, 8)
    again = prepared(network=NetworkInput(chosen.shape), recorded=chosen.record)
    assert torch.equal(pixels(again), pixels(chosen)) and again.description == chosen.description


def test_a_users_transforms_come_before_all(transforms):
    made = prepared(transforms("Resize((4, 5)), ToTensor()"), NetworkInput((3, 224, 224), fixed=False))
    assert made.shape == (3, 4, 5) and pixels(made).shape == (1, 3, 4, 5)
    assert made.description == "3×4×5 by t.py:f; in training the same" and made.augmentation == "none"
    grey = prepared(transforms("ToTensor()"), NetworkInput(channels=1))
    assert grey.shape == (1, 9, 8)
    assert torch.allclose(pixels(grey)[0, 0] * 255, torch.from_numpy(np.array(PICTURE.convert("L"))).float())
    with pytest.raises(UsageError, match="must give what the network takes, 3×8×8 .*, got 3×9×8"):
        prepared(transforms("ToTensor()"), NetworkInput((3, 8, 8)))


def test_transforms_that_changed_since_the_images_were_recorded_are_refused(transforms):
    options = transforms("ToTensor(), Normalize(0.5, 0.5)")
    record = prepared(options).record
    assert prepared(transforms("Normalize(0.5, 0.5) if 0 else ToTensor(), Normalize(0.5, 0.5)"), recorded=record)
    with pytest.raises(UsageError, match="gives other values for the first image than when the run was frozen"):
        prepared(transforms("ToTensor(), Normalize(0.5, 0.25)"), recorded=record)


def test_a_first_image_that_cannot_be_read_is_one_line(transforms):
    def broken():
        raise OSError("broken")

    with pytest.raises(FileError, match="its first image cannot be read"):
        prepared(transforms("ToTensor()"), first=broken)
