"""The network as it is trained, with normalisations whose statistics memory allows to measure."""

import shutil

import pytest
import torch

from decomp.data.formats import network_file
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.networks import compressed
from decomp.pipelines.training import tuned_network
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.tasks import LabelledTask
from decomp.pipelines.training.tuned_network import first_image, trained_network
from decomp.pipelines.training.unlabelled import UnlabelledTask
from tests.pipelines.small_runs import SHAPE, make_run, quiet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("tuned") / "plain", n_images=60)


@pytest.fixture(scope="module")
def run(plain, tmp_path_factory):
    """A run whose original looks as if normalisations had been folded into both of its convolutions."""
    path = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(plain.path, path)
    run = RunDirectory(path)
    original = network_file.load(run.original_dir)
    network_file.save(original, run.original_dir, edited=["0", "1", "3"], input_shape=SHAPE, meta={"model": "test"})
    return run


def made(run, task, batch_size=64):
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=batch_size)
    return trained_network(run, compressed(run), task, recipe, CPU, None, quiet())


def test_statistics_are_measured_on_as_many_images_at_a_time_as_memory_allows(run, monkeypatch):
    task, sizes = LabelledTask(run, 0), []
    whole, paths, own = made(run, task)
    assert paths and own == {}
    monkeypatch.setattr(tuned_network, "images_within", lambda *arguments: 5)
    batches = task.batches
    monkeypatch.setattr(task, "batches", lambda order, size, seed: sizes.append(size) or batches(order, size, seed))
    parts, again, _ = made(run, task)
    assert again == paths and set(sizes) <= {1, 5} and 5 in sizes
    for name, value in whole.state_dict().items():
        if "running" in name:
            other = parts.state_dict()[name]
            assert (value - other).norm() < 0.1 * value.norm(), name


def test_without_labels_the_network_is_as_it_will_be_used(plain):
    network, paths, own = made(plain, UnlabelledTask(plain, 0))
    assert paths == [] and own == {} and not any("norm" in name for name, _ in network.named_modules())


def test_the_first_image_is_one_of_the_network_s_shape(plain):
    for task in (LabelledTask(plain, 0), UnlabelledTask(plain, 0)):
        assert first_image(task).shape == (1, *SHAPE)
