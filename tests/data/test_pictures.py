"""Pictures as torchvision's transforms give them, and training windows."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from decomp.data.pictures import PictureSplit, StandardPreparation, resized
from decomp.data.preprocessing import IMAGENET, Preprocessing
from decomp.errors import FileError, UsageError


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


class Pictures(PictureSplit):
    def __init__(self, pictures, steps, channels=3):
        super().__init__("mine", None, StandardPreparation(steps, (channels, *steps.crop)))
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def digest(self):
        return ""

    def picture(self, index, mode):
        return self.pictures[index].convert(mode)

    def title(self, index):
        return f"picture {index}"


PICTURES = [picture(50, 40, 1), picture(33, 61, 2), picture(45, 45, 3)]
BICUBIC = transforms.InterpolationMode.BICUBIC
CASES = {
    "short side": ((32, 32), False, "bilinear", (28, 28), [transforms.Resize(32), transforms.CenterCrop(28)]),
    "bicubic": ((32, 32), False, "bicubic", (30, 20),
                [transforms.Resize(32, interpolation=BICUBIC), transforms.CenterCrop((30, 20))]),
    "exact": ((24, 36), True, "bilinear", (24, 36), [transforms.Resize((24, 36))]),
    "exact and crop": ((24, 36), True, "bicubic", (20, 21),
                       [transforms.Resize((24, 36), interpolation=BICUBIC), transforms.CenterCrop((20, 21))]),
    "crop alone": (None, False, "bilinear", (33, 31), [transforms.CenterCrop((33, 31))]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_those_of_torchvisions_transforms(case, channels):
    resize, stretch, interpolation, crop, usual = CASES[case]
    mean, std = (0.3, 0.4, 0.5)[:channels], (0.2, 0.3, 0.4)[:channels]
    steps = Preprocessing(crop, resize, mean, std, stretch, interpolation)
    grey = [transforms.Grayscale()] if channels == 1 else []
    whole = transforms.Compose([*grey, *usual, transforms.ToTensor(), transforms.Normalize(mean, std)])
    got = Pictures(PICTURES, steps, channels).images([0, 1, 2])
    assert torch.allclose(got, torch.stack([whole(image) for image in PICTURES]), atol=1e-6)


def test_a_picture_smaller_than_the_crop_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"at least 40×40 .* got 45×33; give --resize too"):
        resized(picture(33, 45), Preprocessing((40, 40), None, (0.5,), (0.5,)))


def test_in_training_windows_move_and_are_mirrored_only_where_asked():
    def seen(**change):
        steps = Preprocessing(**{"crop": (28, 28), "resize": None, "mean": (0.0,), "std": (1.0,), **change})
        split = Pictures([picture(30, 28)], steps)
        batches = [next(split.batches([0], 1, augment_seed=seed))[0] for seed in range(30)]
        return split.images([0]), {tuple(batch.flatten()[:200].tolist()) for batch in batches}, batches

    plain, kinds, _ = seen()
    assert len(kinds) == 6
    assert len(seen(flip=False)[1]) == 3
    assert len(seen(random_crop=False)[1]) == 2
    _, kinds, batches = seen(random_crop=False, flip=False)
    assert len(kinds) == 1 and torch.equal(batches[0], plain)


def test_a_picture_that_cannot_be_read_is_named():
    split = Pictures([picture(300, 300), None, None], IMAGENET)
    with pytest.raises(FileError, match=r"cannot be read: picture 1 \(.*, picture 2 \(.*--skip-bad"):
        split.images([0, 1, 2])
    assert split.images([0]).shape == (1, 3, 224, 224)


def test_a_picture_is_augmented_by_its_number():
    split = Pictures(PICTURES, Preprocessing((28, 28), (32, 32), (0.5,), (0.25,)))
    order = torch.tensor([2, 0, 2, 2])

    def shown(**options):
        return torch.cat([images for images, _ in split.batches(order, 3, augment_seed=4, **options)])

    assert torch.equal(shown()[0], shown()[2]) and torch.equal(shown(), shown(numbers=order))
    others = shown(numbers=torch.tensor([2, 0, 5, 8]))
    assert torch.equal(others[:2], shown()[:2])
    assert not torch.equal(others[0], others[2]) and not torch.equal(others[2], others[3])
