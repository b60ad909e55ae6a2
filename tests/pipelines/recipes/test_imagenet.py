"""Table of the paper: a small network end to end, resumed without work, and the published figures in their rows."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import FileError, UsageError
from decomp.pipelines.recipes import imagenet as recipe
from decomp.pipelines.recipes.imagenet import ImagenetResult, Ours, imagenet
from tests.pipelines.digit_runs import Collected

NETWORK = """
from torch import manual_seed, nn

def network():
    manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6),
    )
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The table of a small network on six classes of pictures at 64 px."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 3)):
        for c in range(6):
            place = root / "images" / split / f"n{c}"
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (64, 64, 3), dtype=np.uint8) + np.uint8(20 * c)
                Image.fromarray(pixels).save(place / f"{i}.png")
    (root / "small.py").write_text(NETWORK)
    options = {"networks": (f"{root / 'small.py'}:network=2x/3x",), "epochs": 1, "n_images": 40, "device": "cpu"}
    return root, options, imagenet(root / "runs", f"imagefolder:{root / 'images'}", reporter=Collected(), **options)


def test_each_speedup_is_made_fine_tuned_and_counted_on_the_emitted_network(made):
    root, _, result = made
    assert [one.speedup for one in result.ours] == [2, 3] and {one.n_images for one in result.ours} == {18}
    before = cost(network_file.load(root / "runs/network/original"), (3, 64, 64)).macs
    for one in result.ours:
        member = root / "runs" / f"network-{one.speedup:g}x"
        after = cost(network_file.load(member / "model"), (3, 64, 64)).macs
        assert one.counted == pytest.approx(before / after) and one.counted >= one.speedup
        assert (member / "finetune").is_dir() and None not in (*one.top5, *one.top1)


def test_the_same_call_again_gives_the_same_table_and_solves_nothing(made, monkeypatch):
    root, options, result = made
    files = {path: path.stat().st_mtime_ns for path in (root / "runs").rglob("*") if path.suffix == ".safetensors"}
    again = imagenet(root / "runs", f"imagefolder:{root / 'images'}", reporter=Collected(), **options)
    assert again == result
    assert {path: path.stat().st_mtime_ns for path in files} == files and files


def test_published_rows_stand_below_ours_of_the_same_network_and_speedup():
    ours = Ours("vgg16", "runs/vgg16-5x", 5.0, 5.02, (3.04, 0.5), (6.0, 1.25), 50000)
    header, first, pruning, three, *others = ImagenetResult([ours], 10).table().split("\n")
    assert not others
    assert first.split() == ["vgg16", "ours", "5x", "5.02x", "+3.0", "+0.5", "+1.2"]
    assert (
        pruning.endswith("5x    4.52x            +22.0              +1.7                 -") and recipe.PAPER in pruning
    )
    assert three.split()[-5:] == ["5x", "-", "-", "+0.3", "-"]


def evaluation(*rows):
    made = [SimpleNamespace(network=n, top1=a, top5=b, counted_speedup=s) for n, a, b, s in rows]
    return SimpleNamespace(rows=made, conditions={"n_images": 10})


def test_increases_are_the_errors_of_the_compressed_less_those_of_the_original():
    rows = [("original", 0.75, 0.9, 1.0), ("decomposed", 0.5, 0.8, 4.1), ("fine-tuned", 0.7, 0.875, 4.1)]
    one = recipe._increases("a", 4.0, "run", evaluation(*rows), tuned=True)
    assert one.top5 == pytest.approx((10, 2.5)) and one.top1 == pytest.approx((25, 5)) and one.counted == 4.1
    # No epoch was better: the network after the fine-tuning is the one before.
    assert recipe._increases("a", 4.0, "run", evaluation(*rows[:2]), tuned=True).top5 == pytest.approx((10, 10))
    untrained = recipe._increases("a", 4.0, "run", evaluation(*rows), tuned=False)
    assert untrained.top5[0] == pytest.approx(10) and untrained.top5[1] is None


def test_images_without_labels_are_refused():
    with pytest.raises(FileError, match="must have labels in train/ and val/"):
        recipe._increases(
            "a", 2.0, "run", evaluation(("original", None, None, 1), ("decomposed", None, None, 2)), tuned=True
        )


@pytest.mark.parametrize("name", ["vgg61", "", "zoo:a=0.5x"])
def test_an_unknown_network_or_speedup_is_refused_before_any_work(name, tmp_path):
    with pytest.raises(UsageError):
        imagenet(tmp_path / "runs", "digits", networks=(name,), reporter=Collected())
    assert not (tmp_path / "runs").exists()


def test_published_weights_are_the_default_of_published_models_alone(tmp_path, monkeypatch):
    asked = []

    def frozen(run, *, model, weights, **options):
        asked.append((model, weights))
        raise KeyError

    monkeypatch.setattr(recipe, "freeze", frozen)
    for name in ("resnet50", "zoo:vgg-digits=2x"):
        with pytest.raises(KeyError):
            imagenet(tmp_path, "digits", networks=(name,), reporter=Collected())
    assert asked == [("torchvision:resnet50", "DEFAULT"), ("zoo:vgg-digits", None)]
