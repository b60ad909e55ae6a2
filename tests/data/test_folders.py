"""Folders of image files: the pixels torchvision would give, every kind of file, and files that cannot be read."""

import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from decomp.data.folders import read_image
from decomp.data.image_options import ImageOptions
from decomp.data.models import load_model
from decomp.data.sources import open_source
from decomp.errors import FileError, UsageError
from tests.data.idx_files import write_idx_set

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(width, height, seed=0):
    """A smooth colour image, so that a JPEG of it stays close."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two classes, four training images each and two for evaluation, of different sizes."""
    for split, n in (("train", 4), ("val", 2)):
        for c, class_name in enumerate(("cat", "dog")):
            place = tmp_path / split / class_name
            place.mkdir(parents=True)
            for i in range(n):
                picture(40 + 7 * i, 36 + 5 * c, seed=10 * c + i).save(place / f"{i}.png")
    return tmp_path


def test_pixels_are_those_of_the_usual_evaluation(folder):
    from torchvision import transforms

    usual = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    picture(300, 700).save(folder / "train" / "cat" / "tall.png")
    source = open_source(f"imagefolder:{folder}")
    assert source.input_shape == (3, 224, 224)
    files = sorted((folder / "train").rglob("*.png"))
    expected = torch.stack([usual(Image.open(file).convert("RGB")) for file in files])
    assert torch.allclose(source.train.images(torch.arange(len(files))), expected, atol=1e-6)


def test_labels_follow_the_sorted_class_folders(folder):
    source = open_source(f"imagefolder:{folder}", input_shape=(3, 32, 32))
    assert source.class_names == ("cat", "dog") and source.n_classes == 2
    assert source.train.labels(torch.arange(8)).tolist() == [0] * 4 + [1] * 4
    assert source.test.labels(torch.arange(4)).tolist() == [0, 0, 1, 1]
    batches = list(source.train.batches(torch.tensor([7, 0, 5]), 2))
    assert [labels.tolist() for _, labels in batches] == [[1, 0], [1]]
    assert torch.equal(torch.cat([images for images, _ in batches]), source.train.images([7, 0, 5]))


def test_a_class_that_is_only_in_training_keeps_the_numbers(folder):
    (folder / "train" / "bird").mkdir()
    picture(40, 40).save(folder / "train" / "bird" / "x.jpg")
    source = open_source(f"imagefolder:{folder}")
    assert source.class_names == ("bird", "cat", "dog")
    assert source.test.labels(torch.arange(4)).tolist() == [1, 1, 2, 2]
    (folder / "val" / "fish").mkdir()
    with pytest.raises(FileError, match="class folders of val/ must be those of train/, got fish"):
        open_source(f"imagefolder:{folder}")


def test_augmentation_is_a_window_of_the_resized_image_and_independent_of_batches(folder):
    source = open_source(f"imagefolder:{folder}", input_shape=(3, 28, 28))  # resized to 32 on the short side
    split = source.train
    order = torch.tensor([6, 1, 3, 0, 7])
    whole = next(iter(split.batches(order, 5, augment_seed=2)))[0]
    parts = [images for images, _ in split.batches(order.flip(0), 2, augment_seed=2)]
    assert torch.equal(torch.cat(parts).flip(0), whole)

    file = sorted((folder / "train").rglob("*.png"))[0]
    width, height = Image.open(file).size
    resized = Image.open(file).resize((int(32 * width / height), 32), Image.Resampling.BILINEAR)
    array = np.asarray(resized).astype(np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    array = (array - mean) / std
    windows = {}
    for top in range(array.shape[0] - 28 + 1):
        for left in range(array.shape[1] - 28 + 1):
            window = array[top : top + 28, left : left + 28]
            windows[top, left, False] = window
            windows[top, left, True] = window[:, ::-1]
    seen = set()
    for seed in range(60):
        image = next(iter(split.batches([0], 1, augment_seed=seed)))[0][0].permute(1, 2, 0).numpy()
        found = [key for key, window in windows.items() if np.allclose(window, image, atol=1e-5)]
        assert len(found) == 1
        seen.add(found[0])
    for axis in range(3):
        values = {key[axis] for key in windows}
        assert len({key[axis] for key in seen}) >= min(len(values), 4)


@pytest.mark.parametrize("shape", [(3, 20, 50), (3, 50, 20), (1, 33, 33)])
def test_other_shapes_are_covered_by_the_image(folder, shape):
    source = open_source(f"imagefolder:{folder}", input_shape=shape)
    images = source.train.images(torch.arange(8))
    assert images.shape == (8, *shape)
    assert torch.isfinite(images).all() and images.flatten(1).std(1).min() > 0.05


def test_a_grey_model_sees_luminance(folder):
    Image.new("RGB", (40, 40), RED).save(folder / "train" / "cat" / "0.png")
    value = open_source(f"imagefolder:{folder}", input_shape=(1, 8, 8)).train.images([0])
    grey = 76 / 255  # 255 · 0.299 rounded, as torchvision's Grayscale gives it
    mean = 0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406
    std = 0.299 * 0.229 + 0.587 * 0.224 + 0.114 * 0.225
    assert torch.allclose(value, torch.full((1, 1, 8, 8), (grey - mean) / std), atol=1e-5)


def test_every_mode_becomes_eight_bit_rgb(tmp_path):
    def colours(image, name, **options):
        image.save(tmp_path / name, **options)
        return np.asarray(read_image(tmp_path / name)).reshape(-1, 3).tolist()

    assert colours(Image.new("L", (1, 1), 77), "grey.png") == [[77, 77, 77]]
    assert colours(Image.new("1", (1, 1), 1), "bit.png") == [[255, 255, 255]]
    assert colours(Image.new("RGBA", (1, 1), (10, 20, 30, 128)), "alpha.png") == [[10, 20, 30]]
    assert colours(Image.new("LA", (1, 1), (50, 0)), "grey_alpha.png") == [[50, 50, 50]]
    palette = Image.new("RGB", (1, 1), BLUE).quantize(2)
    assert colours(palette, "palette.gif") == [list(BLUE)]
    assert colours(palette, "palette.png", transparency=0) == [list(BLUE)]
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert colours(deep, "deep.png") == [[0] * 3, [100] * 3, [255] * 3]
    assert colours(deep, "deep.tif") == [[0] * 3, [100] * 3, [255] * 3]
    inks = colours(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "inks.jpg", quality=95)
    assert np.abs(np.array(inks) - RED).max() < 12
    with pytest.raises(ValueError, match="32-bit"):
        colours(Image.fromarray(np.ones((1, 1), np.float32)), "float.tif")


def test_exif_orientation_is_followed(tmp_path):
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), RED)
    image.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for display
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.size == (1, 2)
    assert (turned.getpixel((0, 0)), turned.getpixel((0, 1))) == (RED, BLUE)


def test_a_strip_of_pixels_does_not_fill_the_memory(folder):
    picture(20_000, 1).save(folder / "train" / "cat" / "0.png")
    source = open_source(f"imagefolder:{folder}")
    assert source.train.images([0]).shape == (1, 3, 224, 224)


def damage(folder):
    """Break three training files in different ways; their names, in order."""
    buffer = io.BytesIO()
    picture(300, 300).save(buffer, "JPEG")
    whole = buffer.getvalue()
    cat, dog = folder / "train" / "cat", folder / "train" / "dog"
    (cat / "0.png").write_bytes(whole[: len(whole) // 2])  # a JPEG cut short, under another suffix
    (cat / "2.png").write_bytes(b"")
    (dog / "1.png").write_text("not an image")
    return ["cat/0.png", "cat/2.png", "dog/1.png"]


def test_unreadable_files_are_named_with_the_way_out(folder):
    names = damage(folder)
    source = open_source(f"imagefolder:{folder}")
    for read in (
        lambda: source.train.images(torch.arange(8)),
        lambda: list(source.train.batches(torch.arange(8), 8)),
    ):
        with pytest.raises(FileError) as caught:
            read()
        line = str(caught.value)
        assert all(name in line for name in names) and "--skip-bad" in line and "\n" not in line
    assert len(source.train.images([1, 3])) == 2  # the good ones still come


def test_a_long_list_of_unreadable_files_is_shortened(folder):
    for i in range(20):
        (folder / "train" / "cat" / f"bad{i:02}.jpg").write_text("no")
    with pytest.raises(FileError, match="bad02.jpg .* and 17 more"):
        source = open_source(f"imagefolder:{folder}")
        source.train.images(torch.arange(len(source.train)))


def test_skip_bad_leaves_them_out_and_counts_them(folder):
    intact = open_source(f"imagefolder:{folder}", input_shape=(3, 32, 32)).train.images(torch.arange(8))
    damage(folder)
    (folder / "val" / "dog" / "0.png").write_text("no")
    source = open_source(f"imagefolder:{folder}", input_shape=(3, 32, 32), skip_bad=True)
    assert (len(source.train), len(source.test), len(source.skipped)) == (5, 3, 4)
    assert source.train.labels(torch.arange(5)).tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(source.train.images(torch.arange(5)), intact[[1, 3, 4, 6, 7]])
    assert source.describe()["skipped"] == 4
    assert source.skipped[-1] == "val/dog/0.png" and all(name.startswith("train/") for name in source.skipped[:3])


def test_skip_bad_with_nothing_left(folder):
    for file in (folder / "val").rglob("*.png"):
        file.write_text("no")
    with pytest.raises(FileError, match="no image of val/ can be read"):
        open_source(f"imagefolder:{folder}", skip_bad=True)


def test_training_images_without_classes_have_no_labels(folder, tmp_path_factory):
    plain = tmp_path_factory.mktemp("plain")
    (plain / "train").mkdir()
    for i in range(3):
        picture(40, 40, i).save(plain / "train" / f"{i}.jpg")
    source = open_source(f"imagefolder:{plain}", input_shape=(3, 16, 16))
    assert (len(source.train), source.test, source.n_classes, source.train.has_labels) == (3, None, None, False)
    assert source.train.labels([0]) is None
    images, labels = next(iter(source.train.batches([0, 1], 2)))
    assert images.shape == (2, 3, 16, 16) and labels is None
    (folder / "val").rename(plain / "val")
    source = open_source(f"imagefolder:{plain}")
    assert source.n_classes == 2 and source.test.labels([3]).item() == 1 and not source.train.has_labels


def test_what_is_not_an_image_or_hidden_is_left_alone(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("cats")
    (folder / "train" / "cat" / "._0.png").write_text("what a Mac leaves")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / "more").mkdir()
    picture(40, 40).save(folder / "train" / "cat" / "more" / "UPPER.JPG")
    source = open_source(f"imagefolder:{folder}")
    assert len(source.train) == 9 and source.class_names == ("cat", "dog")


def test_empty_and_absent_folders_are_named(tmp_path, folder):
    with pytest.raises(UsageError, match="the folder must exist"):
        open_source(f"imagefolder:{tmp_path / 'nowhere'}")
    (tmp_path / "a").mkdir()
    with pytest.raises(
        FileError, match="must hold train/ .*; put the images into .*a/train, in one folder a class or, w"
    ):
        open_source(f"imagefolder:{tmp_path / 'a'}")
    (tmp_path / "a" / "train").mkdir()
    with pytest.raises(FileError, match="train/ holds no images"):
        open_source(f"imagefolder:{tmp_path / 'a'}")
    (folder / "train" / "empty_class").mkdir()
    with pytest.raises(FileError, match="every class folder of train/ must hold images, empty_class does not"):
        open_source(f"imagefolder:{folder}")


def test_the_digest_follows_names_sizes_and_labels(folder):
    def digest():
        return open_source(f"imagefolder:{folder}").digest()

    digests = [digest()]
    assert digest() == digests[0]
    (folder / "train" / "cat" / "3.png").rename(folder / "train" / "dog" / "33.png")
    digests.append(digest())
    (folder / "train" / "dog" / "33.png").write_bytes(b"x" * random.Random(0).randrange(1, 50))
    digests.append(digest())
    assert len(set(digests)) == 3


def test_pictures_of_a_standard_set_give_a_network_of_the_zoo_the_sets_own_values(tmp_path):
    write_idx_set(tmp_path / "set", packed=False)
    own = open_source(f"fashion-mnist:{tmp_path / 'set'}")
    for split, name in ((own.train, "train"), (own.test, "val")):
        values, labels = split.images(torch.arange(len(split))), split.labels(torch.arange(len(split)))
        pixels = (values[:, 0] * 0.3530 + 0.2860).mul(255).round().to(torch.uint8).numpy()
        for index, (image, label) in enumerate(zip(pixels, labels.tolist())):
            folder = tmp_path / "photos" / name / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:04}.png")
    network = load_model("zoo:vgg-fashion").takes()
    brought = open_source(f"imagefolder:{tmp_path / 'photos'}", network=network)
    assert brought.preprocessing.endswith("(as zoo:vgg-fashion was trained)")
    # The same by options, for a network of which only the class is known.
    options = ImageOptions(mean=(0.2860,), std=(0.3530,))
    unknown = replace(network, shape=None, own=None)
    asked = open_source(f"imagefolder:{tmp_path / 'photos'}", network=unknown, options=options)
    for source in (brought, asked):
        assert source.input_shape == (1, 28, 28)
        for split, of_set in ((source.train, own.train), (source.test, own.test)):
            order = of_set.labels(torch.arange(len(of_set))).argsort(stable=True)
            assert torch.equal(split.images(torch.arange(len(split))), of_set.images(order))


@pytest.mark.parametrize("suffix", ["webp", "tiff", "bmp", "ppm"])
def test_folders_with_names_of_any_script_and_files_of_any_format(tmp_path, suffix):
    for c, name in enumerate(("猫", "собака", "æble og brød")):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (9, 7), (60 * c, 20, 30)).save(tmp_path / "train" / name / f"été {c}.{suffix}", lossless=True)
    source = open_source(f"imagefolder:{tmp_path}", options=ImageOptions(mean=(0.0,), std=(1.0,)))
    assert source.class_names == ("æble og brød", "собака", "猫") and source.input_shape == (3, 7, 9)
    values = source.train.images([0, 1, 2])[:, :, 3, 3] * 255
    assert torch.allclose(values, torch.tensor([[120.0, 20, 30], [60, 20, 30], [0, 20, 30]]), atol=2)


def test_the_common_size_is_that_of_pictures_as_they_are_shown(tmp_path):
    (tmp_path / "train").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "train" / "a.jpg", exif=exif)
    Image.new("L", (8, 12)).save(tmp_path / "train" / "b.png")
    (tmp_path / "train" / "c.png").write_text("broken")
    assert open_source(f"imagefolder:{tmp_path}").input_shape == (3, 12, 8)
    Image.new("L", (12, 8)).save(tmp_path / "train" / "d.png")
    assert open_source(f"imagefolder:{tmp_path}").input_shape == (3, 224, 224)
