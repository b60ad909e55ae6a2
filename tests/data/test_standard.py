"""Small public data sets: exact pixels, labels and splits, the places of their files, and files that are broken."""

import os
import shutil
import socket
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from decomp.data import standard
from decomp.data.sources import open_source
from decomp.errors import FileError, UsageError
from tests.data.idx_files import all_images, idx, write_idx_set

HAS_FASHION = (standard.DEBIAN_FASHION / "train-images-idx3-ubyte.gz").is_file()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


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
        calls.append(socket.getdefaulttimeout())
        write_idx_set(Path(reader.raw_folder), packed=False)

    monkeypatch.setattr(FashionMNIST, "download", download)
    (tmp_path / "cache" / "decomp" / "FashionMNIST" / "raw" / "left_over").mkdir(parents=True)
    first, second = open_source("fashion-mnist"), open_source("fashion-mnist")
    # Once, and with a limit on the wait for an answer, which is not left behind.
    assert calls == [standard.DOWNLOAD_TIMEOUT] and socket.getdefaulttimeout() is None
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


def test_black_around_a_shifted_digit_is_black_after_normalisation():
    split = open_source("digits").train
    black = (0.0 - 0.3052) / 0.3760
    originals = all_images(split)
    augmented = next(iter(split.batches(torch.arange(1347), 1347, augment_seed=0)))[0]
    moved = (originals != augmented).flatten(1).any(1)
    assert 0.8 < moved.float().mean() < 0.95  # 8 of 9 shifts move
    down = [a for o, a in zip(originals, augmented) if torch.equal(a[:, 1:], o[:, :-1]) and not torch.equal(a, o)]
    assert down and all(torch.allclose(a[:, 0], torch.full((1, 8), black)) for a in down)


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
