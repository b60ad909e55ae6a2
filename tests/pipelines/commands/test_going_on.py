"""Command line that goes on: without the option to start over where that would delete what the command has made."""

import os

import pytest

from decomp.pipelines.commands.going_on import command_of, going_on, value_of
from decomp.pipelines.run.directory import RunDirectory

BEGAN = 1e9  # of the command, in seconds since the epoch


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return RunDirectory.create("r")


def write(path, seconds):
    """A file that was written so many seconds after the command began."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (BEGAN + seconds, BEGAN + seconds))


def starts_over(line):
    """Whether the command that goes on starts over."""
    words = line.split()
    again = going_on(words, BEGAN)
    assert [word for word in again if word != "--redo"] == [word for word in words if word != "--redo"]
    return "--redo" in again


def test_an_option_is_read_in_both_forms_and_the_command_behind_flags():
    assert value_of(["--run", "a", "--lr=2"], "--run") == "a" and value_of(["--run", "a", "--lr=2"], "--lr") == "2"
    assert value_of(["--run"], "--run") == "" and value_of([], "--run") is None
    assert command_of(["--debug", "train", "--run", "r"]) == "train" and command_of([]) == ""


def test_a_command_that_does_not_start_over_stays_as_it_is(run):
    assert going_on("decompose --run r --speedup 2x".split(), BEGAN) == "decompose --run r --speedup 2x".split()


def test_a_decomposition_goes_on_where_the_one_that_is_there_is_its_own(run):
    line = "decompose --run r --speedup 4x --redo"
    assert starts_over(line)
    run.update_config("decompose", {"command": "decompose --run r --speedup 2x"})
    assert starts_over(line)  # stopped before the earlier one was deleted
    run.update_config("decompose", {"command": line})
    assert not starts_over(line) and not starts_over(f"--debug {line}")
    run.update_config("decompose", {"command": line, "macs_after": 1})
    write(run.model_dir / "structure.json", -5)
    assert starts_over(line)  # finished by an earlier call
    write(run.model_dir / "structure.json", 5)
    assert not starts_over(line)  # finished, and stopped while it was exported


@pytest.mark.parametrize("several", ["--speedup 2x,3x", "--speedup=2x,3x", "--max-drop 1%"])
def test_a_family_goes_on_where_one_of_its_runs_is_its_own(run, several):
    line = f"decompose --run r {several} --redo"
    member = RunDirectory.create("r-2x")
    member.update_config("decompose", {"command": line, "macs_after": 1})
    write(member.model_dir / "structure.json", -5)
    assert starts_over(line)
    RunDirectory.create("r-3x").update_config("decompose", {"command": line})
    assert not starts_over(line) and starts_over("decompose --run r --speedup 2x --redo")


@pytest.mark.parametrize(("command", "folder"), [("finetune", "finetune"), ("train", "trained")])
def test_a_first_training_goes_on_and_one_that_replaces_another_is_named_again(run, command, folder):
    checkpoint = run.path / folder / {"finetune": "checkpoint.pt", "train": "weights.checkpoint"}[command]
    line = f"{command} --run r --redo"
    assert starts_over(line)
    write(checkpoint, -5)
    assert starts_over(line)  # of an earlier call, which was to be replaced
    write(checkpoint, 5)
    assert not starts_over(line)
    # A finished one stays until the new one is whole, which lies beside it: the option leads there.
    run.update_config(command, {"asked": {}})
    assert starts_over(line)


def test_a_task_goes_on_where_its_own_files_are_there(run):
    line = "tasks add --run r --name a --redo"
    write(run.tasks_work / "asked.json", -5)
    assert starts_over(line)
    write(run.tasks_work / "asked.json", 5)
    assert not starts_over(line)


def test_a_pruning_is_given_again_as_it_was_and_so_is_a_command_on_a_run_that_cannot_be_read(run):
    run.update_config("prune", {"asked": {}})
    assert starts_over("prune --run r --ratio 0.5 --redo")
    run.run_json.write_text("{")
    assert starts_over("decompose --run r --speedup 2x --redo") and starts_over("finetune --run r --redo")
