"""Task with labels: its images, and its validation against naive sums."""

import pytest
import torch
from torch import nn

from decomp.data.sources import open_source
from decomp.errors import UsageError
from decomp.pipelines.run import images as run_images
from decomp.pipelines.run.loading import load_network
from decomp.pipelines.training.hold_out import hold_out
from decomp.pipelines.training.tasks import LabelledTask
from tests.pipelines.small_runs import Watched, make_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("tasks") / "run")


def test_labelled_images_are_those_of_the_source_with_their_labels(run):
    task, split = LabelledTask(run, 3), open_source("digits").train
    train, held_out = hold_out(len(split), 3)
    assert torch.equal(task.train, train) and torch.equal(task.held_out, held_out)
    (images, labels), (more, _) = task.batches(torch.tensor([5, 0, 7]), 2, augment_seed=1)
    assert (len(images), len(more)) == (2, 1)
    assert torch.equal(labels, split.labels(train[[5, 0]]))
    (unaugmented, _), *_ = split.batches(train[[5, 0]], 2, augment_seed=1)
    assert torch.equal(images, unaugmented)  # the source's own policy, with this seed


def test_accuracy_and_loss_are_those_of_a_naive_count(run):
    task, split, network = LabelledTask(run, 0), open_source("digits").train, load_network(run, run.model_dir)
    result = task.validate(network, None, CPU)
    with torch.no_grad():
        logits, labels = network(split.images(task.held_out)), split.labels(task.held_out)
    right = sum(int(line.argmax()) == int(label) for line, label in zip(logits, labels))
    assert result["validation_accuracy"] == right / len(labels)
    losses = [-line.log_softmax(0)[label].item() for line, label in zip(logits, labels)]
    assert result["validation_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


class Fixed(nn.Module):
    """Logits that do not depend on the images: class 3, with a given certainty."""

    def __init__(self, certainty):
        super().__init__()
        self.certainty = certainty

    def forward(self, images):
        logits = torch.zeros(len(images), 10)
        logits[:, 3] = self.certainty
        return logits


def test_among_equal_accuracies_the_lower_loss_scores_more_but_less_than_one_image(run):
    task = LabelledTask(run, 0)
    sure, unsure = (task.validate(Fixed(certainty), None, CPU) for certainty in (1e5, 0.1))
    assert sure["validation_accuracy"] == unsure["validation_accuracy"] and sure["validation_loss"] > 1e4
    assert 0 < unsure["score"] - sure["score"] < 1 / len(task.held_out)


def test_a_source_without_labels_is_refused_with_the_way_out(run, monkeypatch):
    def unlabelled(*arguments, **options):
        source = open_source(*arguments, **options)
        source.train = Watched(source.train, labels=False)
        return source

    monkeypatch.setattr(run_images, "open_source", unlabelled)
    with pytest.raises(UsageError, match="must be labelled, got digits; give --labels none"):
        LabelledTask(run, 0)


def test_outputs_that_are_not_class_scores_alone_are_refused_for_labels(tmp_path):
    run = make_run(tmp_path / "run", n_images=40)
    values = [{"name": "output", "kind": "values", "shape": [10], "reason": "as asked", "variance": 2.0}]
    run.update_config("freeze", {**run.config("freeze"), "outputs": values})
    with pytest.raises(UsageError, match="--labels train: .*class scores, got output: 10 values .as asked.; give --la"):
        LabelledTask(run, 0)
