"""Atomic writes: a failed, killed or refused write leaves the older file and nothing else."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from decomp.data.formats.atomic import commit, commit_directory, require_space, sweep
from decomp.errors import FileError


def test_a_commit_appears_only_at_its_end(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with commit(path) as part:
        part.write_bytes(b"1")
        assert not path.exists() and part.parent == path.parent and part.suffix == path.suffix
    assert path.read_bytes() == b"1" and os.listdir(path.parent) == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions there")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_permissions_are_those_of_any_new_file_whoever_wrote_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with commit(tmp_path / "a.safetensors") as part:
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        with commit_directory(tmp_path / "model") as part:
            os.close(os.open(part / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for path in (tmp_path / "a.safetensors", tmp_path / "model" / "weights"):
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("error", [RuntimeError("broke"), KeyboardInterrupt()])
def test_a_failed_commit_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), commit(path) as part:
        part.write_bytes(b"new")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_a_directory_replaces_the_older_one_as_a_whole(tmp_path):
    path = tmp_path / "model"
    for generation in ("first", "second"):
        with commit_directory(path) as part:
            (part / generation).write_text(generation)
        assert os.listdir(path) == [generation]
    assert os.listdir(tmp_path) == ["model"]


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    with commit_directory(path) as part:
        (part / "first").write_text("1")
    with pytest.raises(ZeroDivisionError), commit_directory(path) as part:
        (part / "second").write_text("2")
        raise ZeroDivisionError
    assert os.listdir(path) == ["first"] and os.listdir(tmp_path) == ["model"]


def test_a_directory_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with commit_directory(path) as part:
        (part / "first").write_text("1")
    replace = os.replace

    def fails_for_the_new_one(source, target):
        if ".part-" in str(source):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(FileError, match="disk is full"), commit_directory(path) as part:
        (part / "second").write_text("2")
    assert os.listdir(path) == ["first"] and os.listdir(tmp_path) == ["model"]


def killed_during(code, folder):
    """Run `code` in another process until it says that it is there, then end it with SIGKILL."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from decomp.data.formats.atomic import commit, commit_directory\n" + textwrap.dedent(code)
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_what_a_killed_writer_leaves_is_swept(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / ".hidden").write_text("somebody's")
    code = """
        with commit(Path(sys.argv[1], "a.json")) as part:
            part.write_text('{"half":')
            print("there", flush=True)
            time.sleep(60)
    """
    killed_during(code, tmp_path)
    assert len(os.listdir(tmp_path)) == 3
    assert len(sweep(tmp_path)) == 1
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a.json"]
    assert (tmp_path / "a.json").read_text() == "{}"


def test_a_directory_killed_between_its_two_renames_comes_back(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "first").write_text("1")
    code = """
        replace = os.replace
        def stop_at_the_second(source, target):
            if ".part-" in str(source):
                print("there", flush=True)
                time.sleep(60)
            replace(source, target)
        os.replace = stop_at_the_second
        with commit_directory(Path(sys.argv[1], "model")) as part:
            (part / "second").write_text("2")
    """
    killed_during(code, tmp_path)
    assert not (tmp_path / "model").exists()
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["first"]


@pytest.mark.parametrize(
    "error, says",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (RuntimeError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"), "disk is full"),
        (OSError("[Errno 28] Can't write data (error message = 'No space left on device')"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "writable"),
        (OSError(errno.EROFS, "Read-only file system"), "writable"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, error, says):
    path = tmp_path / "a.json"
    with pytest.raises(FileError, match=says) as caught, commit(path):
        raise error
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # torch holds on to a file whose write failed


def write_with_safetensors(path, array):
    from safetensors.numpy import save_file

    save_file({"x": array}, str(path))


def write_with_torch(path, array):
    import torch

    torch.save({"x": torch.from_numpy(array)}, path)


def write_with_hdf5(path, array):
    import h5py

    with h5py.File(path, "w") as file:
        file["x"] = array


@pytest.mark.parametrize(
    "write, suffix",
    [
        (write_with_safetensors, ".safetensors"),
        (write_with_torch, ".pt"),
        (write_with_hdf5, ".h5"),
        (lambda path, array: np.savez(path, x=array), ".npz"),
        (lambda path, array: path.write_bytes(array.tobytes()), ".bin"),
    ],
)
def test_a_disk_that_fills_up_is_named_whichever_library_writes(small_disk, write, suffix):
    path = small_disk / f"a{suffix}"
    with commit(path) as part:
        write(part, np.zeros(1000, np.float32))
    before = path.read_bytes()
    for write_whole, inner in ((commit, ""), (commit_directory, "weights" + suffix)):
        target = path if not inner else small_disk / "model"
        with pytest.raises(FileError, match="the disk is full, nothing was changed"), write_whole(target) as part:
            write(part / inner if inner else part, np.zeros((1000, 1000), np.float32))
    assert os.listdir(small_disk) == [path.name] and path.read_bytes() == before
    with commit(path) as part:  # there is room again for what fits
        write(part, np.ones(1000, np.float32))
    assert path.read_bytes() != before


def test_an_error_about_another_file_is_not_taken_for_ours(tmp_path):
    other = tmp_path.parent / "elsewhere.bin"
    with pytest.raises(FileNotFoundError), commit(tmp_path / "a.json"):
        open(other, "rb")
    with pytest.raises(PermissionError), commit(tmp_path / "a.json"):
        raise PermissionError(errno.EACCES, "Permission denied", "/etc/shadow")


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "layers").write_text("not a folder")
    with pytest.raises(FileError, match="in the way"), commit(tmp_path / "layers" / "a.json"):
        pass


def test_space_is_asked_for_before_work_starts(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet.h5", 1)
    with pytest.raises(FileError, match="MiB of disk are needed, got .* MiB free"):
        require_space(tmp_path / "yet.h5", 2**60)
