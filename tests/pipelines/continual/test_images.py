"""Images of a task: split, probe, checks of labels and shapes."""

import numpy as np
import pytest
import torch

from decomp.data.sources import open_source
from decomp.errors import UsageError
from decomp.pipelines.continual import images
from decomp.pipelines.continual.images import open_images, task_images
from tests.pipelines.task_runs import halves


@pytest.fixture
def source(tmp_path):
    return open_source(halves(tmp_path / "a.npz", 0))


def test_a_fifth_is_held_out_and_never_trained_on(source):
    found = task_images(source, 3)
    assert len(found.train) == 64 and len(found.held_out) == 16
    assert sorted(torch.cat([found.train, found.held_out]).tolist()) == list(range(80))
    batch, labels = next(iter(found.batches(torch.arange(5), 5, 0)))
    assert torch.equal(batch, source.train.images(found.train[:5]))
    assert torch.equal(labels, source.train.labels(found.train[:5]))


def test_the_probe_is_of_held_out_images_within_its_bytes(source, monkeypatch):
    found = task_images(source, 0)
    pictures, labels = found.probe()
    assert torch.equal(pictures, source.train.images(found.held_out)) and len(labels) == 16
    monkeypatch.setattr(images, "PROBE_BYTES", 3 * 4 * 36)
    assert len(found.probe()[0]) == 3
    monkeypatch.setattr(images, "PROBE_BYTES", 1)
    assert len(found.probe()[0]) == 1


def test_accuracies_are_of_their_own_images(source):
    class Bright(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, :3].mean((1, 2)), x[:, 0, 3:].mean((1, 2))], 1)

    found, device = task_images(source, 0), torch.device("cpu")
    assert found.validation(Bright(), device) == found.training(Bright(), device) == found.test(Bright(), device) == 1
    found.source.test = None
    assert found.test(Bright(), device) is None


def test_classes_without_images_are_taken_when_their_number_is_said(tmp_path):
    source = open_source(halves(tmp_path / "b.npz", 0, labels=lambda y: 2 * y))
    rule = r"numbered 0\.\.2 with images of each, got no training image of class 1; number the classes from 0 without a"
    with pytest.raises(UsageError, match=rf"{rule} gap, or say that there are 3 \(option classes\)\.$"):
        task_images(source, 0)
    assert task_images(source, 0, 4).n_classes == 4


def test_classes_from_1_are_to_be_numbered_from_0(tmp_path):
    source = open_source(halves(tmp_path / "b.npz", 0, labels=lambda y: y + 1))
    with pytest.raises(UsageError, match=r"got no training image of class 0; number the classes from 0\.$"):
        task_images(source, 0)


def numbered(folder, labels):
    np.savez(folder / "few.npz", x_train=np.zeros((len(labels), 6, 6), np.uint8), y_train=np.array(labels))
    return open_source(f"npz:{folder / 'few.npz'}")


def test_fewer_images_than_ten_are_refused(tmp_path):
    with pytest.raises(UsageError, match="needs at least 10 training images, .*, got 9; give more images"):
        task_images(numbered(tmp_path, [0, 1, 0] * 3), 0)
    assert len(task_images(numbered(tmp_path, [0, 1] * 5), 0).held_out) == 2


def test_few_held_out_images_and_classes_that_are_not_trained_on_are_told(tmp_path):
    assert task_images(numbered(tmp_path, [0, 1] * 50), 0).warnings() == []
    (line,) = task_images(numbered(tmp_path, [0, 1] * 20), 0).warnings()
    assert line == "only 8 images held out of 40 to decide about the goal: each is 12 points of accuracy"
    held_out = task_images(numbered(tmp_path, [0, 1] * 50), 0).held_out.tolist()
    rare = [2 if place == held_out[0] else place % 2 for place in range(100)]
    (line,) = task_images(numbered(tmp_path, rare), 0).warnings()
    assert line == "all images of class 2 are held out, none is trained on; give more of them"


def test_a_source_that_is_open_is_taken_as_it_is(source):
    assert open_images(source, (1, 6, 6)) is source
    with pytest.raises(UsageError, match="takes images of 1x8x8, got 1x6x6; prepare the images in that form"):
        open_images(source, (1, 8, 8))
