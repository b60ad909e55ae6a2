"""Task without labels: its images never meet those that it is validated on, and are mixed with each other."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from decomp.data.sources import open_source
from decomp.errors import FileError, UsageError
from decomp.execution.output_change import kl_divergence
from decomp.graph.network_graph import NetworkGraph
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.pruning.images import batched
from decomp.pipelines.run import images as run_images
from decomp.pipelines.run.calibration import draw_images, fitted_images
from decomp.pipelines.run.loading import load_network, open_frozen, run_outputs
from decomp.pipelines.stages.freeze import freeze
from decomp.pipelines.training import unlabelled
from decomp.pipelines.training.unlabelled import UnlabelledTask, mixed
from tests.pipelines.small_runs import SHAPE, make_run, quiet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("unlabelled") / "run", n_images=60)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run whose images were drawn by freeze."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "one_convolution.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    return freeze(
        folder / "run", model=f"{folder}/one_convolution.py:build", data="digits", n_images=60, reporter=quiet()
    ).run


def keys(images):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


def unmixed(task, monkeypatch):
    """All images that an epoch of the task trains on, before they are mixed and without augmentation."""
    monkeypatch.setattr(unlabelled, "mixed", lambda images, seed: images)
    read = task.pool.read
    return torch.cat(list(read(task.train.unique(), 500, None)))


@pytest.mark.parametrize("which", ["run", "drawn"])
@pytest.mark.parametrize("options", [{}, {"n_images": 50}, {"data": "digits"}])
def test_no_image_of_the_validation_is_trained_on_or_was_fitted(which, options, monkeypatch, request):
    run = request.getfixturevalue(which)
    task = UnlabelledTask(run, 3, **options)
    trained_on, judged = set(keys(unmixed(task, monkeypatch))), []
    monkeypatch.setattr(unlabelled, "outputs_of", lambda network, images, *rest: judged.append(images) or images)
    monkeypatch.setattr(type(task.outputs), "change", lambda self, wanted, got: torch.zeros(len(got)))
    task.validate(None, load_network(run, run.original_dir), CPU)
    judged = set(keys(torch.cat(judged)))
    frozen, _ = open_frozen(run)
    with frozen:
        n_fit = ProblemGatherer(frozen, NetworkGraph(load_network(run, run.original_dir), SHAPE)).n_fit  # of decompose
        pruning = batched(frozen.images, fitted_images(60), 60, 20, CPU, run_outputs(run), 0)  # of prune
        fitted = keys(frozen.images(0, n_fit))
        assert keys(torch.cat(list(pruning.batches()))) == fitted
        assert judged >= set(keys(frozen.images(n_fit)))
    # The frozen images of `run` were not drawn by freeze, so that which others were frozen is not known.
    n_unseen = 134 if which == "drawn" and "data" not in options else 0
    assert len(judged) == task.n_validation == 6 + n_unseen
    assert judged.isdisjoint(fitted) and judged.isdisjoint(trained_on)
    assert len(trained_on) == task.n_train == (50 if "n_images" in options else 1347 - 6 - n_unseen)


def test_the_fitted_images_come_first_then_others_of_the_source(drawn, monkeypatch):
    order = draw_images(open_source("digits"), 1347, 0)
    assert torch.equal(UnlabelledTask(drawn, 0, n_images=54).train[:54], order[:54])
    task = UnlabelledTask(drawn, 0)
    # One in ten of the 1,341 images that are not held out by freeze is held out too.
    assert torch.equal(task.train, torch.cat([order[:54], order[60:1213]])) and task.notes == ()
    assert torch.equal(task.pool.unseen, order[1213:])
    assert task.description == "training images of digits without labels, augmented and mixed"


def test_enough_held_out_frozen_images_judge_alone(drawn, monkeypatch):
    monkeypatch.setattr(unlabelled, "VALIDATION_IMAGES", 10)
    assert UnlabelledTask(drawn, 0).n_validation == 10  # six frozen ones and four others
    monkeypatch.setattr(unlabelled, "VALIDATION_IMAGES", 5)
    task = UnlabelledTask(drawn, 0)
    assert task.n_validation == 6 and task.n_train == 1341


def test_frozen_and_other_held_out_images_count_alike(drawn):
    task, split = UnlabelledTask(drawn, 0), open_source("digits").train
    original = load_network(drawn, drawn.original_dir)
    network = copy.deepcopy(original)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)
        order = draw_images(open_source("digits"), 1347, 0)
        images = split.images(torch.cat([order[54:60], order[1213:]]))
        expected = float(kl_divergence(original(images), network(images)).mean())
    assert expected > 0.01
    assert task.validate(network, original, CPU)["validation_divergence"] == pytest.approx(expected, rel=1e-4)


def test_an_epoch_goes_several_times_through_few_images(drawn):
    task = UnlabelledTask(drawn, 0, n_images=54)
    assert task.n_train == 54 and len(task.train) == 1026  # 19 times
    assert task.train.unique(return_counts=True)[1].tolist() == [19] * 54


@pytest.mark.parametrize("memory", [unlabelled.MEMORY_BYTES, 0])
def test_the_frozen_images_alone_are_used_where_the_source_is_gone(run, monkeypatch, memory):
    def gone(*arguments, **options):
        raise FileError("digits", "no such folder")

    monkeypatch.setattr(run_images, "open_source", gone)
    task = UnlabelledTask(run, 0, in_memory=memory)
    assert (task.images is None) == (memory == 0) and task.n_train == 54
    assert task.held == (60 * 64 * 4 if memory else 0)
    expected = "training on the frozen images alone, without augmentation, since the others cannot be read: digits:"
    assert task.notes[0].startswith(expected) and task.description == "frozen images without labels, mixed"
    batches = [images for images, labels in task.batches(torch.tensor([4, 1, 9]), 2, augment_seed=1)]
    images = open_source("digits").train.images([4, 1, 9])
    torch.testing.assert_close(batches[1], images[2:], rtol=0, atol=1e-6)  # alone in its batch: mixed with itself
    assert not torch.equal(batches[0], images[:2])


def test_images_in_memory_are_told_to_be_all_there_is(run, monkeypatch):
    record = run.config("freeze")
    monkeypatch.setitem(record["asked"], "data", "images in memory")
    monkeypatch.setattr(type(run), "config", lambda self, stage: record)
    task = UnlabelledTask(run, 0)
    assert task.n_train == 54 and "images in memory cannot be opened again" in task.notes[0]


def test_other_images_are_prepared_alike_and_said(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 17, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", x_train=pixels)
    task = UnlabelledTask(run, 0, data=f"npz:{tmp_path}/more.npz")
    assert task.n_train == 20 and task.notes[0].startswith(f"images of npz:{tmp_path}/more.npz: 8×8")


def test_of_other_images_no_more_are_read_for_the_comparison_than_are_asked_for(run, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 17, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", x_train=pixels)
    whole = UnlabelledTask(run, 3, data=f"npz:{tmp_path}/more.npz")
    compared, digest = [], unlabelled._digest
    monkeypatch.setattr(unlabelled, "_digest", lambda image: compared.append(0) or digest(image))
    monkeypatch.setattr(unlabelled, "IMAGES_AT_A_TIME", 5)
    task = UnlabelledTask(run, 3, data=f"npz:{tmp_path}/more.npz", n_images=12)
    assert len(compared) == 6 + 15 and task.n_train == 12  # six held-out ones, and three batches
    assert torch.equal(task.train[:12], whole.train[:12])
    assert UnlabelledTask(run, 3, data=f"npz:{tmp_path}/more.npz", n_images=3).n_train == 3


def test_a_source_of_held_out_images_alone_is_refused(run, tmp_path):
    held_out = open_source("digits").train.images(torch.arange(54, 60))
    np.savez(tmp_path / "same.npz", x_train=held_out.numpy())
    with pytest.raises(UsageError, match="--data: must have images beside the held-out ones"):
        UnlabelledTask(run, 0, data=f"npz:{tmp_path}/same.npz")


@pytest.fixture
def enough(monkeypatch):
    monkeypatch.setattr(unlabelled, "ENOUGH_IMAGES", 50)
    monkeypatch.setattr(unlabelled, "TARGETS_AT_A_TIME", 7)


def test_kept_answers_are_those_of_the_original_for_each_image_of_a_batch(run, enough):
    task, original = UnlabelledTask(run, 0, n_images=50), load_network(run, run.original_dir)
    order = torch.tensor([999, 3, 20, 7, 51, 0])
    assert task.keeps_targets and [rows for _, rows in task.batches(order, 2, 0)] == [None] * 3
    task.keep_targets(original, CPU, quiet())
    for places, n in ((None, 2), (slice(1, 2), 1)):
        for images, rows in task.batches(order, 2, 0, places):
            with torch.no_grad():
                torch.testing.assert_close(rows, original(images), rtol=1e-5, atol=1e-5)
            assert rows.shape == (n, 10) and rows.dtype == torch.float32


def test_answers_are_kept_where_they_fit_and_no_image_is_changed(run, enough, monkeypatch):
    images, answers = 60 * 64 * 4, 1000 * 10 * 4
    fits = UnlabelledTask(run, 0, n_images=50, in_memory=images + answers)
    assert fits.keeps_targets and fits.held == images + answers
    short = UnlabelledTask(run, 0, n_images=50, in_memory=images + answers - 1)
    assert not short.keeps_targets and short.held == images
    monkeypatch.setattr(unlabelled, "ENOUGH_IMAGES", 51)
    changed = UnlabelledTask(run, 0, n_images=50)
    assert not changed.keeps_targets and changed.held == images


def test_the_divergence_is_that_of_the_held_out_images(run):
    task, split = UnlabelledTask(run, 0), open_source("digits").train
    original, network = (load_network(run, folder) for folder in (run.original_dir, run.model_dir))
    result = task.validate(network, original, CPU)
    with torch.no_grad():
        images = split.images(torch.arange(54, 60))
        target, found = original(images).double().log_softmax(1), network(images).double().log_softmax(1)
    expected = (target.exp() * (target - found)).sum(1).mean().item()
    assert result["validation_divergence"] == pytest.approx(expected, rel=1e-4)
    assert result["score"] == -result["validation_divergence"]
    assert task.validate(original, original, CPU)["validation_divergence"] == pytest.approx(0, abs=1e-6)


def test_the_change_of_other_outputs_is_over_their_spread(tmp_path):
    run = make_run(tmp_path / "run", n_images=40)
    values = [{"name": "output", "kind": "values", "shape": [10], "reason": "as asked", "variance": 2.0}]
    run.update_config("freeze", {**run.config("freeze"), "outputs": values})
    task = UnlabelledTask(run, 0)
    original, network = (load_network(run, folder) for folder in (run.original_dir, run.model_dir))
    result = task.validate(network, original, CPU)
    with torch.no_grad():
        images = open_source("digits").train.images(torch.arange(36, 40))
        expected = (original(images) - network(images)).square().mean().item() / 2
    assert task.metric == "validation_change" and result["validation_change"] == pytest.approx(expected, rel=1e-5)
    assert result["score"] == -result["validation_change"]


def test_an_image_is_mixed_with_at_most_half_of_another():
    images = torch.eye(64).reshape(64, 1, 8, 8)
    found = mixed(images, 5).reshape(64, 64)
    own, others = found.diagonal(), found - found.diagonal().diag()
    assert 0.5 <= own.min() and 0.5 < own.mean() < 0.9
    torch.testing.assert_close(own + others.sum(1), torch.ones(64))  # the shares add up to one
    assert ((others > 0).sum(1) <= 1).all() and (others > 0).any(1).sum() > 60
    assert torch.equal(mixed(images, 5), mixed(images, 5)) and not torch.equal(mixed(images, 5), mixed(images, 6))


def test_images_are_augmented_as_their_source_does_it(drawn, monkeypatch):
    monkeypatch.setattr(unlabelled, "mixed", lambda images, seed: images)
    task, split = UnlabelledTask(drawn, 0), open_source("digits").train
    order = torch.tensor([5, 0, 7])
    got = torch.cat([images for images, _ in task.batches(order, 2, augment_seed=11)])
    wanted = torch.cat([images for images, _ in split.batches(task.train[order], 2, augment_seed=11)])
    assert torch.equal(got, wanted) and not torch.equal(got, split.images(task.train[order]))
    assert got.shape[1:] == SHAPE


def test_an_image_that_an_epoch_repeats_is_augmented_otherwise_each_time(drawn, monkeypatch):
    monkeypatch.setattr(unlabelled, "mixed", lambda images, seed: images)
    task, split = UnlabelledTask(drawn, 0, n_images=20), open_source("digits").train
    times = torch.arange(50) * 20 + 3  # of one image
    assert task.train[times].unique().numel() == 1
    (images,) = (images for images, _ in task.batches(times, 50, augment_seed=11))
    first = split.batches(task.train[:4], 4, augment_seed=11)
    assert torch.equal(images[0], next(first)[0][3])  # as where nothing is repeated
    assert len(set(keys(images))) > 5  # of nine shifts
    (again,) = (images for images, _ in task.batches(times.flip(0), 50, augment_seed=11))
    assert torch.equal(again.flip(0), images)


@pytest.mark.parametrize("enough", [50, 51])
def test_many_images_are_trained_on_as_they_are_and_few_are_changed(run, monkeypatch, enough):
    monkeypatch.setattr(unlabelled, "ENOUGH_IMAGES", enough)
    task = UnlabelledTask(run, 0, n_images=50)
    plain = list(task.pool.read(task.train[:20], 10, None))
    got = [images for images, _ in task.batches(torch.arange(20), 10, 3)]
    assert [torch.equal(*pair) for pair in zip(plain, got)] == [enough == 50] * 2
    assert ("augmented and mixed" in task.description) == (enough == 51)
    part = [images for images, _ in task.batches(torch.arange(20), 10, 3, slice(4, 10))]
    assert all(torch.allclose(of_one, images[4:]) for of_one, images in zip(part, got))


@pytest.fixture
def photographs(tmp_path):
    """Twelve image files of the size that the network takes, of even grey."""
    (tmp_path / "photographs" / "train").mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number,) * 3).save(tmp_path / "photographs" / "train" / f"{number}.png")
    return f"imagefolder:{tmp_path}/photographs"


def pool_values(task):
    """The values of the twelve images, from dark to light."""
    images = torch.cat([images for images, _ in zip(task.pool.read(task.train, 12, None), range(1))])
    assert all(image.max() - image.min() < 1e-6 for image in images)
    return images[:, 0, 0, 0].sort().values


def test_other_images_are_normalised_as_the_runs_own_and_that_is_said(drawn, photographs, tmp_path):
    grey = torch.arange(12) * 20 / 255
    task = UnlabelledTask(drawn, 0, data=photographs)
    torch.testing.assert_close(pool_values(task), (grey - 0.3052) / 0.376, atol=1e-5, rtol=1e-5)
    assert "mean 0.3052, std 0.376; " in task.notes[0] and "mean and std of the run's own images" in task.notes[0]
    assert task.warnings == ()
    pixels = np.arange(12, dtype=np.uint8).repeat(64).reshape(12, 8, 8) * 20
    np.savez(tmp_path / "more.npz", x_train=pixels, mean=0.5, std=0.5)
    task = UnlabelledTask(drawn, 0, data=f"npz:{tmp_path}/more.npz")
    torch.testing.assert_close(pool_values(task), (grey - 0.3052) / 0.376, atol=1e-5, rtol=1e-5)
    assert task.notes[0].endswith("(mean and std of the run's own images)") and task.warnings == ()


def frozen_with(drawn, monkeypatch, normalisation):
    record = drawn.config("freeze")
    monkeypatch.setitem(record["source"], "normalisation", normalisation)
    monkeypatch.setattr(type(drawn), "config", lambda self, stage: record)


def test_other_images_stay_from_0_to_1_where_the_runs_own_are(drawn, photographs, monkeypatch):
    frozen_with(drawn, monkeypatch, {"scale": 255.0, "mean": [], "std": []})
    task = UnlabelledTask(drawn, 0, data=photographs)
    torch.testing.assert_close(pool_values(task), torch.arange(12) * 20 / 255, atol=1e-6, rtol=1e-5)


def test_a_normalisation_that_is_assumed_is_a_warning(drawn, photographs, monkeypatch, tmp_path):
    frozen_with(drawn, monkeypatch, {"scale": 1.0, "mean": [], "std": []})
    task = UnlabelledTask(drawn, 0, data=photographs)
    assert "as usual for ImageNet" in task.notes[0] or "images' own size" in task.notes[0]
    (warning,) = task.warnings
    assert warning.startswith("this run does not record how its own images were normalised")
    # As it advises.
    ready = np.linspace(-1, 1, 12, dtype=np.float32).repeat(64).reshape(12, 8, 8)
    np.savez(tmp_path / "ready.npz", x_train=ready)
    task = UnlabelledTask(drawn, 0, data=f"npz:{tmp_path}/ready.npz")
    assert task.warnings == ()
    torch.testing.assert_close(pool_values(task), torch.linspace(-1, 1, 12))


def test_fewer_other_images_than_freeze_takes_are_refused(drawn, photographs):
    folder = Path(photographs.partition(":")[2]) / "train"
    for number in range(2):
        (folder / f"{number}.png").unlink()
    assert UnlabelledTask(drawn, 0, data=photographs).n_train == 10
    (folder / "2.png").unlink()
    with pytest.raises(UsageError, match=r"at least 10 training images are needed, got 9; give more"):
        UnlabelledTask(drawn, 0, data=photographs)
