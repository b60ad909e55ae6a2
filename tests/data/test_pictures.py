"""Pictures as torchvision's transforms give them, and training windows."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from decomp.data.pictures import PictureSplit, StandardPreparation, resized, view_box
from decomp.data.preprocessing import IMAGENET, Preprocessing
from decomp.data.transforms import draw
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


def box(size, draws, **change):
    steps = Preprocessing(**{"crop": (28, 28), "resize": (32, 32), "mean": (0.0,), "std": (1.0,), **change})
    return pytest.approx(view_box(picture(*size), steps, draws))


def test_a_view_shows_from_half_the_sides_of_the_usual_window_to_all_that_fits_into_the_picture():
    # The usual window is 7/8 of the short side.
    assert box((640, 320), (0, 0, 0)) == (0, 0, 140, 140)
    assert box((640, 320), (1, 0, 0)) == (0, 0, 320, 320)
    assert box((640, 320), (0, 1, 0.5)) == (250, 180, 390, 320)
    side = (140**2 / 2 + 320**2 / 2) ** 0.5  # areas are drawn evenly
    assert box((640, 320), (0.5, 0, 1)) == (640 - side, 0, 640, side)


def test_a_view_has_the_pixels_that_the_network_reads_unless_the_picture_has_fewer():
    assert box((80, 40), (0, 0, 0)) == (0, 0, 28, 28)
    assert box((32, 32), (0, 0, 0)) == (0, 0, 28, 28)
    assert box((16, 16), (0, 1, 1)) == (2, 2, 16, 16)  # the usual window, enlarged as it always is
    assert box((28, 28), (0, 1, 0.3), resize=None) == (0, 0, 28, 28)
    assert box((28, 28), (1, 1, 0.3), resize=None) == (0, 0, 28, 28)


def test_a_view_has_the_shape_of_the_usual_window():
    assert box((300, 100), (0, 0, 0), crop=(28, 56), resize=(28, 56), stretch=True) == (0, 0, 150, 50)
    assert box((300, 600), (1, 0, 0), crop=(28, 14)) == (0, 0, 300, 600)
    assert box((300, 600), (0, 0, 0), crop=(28, 14)) == (0, 0, 65.625, 131.25)


@pytest.mark.parametrize("channels", [3, 1])
def test_views_are_parts_of_the_pictures_mirrored_where_the_source_mirrors(channels):
    steps = Preprocessing((28, 28), (32, 32), (0.5,), (0.25,))
    split, indices = Pictures(PICTURES, steps, channels), torch.arange(3).repeat(20)
    views = split.views(indices, torch.arange(60), 7)
    wanted = {0: [], 1: []}
    preparation = StandardPreparation(steps, (channels, 28, 28))
    for mirrored, found in wanted.items():
        draws = [(0.25, 0.75, 0.5, 1 - mirrored)] * 3
        arrays = [
            preparation.view(image.convert("L" if channels == 1 else "RGB"), own) for image, own in zip(PICTURES, draws)
        ]
        found.append(torch.from_numpy(np.stack(arrays)))
    assert torch.equal(wanted[1][0], wanted[0][0].flip(2))
    part = (
        PICTURES[0]
        .convert("RGB")
        .resize((28, 28), Image.Resampling.BILINEAR, view_box(PICTURES[0], steps, (0.25, 0.75, 0.5)))
    )
    if channels == 3:
        assert torch.equal(wanted[0][0][0], torch.from_numpy(np.asarray(part).copy()))
    drawn = torch.stack([draw(7, torch.arange(60), stream, 2**24) for stream in range(4)], 1) / (2**24 - 1)
    for view, index, own in zip(views, indices, drawn.tolist()):
        image = PICTURES[index].convert("L" if channels == 1 else "RGB")
        shown = torch.from_numpy(preparation.view(image, own).copy()).permute(2, 0, 1) / 255
        assert torch.allclose(view, (shown - 0.5) / 0.25, atol=1e-6)
    # Sixty different ones, in the range of normalised pixels, that depend on seed and number alone.
    assert len({tuple(view.flatten()[:50].tolist()) for view in views}) == 60
    assert -2 <= views.min() and views.max() <= 2
    assert torch.equal(split.views(indices[[4, 1]], torch.tensor([4, 1]), 7), views[[4, 1]])
    assert not torch.equal(split.views(indices[:3], torch.arange(3), 8), views[:3])
    # Every corner of the picture is shown by some view: of a picture with one bright corner, some see it and some not.
    corner = np.zeros((40, 40), np.uint8)
    corner[:4, :4] = 255
    for flip, sides in ((False, 1), (True, 2)):
        lit = Pictures([Image.fromarray(corner)], Preprocessing((20, 20), (24, 24), (0.0,), (1.0,), flip=flip), 1)
        seen = lit.views(torch.zeros(40).long(), torch.arange(40), 0)[:, 0]
        found = (seen[:, :5, :5].amax((1, 2)) > 0.5).sum(), (seen[:, :5, -5:].amax((1, 2)) > 0.5).sum()
        assert sum(int(n) > 0 for n in found) == sides and sum(map(int, found)) < 40


def test_batches_of_views_show_the_parts_of_their_numbers():
    split, order = Pictures(PICTURES, Preprocessing((28, 28), (32, 32), (0.5,), (0.25,))), torch.tensor([2, 0, 1, 0])
    numbers = torch.tensor([5, 9, 2, 7])
    batches = list(split.batches(order, 3, augment_seed=4, views=numbers))
    assert [len(images) for images, _ in batches] == [3, 1]
    shown = torch.cat([images for images, _ in batches])
    assert torch.equal(shown, split.views(order, numbers, 4))
    assert not torch.equal(shown[1], shown[3])  # of one picture
    assert torch.equal(next(split.batches(order, 4, views=numbers))[0], split.images(order))


def test_pictures_prepared_by_a_user_are_shown_as_the_user_prepares_them():
    class Prepared:
        def mode(self):
            return "RGB"

        def one(self, image, augmented):
            return torch.full((1, 1, 1), float(augmented))

        def batch(self, prepared, indices, augment_seed):
            return torch.stack(prepared) + (augment_seed or 0)

    split = Pictures(PICTURES, IMAGENET)
    split.preparation = Prepared()
    assert split.views([1, 2], torch.arange(2), 5).flatten().tolist() == [0, 0]
    assert next(split.batches([1, 2], 2, augment_seed=5, views=torch.arange(2)))[0].flatten().tolist() == [6, 6]


def test_a_picture_that_cannot_be_read_is_named_for_views_too():
    with pytest.raises(FileError, match=r"cannot be read: picture 1 \("):
        Pictures([picture(300, 300), None], IMAGENET).views([0, 1], torch.arange(2), 0)
