"""Comparison of continual learning: tasks that are written, numbers of the table, published rows."""

import json
import statistics

import numpy as np
import pytest
import torch

from benchmarks.continual import published, rows, settings
from benchmarks.continual.in_turn import in_turn
from benchmarks.continual.settings import Setting
from decomp.pipelines.continual.store import TaskStore
from tests.pipelines.task_runs import add, halves, network_file


@pytest.mark.parametrize("method", published.ROWS)
def test_printed_averages_are_those_of_the_rows(method):
    row, (printed, _) = published.ROWS[method], published.PRINTED[method]
    assert len(row) == 20 and abs(statistics.mean(row) - printed) <= 0.051


def test_the_row_of_the_readme_has_another_average_than_the_printed_one():
    row = list(published.ROWS["CPG"])
    for task, value in published.README_TYPOS.items():
        row[task - 1] = value
    assert round(statistics.mean(row), 2) == 81.24


def test_forgetting_is_what_each_task_lost_until_the_end():
    assert rows.forgetting([[0.9], [0.9, 0.8]]) == 0
    assert rows.forgetting([[0.9], [0.5, 0.8], [0.7, 0.6, 1.0]]) == pytest.approx((0.2 + 0.2 + 0) / 3)


def test_the_table_has_means_and_standard_errors_of_the_seeds(tmp_path):
    for seed, final in ((0, 0.9), (1, 0.8)):
        row = {"data": "digits", "seed": seed, "method": "cpg", "matrix": [[1.0], [final, final]], "size": 1.5,
               "seconds": 10.0, "shared": [None, 0.5]}  # fmt: skip
        rows.append(tmp_path / "rows.jsonl", row)
    kept = rows.read(tmp_path / "rows.jsonl")
    assert set(kept) == {("digits", "cpg", 0), ("digits", "cpg", 1)}
    (line,) = rows.summary(list(kept.values()), "digits")
    assert line["accuracy"] == "85.00 ± 5.00" and line["forgetting"] == "7.50 ± 2.50" and line["shared"] == "0.50"
    assert "| cpg | 2 | 85.00 ± 5.00 |" in rows.page(list(kept.values()), "digits")
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["machine"]


def test_the_tasks_have_two_classes_each_from_zero(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.SETTINGS, "digits", Setting("zoo:vgg-digits", 1, 1, 1, 32, 20))
    names = settings.write_tasks("digits", tmp_path)
    assert len(names) == 5
    content = np.load(tmp_path / "4-5.npz")
    assert content["x_train"].shape == (40, 1, 8, 8) and np.bincount(content["y_train"]).tolist() == [20, 20]
    assert len(content["x_test"]) > 60


def test_a_network_that_is_fine_tuned_in_turn_forgets(tmp_path):
    torch.manual_seed(0)
    data = [halves(tmp_path / "a.npz", 1, noise=0.3), halves(tmp_path / "b.npz", 0, noise=0.3, seed=1)]
    add(tmp_path / "run", "a", data[0], model=network_file(tmp_path))
    dark = dict(np.load(tmp_path / "b.npz"))
    np.savez(tmp_path / "b.npz", **{key: -9 * value if key[0] == "x" else value for key, value in dark.items()})
    matrix = in_turn(TaskStore.open(tmp_path / "run"), data, Setting("", 4, 1, 1, 16, 100, learning_rate=0.05))
    assert [len(row) for row in matrix] == [1, 2] and matrix[0][0] > 0.9 < matrix[1][1]
    assert rows.forgetting(matrix) > 0.1
