"""A result that is replaced stays until its successor is whole, wherever the process stops."""

import os
import shutil

import pytest

from decomp.data.formats.digests import digest_file
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.replacement import beside, end_exchange, exchange
from decomp.pipelines.stages.train import train
from decomp.pipelines.training import loop
from tests.pipelines.small_runs import quiet


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    for folder, text in ((run.finetune_dir, "earlier"), (beside(run.finetune_dir), "new")):
        folder.mkdir()
        (folder / "file").write_text(text)
    run.update_config("finetune", {"asked": {}})
    return run


def test_the_successor_takes_the_place_and_the_record_goes(run):
    exchange(run, "finetune", run.finetune_dir)
    assert (run.finetune_dir / "file").read_text() == "new" and run.config("finetune") is None
    assert not beside(run.finetune_dir).exists()


def test_without_a_successor_nothing_is_lost(run):
    exchange(run, "finetune", run.finetune_dir)
    run.update_config("finetune", {"asked": {}})
    exchange(run, "finetune", run.finetune_dir)
    assert (run.finetune_dir / "file").read_text() == "new" and run.config("finetune") == {"asked": {}}


def test_an_unfinished_successor_waits_while_the_earlier_result_has_its_record(run):
    end_exchange(run, "finetune", run.finetune_dir)
    assert (run.finetune_dir / "file").read_text() == "earlier"


@pytest.mark.parametrize("function", ["rmtree", "replace"])
def test_an_exchange_that_was_stopped_is_ended_by_the_next_call(run, monkeypatch, function):
    real = {"rmtree": shutil.rmtree, "replace": os.replace}[function]

    def stop(path, *others, **options):
        if "finetune" not in str(path):  # run.json is written by a rename too
            return real(path, *others, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil if function == "rmtree" else os, function, stop)
    with pytest.raises(KeyboardInterrupt):
        exchange(run, "finetune", run.finetune_dir)
    monkeypatch.undo()
    end_exchange(run, "finetune", run.finetune_dir)
    assert (run.finetune_dir / "file").read_text() == "new"


def in_run(run, **options):
    return train("zoo:vgg-digits", run=run, batch_size=64, device="cpu", reporter=quiet(), **options)


def test_a_redo_that_is_killed_leaves_the_earlier_training_and_the_same_call_continues(tmp_path, monkeypatch):
    whole, first = in_run(tmp_path / "whole", epochs=2), in_run(tmp_path / "run", epochs=1)
    original, trained = loop._train_epoch, []

    def dies(state, *rest):
        if state.epoch == 1:
            raise KeyboardInterrupt
        return original(state, *rest)

    monkeypatch.setattr(loop, "_train_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        in_run(tmp_path / "run", epochs=2, redo=True)
    again = in_run(tmp_path / "run", epochs=1)
    assert again.already_done and again.record["sha256"] == first.record["sha256"] and again.weights.is_file()
    monkeypatch.setattr(
        loop, "_train_epoch", lambda state, *rest: trained.append(state.epoch) or original(state, *rest)
    )
    resumed = in_run(tmp_path / "run", epochs=2, redo=True)
    assert trained == [1] and resumed.record["sha256"] == whole.record["sha256"]
    folder = RunDirectory(tmp_path / "run").trained_weights.parent
    assert resumed.weights.parent == folder and not beside(folder).exists()
    assert digest_file(resumed.weights) == digest_file(whole.weights) and not list(folder.glob("*.checkpoint"))
