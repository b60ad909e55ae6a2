"""Sources of images by name: exact pixels, labels, splits, and what a wrong name says."""

import gzip
import os
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from decomp.data import standard
from decomp.data.sources import NAMES, open_source
from decomp.errors import DecompError, FileError, UsageError

HAS_FASHION = (standard.DEBIAN_FASHION / "train-images-idx3-ubyte.gz").is_file()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def idx(array):
    """An array as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(folder, *, packed, n_train=20, n_test=7):
    """Four IDX files as Fashion-MNIST and MNIST have them; returns the training images and labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28))
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, n)
    for name, array in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]


def all_images(split):
    return split.images(torch.arange(len(split)))


def test_digits_are_split_once_and_for_all():
    from sklearn.datasets import load_digits

    source = open_source("digits")
    assert (len(source.train), len(source.test), source.n_classes) == (1347, 450, 10)
    raw = load_digits()
    restored = torch.cat([all_images(source.train), all_images(source.test)]) * 0.3760 + 0.3052
    labels = torch.cat([source.train.labels(torch.arange(1347)), source.test.labels(torch.arange(450))])

    def key(pixels, label):
        return (*np.rint(pixels * 16).astype(int).ravel().tolist(), int(label))

    ours = sorted(key(p, y) for p, y in zip(restored.numpy(), labels))
    theirs = sorted(key(p / 16, y) for p, y in zip(raw.images, raw.target))
    assert ours == theirs  # every image once, with its own label
    share = torch.bincount(source.test.labels(torch.arange(450))) / 450
    assert (share - torch.bincount(torch.from_numpy(raw.target)) / 1797).abs().max() < 0.002
    assert open_source("digits").digest() == source.digest() != source.digest("test")


def test_digits_are_normalised_by_the_training_split():
    images = all_images(open_source("digits").train)
    assert abs(float(images.mean())) < 1e-3 and abs(float(images.std()) - 1) < 1e-3


@pytest.mark.parametrize("layout", ["packed", "plain", "torchvision"])
@pytest.mark.parametrize(("name", "mean", "std"), [("fashion-mnist", 0.2860, 0.3530), ("mnist", 0.1307, 0.3081)])
def test_idx_files_are_found_and_read_exactly(tmp_path, layout, name, mean, std):
    below = {"fashion-mnist": "FashionMNIST/raw", "mnist": "MNIST/raw"}[name] if layout == "torchvision" else ""
    pixels, labels = write_idx_set(tmp_path / "set" / below, packed=layout == "packed")
    source = open_source(f"{name}:{tmp_path / 'set'}")
    assert (len(source.train), len(source.test), source.input_shape) == (20, 7, (1, 28, 28))
    expected = (torch.from_numpy(pixels).float()[:, None] / 255 - mean) / std
    assert torch.allclose(all_images(source.train), expected, atol=1e-6)
    order = torch.tensor([3, 3, 19])
    assert source.train.labels(order).tolist() == labels[[3, 3, 19]].tolist()
    assert torch.equal(source.train.images(order), all_images(source.train)[order])
    assert not list((tmp_path / "set").rglob("*.part"))


def test_a_given_folder_is_the_only_place_looked_at(tmp_path, no_network):
    write_idx_set(tmp_path / "cache" / "MNIST" / "raw", packed=False, n_train=11)
    assert len(open_source("mnist").train) == 11
    write_idx_set(tmp_path / "cache" / "decomp" / "FashionMNIST" / "raw", packed=False)
    assert len(open_source("fashion-mnist").train) == 20
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="the folder must hold train-images-idx3-ubyte"):
        open_source(f"fashion-mnist:{tmp_path / 'empty'}")
    with pytest.raises(UsageError, match="the folder must exist"):
        open_source(f"fashion-mnist:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("damage", ["cut gzip", "cut file", "other file", "labels lost"])
def test_damaged_idx_files_are_one_line(tmp_path, damage):
    folder = tmp_path / "set"
    write_idx_set(folder, packed=damage == "cut gzip")
    suffix = ".gz" if damage == "cut gzip" else ""
    images, labels = folder / f"train-images-idx3-ubyte{suffix}", folder / "train-labels-idx1-ubyte"
    if damage.startswith("cut"):
        images.write_bytes(images.read_bytes()[:5000])
    elif damage == "other file":
        images.write_bytes(b"<html>404 not found</html>")
    else:
        labels.write_bytes(idx(np.zeros(19)))
    with pytest.raises(FileError) as caught:
        open_source(f"fashion-mnist:{folder}")
    line = str(caught.value)
    assert str(folder) in line and "cannot be read" in line and "\n" not in line


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("fashion-mnist", "apt-get install dataset-fashion-mnist"),
        ("mnist", "mnist:DIR"),
        ("cifar10", "cifar-10-batches-py/: cifar10:DIR"),
        ("cifar100", "cifar-100-python/: cifar100:DIR"),
    ],
)
def test_without_files_and_network_the_ways_out_are_named(monkeypatch, tmp_path, no_network, capsys, name, way_out):
    monkeypatch.setattr(standard, "DEBIAN_FASHION", tmp_path / "not_installed")
    with pytest.raises(FileError) as caught:
        open_source(name)
    line = str(caught.value)
    assert "neither found nor downloaded" in line and way_out in line and "\n" not in line
    assert list((tmp_path / "cache" / "decomp").iterdir()) == []  # nothing half done is left to be found next time


def test_a_download_is_moved_into_the_cache_whole_and_used_again(monkeypatch, tmp_path):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(standard, "DEBIAN_FASHION", tmp_path / "not_installed")
    calls = []

    def download(reader):
        calls.append(reader.root)
        write_idx_set(Path(reader.raw_folder), packed=False)

    monkeypatch.setattr(FashionMNIST, "download", download)
    first, second = open_source("fashion-mnist"), open_source("fashion-mnist")
    assert len(calls) == 1
    assert first.digest() == second.digest()
    assert [p.name for p in (tmp_path / "cache" / "decomp").iterdir()] == ["FashionMNIST"]


def test_cifar_is_read_by_torchvision_from_every_layout(monkeypatch, tmp_path):
    import hashlib
    import pickle
    import tarfile

    from torchvision.datasets import CIFAR10

    folder = tmp_path / "root" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    md5 = {}
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        content = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [1, 2, 3, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # the published sums would not fit these files; those of these files are put in their place
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5[n]] for n, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[n, md5[n]] for n, _ in CIFAR10.test_list])
    meta = {**CIFAR10.meta, "md5": hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    (tmp_path / "archive").mkdir()
    with tarfile.open(tmp_path / "archive" / CIFAR10.filename, "w:gz") as archive:
        archive.add(folder, CIFAR10.base_folder)

    first = pickle.loads((folder / "data_batch_1").read_bytes())["data"].reshape(4, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    expected = (torch.from_numpy(first).float() / 255 - mean) / std
    for place in (tmp_path / "root", folder, tmp_path / "archive"):
        source = open_source(f"cifar10:{place}")
        assert (len(source.train), len(source.test), source.class_names) == (20, 4, tuple("abcdefghij"))
        assert torch.allclose(source.train.images([0, 1, 2, 3]), expected, atol=1e-6)
        assert source.test.labels([3]).tolist() == [9]
    assert os.listdir(tmp_path / "archive") == [CIFAR10.filename]

    (folder / "data_batch_3").write_bytes(b"not these")
    with pytest.raises(FileError, match="cannot be read .*corrupted"):
        open_source(f"cifar10:{folder}")


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 12), (1, 5, 5)])
def test_augmentation_does_not_depend_on_batches_or_order(batch_size, shape):
    split = open_source("digits", input_shape=shape).train
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    whole = next(iter(split.batches(torch.arange(100), 100, augment_seed=5)))[0]
    parts = list(split.batches(order, batch_size, augment_seed=5))
    assert torch.equal(torch.cat([images for images, _ in parts]), whole[order])
    assert torch.equal(torch.cat([labels for _, labels in parts]), split.labels(order))
    assert not torch.equal(whole, split.images(torch.arange(100)))
    assert not torch.equal(whole, next(iter(split.batches(torch.arange(100), 100, augment_seed=6)))[0])


def test_without_a_seed_batches_are_the_images():
    split = open_source("digits").train
    order = torch.tensor([5, 2, 9, 2, 11])
    batches = list(split.batches(order, 2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images(order))
    assert list(split.batches(torch.tensor([], dtype=torch.int64), 2)) == []


def test_reading_changes_nothing_that_is_kept():
    split = open_source("digits").train
    before = split.images([0, 1])
    split.images([0, 1]).zero_()
    next(iter(split.batches([0, 1], 2, augment_seed=1)))[0].zero_()
    assert torch.equal(split.images([0, 1]), before)


def test_black_around_a_shifted_digit_is_black_after_normalisation():
    split = open_source("digits").train
    black = (0.0 - 0.3052) / 0.3760
    originals = all_images(split)
    augmented = next(iter(split.batches(torch.arange(1347), 1347, augment_seed=0)))[0]
    moved = (originals != augmented).flatten(1).any(1)
    assert 0.8 < moved.float().mean() < 0.95  # 8 of 9 shifts move
    down = [a for o, a in zip(originals, augmented) if torch.equal(a[:, 1:], o[:, :-1]) and not torch.equal(a, o)]
    assert down and all(torch.allclose(a[:, 0], torch.full((1, 8), black)) for a in down)


def test_another_input_shape():
    native = open_source("digits")
    source = open_source("digits", input_shape=(3, 16, 12))
    images = source.test.images([0, 1])
    assert images.shape == (2, 3, 16, 12) and source.input_shape == (3, 16, 12)
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.is_contiguous()
    same = open_source("digits", input_shape=(3, 8, 8)).test.images([4])
    assert torch.equal(same, native.test.images([4]).repeat(1, 3, 1, 1))
    with pytest.raises(UsageError, match="images of 1 channels.*got a model of 4 channels"):
        open_source("digits", input_shape=(4, 8, 8))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashon-mnist", "did you mean fashion-mnist"),
        ("fashion-mnits:some/folder", "did you mean fashion-mnist"),
        ("fashionmnist:folder", "did you mean fashion-mnist"),
        ("fashion", "did you mean fashion-mnist"),
        ("qqqqq", "known: digits"),
        ("", "known: digits"),
        ("imagefolder", "write imagefolder:PATH"),
        ("npz:", "write npz:PATH"),
        ("digits:folder", "write digits"),
        ("no_such_module_of_mine:make", "there is no module no_such_module_of_mine"),
    ],
)
def test_wrong_names_get_a_hint(name, hint):
    with pytest.raises(UsageError) as caught:
        open_source(name)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_a_description_is_plain_data_and_tells_sources_apart(tmp_path):
    import json

    write_idx_set(tmp_path / "a", packed=True)
    write_idx_set(tmp_path / "b", packed=False)
    write_idx_set(tmp_path / "c", packed=False, n_train=21)
    a, b, c = (open_source(f"fashion-mnist:{tmp_path / x}").describe() for x in "abc")
    assert json.loads(json.dumps(a)) == a
    assert a["digest"] == b["digest"] != c["digest"]
    assert (a["n_train"], a["n_test"], a["n_classes"], a["input_shape"]) == (20, 7, 10, [1, 28, 28])
    assert a["normalisation"] == {"scale": 255.0, "mean": [0.2860], "std": [0.3530]}
    assert "mirrored" in a["augmentation"] and "mirrored" not in open_source("digits").describe()["augmentation"]


def test_every_known_name_is_handled():
    for name in NAMES:
        with pytest.raises(DecompError) as caught:
            open_source(f"{name}:/nowhere/at/all")
        assert "not a known source" not in str(caught.value)


@pytest.mark.fashion
@pytest.mark.skipif(not HAS_FASHION, reason="the images of Debian's package dataset-fashion-mnist are not installed")
class TestFashion:
    @pytest.fixture(scope="class")
    @staticmethod
    def source():
        return open_source("fashion-mnist")

    def test_the_published_set_is_what_is_read(self, source):
        assert (len(source.train), len(source.test)) == (60_000, 10_000)
        assert torch.bincount(source.train.labels(torch.arange(60_000))).tolist() == [6000] * 10
        assert torch.bincount(source.test.labels(torch.arange(10_000))).tolist() == [1000] * 10
        assert source.class_names[9] == "Ankle boot" and source.train.labels([0]).item() == 9
        images = all_images(source.train)
        assert abs(float(images.mean())) < 1e-3 and abs(float(images.std()) - 1) < 1e-3

    def test_a_copy_in_a_folder_is_the_same_source(self, source, tmp_path):
        shutil.copytree(standard.DEBIAN_FASHION, tmp_path / "copy")
        assert open_source(f"fashion-mnist:{tmp_path / 'copy'}").digest() == source.digest()

    def test_half_of_an_epoch_is_mirrored(self, source):
        # An image that is not shifted is either itself or its mirror image; both are told apart exactly.
        order = torch.arange(20_000)
        originals = source.train.images(order)
        augmented = torch.cat([images for images, _ in source.train.batches(order, 512, augment_seed=9)])
        same = (originals == augmented).flatten(1).all(1).sum().item()
        mirrored = (originals.flip(3) == augmented).flatten(1).all(1).sum().item()
        # 20000 / 50 = 400 of each expected, standard deviation 20
        assert 300 < same < 500 and 300 < mirrored < 500
