"""What is said after Ctrl-C, and that a command ends soon after it though a library does not return."""

import os
import signal
import subprocess
import sys
import time

import pytest
from checkout import ROOT

from decomp.pipelines.commands import interrupt
from decomp.pipelines.commands.interrupt import quick_end, stopped_line
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["decomp"])
    monkeypatch.chdir(tmp_path)
    return RunDirectory.create("r")


def kept(line):
    """The kept things, or None where the line says that there are none."""
    told = stopped_line(line.split())
    if told == f"stopped; nothing of this command is kept. To begin again: decomp {line}":
        return None
    assert told.startswith("stopped; kept: ") and told.endswith(f". To go on: decomp {line}")
    return told.removeprefix("stopped; kept: ").split(". To go on")[0]


def test_an_early_end_of_freeze_keeps_nothing_and_says_so(run):
    assert kept("freeze --model zoo:a --run elsewhere") is None
    run.original_dir.mkdir()
    assert kept("freeze --model zoo:a --run r") is None
    run.frozen.write_bytes(b"x")
    run.update_config("freeze", {"asked": {}})
    assert kept("freeze --model zoo:a --run=r") == "the frozen points"


def test_the_masked_demo_keeps_nothing(run):
    RunDirectory.create("runs/demo")
    assert kept("demo") == "the finished stages" and kept("demo masked --data digits") is None


def test_tasks_that_are_learned_are_kept_with_the_epochs_of_the_next_one(run):
    line = "tasks add --run r --name b"
    assert kept(line) is None
    run.tasks_work.mkdir(parents=True)
    assert kept(line) == "the finished epochs of the one begun"
    for number in (1, 2):
        (run.tasks_dir / f"00{number}_a.safetensors").write_bytes(b"x")
    assert kept(line) == "2 learned tasks and the finished epochs of the one begun"
    assert kept("demo tasks") is None and kept("demo tasks --run r").startswith("2 learned tasks")


def test_decompose_keeps_its_survey_its_plan_and_its_layers(run):
    line = "--debug decompose --run r --speedup 4x"
    assert kept(line) is None
    run.curves.write_bytes(b"x")
    assert kept(line) == "the survey"
    run.plan_json.write_text("{}")
    assert kept(line) == "the survey and the plan"
    run.layers_dir.mkdir()
    for number, words in enumerate(("1 finished layer", "2 finished layers")):
        run.layer_file(number, "x").write_bytes(b"x")
        assert kept(line) == f"the survey, the plan and {words}"
    run.blocks_dir.mkdir()
    run.block_file(0).write_bytes(b"x")
    assert kept(line) == "the survey, the plan, 2 finished layers and 1 refined block"
    assert kept("decompose --run r --speedup 2x,3x") == "the survey and the finished layers of each run"


def test_going_on_does_not_delete_the_layers_that_are_kept(run):
    command = "decompose --run r --speedup 4x --redo"
    run.layers_dir.mkdir()
    run.layer_file(0, "x").write_bytes(b"x")
    run.update_config("decompose", {"command": command})
    assert interrupt.stopped_line(command.split()).endswith("To go on: decomp decompose --run r --speedup 4x")
    run.update_config("decompose", {"command": "decompose --run r --speedup 2x"})
    assert interrupt.stopped_line(command.split()).endswith(f"To go on: decomp {command}")


def test_an_unfinished_survey_keeps_the_layers_it_has_measured(run):
    run.curves_dir.mkdir()
    for name in ("metrics", "0", "1"):
        (run.curves_dir / f"{name}.npz").touch()
    assert interrupt._kept_of_decompose(run, []) == "the error curves of 2 layers"


def test_finetune_keeps_the_epochs_of_its_checkpoint(run):
    with Reporter.for_run(run, quiet=True).stage("finetune") as reporter:
        reporter.step("epoch 2 of 5: loss 1")
    assert kept("finetune --run r") is None
    run.finetune_dir.mkdir()
    (run.finetune_dir / "checkpoint.pt").write_bytes(b"x")
    assert kept("finetune --run r") == "everything up to epoch 2 of 5"
    with reporter.stage("finetune"):
        reporter.step("epoch 3 of 5: loss 379", saved=False)
    assert kept("finetune --run r") == "everything up to epoch 2 of 5"


def test_train_keeps_epochs_beside_the_file_it_writes(run, tmp_path):
    assert kept("train --model zoo:a") is None
    (tmp_path / "a.checkpoint").write_bytes(b"x")
    assert kept("train --model zoo:a") == "the finished epochs"
    assert kept("train --model zoo:a --out b.safetensors") is None
    assert kept("train --model zoo:a --run r") is None
    run.trained_weights.parent.mkdir()
    run.trained_weights.with_suffix(".checkpoint").write_bytes(b"x")
    assert kept("train --model zoo:a --run r") == "the finished epochs"


def test_slim_keeps_what_its_passes_have_finished(run, tmp_path):
    assert kept("slim --model zoo:a --run s") is None
    RunDirectory.create(tmp_path / "s-pass1")
    assert kept("slim --model zoo:a --run s") == "the finished passes, stages and epochs"


@pytest.mark.parametrize("line", ["evaluate --run r", "inspect --model zoo:a", "export --run r --out x"])
def test_commands_without_intermediate_results_keep_nothing(run, line):
    assert kept(line) is None


def test_a_run_that_cannot_be_read_is_no_reason_for_another_error(run):
    run.run_json.write_text("{")
    assert kept("freeze --run r") is None


def test_after_the_block_ctrl_c_is_as_before():
    # A process that a shell started in the background ignores Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _ctrl_c_is_as_before()
    finally:
        signal.signal(signal.SIGINT, handler)


def _ctrl_c_is_as_before():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with quick_end(["demo"]):
        pass
    assert signal.set_wakeup_fd(before) == before
    with pytest.raises(KeyboardInterrupt), quick_end(["demo"]):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


STUCK = """
import signal, sys, threading, time
import decomp
from decomp.pipelines.commands import interrupt
interrupt.GRACE = 0.2
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, where it is ignored
with interrupt.quick_end(["evaluate", "--run", "r"]):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(60)  # as a library that does not return
"""


@pytest.mark.parametrize(
    "given, line",
    [
        ({}, "nothing of this command is kept. To begin again: decomp evaluate --run r"),
        (
            {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"},
            "start the same torchrun command again to go on.",
        ),
    ],
)
def test_a_process_that_does_not_return_is_ended_with_its_line(tmp_path, given, line):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **given}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=tmp_path,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, time.monotonic() - begun < 15) == (interrupt.CODE, True)
    assert err == f"\nstopped; {line}\n"
