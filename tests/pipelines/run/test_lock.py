"""Lock of a run directory: one process at a time, also after a kill."""

import os
import signal
import subprocess
import sys

import pytest

from decomp.errors import FileError
from decomp.pipelines.run import lock as lock_module
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


HOLD = """
import sys, time
from decomp.pipelines.run.directory import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(run):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.fault("second process", "a lock held by a living process")
def test_a_second_process_is_refused_and_the_owner_named(run, holder):
    with pytest.raises(FileError, match=f"one process at a time .* pid {holder.pid} on ") as caught, run.lock():
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.fault("dead owner", "a lock and half-written files of a killed process")
def test_the_lock_of_a_killed_process_is_free(run, holder):
    parts = [run.path / ".run.part-0123456789ab.json", run.path / "frozen.h5.part"]
    for part in parts:
        part.write_bytes(b"half")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert run.owner()["pid"] == holder.pid  # what it left behind
    with run.lock():
        assert run.owner()["pid"] == os.getpid()
        assert not any(part.exists() for part in parts)
    assert run.owner() == {}


def test_two_objects_in_one_process_exclude_each_other_but_one_may_lock_again(run):
    with run.lock():
        with run.lock(), RunDirectory(run).lock():
            pass
        with pytest.raises(FileError, match=f"pid {os.getpid()}"), RunDirectory(run.path).lock():
            pass
    with RunDirectory(run.path).lock():
        pass


def test_the_lock_is_free_after_an_error(run):
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with RunDirectory(run.path).lock():
        pass


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', '{"pid": 99999999999999999999, "host": "HERE"}'])
def test_a_broken_owner_file_harms_nothing(run, content, monkeypatch):
    monkeypatch.setattr(lock_module.socket, "gethostname", lambda: "HERE")
    run.owner_json.write_text(content)
    with run.lock():
        run.owner_json.write_text(content)
        with pytest.raises(FileError, match="one process at a time"), RunDirectory(run.path).lock(patience=0):
            pass


def test_only_a_living_owner_is_the_current_one(run, monkeypatch):
    assert run.current_owner() == {}
    with run.lock():
        assert run.current_owner()["pid"] == os.getpid()
        assert RunDirectory(run.path).current_owner()["command"]
    assert run.current_owner() == {}
