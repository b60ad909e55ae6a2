"""Shards: the same images and labels as in a folder, at the same places each time, and damage named by its shard."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from decomp.data import shards
from decomp.data.sources import open_source
from decomp.errors import DecompError, FileError, UsageError

pytest.importorskip("webdataset")


def png(value, size=16):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def write_shard(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path):
    """Two shards of three images with values 0 to 50, labels 0 to 2, and a test shard with labels in JSON."""
    for shard in range(2):
        files = []
        for i in range(3):
            files += [(f"s/{i}.cls", str(i).encode()), (f"s/{i}.png", png(30 * shard + 10 * i))]
        write_shard(tmp_path / f"train-{shard:02}.tar", files)
    write_shard(tmp_path / "val.tar", [("a.png", png(99)), ("a.json", json.dumps({"label": 3}).encode())])
    return tmp_path


def test_images_and_labels_are_those_at_their_places_in_order_of_the_shards(folder):
    source = open_source(f"webdataset:{folder}/train-{{00..01}}.tar,test={folder}/val.tar")
    assert (len(source.train), len(source.test), source.n_classes) == (6, 1, 4)
    assert source.train.labels(range(6)).tolist() == [0, 1, 2, 0, 1, 2] and source.test.labels([0]).tolist() == [3]
    order = [5, 0, 3]
    means, stds = (torch.tensor(v)[:, None, None] for v in (source.normalisation.mean, source.normalisation.std))
    pixels = (source.train.images(order) * stds + means) * 255
    assert torch.allclose(pixels, torch.tensor([50.0, 0, 30])[:, None, None, None].expand_as(pixels), atol=1e-3)
    assert source.input_shape == (3, 16, 16)


def test_star_and_braces_name_the_same_shards_each_once(folder):
    both = f"{folder}/train-*.tar"
    found = shards.shards_of("x", both)
    assert [path.name for path in found] == ["train-00.tar", "train-01.tar"]
    assert shards.shards_of("x", f"{folder}/train-{{01,00,0*}}.tar") == found


def test_the_digest_is_the_same_each_time_and_another_with_another_label(folder):
    name = f"webdataset:{folder}/val.tar"
    before = open_source(name).digest()
    assert open_source(name).digest() == before
    write_shard(folder / "val.tar", [("a.png", png(99)), ("a.json", b"2")])
    assert open_source(name).digest() != before


def test_one_image_is_read_without_the_others(folder, monkeypatch):
    source = open_source(f"webdataset:{folder}/train-*.tar")
    read = []
    content = shards._content
    monkeypatch.setattr(shards, "_content", lambda sample: read.append(sample.file) or content(sample))
    source.train.images([4])
    assert read == ["s/1.png"]


def test_images_without_labels_are_images_without_labels(folder):
    write_shard(folder / "plain.tar", [("a.png", png(1)), ("b.png", png(2))])
    source = open_source(f"webdataset:{folder}/plain.tar")
    assert not source.train.has_labels and source.n_classes is None


def test_unreadable_images_are_named_or_left_out(folder):
    write_shard(folder / "bad.tar", [("a.png", png(1)), ("b.png", b"no image"), ("c.png", png(2))])
    name = f"webdataset:{folder}/bad.tar"
    with pytest.raises(FileError, match="bad.tar/b.png"):
        open_source(name).train.images([0, 1])
    source = open_source(name, skip_bad=True)
    assert source.skipped == ("bad.tar/b.png",) and len(source.train) == 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("a.png", png(1)), ("a.cls", b"cat")], "broken.tar/a.cls must be a class number from 0, got cat"),
        ([("a.png", png(1)), ("a.cls", b"1"), ("b.png", png(1))], "broken.tar/b.png has none"),
        ([("a.txt", b"x")], "holds no images"),
    ],
)
def test_labels_that_are_missing_or_no_numbers_are_named(files, said, tmp_path):
    write_shard(tmp_path / "broken.tar", files)
    with pytest.raises(FileError, match=said):
        open_source(f"webdataset:{tmp_path}/broken.tar")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.0])
def test_a_shard_that_is_cut_off_is_named(part, tmp_path):
    write_shard(tmp_path / "cut.tar", [(f"{i}.png", np.random.default_rng(i).bytes(5000)) for i in range(4)])
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(FileError, match="cut.tar"):
        open_source(f"webdataset:{tmp_path}/cut.tar")


def test_a_shard_is_cut_off_wherever_the_content_of_a_file_ends(tmp_path):
    write_shard(tmp_path / "cut.tar", [(f"{i}.png", np.random.default_rng(i).bytes(5000)) for i in range(3)])
    whole = (tmp_path / "cut.tar").read_bytes()
    with tarfile.open(tmp_path / "cut.tar") as tar:
        places = [member.offset_data for member in tar]
    for end in [place + part for place in places for part in (1, 512, 4608, 4999, 5000, 5119)]:
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(FileError, match="cut.tar is cut off; copy or write it again"):
            open_source(f"webdataset:{tmp_path}/cut.tar")


def test_a_pattern_without_files_and_a_missing_library_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="there is no file .*none-1.tar"):
        open_source(f"webdataset:{tmp_path}/none-{{1..3}}.tar")
    with pytest.raises(UsageError, match="webdataset needs a path"):
        open_source("webdataset")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DecompError, match="pip install"):
        open_source(f"webdataset:{tmp_path}/a.tar")
