"""Images that a training computes at a time: within the limit, whole batches where they fit, a refusal that helps."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from decomp.errors import UsageError
from decomp.execution import footprint
from decomp.graph.tracing import trace
from decomp.pipelines.console.parse import memory_bytes
from decomp.pipelines.measure import memory as machine
from decomp.pipelines.measure.memory import GIB, LIBRARIES, MIB
from decomp.pipelines.training import memory
from decomp.pipelines.training.memory import TrainingLimits, images_within, parts_of, training_limits
from tests.pipelines.digit_runs import Collected

CPU = torch.device("cpu")
IMAGE = torch.zeros(1, 1, 64, 64)


def net():
    return nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 4, 3), nn.Flatten()).eval()


EACH = footprint.training_bytes(net(), IMAGE)
FIXED = LIBRARIES + memory.COPIES * sum(p.nbytes for p in net().parameters())


def limits(n_bytes, batch_size=100, **options):
    return training_limits(net(), IMAGE, batch_size=batch_size, memory=n_bytes, device=CPU, **options)


def fixed(batch_size):
    return FIXED + memory.INPUT_COPIES * batch_size * IMAGE.nbytes


def test_as_many_images_at_a_time_as_fit_beside_weights_and_inputs():
    for n in (1, 7, 99):
        found = limits(fixed(100) + n * EACH + EACH // 2)
        assert found == TrainingLimits(n, n)
    assert limits(fixed(100) + 600 * EACH) == TrainingLimits(100, 500)


def test_an_original_and_images_in_memory_take_their_part():
    original = trace(net())
    foot = footprint.measure(original, IMAGE)
    each = EACH + foot.live + 2 * foot.largest
    n_bytes = fixed(100) + sum(p.nbytes for p in original.parameters()) + 9 * each + EACH // 2
    assert limits(n_bytes, original=original).trained == 9
    assert limits(n_bytes, original=original, held=2 * each).trained == 7


def test_too_little_is_refused_with_an_amount_that_is_enough():
    with pytest.raises(UsageError, match="--memory: train needs at least .* got 512MiB; give --memory ") as error:
        limits(GIB // 2)
    assert limits(memory_bytes(error.value.fix.split()[-1])).trained >= 1
    with pytest.raises(UsageError, match="finetune needs"):
        limits(GIB // 2, command="finetune")


def test_parts_have_enough_images_for_statistics_or_are_the_whole_batch():
    for batch_size, least in ((128, 16), (33, 17), (31, 31), (16, 16), (9, 9)):
        n_bytes = fixed(batch_size) + least * EACH
        found = limits(n_bytes, batch_size, statistics=True)
        n_parts = parts_of(batch_size, found)
        assert found.trained == least and batch_size // n_parts >= min(16, batch_size)
        with pytest.raises(UsageError):
            limits(n_bytes - 1, batch_size, statistics=True)


def test_a_resumed_training_continues_with_the_limits_it_began_with():
    before = TrainingLimits(3, 4).to_json()
    assert limits(fixed(100) + 50 * EACH, before=before) == TrainingLimits(3, 4)
    assert limits(None, before=before) == TrainingLimits(3, 4)
    with pytest.raises(UsageError, match="needs at least"):
        limits(fixed(100) + 3 * EACH, before=before)


def test_without_a_limit_it_is_half_of_the_machine_or_the_least_need(monkeypatch):
    monkeypatch.setattr(machine, "machine_memory", lambda: int(2 * (fixed(100) + 5.5 * EACH)))
    assert limits(None) == TrainingLimits(5, 5)
    monkeypatch.setattr(machine, "n_on_this_machine", lambda: 50)
    assert limits(None) == TrainingLimits(1, 1)


def test_on_a_gpu_it_is_no_more_than_a_share_of_what_is_free_there(monkeypatch):
    monkeypatch.setattr(machine, "gpu_memory", lambda device: int((fixed(100) + 5.5 * EACH) / machine.GPU_SHARE))
    assert limits(None) == limits(64 * GIB) == TrainingLimits(5, 5)


def test_the_process_with_the_least_memory_decides_for_all(monkeypatch):
    monkeypatch.setattr(memory, "gathered", lambda value: [value, 3])
    assert limits(64 * GIB) == TrainingLimits(3, 3)


def test_every_process_makes_as_many_parts_of_its_share(monkeypatch):
    monkeypatch.setattr(memory, "count", lambda: 2)
    assert parts_of(33, TrainingLimits(16)) == 2  # 17 images here, 16 there
    assert parts_of(32, TrainingLimits(16)) == 1 and parts_of(1000, None) == 1


def test_batches_that_fit_stay_whole_where_fewer_processes_go_on(monkeypatch):
    monkeypatch.setattr(memory, "count", lambda: 2)
    begun = limits(64 * GIB, 101)
    monkeypatch.setattr(memory, "count", lambda: 1)
    assert parts_of(101, limits(64 * GIB, 101, before=begun.to_json())) == 1


def test_parts_are_announced_with_the_statistics_that_normalisations_use():
    assert TrainingLimits(128).words(128, True) is None
    words = TrainingLimits(50).words(128, True)
    assert "each batch of 128 images is computed in 3 parts" in words and "the statistics of a part" in words
    assert "statistics" not in TrainingLimits(50).words(128, False)


def test_the_limits_of_an_interrupted_training_hold_and_parts_are_said_with_what_normalisations_use(
    tmp_path, monkeypatch
):
    checkpoint, reporter = tmp_path / "checkpoint", Collected()

    def announced(network, n_bytes):
        return memory.announced_limits(
            network, IMAGE, batch_size=100, memory=n_bytes, device=CPU, statistics=True, checkpoint=checkpoint,
            start_over="give --redo", reporter=reporter,
        )  # fmt: skip

    # Without a normalisation there are no statistics, and so no least size of a part.
    assert announced(net(), fixed(100) + 5 * EACH) == TrainingLimits(5, 5)
    assert announced(net(), 64 * GIB) == TrainingLimits(100, 500)
    checkpoint.touch()
    begun = {"identity": {"limits": TrainingLimits(20, 4).to_json()}}
    monkeypatch.setattr(memory.checkpoints, "read", lambda path, start_over: begun)
    assert announced(nn.Sequential(nn.BatchNorm2d(1), net()), 64 * GIB) == TrainingLimits(20, 4)
    (one, other) = reporter.messages
    assert "in 20 parts" in one and "statistics" not in one
    assert "in 5 parts" in other and other.endswith("batch normalisations use the statistics of a part")


def test_a_pass_without_gradients_gets_at_least_one_image():
    assert images_within(net(), IMAGE, 1, CPU) == 1
    assert images_within(net(), IMAGE, fixed(1) + 7 * EACH, CPU) == 7


NETWORK = """
from torch import nn

def build():
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]
    layers += [nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)]
    return nn.Sequential(*layers)
"""


def peak_of(run, *command):
    """Run a command in a process of its own; its peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "decomp.cli", *command, "--run", run.name, "--threads", "1", "--quiet"],
        cwd=run.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, last = (run / "log.jsonl").read_text().splitlines()
    return json.loads(last)["peak_memory_mib"] * MIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the system gives no peak memory of a process")
@pytest.mark.parametrize("labels", ["train", "none"])
def test_the_peak_memory_of_a_training_is_bounded(tmp_path, labels):
    """Batches of 128 images with values of 3 MiB each, within 150 MiB beside the libraries."""
    (tmp_path / "nets.py").write_text(NETWORK)
    random = np.random.default_rng(0)
    images, classes = random.normal(size=(200, 3, 80, 80)).astype(np.float32), random.integers(0, 4, 200)
    np.savez(tmp_path / "images.npz", x_train=images, y_train=classes)
    run = tmp_path / "run"
    peak_of(run, "freeze", "--model", "nets.py:build", "--data", "npz:images.npz", "--images", "50", "--points", "4")
    peak_of(run, "decompose", "--speedup", "2x", "--steps", "prune", "--no-refine")
    options = ["--epochs", "1", "--batch-size", "128", "--labels", labels, "--redo"]
    options += ["--images", "128"] if labels == "none" else []
    plenty, tight = (
        peak_of(run, "finetune", *options, "--memory", f"{n // MIB}MiB") for n in (16 * GIB, LIBRARIES + 150 * MIB)
    )
    print(f"\nMiB: {plenty / MIB:.0f} with plenty, {tight / MIB:.0f} of {(LIBRARIES + 150 * MIB) / MIB:.0f}")
    assert tight <= LIBRARIES + 150 * MIB and plenty > tight + 100 * MIB
