"""Verification: bit-identical, other rounding, changed weights."""

import shutil
from dataclasses import replace

from decomp.data.formats.task_file import TaskFile, write_task
from decomp.pipelines.continual.store import TaskStore
from decomp.pipelines.continual.verification import verify


def rewritten(learned, tmp_path, change):
    """A run whose second task was written with a change, sealed."""
    shutil.copytree(learned.run, tmp_path / "run")
    store = TaskStore.open(tmp_path / "run")
    first, second = store.tasks()
    change(second)
    write_task(store.paths()[1], TaskFile(**{**vars(second)}), first.content)
    return verify(store)


def test_tasks_as_committed_are_bit_identical(learned):
    assert [(task.name, task.state) for task in verify(learned.store)] == [
        ("sides", "bit-identical"), ("heights", "bit-identical"),
    ]  # fmt: skip
    assert verify(learned.store)[0].words() == "sides: bit-identical (16 images)"


def test_scores_of_another_machine_are_told_apart_from_other_weights(learned, tmp_path):
    def nudge(task):
        task.probe["scores"] = task.probe["scores"] + 1e-6

    found = rewritten(learned, tmp_path, nudge)[1]
    assert found.state == "same weights" and found.good and "this machine rounds otherwise" in found.words()


def test_changed_weights_are_told(learned, tmp_path):
    def nudge(task):
        task.private["8.bias"] = task.private["8.bias"] + 1e-6

    found = rewritten(learned, tmp_path, nudge)
    assert [task.state for task in found] == ["bit-identical", "changed"] and not found[1].good
    assert replace(found[1], reason="").words() == "heights: changed"


def test_a_committed_task_whose_file_is_gone_is_told(learned, tmp_path):
    shutil.copytree(learned.run, tmp_path / "run")
    store = TaskStore.open(tmp_path / "run")
    store.paths()[-1].unlink()
    found = verify(store)
    assert [(task.name, task.state) for task in found] == [("sides", "bit-identical"), ("heights", "unreadable")]
    assert found[1].reason == f"there is no file of it in {store.run.tasks_dir}"
