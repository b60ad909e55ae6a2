"""Tables of trainings: epochs with events, on/off map, results; nothing for runs that were not trained."""

import json

import pytest

from decomp.data.formats.json_files import write_json
from decomp.pipelines.reporting.training_tables import RESULT_COLUMNS, epochs_table, events, filters, result, training
from decomp.pipelines.run.directory import RunDirectory

SCHEME = {
    "name": "repr", "filters": {"a": 4, "b": 6},
    "events": [
        {"event": "drop", "epoch": 1, "dropped": {"a": [0, 1], "b": [2]}, "overlap_before": 0.3, "overlap_after": 0.2,
         "accuracy_before": 0.5, "accuracy_after": 0.25},
        {"event": "restore", "epoch": 2, "dropped": {"a": [0, 1], "b": [2]}, "overlap_before": 0.2,
         "overlap_after": 0.1, "max_cosine": 1e-8, "accuracy_before": 0.6, "accuracy_after": 0.6},
    ],
}  # fmt: skip
EPOCHS = """epoch,loss,learning_rate,validation_accuracy,seconds
0,,,0.1,0.5
1,2.0,0.1,0.5,3
2,1.5,0.1,0.6,5
3,1,0.1,0.7,4
"""


def trained(folder, scheme=SCHEME):
    run = RunDirectory.create(folder)
    run.trained_weights.parent.mkdir()
    record = {
        "accuracy": {"validation": 0.7, "test": 0.65}, "images": {"train": 90, "validation": 10, "test": 20},
        "options": {}, "steps": 12, "best": {"epoch": 3, "validation": 0.7, "test": 0.65},
        **({} if scheme is None else {"scheme": scheme}),
    }  # fmt: skip
    write_json(run.trained_weights.with_suffix(".json"), record, kind="decomp weights")
    run.trained_weights.with_name("epochs.csv").write_text(EPOCHS)
    if scheme is not None:
        run.trained_weights.with_name("filters.csv").write_text("layer,filter,epoch 1\na,0,0\na,1,0\nb,0,1\n")
    return run


def test_an_event_belongs_to_the_epoch_that_it_begins(tmp_path):
    table = training(trained(tmp_path / "run"))
    assert table.column("epoch") == [0, 1, 2, 3] and table.column("loss") == [None, 2.0, 1.5, 1.0]
    assert table.column("live_filters") == pytest.approx([1.0, 1.0, 0.7, 1.0])
    assert table.column("event") == ["", "", "drop", "restore"]
    history = [{"epoch": 0, "loss": None, "validation_accuracy": 0.1, "seconds": 1.0}]
    assert epochs_table("x", history, None).rows == [("x", 0, None, 0.1, 1.0, 1.0, "")]


def test_the_map_and_the_events_are_those_of_the_files(tmp_path):
    run = trained(tmp_path / "run")
    assert filters(run).header == ("layer", "filter", "epoch 1") and filters(run).rows[2] == ("b", 0, 1)
    first, second = events(run).dicts()
    assert first["filters"] == 3 and first["layers"] == "a: 2, b: 1" and first["max_cosine"] is None
    assert second["max_cosine"] == 1e-8 and second["event"] == "restore"


def test_a_result_has_the_last_and_the_best_epoch_and_the_time_without_epoch_0(tmp_path):
    row = dict(zip(RESULT_COLUMNS, result(trained(tmp_path / "run"))))
    assert (row["scheme"], row["test"], row["best_epoch"], row["steps"]) == ("repr", 0.65, 3, 12)
    assert row["seconds_per_epoch"] == 4.0 and row["n_test"] == 20
    assert result(trained(tmp_path / "other", None))[1] == "standard"


def test_a_run_without_training_or_without_scheme_has_no_such_tables(tmp_path):
    run = RunDirectory.create(tmp_path / "empty")
    assert [collect(run) for collect in (training, filters, events, result)] == [None] * 4
    run = trained(tmp_path / "standard", None)
    assert filters(run) is None and events(run) is None and set(training(run).column("event")) == {""}
    record = run.trained_weights.with_suffix(".json")
    record.write_text(json.dumps({"kind": "other"}))
    assert training(run) is None
