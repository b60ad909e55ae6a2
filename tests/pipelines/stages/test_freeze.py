"""Freeze: what the frozen points are, what decides them, and what is refused."""

import pytest
import torch
from networks import randomise
from PIL import Image

from decomp.data import sources
from decomp.data.formats.frozen_file import FrozenFile
from decomp.data.models import load_model
from decomp.errors import NumericalError, UsageError
from decomp.pipelines.decomposition import record_responses
from decomp.pipelines.run import calibration
from decomp.pipelines.run.calibration import draw_images
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.freeze import FreezeResult, freeze
from decomp.pipelines.training.tasks import LabelledTask
from tests.pipelines.digit_runs import NETWORKS, Collected, make_run, plain

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def test_frozen_points_are_the_responses_of_the_model_as_given(run):
    module = randomise(plain())
    with FrozenFile(run.frozen) as frozen, torch.no_grad():
        assert frozen.layers == ["0", "3", "5", "9"]
        x = frozen.images(0, 400)
        after_bn = module[1](module[0](x))
        wanted = record_responses.responses(after_bn, frozen.positions(frozen.grid_of("0")))
        assert torch.allclose(frozen.responses("0"), wanted, atol=1e-5)
        assert torch.allclose(frozen.responses("9")[:, 0], module(x), atol=1e-5)
        assert not torch.equal(frozen.positions("8x8")[0], frozen.positions("8x8")[1])


def test_calibration_images_are_training_images(run):
    train = sources.open_source("digits").train
    every = {row.numpy().tobytes() for row in train.images(torch.arange(len(train)))}
    with FrozenFile(run.frozen) as frozen:
        assert all(row.numpy().tobytes() in every for row in frozen.images(0, 400))


def test_few_images_are_frozen_with_mixtures_which_are_told_and_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 50)
    mixed, alone = (make_run(tmp_path / str(mix), n_images=20, mix=mix) for mix in (True, False))
    with FrozenFile(mixed.frozen) as frozen, FrozenFile(alone.frozen) as other:
        assert (frozen.n_images, frozen.n_recorded, other.n_recorded) == (20, 50, 20)
        assert torch.equal(frozen.images(), other.images())
        assert torch.equal(
            torch.tensor(frozen.drawn), draw_images(sources.open_source("digits"), 20, 0)
        )  # no index of a mixture
        first, second = frozen.images(20, 21)[0], frozen.images(0, 1)[0]
        assert (first == second).float().mean() > 0.45 and not torch.equal(first, second)
    again = freeze(mixed, model="plain", data="digits", n_images=20, reporter=Collected())
    assert again.done_before
    assert "20 images and 30 mixtures of two of them × up to 10 points" in "\n".join(
        FreezeResult(mixed, False, again.facts).lines()
    )
    with pytest.raises(UsageError, match="was frozen with --no-mix not given, got --no-mix"):
        freeze(mixed, model="plain", data="digits", n_images=20, mix=False, reporter=Collected())


def test_fewer_mixtures_are_frozen_of_a_network_of_much_work_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 50)
    macs = make_run(tmp_path / "all", n_images=20).config("freeze")["facts"]["macs"]
    monkeypatch.setattr(calibration, "MIXED_WORK", 25.5 * macs)
    reporter = Collected()
    few = freeze(tmp_path / "few", model="plain", data="digits", n_images=20, reporter=reporter)
    assert few.facts["n_mixtures"] == 5
    assert [line for line in reporter.messages if line.startswith("mixtures: 5 of 30, so that")]
    monkeypatch.setattr(calibration, "MIXED_WORK", 0.0)
    none = freeze(tmp_path / "none", model="plain", data="digits", n_images=20, reporter=Collected())
    with FrozenFile(none.run.frozen) as frozen:
        assert (frozen.n_images, frozen.n_recorded, "n_mixtures" in none.facts) == (20, 20, False)


def test_freezing_twice_does_nothing_and_otherwise_refuses(run):
    before = run.frozen.stat().st_mtime_ns
    result = freeze(run, model="plain", data="digits", n_images=400, reporter=Collected())
    assert result.done_before and run.frozen.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="was frozen with --images 400, got --images 300"):
        freeze(run, model="plain", data="digits", n_images=300, reporter=Collected())
    with pytest.raises(UsageError, match="was frozen with --model plain, got --model residual"):
        freeze(run, model="residual", data="digits", n_images=400, reporter=Collected())


def test_the_seed_decides_and_nothing_else(tmp_path):
    torch.manual_seed(1)
    one = make_run(tmp_path / "one", n_images=50)
    torch.manual_seed(2)
    two = make_run(tmp_path / "two", n_images=50)
    three = make_run(tmp_path / "three", n_images=50, seed=1)
    opened = [FrozenFile(r.frozen) for r in (one, two, three)]
    images = [f.images(0, 50) for f in opened]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    assert torch.equal(opened[0].responses("3"), opened[1].responses("3"))


@pytest.mark.fault("bad numbers", "NaN among the responses of a layer")
def test_numbers_that_are_none_are_found_with_their_layer(tmp_path, monkeypatch):
    def poisoned():
        module = plain()
        module.register_forward_pre_hook(lambda m, i: None)
        return module

    monkeypatch.setitem(NETWORKS, "poisoned", poisoned)
    real = record_responses.responses

    def responses(y, positions):
        rows = real(y, positions)
        return rows.index_fill(2, torch.tensor([0]), float("nan")) if y.dim() == 2 else rows

    monkeypatch.setattr(record_responses, "responses", responses)
    with pytest.raises(NumericalError, match="9: the frozen values must be finite"):
        make_run(tmp_path / "bad", "poisoned", n_images=20)
    assert not (tmp_path / "bad" / "frozen.h5").exists()


def test_the_original_is_checked_on_the_calibration_images(tmp_path):
    result = freeze(tmp_path / "a", model="zoo:vgg-digits", data="digits", n_images=120, reporter=Collected())
    source, network = sources.open_source("digits"), load_model("zoo:vgg-digits").module
    indices = draw_images(source, 120, 0)
    with torch.no_grad():
        right = network(source.train.images(indices)).argmax(1) == source.train.labels(indices)
    facts = result.run.config("freeze")["facts"]["sanity"]
    assert facts["accuracy"] == right.double().mean().item() > 0.9 and facts["n_images"] == 120
    assert any(line.startswith("accuracy of the original on the 120 calibration images") for line in result.lines())
    assert not any("warning" in line for line in result.lines())


def test_an_original_with_random_weights_is_warned_of(run):
    lines = freeze(run, model="plain", data="digits", n_images=400, reporter=Collected()).lines()
    assert lines[0] == f"{run.frozen}: already frozen, nothing to do" and len(lines) == 2
    facts = run.config("freeze")["facts"]["sanity"]
    assert facts["near_chance"] and facts["accuracy"] < 0.3


DATA = """
import torch
pixels = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
def masks(): return {"images": pixels, "labels": (pixels > 0.5).long()}
class Ages(torch.utils.data.Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return {"age": 20.5 + index, "image": pixels[index]}
"""


@pytest.mark.parametrize(("data", "words"), [("masks", "labels: int64 of shape (40, 1, 8, 8)"), ("Ages", "float 20.5")])
def test_labels_that_are_no_class_numbers_are_ignored_until_they_are_needed(tmp_path, monkeypatch, data, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(DATA)
    reporter = Collected()
    result = freeze("run", model="zoo:vgg-digits", data=f"own.py:{data}", n_images=40, reporter=reporter)
    assert f"labels are not class numbers ({words}); ignored" in reporter.messages
    assert "confidence" in result.facts["sanity"] and "accuracy" not in result.facts["sanity"]
    with pytest.raises(UsageError) as caught:
        LabelledTask(result.run, 0)
    assert str(caught.value) == (
        f"--labels train: the training images must be labelled, got own.py:{data}, whose labels are not class numbers: "
        f"{words}; give --labels none."
    )


def test_a_network_whose_size_is_open_takes_the_images_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(DATA)
    reporter = Collected()
    freeze(
        "run", model="torchvision:mobilenet_v2", weights="random", data="own.py:masks", n_images=10, reporter=reporter
    )
    with FrozenFile("run/frozen.h5") as frozen:
        assert frozen.input_shape == (3, 8, 8)
    assert "images: 8×8, 1 channel made 3, not normalised; in training the same" in reporter.messages


def test_images_that_are_left_out_are_said_and_a_decomposed_run_names_its_status(tmp_path):
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for i in range(8):
                shade = torch.full((8, 8), 20.0 * i + (label == "b")).byte().numpy()
                Image.fromarray(shade).save(tmp_path / "photos" / split / label / f"{i}.png")
    (tmp_path / "photos" / "train" / "a" / "zz.png").write_bytes(b"no picture")
    told, run = Collected(), RunDirectory(tmp_path / "run")
    options = {"model": "zoo:vgg-digits", "data": f"imagefolder:{tmp_path / 'photos'}", "skip_bad": True}
    freeze(run, **options, reporter=told)
    assert any(
        "1 image left out, unreadable or with NaN (--skip-bad): train/a/zz.png" in line for line in told.messages
    )
    run.update_config("decompose", {"asked": {}})
    assert freeze(run, **options, reporter=told).lines()[-1] == f"next: decomp status --run {run}"
