"""Tasks in one network: bit-identity of earlier tasks, resumption, growth, goals, mistakes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from command_line import decomp_command

from decomp.data.formats import atomic
from decomp.errors import DecompError, FileError, UsageError
from decomp.pipelines.continual import cycle, phases
from decomp.pipelines.continual.store import TaskStore
from decomp.pipelines.stages import tasks
from tests.pipelines.task_runs import add, halves, network_file

NAMES = ["sides", "heights", "noise", "thirds"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four tasks, of which the third cannot be learned and forces the network to grow; scores after each."""
    folder = tmp_path_factory.mktemp("tasks")
    data = {
        "sides": halves(folder / "sides.npz", 1), "heights": halves(folder / "heights.npz", 0, seed=1),
        "noise": halves(folder / "noise.npz", 0, seed=2, random=True),
        "thirds": halves(folder / "thirds.npz", 1, seed=3, n_classes=3),
    }  # fmt: skip
    scores, model = [], network_file(folder)
    for number, name in enumerate(NAMES):
        goal = 0.99 if name == "noise" else 0.6
        add(folder / "run", name, data[name], goal=goal, model=model if number == 0 else None)
        scores.append(scores_of(folder / "run"))
        shutil.copytree(folder / "run", folder / f"after-{name}")
    return folder, data, scores


IMAGES = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(5))


def scores_of(run):
    store = TaskStore.open(run)
    with torch.no_grad():
        return {name: store.network(name)(IMAGES) for name in store.names()}


def test_scores_of_all_earlier_tasks_are_equal_to_the_last_bit_after_each_later_one(place):
    _, _, scores = place
    for before, after in zip(scores, scores[1:]):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(scores[-1]) == 4 and len({value.sum().item() for value in scores[-1].values()}) == 4


def test_earlier_tasks_are_bit_identical_across_a_forced_growth(place):
    listed = tasks.listed(place[0] / "run")
    assert [task["width"] for task in listed.tasks] == [1.0, 1.0, 1.5, 1.5]
    assert listed.totals["expansion"] == (4 * 9 + 4 * 7 * 9) / (4 * 9 + 4 * 6 * 9)
    network = TaskStore.open(place[0] / "run").network("sides")
    assert network.get_submodule("0").weight.shape == (4, 1, 3, 3)  # evaluated at its own width


def test_scores_are_the_same_in_a_fresh_process(place):
    folder, _, scores = place
    torch.save((IMAGES, scores[-1]), folder / "scores.pt")
    code = f"""
import torch, decomp
images, scores = torch.load({str(folder / "scores.pt")!r})
run = decomp.tasks.open({str(folder / "run")!r})
with torch.no_grad():
    assert list(scores) == run.names() and all(torch.equal(run.network(n)(images), s) for n, s in scores.items())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_goal_out_of_reach_at_the_largest_width_is_committed_as_below_goal(place):
    found = {task["name"]: task for task in tasks.listed(place[0] / "after-noise").tasks}
    assert [found[name]["status"] for name in ("sides", "heights", "noise")] == ["met", "met", "below goal"]
    noise = TaskStore.open(place[0] / "run").tasks()[2].facts
    assert [attempt["width"] for attempt in noise["attempts"]] == [1.0, 1.5]
    # forced to leave half of its allotment: the ladder ends with the rung that reaches it
    assert noise["chosen"] == 0.6


def test_owners_partition_the_weights(place):
    listed = tasks.listed(place[0] / "run")
    assert all(sum(share.values()) == pytest.approx(1) for share in listed.owners.values())
    weights = listed.totals["parameters"]
    store = TaskStore.open(place[0] / "run")
    owned = [sum(values.numel() for values in task.values.values()) for task in store.tasks()]
    assert sum(owned) == round(weights * (1 - listed.totals["free"])) and min(owned) > 0


def test_a_task_killed_at_every_write_ends_with_the_same_bytes(place, tmp_path, monkeypatch):
    folder, data, _ = place
    shutil.copytree(folder / "after-heights", tmp_path / "run")
    calls, real = [0], atomic.os.replace
    seen = set()

    def replace(source, target):
        calls[0] += 1
        if calls[0] == 2 and ".owner" not in str(target):
            seen.add(str(target).rpartition("/")[2])
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    for _ in range(80):
        calls[0] = -1  # the lock writes its owner first
        try:
            add(tmp_path / "run", "noise", data["noise"], goal=0.99)
            break
        except KeyboardInterrupt:
            assert all(task.good for task in tasks.verify(tmp_path / "run").tasks)
    monkeypatch.undo()
    names = {name.rpartition(".")[0] for name in seen}
    assert {"finetune-1.00", "finetune-1.50", "prune-0.3", "prune-0.6", "retrain", "accuracy", "003_noise"} <= names
    for file in sorted((folder / "after-noise" / "tasks").glob("*.*")):
        assert (tmp_path / "run" / "tasks" / file.name).read_bytes() == file.read_bytes(), file.name
    assert not (tmp_path / "run" / "tasks" / "work").exists()


def test_decisions_do_not_depend_on_the_test_images(place, tmp_path):
    folder, data, _ = place
    kept = TaskStore.open(folder / "run").tasks(1)[0]
    other = halves(tmp_path / "sides.npz", 1, n_test=0)
    add(tmp_path / "run", "sides", other, model=network_file(tmp_path))
    found = TaskStore.open(tmp_path / "run").tasks(1)[0]
    assert found.effective == kept.effective and found.facts["test"] is None and kept.facts["test"] > 0.6


def test_a_task_that_is_learned_is_not_learned_again(place, tmp_path):
    folder, data, _ = place
    before = {path: path.read_bytes() for path in (folder / "run" / "tasks").glob("*.safetensors")}
    assert add(folder / "run", "heights", data["heights"]).already_done
    with pytest.raises(
        UsageError, match="task heights: is in the run already, .* got epochs = 4 .was 3.; give another"
    ):
        add(folder / "run", "heights", data["heights"], epochs=4)
    with pytest.raises(UsageError, match="got other images|got data = "):
        add(folder / "run", "heights", data["sides"])
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"size": 8}, "the network of the run takes images of 1x6x6, got 1x8x8"),
        ({"channels": 3}, "the network of the run takes images of 1x6x6, got 3x6x6"),
        (
            {"labels": lambda y: y - 1},
            "a task needs a label for every training image, got y_train: whole numbers from -1",
        ),
        ({"labels": lambda y: y + 1}, "got no training image of class 0; number the classes from 0.$"),
        ({"labels": lambda y: y * 0}, "a task needs images of two classes or more, got 1 class; give images of at"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_line_and_nothing_is_lost(place, tmp_path, change, line):
    with pytest.raises(UsageError, match=line):
        add(place[0] / "run", "more", halves(tmp_path / "more.npz", 0, **change))
    assert tasks.verify(place[0] / "run").good and not (place[0] / "run" / "tasks" / "work").exists()


def test_labels_outside_the_classes_are_refused(place, tmp_path):
    data = halves(tmp_path / "more.npz", 0, n_classes=3)
    with pytest.raises(UsageError, match=r"labels of the training images must be in 0\.\.1, got 2; number"):
        add(place[0] / "run", "more", data, classes=2)


def test_a_run_of_something_else_is_refused_and_stays(place, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="a new run directory must be empty, got a folder that holds 'notes.txt'"):
        add(tmp_path / "run", "a", place[1]["sides"], model=network_file(tmp_path))
    from decomp.pipelines.run.directory import RunDirectory

    frozen = RunDirectory.create(tmp_path / "frozen")
    frozen.update_config("freeze", {"asked": {}})
    with pytest.raises(FileError, match="tasks need a run directory of their own, got one with freeze; give another"):
        add(frozen, "a", place[1]["sides"], model=network_file(tmp_path))
    with pytest.raises(FileError, match="holds no tasks; begin with tasks add"):
        tasks.listed(frozen)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_task_file_is_named_and_the_tasks_before_it_are_untouched(place, tmp_path, damage):
    shutil.copytree(place[0] / "run", tmp_path / "run")
    (path,) = (tmp_path / "run" / "tasks").glob("002_*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-9]))
    result = tasks.verify(tmp_path / "run")
    assert [task.state for task in result.tasks] == ["bit-identical", "unreadable", "unreadable", "unreadable"]
    assert str(path) in result.tasks[1].reason and "made after heights" in result.tasks[2].reason
    assert torch.equal(TaskStore.open(tmp_path / "run").network("sides")(IMAGES), place[2][0]["sides"])
    with pytest.raises(FileError, match="002_heights.*put a copy of it back"):
        add(tmp_path / "run", "more", place[1]["sides"])
    listed = tasks.listed(tmp_path / "run")
    assert [task["name"] for task in listed.tasks] == ["sides"] and listed.rows == tasks.listed(place[0] / "run").rows[
        :1
    ]
    assert list(listed.unreadable) == [task.name for task in result.tasks[1:]]
    for command in ("verify", "list"):
        shown = decomp_command("tasks", command, "--run", tmp_path / "run")
        assert shown.code == 1 and shown.errors == [] and f"heights: unreadable ({path}" in shown.out
    assert path.read_bytes() != (place[0] / "run" / "tasks" / path.name).read_bytes()


def test_a_missing_task_file_is_an_error_and_not_an_empty_history(place, tmp_path):
    shutil.copytree(place[0] / "run", tmp_path / "run")
    next((tmp_path / "run" / "tasks").glob("001_*")).unlink()
    with pytest.raises(FileError, match="must be task 1 after"):
        add(tmp_path / "run", "more", place[1]["sides"])


def test_a_lost_task_or_a_broken_matrix_is_told_before_anything_is_trained(place, tmp_path, monkeypatch):
    shutil.copytree(place[0] / "after-heights", tmp_path / "run")
    monkeypatch.setattr(tasks, "learn", lambda *_: pytest.fail("the training began"))
    matrix = tmp_path / "run" / "tasks" / "accuracy.json"
    kept = matrix.read_text()
    matrix.write_text("{")
    with pytest.raises(FileError, match="accuracy.json: .*remove it; it is measured again"):
        add(tmp_path / "run", "noise", place[1]["noise"])
    matrix.write_text(kept)
    next((tmp_path / "run" / "tasks").glob("002_*")).unlink()
    with pytest.raises(FileError, match="task heights was committed, and its file is missing; put a copy of its file"):
        add(tmp_path / "run", "noise", place[1]["noise"])
    assert decomp_command("tasks", "verify", "--run", tmp_path / "run").code == 1
    matrix.unlink()
    monkeypatch.undo()
    add(tmp_path / "run", "noise", place[1]["noise"])
    assert [list(row) for row in tasks.listed(tmp_path / "run").rows] == [["sides"], ["sides", "noise"]]


def test_a_broken_record_of_an_unfinished_task_is_told_with_the_way_out(place, tmp_path):
    shutil.copytree(place[0] / "after-sides", tmp_path / "run")
    (tmp_path / "run" / "tasks" / "work").mkdir()
    (tmp_path / "run" / "tasks" / "work" / "asked.json").write_text("{}")
    shown = decomp_command("status", "--run", tmp_path / "run")
    assert shown.code == 1 and shown.errors[0].endswith("begin the unfinished task again with tasks add --redo.")
    add(tmp_path / "run", "heights", place[1]["heights"], redo=True)
    assert decomp_command("status", "--run", tmp_path / "run").code == 0


def test_an_unfinished_task_is_continued_or_dropped_but_not_passed_over(place, tmp_path, monkeypatch):
    shutil.copytree(place[0] / "after-sides", tmp_path / "run")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cycle, "_compact", stop)
    with pytest.raises(KeyboardInterrupt):
        add(tmp_path / "run", "heights", place[1]["heights"])
    monkeypatch.undo()
    with pytest.raises(UsageError, match="task heights is not finished, got task noise; repeat its command to go on"):
        add(tmp_path / "run", "noise", place[1]["noise"])
    with pytest.raises(UsageError, match="task heights: was begun otherwise, got epochs = 2 .was 3.; give the same"):
        add(tmp_path / "run", "heights", place[1]["heights"], epochs=2)
    add(tmp_path / "run", "heights", place[1]["heights"], epochs=2, redo=True)
    assert tasks.verify(tmp_path / "run").good


def test_options_of_the_run_are_those_of_its_first_task(place):
    with pytest.raises(UsageError, match="began with seed 0, got 3; leave it out"):
        add(place[0] / "run", "more", place[1]["sides"], seed=3)


def test_a_network_that_cannot_grow_is_refused_before_anything_is_trained(place, tmp_path):
    network_file(tmp_path)
    model = f"{tmp_path}/net.py:grouped"
    with pytest.raises(DecompError, match="cannot grow: its convolution has 4 groups; give a largest width of 1"):
        add(tmp_path / "run", "sides", place[1]["sides"], model=model)
    assert not (tmp_path / "run").exists()
    added = add(tmp_path / "run", "sides", place[1]["sides"], model=model, max_width=1)
    assert added.task["width"] == 1 and tasks.verify(tmp_path / "run").good


def test_a_residual_network_learns_tasks_across_growth(place, tmp_path):
    network_file(tmp_path)
    add(tmp_path / "run", "noise", place[1]["noise"], model=f"{tmp_path}/net.py:residual", goal=1.0, strict=True)
    before = scores_of(tmp_path / "run")
    add(tmp_path / "run", "sides", place[1]["sides"], goal=1.0, max_width=2.0)
    assert [task["width"] for task in tasks.listed(tmp_path / "run").tasks][0] == 1.5
    assert torch.equal(before["noise"], scores_of(tmp_path / "run")["noise"])


def test_other_stages_are_refused_in_a_run_of_tasks_and_status_tells_what_is_learned(place):
    run = place[0] / "run"
    more = {"freeze": ("--model", "zoo:vgg-digits", "--data", "digits"), "decompose": ("--speedup", "2x")}
    for command in ("freeze", "report", "evaluate", "export", "finetune", "decompose"):
        refused = decomp_command(command, "--run", run, *more.get(command, ()))
        fix = f"give tasks list, verify, export or report --run {run}, or another --run"
        assert refused.errors == [f"error: {run}: is a run of tasks; {fix}."], command
    shown = decomp_command("status", "--run", run).out
    assert "task noise" in shown and "4 in " in shown and f"next: decomp tasks verify --run {run}" in shown


def test_the_report_has_the_matrix_of_the_run(place):
    result = tasks.report(place[0] / "after-heights")
    table = (place[0] / "after-heights" / "report" / "matrix.csv").read_text().splitlines()
    assert table[0] == "accuracy_of,after_sides,after_heights" and table[1].split(",")[1] == table[1].split(",")[2]
    assert result.figures == ["matrix", "owners", "ladders"]


def test_exported_files_hold_the_task_without_this_package(place, tmp_path):
    result = tasks.export(place[0] / "run", name="thirds", formats="pt2", out=tmp_path)
    program = torch.export.load(result.files[0].path).module()
    with torch.no_grad():
        off = (program(IMAGES) - place[2][-1]["thirds"]).abs().max()
    assert off < 1e-5 and result.sizes.parameters_compact <= result.sizes.parameters


def test_an_export_of_an_unknown_task_is_refused_before_any_work(place, monkeypatch):
    monkeypatch.setattr(tasks, "export_task", lambda *_: pytest.fail("the export began"))
    with pytest.raises(UsageError, match="side: is no task of this run"):
        tasks.export(place[0] / "run", name="side", formats="pt2")


def test_the_commands_show_what_the_functions_return(place):
    run = place[0] / "run"
    shown = decomp_command("tasks", "list", "--run", run, "--json")
    assert [task["name"] for task in json.loads(shown.out)["tasks"]] == NAMES
    lines = decomp_command("tasks", "verify", "--run", run).out.splitlines()
    assert lines[0] == "sides: bit-identical (16 images)" and lines[-1] == "4 of 4 tasks are as they were committed"
    wrong = decomp_command("tasks", "lst", "--run", run)
    assert wrong.code == 2 and "did you mean list" in wrong.errors[0]
    gap = halves(place[0] / "gap.npz", 0, labels=lambda y: 2 * y)
    refused = decomp_command("tasks", "add", "--run", run, "--data", gap, "--name", "gap", "--goal", 0.5)
    assert refused.code == 2 and refused.errors[0].endswith("or say that there are 3 (--classes).")
    unknown = decomp_command("tasks", "export", "--run", run, "--name", "side")
    assert unknown.code == 2 and unknown.errors == ["error: side: is no task of this run; did you mean sides."]


def test_phases_keep_a_checkpoint_whatever_the_training_accuracy(place, tmp_path, monkeypatch):
    shutil.copytree(place[0] / "after-sides", tmp_path / "run")
    kept = []
    monkeypatch.setattr(phases, "clear", lambda work: kept.extend(path.name for path in work.glob("*.safetensors")))
    add(tmp_path / "run", "noise", place[1]["noise"], goal=0.3, train_gate=0.95, max_width=1.0)
    assert "finetune-1.00.safetensors" in kept
    facts = TaskStore.open(tmp_path / "run").tasks()[1].facts
    assert facts["attempts"][0]["training"] < 0.95 and facts["chosen"] == 0.0 and len(facts["ladder"]) == 1
