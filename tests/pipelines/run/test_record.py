"""Library versions and the log of a run."""

import platform

import pytest
import torch

import decomp
from decomp.pipelines.run import record
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def test_a_torn_log_is_read_up_to_the_tear(run):
    run.log.write_text('{"message": "one"}\n[]\n{"message": "two"}\n{"mess')
    assert [event["message"] for event in record.read_log(run.log)] == ["one", "two"]
    assert record.read_log(run.path / "none.jsonl") == []


def test_versions_are_those_in_use_and_a_missing_library_is_told(monkeypatch):
    versions = record.library_versions()
    assert versions["python"] == platform.python_version() and versions["decomp"] == decomp.__version__
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    monkeypatch.setattr(record, "LIBRARIES", ("no-such-library",))
    assert record.library_versions()["no-such-library"] == "not installed"
