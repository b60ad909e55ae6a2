"""Every stage on a disk that is full or may not be written to: one clear line, and it goes on once there is room."""

import shutil
import subprocess

import pytest

from tests.pipelines.forked import STAGES, litter, results


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of eight MiB."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def leave(disk, n_bytes):
    """Fill the disk up to so many bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(b"\1" * max(shutil.disk_usage(disk).free - n_bytes, 0))


def contents(run):
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def lasting(found):
    """Without the log, and the configuration, which notes that a stage was begun."""
    return {name: data for name, data in found.items() if name not in ("log.jsonl", "run.json", ".lock")}


def refused(ended):
    """The line that a stage ended with; None where it ended well."""
    if ended.code == 0:
        return None
    *_, line = ended.text.strip().splitlines()
    assert ended.code == 1 and line.startswith("error: ") and "Traceback" not in ended.text, ended.text
    return line


@pytest.mark.fault("full disk", "a disk with 0, 12 or 40 KiB left, at every stage")
def test_a_stage_on_a_full_disk_loses_nothing_and_goes_on_once_there_is_room(stages, whole, disk, record_property):
    _, wanted = whole
    run, kinds, times = disk / "run", set(), 0
    for stage in STAGES:
        for free in (0, 12 * 1024, 40 * 1024):
            before = contents(run)
            leave(disk, free)
            line = refused(stages.start(stage, run))
            if line is None:
                break  # so little is enough
            times += 1
            kinds.add("full" if "the disk is full" in line else "asked before")
            assert "the disk is full, nothing was changed; make room" in line or "of disk are needed" in line, line
            # What was whole before is whole still; finished layers may have been added.
            assert lasting(before).items() <= lasting(contents(run)).items()
            assert litter(run) == []
        (disk / "ballast").unlink(missing_ok=True)
        ended = stages.start(stage, run)
        assert ended.code == 0, ended.text
    assert kinds == {"full", "asked before"}
    record_property("times", times)
    found = results(run)
    assert [name for name in wanted if found.get(name) != wanted[name]] == []


@pytest.mark.fault("unwritable folder", "a disk mounted for reading only")
def test_a_disk_that_may_not_be_written_to_is_named(stages, whole, disk, record_property):
    run = disk / "read-only"
    shutil.copytree(stages.folder / "whole", run)
    shutil.rmtree(run / "model")
    before = contents(run)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        assert "must be writable" in refused(stages.start("decompose", run))
        assert "nothing can be written into" in refused(stages.start("freeze", disk / "new"))
        assert contents(run) == before
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert stages.start("decompose", run).code == 0
    record_property("times", 2)
