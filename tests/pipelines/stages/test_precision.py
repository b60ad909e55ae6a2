"""Stages ``finetune`` and ``train`` in bfloat16, and with an original that answers once for every image."""

import shutil

import pytest
import torch

from decomp.data.formats import network_file
from decomp.errors import FileError
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages import finetune as stage
from decomp.pipelines.stages import train as train_stage
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.stages.train import train
from decomp.pipelines.training import first_steps, outputs, unlabelled
from decomp.pipelines.training.budget import EpochTime
from tests.pipelines.small_runs import make_run, quiet


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("precision") / "run", n_images=60)


@pytest.fixture
def run(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled, "ENOUGH_IMAGES", 1)  # so that they are taken as they are
    shutil.copytree(prepared.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def copy_of(run, name):
    shutil.copytree(run.path, run.path.parent / name)
    return RunDirectory(run.path.parent / name)


def tune(run, **options):
    return finetune(run, **{"epochs": 3, "labels": "none", "n_images": 200, "reporter": quiet(), **options})


def weights(run, name="last"):
    return network_file.load(run.finetune_dir / name).state_dict()


def killed_after_two(run, monkeypatch, **options):
    writer = outputs.NetworkWriter.__call__
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(
            outputs.NetworkWriter, "__call__", lambda self, state: writer(self, state) if state.epoch < 2 else 1 / 0
        )
        tune(run, **options)


def test_answers_that_are_kept_train_as_those_of_each_step(run, monkeypatch):
    once = copy_of(run, "once")
    asked = tune(once)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "MEMORY_BYTES", 60 * 64 * 4)
        each = tune(run)
    assert (asked.facts["targets_kept"], each.facts["targets_kept"]) == (True, False)
    assert asked.facts["after"] < 0.8 * asked.facts["before"]
    for name, value in weights(run).items():
        assert (value - weights(once)[name]).norm() <= 1e-4 * value.norm(), name


def test_bfloat16_trains_about_as_well_and_is_recorded(run):
    half = copy_of(run, "half")
    whole, result = tune(run), tune(half, precision="bfloat16")
    assert (whole.facts["precision"], result.facts["precision"]) == ("float32", "bfloat16")
    assert half.config("finetune")["asked"]["precision"] == "bfloat16"
    assert result.facts["before"] == whole.facts["before"]  # judged in float32
    assert result.facts["after"] == pytest.approx(whole.facts["after"], rel=0.1)
    one, other = weights(run), weights(half)
    assert {value.dtype for value in other.values()} == {torch.float32}
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"epochs": None, "minutes": 1}])
def test_killed_and_resumed_ends_as_if_it_had_not_been(run, monkeypatch, options):
    def faster(name):
        return lambda *arguments, precision, **rest: 1e-9 if precision == name else 1e-6

    monkeypatch.setattr(stage, "epoch_time", lambda *arguments, **rest: EpochTime(15.0, 3, 0.0))
    monkeypatch.setattr(first_steps, "step_time", faster("bfloat16"))
    whole = copy_of(run, "whole")
    expected = tune(whole, **options)
    killed_after_two(run, monkeypatch, **options)
    monkeypatch.setattr(first_steps, "step_time", faster("float32"))  # another machine
    assert tune(run, **options).facts == expected.facts
    assert expected.facts["precision"] == "bfloat16" and expected.facts["targets_kept"]
    for name in ("last", "best"):
        assert all(torch.equal(value, weights(whole, name)[key]) for key, value in weights(run, name).items())


def test_another_precision_does_not_go_on_with_an_interrupted_training(run, monkeypatch):
    killed_after_two(run, monkeypatch, precision="bfloat16")
    with pytest.raises(FileError, match=r"precision bfloat16 \(now float32\)"):
        tune(run, precision="float32")


def test_with_labels_the_precision_holds_too(run):
    assert tune(run, labels="train", n_images=None, epochs=1, precision="bfloat16").facts["precision"] == "bfloat16"


def test_a_precision_that_was_asked_for_is_that_of_the_training(tmp_path, monkeypatch):
    seen, loss = [], train_stage.classification_loss

    def watched(module, images, labels):
        seen.append(module(images).dtype)
        return loss(module, images, labels)

    monkeypatch.setattr(train_stage, "classification_loss", watched)
    for asked, dtype in (("bfloat16", torch.bfloat16), ("auto", torch.float32)):
        seen.clear()
        options = {"data": "digits", "epochs": 1, "device": "cpu", "reporter": quiet()}
        record = train("zoo:vgg-digits", out=tmp_path / f"{asked}.safetensors", precision=asked, **options).record
        assert set(seen) == {dtype} and record["options"].get("precision", "auto") == asked
