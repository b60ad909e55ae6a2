"""Store of tasks: owners and weights from the files, states of tasks, names."""

import shutil

import pytest
import torch

from decomp.data.formats.task_file import TaskFile
from decomp.errors import FileError, UsageError
from decomp.pipelines.continual.store import TaskStore, assembled, at_width_of, base_state
from decomp.pipelines.run.directory import RunDirectory


def file(number, used, values):
    return TaskFile(number, f"t{number}", 1.0, 2, {"a": torch.tensor(used)}, {"a": torch.tensor(values)}, {}, {}, "")


def test_a_weight_belongs_to_the_first_task_that_uses_it_across_growth():
    first = file(1, [[True, False]], [5.0])
    second = file(2, [[True, True], [False, True]], [6.0, 7.0])
    third = file(3, [[False, True], [True, True]], [8.0])
    weights, owners = assembled([first, second, third])
    assert owners["a"].tolist() == [[1, 2], [3, 2]] and weights["a"].tolist() == [[5, 6], [8, 7]]
    assert owners["a"].dtype == torch.uint8
    assert at_width_of(first, weights)["a"].tolist() == [[5, 6]]


def test_values_that_do_not_fit_the_bits_are_refused():
    with pytest.raises(FileError, match="task t1: must have 1 values of a, got 2"):
        assembled([file(1, [[True, False]], [5.0, 6.0])])


def test_the_base_is_owned_by_nobody(learned):
    state = base_state(learned.store.base, learned.store.family(False))
    assert state.width == 1.0 and set(state.weights) == {"0", "4"} == set(state.owners)
    assert not any(owner.any() for owner in state.owners.values()) and "8.weight" in state.private


def test_a_run_that_is_not_there_is_begun_with_tasks_add(tmp_path):
    with pytest.raises(FileError, match="there is no such run directory; begin with tasks add --run .*none --model"):
        TaskStore.open(tmp_path / "none")


def test_tasks_are_read_in_order_with_their_names(learned):
    assert [task.name for task in learned.store.tasks()] == learned.store.names() == ["sides", "heights"]
    assert len(learned.store.tasks(1)) == 1 and learned.store.number_of("heights") == 2
    with pytest.raises(UsageError, match="hights: is no task of this run; did you mean heights"):
        learned.store.number_of("hights")
    with pytest.raises(UsageError, match="x: is no task of this run; its tasks are: sides, heights"):
        learned.store.number_of("x")


def test_a_task_has_its_own_normalisations_biases_and_head(learned):
    one, two = (learned.store.network(name).state_dict() for name in ("sides", "heights"))
    for name in ("1.running_mean", "1.running_var", "1.weight", "5.bias", "8.weight", "8.bias"):
        assert not torch.equal(one[name], two[name]), name


def test_without_its_own_normalisations_a_task_is_forgotten(learned):
    tasks = learned.store.tasks()
    images, kept = tasks[0].probe["images"], tasks[0].probe["scores"]
    state = learned.store.effective(tasks[:1])
    wrong = state | {name: value for name, value in tasks[1].private.items() if "running" in name}
    with torch.no_grad():
        assert torch.equal(learned.store.built(tasks[0], state)(images), kept)
        assert (learned.store.built(tasks[0], wrong)(images) - kept).abs().max() > 1e-3


def test_a_network_shares_nothing_with_another_of_the_same_task(learned):
    one, two = learned.store.network("sides"), learned.store.network("sides")
    with torch.no_grad():
        one.get_submodule("0").weight.zero_()
    assert two.get_submodule("0").weight.abs().sum() > 0
    assert not any(module.training for module in two.modules())


def test_a_damaged_base_is_named_with_the_way_out(learned, tmp_path):
    shutil.copytree(learned.run, tmp_path / "run")
    path = tmp_path / "run" / "tasks" / "base" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FileError, match="weights.safetensors: .* put a copy of it back: all tasks were made from it"):
        TaskStore.open(tmp_path / "run")


def test_a_run_without_tasks_is_refused_with_the_command_that_begins_one(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    with pytest.raises(FileError, match=f"holds no tasks; begin with tasks add --run {run}"):
        TaskStore.open(run)


def test_a_task_file_under_the_name_of_another_is_refused(learned, tmp_path):
    shutil.copytree(learned.run, tmp_path / "run")
    store = TaskStore.open(tmp_path / "run")
    store.paths()[1].rename(tmp_path / "run" / "tasks" / "002_hills.safetensors")
    with pytest.raises(FileError, match="hills.*: holds task heights, got another name; give it its name back: 002_he"):
        store.tasks()
    assert store.names() == ["sides", "hills"] and [task.name for task in store.tasks(1)] == ["sides"]
    assert list(store.readable()[1]) == ["hills"]
