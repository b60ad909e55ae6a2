"""Page of tasks: table, matrix, figures and their numbers."""

import csv

from decomp.pipelines.reporting.task_page import write_task_report

TASK = {
    "name": "letters", "classes": 2, "goal": 0.9, "status": "met", "validation": 0.95, "n_validation": 40,
    "at_commit": 0.925, "now": 0.925, "n_test": 40, "independent": {"validation": 0.97, "test": 0.975},
    "task_ratio": 0.25, "shared_ratio": None, "released": 0.75, "width": 1.0,
}  # fmt: skip
LISTED = {
    "tasks": [TASK, {**TASK, "name": "digits <b>", "status": "below goal", "independent": None, "at_commit": None,
                     "now": None, "n_test": None, "shared_ratio": 0.5}],
    "rows": [{"letters": 0.925}, {"letters": 0.925, "digits <b>": None}],
    "owners": {"conv": {0: 0.5, 1: 0.25, 2: 0.25}}, "ladders": {"letters": [], "digits <b>": [
        {"target": 0.75, "released": 0.74, "validation": 0.95, "training": 1.0}]},
    "totals": {"width": 1.5, "parameters": 150, "parameters_base": 100, "expansion": 1.5, "free": 0.5, "bytes": 2048.0,
               "bytes_independent": 4096.0}, "run": "runs/tasks",
}  # fmt: skip


def test_the_page_tells_goals_accuracies_sizes_and_loads_nothing(tmp_path):
    names = write_task_report(tmp_path / "report.html", tmp_path / "report", LISTED, "report")
    text = (tmp_path / "report.html").read_text()
    assert names == ["matrix", "owners", "ladders"]
    for words in (
        "2 tasks in one network of 1.50 times the first one&#x27;s weights; 1 reached their goals",
        "below goal", "digits &lt;b&gt;", "50.0 % of 150 shared weights are free", "2.0 KiB", "4.0 KiB",
        "A row that does not change is a task that is not forgotten",
    ):  # fmt: skip
        assert words in text, words
    assert "digits <b>" not in text and "http" not in text.replace("http://www.w3.org", "")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("csv", "png")
    }


def test_the_numbers_of_the_figures_are_those_of_the_list(tmp_path):
    write_task_report(tmp_path / "report.html", tmp_path / "report", LISTED, "report")

    def rows(name):
        with open(tmp_path / "report" / f"{name}.csv", encoding="utf-8") as file:
            return list(csv.reader(file))

    assert rows("matrix") == [
        ["accuracy_of", "after_letters", "after_digits <b>"], ["letters", "0.925", "0.925"], ["digits <b>", "", ""],
    ]  # fmt: skip
    assert rows("owners") == [["layer", "free", "letters", "digits <b>"], ["conv", "0.5", "0.25", "0.25"]]
    assert rows("ladders") == [
        ["task", "target", "released", "validation", "training"], ["digits <b>", "0.75", "0.74", "0.95", "1.0"],
    ]  # fmt: skip
