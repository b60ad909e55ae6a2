"""Files beside trained weights: the epochs, the on/off map, events."""

import csv
from types import SimpleNamespace

from decomp.pipelines.training.train_outputs import EPOCHS, FILTERS, TrainingFiles

SCHEME = SimpleNamespace(
    scheme=SimpleNamespace(
        filters={"a": 2, "b": 1}, events=[{"event": "drop", "epoch": 3, "dropped": {"a": [1]}}]
    )
)  # fmt: skip


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_each_epoch_is_a_line_and_each_filter_a_row_of_the_map(tmp_path):
    told = []
    files = TrainingFiles(tmp_path, SCHEME, None)
    history = [{"epoch": 0, "loss": None, "validation_accuracy": 0.1, "score": 1.0}, {"epoch": 1, "loss": 2.0}]
    files(SimpleNamespace(history=history))
    assert rows(tmp_path / EPOCHS) == [["epoch", "loss", "validation_accuracy"], ["0", "", "0.1"], ["1", "2.0", ""]]
    assert rows(tmp_path / FILTERS) == [
        ["layer", "filter", "epoch 3"],
        ["a", "0", "1"],
        ["a", "1", "0"],
        ["b", "0", "1"],
    ]
    files.close()

    class Events:
        def __call__(self, training):
            told.append(len(training.history))

        def close(self):
            told.append("closed")

    files.events = Events()
    files(SimpleNamespace(history=history))
    files.close()
    assert told == [2, "closed"]


def test_a_training_without_a_scheme_has_no_map(tmp_path):
    TrainingFiles(tmp_path)(SimpleNamespace(history=[{"epoch": 0, "loss": None}]))
    assert (tmp_path / EPOCHS).exists() and not (tmp_path / FILTERS).exists()
