"""Images of a task: split, probe, checks of labels and shapes."""

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
    with pytest.raises(UsageError, match=r"numbered 0\.\.2 with images of each, got no training image of class 1"):
        task_images(source, 0)
    assert task_images(source, 0, 4).n_classes == 4


def test_a_source_that_is_open_is_taken_as_it_is(source):
    assert open_images(source, (1, 6, 6)) is source
    with pytest.raises(UsageError, match="takes images of 1x8x8, got 1x6x6; prepare the images in that form"):
        open_images(source, (1, 8, 8))
