"""Lines of the list, of an added task, of verification and export."""

from dataclasses import replace

from decomp.pipelines.continual.exports import ExportedTask, TaskSizes
from decomp.pipelines.continual.results import AddedTask, ExportedTaskResult, TaskList, VerifyResult
from decomp.pipelines.continual.store import TaskStore
from decomp.pipelines.continual.verification import Verified
from tests.pipelines.task_runs import add, halves, network_file


def test_the_list_tells_accuracies_owners_width_and_sizes(learned):
    found = TaskList.of(learned.store)
    lines = list(found.lines())
    assert [line.split()[0] for line in lines[0].splitlines()] == ["task", "sides", "heights"]
    one = found.tasks[0]
    assert one["at_commit"] == one["now"] == learned.store.tasks()[0].facts["test"] and one["shared_ratio"] is None
    assert found.tasks[1]["shared_ratio"] <= 1 and found.totals["parameters"] == 4 * 9 + 6 * 4 * 9
    free = 1 - sum(task["task_ratio"] for task in found.tasks)
    assert abs(found.totals["free"] - free) < 1e-9
    assert found.totals["bytes"] == sum(path.stat().st_size for path in learned.store.paths())
    whole = sum(value.numel() * value.element_size() for value in learned.store.base.state_dict().values())
    assert found.totals["bytes_independent"] == 2 * whole
    assert set(found.to_json()) >= {"tasks", "rows", "owners", "totals", "ladders", "run"}


def test_the_matrix_has_a_line_for_each_task_and_a_column_after_each(learned):
    (table,) = TaskList.of(learned.store).matrix_lines()
    lines = table.splitlines()
    assert lines[0].split() == ["accuracy", "of", "after", "sides", "after", "heights"]
    first, second = (f"{100 * row['now']:.1f} %" for row in TaskList.of(learned.store).tasks)
    assert lines[1].split("  ")[-1].strip() == lines[1].replace("sides", "").strip().split("  ")[0] == first
    assert lines[2].split() == ["heights", *second.split()]


def test_a_task_below_its_goal_is_told_plainly(learned):
    listed = TaskList.of(learned.store)
    added = AddedTask(listed.run, listed, "heights")
    assert not any("below" in line for line in added.lines())
    added.task["status"], added.task["goal"] = "below goal", 0.99
    line = next(line for line in added.lines() if "is below its goal" in line)
    assert "at the largest width, the goal is 99.0 %" in line
    assert list(added.lines())[-1] == f"next: decomp tasks verify --run {listed.run}"
    again = AddedTask(listed.run, listed, "heights", True)
    assert next(again.lines()).endswith("learned with these options; nothing to do")


def test_a_goal_that_was_missed_within_the_error_of_its_measurement_is_told(learned):
    listed = TaskList.of(learned.store)
    for task in listed.tasks:
        task["goal"] = 0.0
    assert not any("within one standard error" in line for line in listed.lines())
    listed.tasks[1]["goal"] = listed.tasks[1]["validation"] + 0.01
    assert sum(line.startswith("met by heights within one standard error") for line in listed.lines()) == 1


def test_a_run_whose_first_task_is_not_committed_is_listed_as_empty(tmp_path, monkeypatch):
    from decomp.pipelines.stages import tasks

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "learn", stop)
    try:
        add(tmp_path / "run", "a", halves(tmp_path / "a.npz", 0), model=network_file(tmp_path))
    except KeyboardInterrupt:
        pass
    listed = TaskList.of(TaskStore.open(tmp_path / "run"))
    assert list(listed.lines()) == ["no task is committed yet"] and listed.totals["free"] == 1


def test_verification_says_how_many_are_good(learned):
    tasks = [Verified("a", "bit-identical", "4 images"), Verified("b", "unreadable", "b.safetensors: cut")]
    lines = list(VerifyResult(learned.store.run, tasks).lines())
    assert lines[2] == "1 of 2 tasks are as they were committed" and "put a copy of the damaged file back" in lines[3]
    assert not VerifyResult(learned.store.run, tasks).good
    assert list(VerifyResult(learned.store.run, tasks[:1]).lines())[-1] == "1 of 1 task is as it was committed"


def test_the_sizes_of_one_task_are_compared_with_one_network(learned):
    listed = TaskList.of(learned.store)
    assert any("; 2 independent networks: " in line for line in listed.lines())
    one = replace(listed, tasks=listed.tasks[:1])
    assert any("; 1 independent network: " in line for line in one.lines())


def test_a_verification_without_tasks_says_so(learned):
    assert list(VerifyResult(learned.store.run, []).lines()) == ["no task is committed yet"]


def test_an_export_tells_what_was_removed():
    result = ExportedTaskResult("a", [ExportedTask("pt2", "a.pt2", 2048, 1e-7)], TaskSizes(100, 80, 1000, 700))
    assert list(result.lines()) == [
        "a.pt2 (2 KiB), checked: outputs differ by at most 1e-07",
        "80 of 100 parameters and 700 of 1,000 multiply-accumulates: channels that the task does not use are removed",
    ]
    whole = ExportedTaskResult("a", [], TaskSizes(100, 100, 1000, 1000))
    assert list(whole.lines()) == [
        "100 of 100 parameters and 1,000 of 1,000 multiply-accumulates: the task uses every channel"
    ]
