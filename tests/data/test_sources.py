"""Sources of images by name: shapes, descriptions, and the hint for a wrong name."""

import json

import pytest
import torch

from decomp.data.image_options import ImageOptions
from decomp.data.preprocessing import NetworkInput
from decomp.data.sources import NAMES, open_source
from decomp.data.transforms import Normalisation
from decomp.errors import DecompError, UsageError
from tests.data.idx_files import write_idx_set


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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


def test_what_lies_on_the_disk_without_its_word_in_front_gets_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "mine.py").write_text(
        "def images(n=3): ...\ndef _own(): ...\ndef other(n): ...\nclass Photos:\n    def __init__(self): ...\n"
    )
    for name, hint in (
        ("photos", "did you mean imagefolder:photos"),
        ("photos/", "did you mean imagefolder:photos/"),
        ("a.npz", "did you mean npz:a.npz"),
        ("mine.py", "write mine.py:images or mine.py:Photos."),
        ("nowhere.py", "there is no file nowhere.py"),
    ):
        with pytest.raises(UsageError) as caught:
            open_source(name)
        assert hint in str(caught.value), name


def test_standard_images_get_the_normalisation_of_a_run_on_the_channels_that_the_network_takes():
    of_run = Normalisation(255.0, (0.1, 0.2, 0.3), (0.5, 0.4, 0.2))
    source = open_source("digits", network=NetworkInput((3, 8, 8), normalisation=of_run))
    zero_to_one = open_source("digits").train.images([3, 7]) * 0.376 + 0.3052
    wanted = of_run.shift(zero_to_one.repeat(1, 3, 1, 1))
    torch.testing.assert_close(source.train.images([3, 7]), wanted, atol=1e-5, rtol=1e-5)
    assert source.preprocessing.endswith("(mean and std of the run's own images)")
    options = ImageOptions(mean=(0.3052,), std=(0.376,))
    source = open_source("digits", network=NetworkInput((1, 8, 8), normalisation=of_run), options=options)
    torch.testing.assert_close(source.train.images([3]), open_source("digits").train.images([3]))
    assert "run's own" not in source.preprocessing
