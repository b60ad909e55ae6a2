"""Images of a run: the same values as freeze recorded, whatever would be chosen now."""

import pytest
import torch
from PIL import Image

from decomp.data.formats.frozen_file import FrozenFile
from decomp.data.sources import open_source
from decomp.errors import UsageError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.images import open_images
from decomp.pipelines.stages.freeze import freeze

NETWORK = """
from torch import nn
def build():
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers)
def transform():
    from torchvision import transforms as t
    val = t.Compose([t.Resize((9, 9)), t.ToTensor(), t.Normalize(0.25, 0.5)])
    return {"train": t.Compose([t.RandomRotation(90), val]), "val": val}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    images = open_source("digits").train.images(torch.arange(40))
    for index, image in enumerate((images[:, 0] * 0.376 + 0.3052).clamp(0, 1)):
        folder = tmp_path / "photos" / ("train" if index < 30 else "val") / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).resize((12, 12)).save(folder / f"{index}.png")
    return tmp_path


CASES = {
    "own size": {},
    "options": {"mean": 0.2, "std": "0.3", "resize": 11, "crop": (9, 10), "flip": False},
    "transforms": {"transforms": "net.py:transform"},
}


@pytest.mark.parametrize("case", CASES)
def test_images_are_opened_again_as_they_were_frozen(place, case):
    options = {"model": "net.py:build", "data": "imagefolder:photos", "n_images": 30, **CASES[case]}
    freeze("run", **options, reporter=Reporter(quiet=True))
    run = RunDirectory.open("run")
    source = open_images(run)
    with FrozenFile(run.frozen) as frozen:
        images, again = frozen.images(), source.train.images(torch.arange(30))
    key = [tuple(image.flatten().tolist()) for image in images]
    assert sorted(key) == sorted(tuple(image.flatten().tolist()) for image in again)
    assert images.shape[1:] == {"own size": (3, 12, 12), "options": (3, 9, 10), "transforms": (3, 9, 9)}[case]
    recorded = run.config("freeze")["source"]
    assert recorded["preprocessing"] == source.preprocessing and recorded["prepared"] is not None
    assert freeze("run", **options, reporter=Reporter(quiet=True)).done_before
    with pytest.raises(UsageError, match="was frozen with"):
        freeze("run", **{**options, "mean": 0.7, "std": 0.3, "transforms": None}, reporter=Reporter(quiet=True))


def test_the_recorded_steps_hold_even_where_the_images_are_now_of_several_sizes(place):
    freeze("run", model="net.py:build", data="imagefolder:photos", n_images=30, reporter=Reporter(quiet=True))
    before = open_images(RunDirectory.open("run")).train.images([0])
    Image.new("RGB", (40, 50)).save(place / "photos/val/0/extra.png")
    Image.new("RGB", (40, 50)).save(place / "photos/train/1/zz.png")
    assert torch.equal(open_images(RunDirectory.open("run")).train.images([0]), before)


def test_own_transforms_that_have_changed_are_refused(place):
    options = {"model": "net.py:build", "data": "imagefolder:photos", "n_images": 30, "transforms": "net.py:transform"}
    freeze("run", **options, reporter=Reporter(quiet=True))
    (place / "net.py").write_text(NETWORK.replace("0.25, 0.5", "0.25, 0.4"))
    for opened_again in (
        lambda: open_images(RunDirectory.open("run")),
        lambda: freeze("run", **options, reporter=Reporter(quiet=True)),
    ):
        with pytest.raises(UsageError, match="net.py:transform: gives other values for the first image than when"):
            opened_again()
