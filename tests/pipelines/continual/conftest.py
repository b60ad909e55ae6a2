"""Two tasks that a small network has learned, made once."""

from types import SimpleNamespace

import pytest

from decomp.pipelines.continual.store import TaskStore
from tests.pipelines.task_runs import add, halves, network_file


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """Folder, names of the images and the store of a run with the tasks 'sides' and 'heights'."""
    folder = tmp_path_factory.mktemp("learned")
    data = {"sides": halves(folder / "sides.npz", 1), "heights": halves(folder / "heights.npz", 0, seed=1)}
    add(folder / "run", "sides", data["sides"], model=network_file(folder))
    add(folder / "run", "heights", data["heights"])
    return SimpleNamespace(folder=folder, data=data, run=folder / "run", store=TaskStore.open(folder / "run"))
