"""Stage ``finetune`` with a limit of memory or of time."""

import shutil

import pytest
import torch

from decomp.data.formats import network_file
from decomp.errors import UsageError
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages import finetune as stage
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.stages.status import status
from decomp.pipelines.training import memory, outputs
from decomp.pipelines.training.budget import EpochTime
from tests.pipelines.small_runs import make_run, quiet


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("memory") / "run", n_images=60)


@pytest.fixture
def run(prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def tune(run, **options):
    return finetune(run, **{"epochs": 2, "batch_size": 64, "reporter": quiet(), **options})


def weights(run):
    return network_file.load(run.finetune_dir / "last").state_dict()


def recorded(lines):
    reporter = quiet()
    reporter.step = lambda text, **fields: lines.append(text)
    return reporter


def test_a_limit_cuts_batches_into_parts_with_the_same_result(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "parts")
    parts = RunDirectory(tmp_path / "parts")
    tune(run, labels="none", n_images=200)
    monkeypatch.setattr(memory, "gathered", lambda n: [min(n, 9)])
    lines = []
    tune(parts, labels="none", n_images=200, memory="4GiB", reporter=recorded(lines))
    assert any("each batch of 64 images is computed in 8 parts" in line for line in lines)
    whole, summed = (weights(path) for path in (run, parts))
    for name, value in whole.items():
        assert (value - summed[name]).norm() <= 1e-4 * value.norm(), name


def test_a_killed_call_goes_on_with_the_parts_it_began_with(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "other")
    other = RunDirectory(tmp_path / "other")
    monkeypatch.setattr(memory, "gathered", lambda n: [min(n, 9)])
    tune(run, labels="none", n_images=200)
    monkeypatch.setattr(outputs, "write_metrics", lambda path, history: 1 / (2 - len(history)))
    with pytest.raises(ZeroDivisionError):
        tune(other, labels="none", n_images=200)
    monkeypatch.undo()
    tune(other, labels="none", n_images=200, memory="4GiB")
    whole = weights(run)
    assert all(torch.equal(value, whole[name]) for name, value in weights(other).items())


def test_too_little_memory_is_refused_before_anything_is_written(run):
    with pytest.raises(UsageError, match="--memory: finetune needs at least 0.9GiB .* got 64MiB; give --memory 0.9GiB"):
        tune(run, memory="64MiB")
    assert not run.finetune_dir.exists() and run.config("finetune") is None
    assert tune(run, memory="0.9GiB", epochs=1).facts["epochs"] == 1


def test_a_time_decides_the_epochs_and_a_resumed_run_keeps_them(run, monkeypatch):
    monkeypatch.setattr(stage, "epoch_time", lambda *arguments, **options: EpochTime(6.0, 3, 0.0))
    options = {"epochs": None, "minutes": 0.5, "labels": "none", "n_images": 200}
    result = tune(run, **options)
    assert result.facts["epochs"] == 4  # of nine tenths of 30 seconds
    assert run.config("finetune")["asked"]["epochs"] is None
    assert next(s for s in status(run).stages if s.name == "finetune").detail.startswith("4 epochs without labels")
    whole = weights(run)
    writer = outputs.NetworkWriter.__call__
    monkeypatch.setattr(
        outputs.NetworkWriter, "__call__", lambda self, state: writer(self, state) if state.epoch < 2 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        tune(run, **options, redo=True)
    monkeypatch.setattr(outputs.NetworkWriter, "__call__", writer)
    monkeypatch.setattr(
        stage, "epoch_time", lambda *arguments, **options: EpochTime(1.0, 3, 0.0)
    )  # now the machine is quick
    assert tune(run, **options, redo=True).facts == result.facts
    assert all(torch.equal(value, whole[name]) for name, value in weights(run).items())
    assert tune(run, **options).done_before
