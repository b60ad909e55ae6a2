"""Demo of tasks: images of single digits, tasks that are learned, verified and reported."""

import numpy as np

from decomp.data import standard
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.recipes import task_demo
from decomp.pipelines.recipes.task_demo import DIGITS


def test_two_tasks_of_two_digits_are_learned_verified_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(task_demo, "DIGITS", ((2, 7), (0, 1)))
    monkeypatch.setattr(task_demo, "GOAL", 0.6)
    quick = {"epochs": 1, "prune_epochs": 1, "retrain_epochs": 1, "ladder": (0.5,), "batch_size": 64}
    monkeypatch.setattr(task_demo, "OPTIONS", quick)
    result = task_demo.task_demo(tmp_path / "run", reporter=Reporter(quiet=True))
    assert result.verified.good and (tmp_path / "run" / "report.html").is_file()
    assert [task["name"] for task in result.tasks.tasks] == ["2-7", "0-1"]
    lines = list(result.lines())
    assert "2 of 2 tasks are as they were committed" in lines and lines[-1].endswith("in a browser")
    content = np.load(tmp_path / "run" / "images" / "2-7.npz")
    labels = standard.digits().train[1].numpy()
    assert len(content["x_train"]) == int(((labels == 2) | (labels == 7)).sum())
    assert content["y_train"].tolist() == [int(label == 7) for label in labels if label in (2, 7)]


def test_the_tasks_are_all_digits_once():
    assert sorted(digit for pair in DIGITS for digit in pair) == list(range(10))
