"""Report of evaluate read back: none, a whole one, a damaged one."""

from types import SimpleNamespace

import pytest

from decomp.data.formats.json_files import write_json
from decomp.errors import FileError
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.evaluated import KIND, keep_unusable, read_evaluation


@pytest.mark.parametrize("text", ["", '{"format": "decomp report", "rows"', "[1]", '{"format": "another"}', "\xff"])
def test_a_damaged_report_is_an_error_that_names_it_and_no_report_is_none(tmp_path, text):
    run = RunDirectory.create(tmp_path / "run")
    assert read_evaluation(run) is None
    write_json(run.report_json, {"rows": 3}, kind=KIND)
    assert read_evaluation(run)["rows"] == 3
    run.report_json.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match="report.json: .*; put a copy of it back, or delete it and run evaluate again"):
        read_evaluation(run)
    assert run.report_json.read_bytes() == text.encode("latin-1")


def test_a_report_with_another_value_in_it_is_damaged_and_one_of_an_earlier_version_has_no_digest(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    write_json(run.report_json, {"rows": [{"top1": 0.95}]}, kind=KIND, seal=True)
    assert read_evaluation(run)["rows"] == [{"top1": 0.95}]
    run.report_json.write_text(run.report_json.read_text().replace("0.95", "0.99"))
    with pytest.raises(FileError, match="report.json: the file must match the digest in it, got a damaged or edited"):
        read_evaluation(run)
    write_json(run.report_json, {"rows": [{"top1": 0.99}]}, kind=KIND)
    assert read_evaluation(run)["rows"] == [{"top1": 0.99}]


def test_a_report_that_is_put_aside_keeps_its_content(tmp_path):
    run, lines = RunDirectory.create(tmp_path / "run"), []
    reporter = SimpleNamespace(warn=lines.append)
    keep_unusable(run, reporter)
    assert lines == []
    write_json(run.report_json, {"rows": 3}, kind=KIND)
    before = run.report_json.read_bytes()
    keep_unusable(run, reporter)
    assert not run.report_json.exists() and len(lines) == 1
    assert (run.path / "report.previous.json").read_bytes() == before
