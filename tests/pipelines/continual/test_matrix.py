"""Accuracy matrix: measured after each task, with what is still there."""

import shutil

import pytest
import torch

from decomp.data.sources import open_source
from decomp.errors import FileError
from decomp.pipelines.continual import matrix
from decomp.pipelines.continual.images import test_accuracy as accuracy_on_test
from decomp.pipelines.continual.store import TaskStore

CPU = torch.device("cpu")


def test_every_row_has_the_accuracies_of_the_tasks_so_far(learned):
    rows = matrix.read(learned.store)
    facts = {task.name: task.facts["test"] for task in learned.store.tasks()}
    assert rows == [{"sides": facts["sides"]}, {"sides": facts["sides"], "heights": facts["heights"]}]
    network = learned.store.network("sides")
    assert accuracy_on_test(open_source(learned.data["sides"]), network, CPU) == facts["sides"]


def test_missing_rows_are_measured_and_lost_images_leave_a_gap(learned, tmp_path):
    shutil.copytree(learned.run, tmp_path / "run")
    store, before = TaskStore.open(tmp_path / "run"), matrix.read(learned.store)
    (tmp_path / "run" / "tasks" / "accuracy.json").unlink()
    assert matrix.measure(store, CPU) == before == matrix.read(store)
    (tmp_path / "run" / "tasks" / "accuracy.json").unlink()
    images = learned.folder / "sides.npz"
    kept = images.read_bytes()
    images.write_bytes(b"")
    try:
        assert matrix.measure(store, CPU)[1]["sides"] is None
        (tmp_path / "run" / "tasks" / "accuracy.json").unlink()
        images.write_bytes((learned.folder / "heights.npz").read_bytes())  # other images under the same name
        assert matrix.measure(store, CPU)[1]["sides"] is None
    finally:
        images.write_bytes(kept)


def test_a_damaged_matrix_is_named_with_the_way_out(learned, tmp_path):
    shutil.copytree(learned.run, tmp_path / "run")
    path = tmp_path / "run" / "tasks" / "accuracy.json"
    path.write_text(path.read_text().replace("sides", "other"))
    with pytest.raises(FileError, match="accuracy.json: .* remove it; it is measured again"):
        matrix.read(TaskStore.open(tmp_path / "run"))
