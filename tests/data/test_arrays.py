"""Arrays from a file and from a function: layouts, scales, and what cannot be meant."""

import os
import re

import numpy as np
import pytest
import torch

from decomp.data.sources import open_source
from decomp.errors import DecompError, FileError, NumericalError, UsageError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def save(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return f"npz:{tmp_path / 'a.npz'}"


def images_of(split):
    return split.images(torch.arange(len(split)))


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("images", "labels")])
def test_bytes_are_scaled_and_labels_kept(tmp_path, names):
    source = open_source(save(tmp_path, **dict(zip(names, (BYTES, LABELS.reshape(-1, 1))))))
    assert torch.allclose(images_of(source.train), torch.from_numpy(BYTES).float() / 255)
    assert source.train.labels(torch.arange(6)).tolist() == LABELS.tolist()
    assert (source.n_classes, source.test, source.input_shape) == (3, None, (3, 5, 4))


def test_both_splits_with_mean_and_std(tmp_path):
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1.0, 2.0])
    name = save(tmp_path, x_train=BYTES, y_train=LABELS, x_test=BYTES[:2], y_test=np.array([4, 0]), mean=mean, std=std)
    source = open_source(name)
    expected = (BYTES[:2] / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(images_of(source.test), torch.from_numpy(expected).float(), atol=1e-6)
    assert source.n_classes == 5
    assert source.describe()["normalisation"] == {"scale": 255.0, "mean": [0.1, 0.2, 0.3], "std": [0.5, 1.0, 2.0]}


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.zeros((4, 8, 9)), (1, 8, 9)),
        (np.zeros((4, 8, 9, 3)), (3, 8, 9)),
        (np.zeros((4, 8, 9, 1)), (1, 8, 9)),
        (np.zeros((4, 3, 8, 9)), (3, 8, 9)),
        (np.zeros((4, 3, 8, 3)), (3, 8, 3)),
        (np.zeros((4, 6, 8, 9)), (6, 8, 9)),
    ],
)
def test_layouts(tmp_path, array, shape):
    assert open_source(save(tmp_path, images=array)).input_shape == shape


def test_channels_last_pixels_go_where_they_belong(tmp_path):
    source = open_source(save(tmp_path, images=np.ascontiguousarray(BYTES.transpose(0, 2, 3, 1))))
    assert torch.allclose(images_of(source.train), torch.from_numpy(BYTES).float() / 255)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floating_point_is_taken_as_it_is(tmp_path, dtype):
    values = (RNG.standard_normal((3, 2, 4, 4)) * 100).astype(dtype)
    source = open_source(save(tmp_path, images=values))
    assert torch.equal(images_of(source.train), torch.from_numpy(values.astype(np.float32)))


def test_unknown_images_are_not_augmented(tmp_path):
    source = open_source(save(tmp_path, images=BYTES))
    images, labels = next(iter(source.train.batches([0, 1], 2, augment_seed=3)))
    assert torch.equal(images, source.train.images([0, 1])) and labels is None
    assert source.augmentation == "none"


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_pickled_objects_in_a_file_do_not_run(tmp_path):
    name = save(tmp_path, images=BYTES, labels=np.array([Payload(tmp_path / "was_run")], dtype=object))
    with pytest.raises(FileError, match="would run code"):
        open_source(name)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("arrays", "kind", "pattern"),
    [
        ({"pictures": BYTES}, FileError, "must hold x_train or images, got pictures"),
        ({"images": BYTES.astype(np.int64)}, DecompError, "uint8 .* or floating point, got int64"),
        ({"images": BYTES > 3}, DecompError, "got bool"),
        ({"images": np.zeros((4, 784))}, DecompError, r"got shape \(4, 784\)"),
        ({"images": np.zeros((0, 1, 8, 8))}, DecompError, r"got shape \(0, 1, 8, 8\)"),
        ({"images": BYTES, "labels": LABELS[:5]}, DecompError, r"each of the 6 images, got int64 of shape \(5,\)"),
        ({"images": BYTES[None], "labels": LABELS}, DecompError, "frames of videos as separate images"),
        ({"images": BYTES, "labels": LABELS, "class_names": np.array(["a", "b"])}, DecompError, "name 3 classes"),
        ({"images": BYTES, "x_test": BYTES[:, :1]}, DecompError, "like images .3x5x4 uint8., got 1x5x4 uint8"),
        ({"images": BYTES, "x_test": BYTES / 255}, DecompError, "got 3x5x4 float32"),
        ({"images": BYTES, "mean": np.zeros(3)}, DecompError, "mean and std come together"),
        ({"images": BYTES, "mean": np.zeros(2), "std": np.ones(3)}, DecompError, "mean must be a number"),
        ({"images": BYTES, "mean": np.zeros(3), "std": np.array([1, 0, 1])}, DecompError, "std must be a number"),
        ({"images": np.full((2, 1, 3, 3), np.inf)}, NumericalError, "images holds NaN or Inf, got image 0"),
    ],
)
def test_arrays_that_cannot_be_meant(tmp_path, arrays, kind, pattern):
    with pytest.raises(kind, match=pattern) as caught:
        open_source(save(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_skip_bad_leaves_out_images_with_nan_or_infinite_values_and_names_them(tmp_path):
    pixels = BYTES / np.float32(255)
    spoilt = pixels.copy()
    spoilt[1, 0, 2, 2], spoilt[4, 2, 0, 0] = np.nan, -np.inf
    name = save(tmp_path, images=spoilt, labels=LABELS, x_test=spoilt[:2], y_test=LABELS[:2])
    source = open_source(name, skip_bad=True)
    good = [0, 2, 3, 5]
    assert torch.equal(images_of(source.train), torch.from_numpy(pixels[good]))
    assert source.train.labels(torch.arange(4)).tolist() == LABELS[good].tolist()
    assert torch.equal(images_of(source.test), torch.from_numpy(pixels[:1]))
    assert source.skipped == ("images 1", "images 4", "x_test 1") and source.describe()["skipped"] == 3
    with pytest.raises(NumericalError, match="got image 1; mend them; freeze leaves such images out with --skip-bad"):
        open_source(name)
    with pytest.raises(NumericalError, match=r"mend them\.?$"):
        open_source(save(tmp_path, images=spoilt[1:2]), skip_bad=True)


def test_a_class_of_which_all_images_are_bad_is_still_a_class(tmp_path):
    pixels = BYTES / np.float32(255)
    pixels[LABELS == 2] = np.nan
    assert open_source(save(tmp_path, images=pixels, labels=LABELS), skip_bad=True).n_classes == 3


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.eye(6), r"float64 of shape \(6, 6\)"),
        (np.zeros((6, 5, 4), np.int64), r"int64 of shape \(6, 5, 4\)"),
        (LABELS / 2, r"float64 of shape \(6,\)"),
        (np.array(list("abcabc")), r"<U1 of shape \(6,\)"),
        (LABELS - 1, "whole numbers from -1"),
    ],
)
def test_labels_that_are_no_class_numbers_are_ignored_and_described(tmp_path, labels, words):
    source = open_source(save(tmp_path, images=BYTES, labels=labels))
    assert not source.train.has_labels and source.n_classes is None
    assert re.fullmatch(f"labels: {words}", source.labels_ignored)
    assert open_source(save(tmp_path, images=BYTES, labels=LABELS)).labels_ignored is None


def test_files_that_are_no_archives(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        open_source(f"npz:{tmp_path / 'none.npz'}")
    name = save(tmp_path, images=BYTES)
    whole = (tmp_path / "a.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"some text that is no archive"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(FileError, match="cannot be read as named arrays"):
            open_source(name)
    np.save(tmp_path / "b.npy", BYTES)
    with pytest.raises(FileError, match="one array, not an archive"):
        open_source(f"npz:{tmp_path / 'b.npy'}")


def test_a_flipped_byte_in_a_compressed_file_is_noticed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=BYTES)
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[len(damaged) // 3] ^= 0x10
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(FileError, match="cannot be read"):
        open_source(f"npz:{tmp_path / 'a.npz'}")


FUNCTIONS = """
import numpy as np, torch
pixels = (np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) * 2).astype(np.uint8)
def bare(): return pixels
def tensor(): return torch.from_numpy(pixels), torch.tensor([1, 0])
def unlabelled(): return pixels, None
def four(): return pixels, [1, 0], pixels[:1], [2]
def named():
    scale = {"mean": 0.5, "std": 0.25}
    return {"x_train": pixels, "y_train": np.array([0, 1]), "class_names": ["u", "v"], **scale}
def nested(): return {"train": (pixels, [1, 0]), "test": pixels[:1], "mean": 0.5, "std": 0.25}
def three(): return pixels, pixels, pixels
def text(): return "pixels"
def empty(): return {}
def grad(): return torch.ones(2, 1, 3, 3, requires_grad=True)
"""


def test_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_arrays.py").write_text(FUNCTIONS)
    expected = torch.arange(120).reshape(2, 3, 4, 5) * 2 / 255
    for name in ("mine_of_arrays.py:bare", "mine_of_arrays:bare", "mine_of_arrays.py:unlabelled"):
        source = open_source(name)
        assert torch.allclose(images_of(source.train), expected) and source.n_classes is None
    assert open_source("mine_of_arrays.py:tensor").train.labels([0, 1]).tolist() == [1, 0]
    four = open_source("mine_of_arrays.py:four")
    assert four.n_classes == 3 and four.test.labels([0]).tolist() == [2]
    named = open_source("mine_of_arrays:named")
    assert torch.allclose(images_of(named.train), (expected - 0.5) / 0.25) and named.class_names == ("u", "v")
    nested = open_source("mine_of_arrays:nested")
    assert torch.allclose(images_of(nested.train), (expected - 0.5) / 0.25) and len(nested.test) == 1
    assert nested.train.labels([0]).tolist() == [1] and not nested.test.has_labels
    assert not images_of(open_source("mine_of_arrays:grad").train).requires_grad
    for name, pattern in (
        ("three", "got a tuple of 3"),
        ("text", "got a str"),
        ("empty", "got an empty one"),
    ):
        with pytest.raises(DecompError, match=pattern):
            open_source(f"mine_of_arrays.py:{name}")


SINGLE = """
import numpy as np, torch
images, labels = np.load("x.npy"), [0, 1, 2, 0, 1, 2]
def one_by_one(): yield from images
def pairs(): return [{"label": y, "image": torch.tensor(x)} for x, y in zip(images, labels)]
def batches():
    for i in (0, 2, 4): yield images[i : i + 2], np.array(labels[i : i + 2])
whole = (images, labels)
def uneven(): return [images[0], images[1][:, :4]]
def endless():
    while True: yield images[0]
def broken():
    yield images[0]
    raise KeyError("gone")
"""


def test_images_may_come_one_by_one_or_in_batches_or_lie_in_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", BYTES)
    (tmp_path / "mine.py").write_text(SINGLE)
    for name in ("one_by_one", "pairs", "batches", "whole"):
        source = open_source(f"mine.py:{name}")
        assert torch.allclose(images_of(source.train), torch.from_numpy(BYTES).float() / 255), name
        assert source.train.has_labels == (name != "one_by_one")
        if source.train.has_labels:
            assert source.train.labels(torch.arange(6)).tolist() == LABELS.tolist()
    with pytest.raises(DecompError, match=r"must give images of one size, got \(3, 4, 4\) and \(3, 5, 4\)"):
        open_source("mine.py:uneven")
    with pytest.raises(DecompError, match=r"its code raised KeyError: 'gone'; see .*mine.py line 14"):
        open_source("mine.py:broken")
    monkeypatch.setattr("decomp.data.arrays.MOST_ITEMS", 8)
    with pytest.raises(DecompError, match="endless: must end, got more than 8 images or batches; end it earlier"):
        open_source("mine.py:endless")
