"""Files of a fine-tuning: which weights are in them, when they are written, and the table of epochs."""

import csv

import pytest
import torch
from torch import nn

from decomp.data.formats import network_file
from decomp.pipelines.training import outputs
from decomp.pipelines.training.loop import Training, copy_state
from decomp.pipelines.training.outputs import NetworkWriter, write_metrics
from decomp.pipelines.training.recipe import Recipe
from decomp.surgery import batchnorm
from tests.pipelines.small_runs import SHAPE, make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", n_images=20)


def training_of(network, epoch, best_epoch):
    """A training whose weights of each epoch differ by one number."""
    with torch.no_grad():
        network.get_submodule("7").bias.fill_(epoch)
    best = {name: value.clone() for name, value in copy_state(network).items()}
    best["7.bias"] = torch.full((10,), float(best_epoch))
    history = [{"epoch": number, "loss": None, "score": 1.0} for number in range(epoch + 1)]
    return Training(network, {}, Recipe(3, 0.1), epoch, history, best_epoch, 1.0, best)


def biases(run):
    """The number in the last and in the best network."""
    folders = [run.finetune_dir / name for name in ("last", "best")]
    return tuple(network_file.load(folder).state_dict()["7.bias"][0].item() for folder in folders)


def test_last_and_best_have_the_weights_of_their_epochs(run):
    network = network_file.load(run.model_dir)
    writer = NetworkWriter(run.finetune_dir, "f" * 64, network, run.model_dir)
    writer(training_of(network, 1, 1))
    assert biases(run) == (1, 1)
    writer(training_of(network, 2, 1))
    assert biases(run) == (2, 1)
    meta = network_file.read_structure(run.finetune_dir / "best")["meta"]
    assert meta["finetune"] == {"epoch": 1, "network": "f" * 64} and meta["plan"] == "test"


def test_the_best_network_is_written_only_when_it_is_another(run, monkeypatch):
    written, save = [], network_file.save

    def watched(network, path, **options):
        written.append(path.name)
        save(network, path, **options)

    monkeypatch.setattr(network_file, "save", watched)
    network = network_file.load(run.model_dir)
    writer = NetworkWriter(run.finetune_dir, "f" * 64, network, run.model_dir)
    for epoch, best in ((1, 0), (2, 2), (3, 2)):
        writer(training_of(network, epoch, best))
    assert written == ["last", "best", "last", "best", "last"]


def test_batch_normalisations_are_folded_in_the_files_but_not_in_training(run):
    network = network_file.load(run.model_dir)
    images = torch.randn(40, *SHAPE)
    batchnorm.insert_behind(network, ["0", "3"], [images])
    with torch.no_grad():
        network.get_submodule("0").norm.weight.mul_(1.5)
    writer = NetworkWriter(run.finetune_dir, "f" * 64, network, run.model_dir, batchnorm_paths=["0", "3"])
    expected = network.eval()(images)
    writer(Training(network, {}, Recipe(1, 0.1), 1, [{"epoch": 1}], 1, 1.0, copy_state(network)))
    written = network_file.load(run.finetune_dir / "last")
    assert not any(isinstance(part, nn.BatchNorm2d) for part in written.modules())
    assert isinstance(network.get_submodule("0").norm, nn.BatchNorm2d)
    torch.testing.assert_close(written(images), expected, rtol=1e-4, atol=1e-4)


def test_metrics_have_one_line_per_epoch_and_leave_missing_values_empty(tmp_path):
    history = [
        {"epoch": 0, "loss": None, "score": 0.5, "validation_accuracy": 0.5},
        {"epoch": 1, "loss": 0.25, "score": 0.75, "validation_accuracy": 0.75, "learning_rate_scales": 0.1},
    ]
    write_metrics(tmp_path / "metrics.csv", history)
    with open(tmp_path / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {"epoch": "0", "loss": "", "validation_accuracy": "0.5", "learning_rate_scales": ""}
    assert lines[1] == {"epoch": "1", "loss": "0.25", "validation_accuracy": "0.75", "learning_rate_scales": "0.1"}


def test_all_files_lie_in_the_folder_of_the_stage(run):
    files = {
        "metrics.csv": outputs.metrics_file,
        "events": outputs.events_dir,
        "checkpoint.pt": outputs.checkpoint_file,
    }
    for name, path in files.items():
        assert path(run.finetune_dir) == run.finetune_dir / name
