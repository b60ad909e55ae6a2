"""Transforms of a user: the forms in which they come, seeds of the random ones, and what is refused."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from decomp.data.user_transforms import UserPreparation, drawing_from
from decomp.errors import DecompError

CODE = """
import random
import numpy as np, torch
from torchvision import transforms
from torchvision.transforms import v2
plain = transforms.Compose([transforms.Resize((6, 5)), transforms.ToTensor()])
noisy = transforms.Compose([transforms.Resize((6, 5)), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
newer = v2.Compose([v2.Resize((6, 5)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
both = {"train": noisy, "val": plain}
def build(): return plain
def pair(): return {"train": noisy, "test": plain}
def prepare(image): return torch.from_numpy(np.asarray(image.resize((5, 6)), np.float32)).permute(2, 0, 1) / 255
def rough(): return transforms.Resize((6, 5))
def whole(): return v2.Compose([v2.Resize((6, 5)), v2.ToImage()])
def random_one(): return noisy
def mixed(): return transforms.ToTensor()
def wrong(): return {"train": plain}
def failing():
    def transform(image):
        raise ValueError("no such thing")
    return transform
def two(image, size): return image
number = 3
def draws():
    def transform(image):
        return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])[None, None]
    return {"train": transform, "val": plain}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").write_text(CODE)
    return tmp_path


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8))


def wanted(image):
    return torch.from_numpy(np.array(image.resize((5, 6), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255


@pytest.mark.parametrize("form", ["build", "plain", "newer", "both", "pair"])
def test_every_form_gives_the_same_pixels(place, form):
    preparation = UserPreparation(f"t.py:{form}", "RGB")
    assert preparation.check(picture()) == (3, 6, 5)
    images = [preparation.one(picture(seed), False) for seed in (1, 2)]
    batch = preparation.batch(images, torch.tensor([0, 1]), None)
    assert torch.allclose(batch, torch.stack([wanted(picture(seed)) for seed in (1, 2)]), atol=1e-6)
    assert preparation.augments == (form in ("both", "pair")) and type(batch) is torch.Tensor


def test_a_function_of_one_picture_is_the_transform_itself(place):
    assert UserPreparation("t.py:prepare", "RGB").check(picture()) == (3, 6, 5)


def test_random_steps_depend_on_seed_and_image_and_on_nothing_else(place):
    preparation = UserPreparation("t.py:draws", "RGB")
    indices, pictures = torch.tensor([4, 9]), [picture(), picture()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, other = (preparation.batch([preparation.one(p, True) for p in pictures], indices, seed) for seed in (1, 2))
    again = preparation.batch([preparation.one(pictures[1], True)], indices[1:], 1)
    assert torch.equal(again[0], first[1]) and not (first == other).any() and not (first[0] == first[1]).any()
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_numbers_drawn_in_a_block_are_the_same_again():
    drawn = []
    for index in (0, 0, 1):
        with drawing_from(5, index):
            drawn.append(random.random())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("rough", "must give a floating-point tensor .C, H, W., got an Image; end it with torchvision's ToTensor"),
        ("whole", "got uint8 of shape .3, 6, 5."),
        ("random_one", "the transform for evaluation must give the same result each time; return"),
        ("wrong", "got a dict with train"),
        ("failing", "its code raised ValueError: no such thing"),
        ("two", "must be a transform"),
        ("number", "got a whole number"),
        ("missing", "there is no missing in t.py"),
    ],
)
def test_what_cannot_be_meant_is_one_line(place, form, words):
    with pytest.raises(DecompError, match=words) as caught:
        UserPreparation(f"t.py:{form}", "RGB").check(picture())
    assert "\n" not in str(caught.value)


def test_results_of_several_sizes_are_refused(place):
    preparation = UserPreparation("t.py:mixed", "RGB")
    images = [preparation.one(image, False) for image in (picture(), picture().resize((4, 4)))]
    with pytest.raises(DecompError, match="must give images of one shape, got 3×9×8 and 3×4×4"):
        preparation.batch(images, torch.tensor([0, 1]), None)


def test_a_file_alone_is_told_its_functions(place):
    with pytest.raises(DecompError, match="write t.py:build or t.py:pair or t.py:rough or t.py:whole"):
        UserPreparation("t.py", "RGB")
