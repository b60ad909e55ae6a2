"""TensorBoard's events: the values of the history, also after a training was resumed; nothing without TensorBoard."""

import importlib.util
from types import SimpleNamespace

import pytest

from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.record import read_log
from decomp.pipelines.stages import finetune
from decomp.pipelines.training import outputs, tensorboard
from tests.pipelines.small_runs import make_run, quiet

needs_tensorboard = pytest.mark.skipif(not tensorboard.available(), reason=f"needs {tensorboard.INSTALL}")


def history(n):
    return [
        {"epoch": e, "loss": None if e == 0 else 1 / e, "validation_accuracy": e / 10, "score": 5.0} for e in range(n)
    ]


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(item.step, item.value) for item in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@needs_tensorboard
def test_events_are_the_history_each_epoch_once_also_when_resumed(tmp_path):
    for process in ((1, 2), (2, 4)):  # the second finds two epochs done
        writer = tensorboard.EventWriter(tmp_path / "events")
        for epochs in range(process[0], process[1] + 1):
            writer(SimpleNamespace(history=history(epochs)))
        writer.close()
    found = scalars(tmp_path / "events")
    assert sorted(found) == ["loss", "validation/accuracy"]
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert [step for step, _ in found["validation/accuracy"]] == [0, 1, 2, 3]
    assert [value for _, value in found["validation/accuracy"]] == pytest.approx([0, 0.1, 0.2, 0.3])


@needs_tensorboard
def test_further_values_are_written_at_their_epoch_once(tmp_path):
    values = [("repr/drop/filters", 4.0, 1), ("repr/restore/filters", 4.0, 3)]
    known = []
    for already in ([], values[:1]):  # the second process goes on where one value is known
        known[:] = already
        writer = tensorboard.EventWriter(tmp_path / "events", lambda: list(known))
        for n in (1, 2):
            known[:] = values[:n]
            writer(SimpleNamespace(history=history(n)))
        writer.close()
    found = scalars(tmp_path / "events")
    assert found["repr/drop/filters"] == [(1, 4.0)] and found["repr/restore/filters"] == [(3, 4.0)]


@needs_tensorboard
def test_finetune_writes_them(tmp_path):
    run = make_run(tmp_path / "run")
    result = finetune.finetune(run, epochs=1, reporter=quiet())
    found = scalars(outputs.events_dir(run.finetune_dir))
    assert found["validation/accuracy"][-1] == (1, pytest.approx(result.facts["after"]))


def test_without_tensorboard_that_is_said_once_and_tuning_goes_on(tmp_path, monkeypatch):
    run, real = make_run(tmp_path / "run"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    finetune.finetune(run, epochs=2, reporter=Reporter.for_run(run, quiet=True))
    said = [event["message"] for event in read_log(run.log) if "TensorBoard" in event["message"]]
    assert len(said) == 1 and tensorboard.INSTALL in said[0]
    assert (
        not outputs.events_dir(run.finetune_dir).exists() and (run.finetune_dir / "best" / "structure.json").is_file()
    )
