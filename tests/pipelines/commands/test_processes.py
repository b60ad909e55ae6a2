import signal
import sys

import pytest

from decomp.errors import UsageError
from decomp.pipelines.commands import processes
from decomp.pipelines.distributed import own_copy, process_group
from decomp.pipelines.run.directory import RunDirectory

ARGS = ["decompose", "--run", "r", "--redo"]
AGAIN = "start the same torchrun command again to go on."
LOST = f"error: processes: another one of this job has ended; {AGAIN}"


@pytest.fixture
def first(monkeypatch):
    answers = [True, False]
    monkeypatch.setattr(process_group, "first_to_say", lambda: answers.pop(0))


def test_one_of_several_processes_prints_the_error_in_the_words_of_the_user(first, monkeypatch):
    monkeypatch.setitem(own_copy._originals, "/tmp/copy/run", "runs/vgg")
    error, line = UsageError("x", "y"), "error: /tmp/copy/run: y."
    assert processes.said_once(line, error, ARGS, 0.0) == "error: runs/vgg: y."
    assert processes.said_once(line, error, ARGS, 0.0) is None


@pytest.mark.parametrize("text", ["Connection closed by peer [127.0.0.1]:4", "[../gloo/transport/tcp/pair.cc:534] x"])
def test_a_lost_connection_is_the_end_of_another_process(first, text):
    assert processes.said_once("error: internal", RuntimeError(text), ARGS, 0.0) == LOST


def test_other_errors_keep_their_line(first):
    assert processes.said_once("error: internal", RuntimeError("index out of range"), ARGS, 0.0) == "error: internal"


def test_the_second_ctrl_c_says_nothing(first):
    assert processes.said_once("stopped", KeyboardInterrupt(), ARGS, 0.0) == f"stopped; {AGAIN}"
    assert processes.said_once("stopped", KeyboardInterrupt(), ARGS, 0.0) is None


def test_what_is_kept_is_not_deleted_by_the_command_that_goes_on(first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = {"asked": {"speedup": 2.0}, "command": "decompose --run r --redo"}
    RunDirectory.create("r").update_config("decompose", command)
    told = processes.said_once("stopped", KeyboardInterrupt(), ARGS, 0.0)
    assert told == "stopped; start the same torchrun command again without --redo to go on."


def test_before_torch_is_loaded_the_first_process_speaks(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, line in (("0", "error: x"), ("1", None)):
        monkeypatch.setenv("RANK", rank)
        assert processes.said_once("error: x", UsageError("x", "y"), ARGS, 0.0) == line


@pytest.mark.parametrize("rank, line", [("0", f"stopped; {AGAIN}"), ("1", None)])
def test_while_a_library_does_not_return_the_first_process_speaks(monkeypatch, rank, line):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert processes.said_while_busy(ARGS, 0.0) == line


def test_a_process_that_torchrun_ends_says_why_and_leaves_no_copy_of_the_run(first, monkeypatch, capsys, tmp_path):
    ended, copy = [], tmp_path / "copy"
    (copy / "run" / "layers").mkdir(parents=True)
    monkeypatch.setattr(own_copy, "_originals", {str(copy / "run"): "runs/vgg"})
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGTERM)
    try:
        processes.end_with_others(ARGS)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not copy.exists()
    assert ended == [143, 143] and capsys.readouterr().err == f"{LOST}\n"
