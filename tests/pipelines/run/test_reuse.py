"""Frozen points used again: a new run from those of another, and starting over in a run."""

import pytest

from decomp.data.formats.digests import digest_file
from decomp.errors import FileError, UsageError
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.run import reuse
from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.digit_runs import Collected

OPTIONS = DecomposeOptions(speedup=4)


@pytest.fixture
def source(tmp_path):
    run = RunDirectory.create(tmp_path / "source")
    run.frozen.write_bytes(b"points")
    run.original_dir.mkdir()
    (run.original_dir / "structure.json").write_text("{}")
    run.update_config("freeze", {"asked": {"model": "a", "data": "digits"}})
    return run


def decomposed(run, plan, plan_digest=None):
    run.plan_json.write_text(plan)
    for folder in (run.model_dir, run.layers_dir, run.finetune_dir):
        folder.mkdir()
    run.report_json.write_text("{}")
    digest = plan_digest or digest_file(run.plan_json)
    run.update_config("decompose", {"asked": OPTIONS.to_json(), "plan_digest": digest})
    run.update_config("finetune", {"asked": {}})


def test_a_new_run_has_the_points_and_the_original_and_nothing_else(source, tmp_path):
    source.curves.write_bytes(b"curves")
    decomposed(source, "{}")
    run = reuse.borrow(tmp_path / "new", source)
    assert run.frozen.read_bytes() == b"points" and run.curves.read_bytes() == b"curves"
    assert run.config("freeze") == source.config("freeze") and run.config("decompose") is None
    assert not run.model_dir.exists() and (run.original_dir / "structure.json").is_file()
    assert reuse.borrow(tmp_path / "new", source).path == run.path  # once more is no error


def test_copies_where_links_cannot_be_made(source, tmp_path, monkeypatch):
    def no_links(*arguments):
        raise OSError("not on this disk")

    monkeypatch.setattr(reuse.os, "link", no_links)
    assert reuse.borrow(tmp_path / "new", source).frozen.read_bytes() == b"points"


def test_a_run_with_other_points_is_refused(source, tmp_path):
    other = RunDirectory.create(tmp_path / "new")
    other.update_config("freeze", {"asked": {"model": "b", "data": "digits"}})
    with pytest.raises(UsageError, match="was frozen differently from"):
        reuse.borrow(other, source)


def test_a_source_without_points_is_refused(source, tmp_path):
    source.frozen.unlink()
    with pytest.raises(FileError, match="holds no frozen points; run freeze --run"):
        reuse.borrow(tmp_path / "new", source)


def test_starting_over_keeps_the_points_alone(source):
    decomposed(source, "{}")
    assert not reuse.keeps_plan(source, OPTIONS)  # not edited
    reuse.clear(source, OPTIONS)
    assert source.frozen.is_file() and source.config("freeze")
    gone = (source.plan_json, source.model_dir, source.layers_dir, source.finetune_dir, source.report_json)
    assert not any(path.exists() for path in gone)
    assert source.config("decompose") is None and source.config("finetune") is None


def test_a_plan_that_was_edited_stays_for_the_same_options_and_is_put_aside_for_others(source):
    decomposed(source, '{"edited": 1}', plan_digest="0" * 64)
    assert reuse.keeps_plan(source, OPTIONS) and not reuse.keeps_plan(source, DecomposeOptions(speedup=3))
    reuse.clear(source, OPTIONS)
    assert source.plan_json.read_text() == '{"edited": 1}'
    source.update_config("decompose", {"asked": OPTIONS.to_json(), "plan_digest": "0" * 64})
    reuse.clear(source, DecomposeOptions(speedup=3))
    assert not source.plan_json.exists()
    assert source.plan_json.with_name("plan.previous.json").read_text() == '{"edited": 1}'


def refused(path, source, work=None, error=None):
    """The lines that are printed where an error ends a block, which may have done some work before."""
    reporter, error = Collected(), error or UsageError("--skip", "no such layer")
    with pytest.raises(type(error)), reuse.opened(path, source, reporter) as made, made.lock():
        assert made.frozen.read_bytes() == b"points"
        if work is not None:
            work(made)
        raise error
    return reporter.messages


def test_a_refused_call_leaves_no_run_behind(source, tmp_path):
    source.curves.write_bytes(b"curves")
    assert refused(tmp_path / "new", source) == [] and not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", source) == [] and list((tmp_path / "empty").iterdir()) == []
    assert source.curves.read_bytes() == b"curves" and source.frozen.read_bytes() == b"points"


def test_an_error_does_not_cost_what_was_computed_or_was_there_before(source, tmp_path):
    new = tmp_path / "new"
    lines = refused(new, source, lambda run: run.curves.write_bytes(b"curves"))
    assert lines == [f"{new}: what was computed so far is kept there, for a call with other options"]
    assert (new / "curves.npz").read_bytes() == b"curves"
    (new / "curves.npz").unlink()
    assert refused(new, source) == [] and (new / "frozen.h5").is_file()


def test_a_call_that_is_stopped_keeps_its_run(source, tmp_path):
    refused(tmp_path / "new", source, error=KeyboardInterrupt())
    assert (tmp_path / "new" / "frozen.h5").is_file()


def test_without_another_run_the_run_itself_is_opened_and_stays(source):
    with pytest.raises(UsageError), reuse.opened(source, None, Collected()) as same:
        assert same.path == source.path
        raise UsageError("--skip", "no such layer")
    assert source.frozen.is_file()


def test_a_run_that_is_to_be_made_anew_is_noted_with_its_options_until_it_is_cleared(source, tmp_path):
    reuse.note_redo(source, OPTIONS)
    reuse.note_redo(RunDirectory(tmp_path / "none"), OPTIONS)
    assert source.config("decompose") is None and not (tmp_path / "none").exists()
    decomposed(source, "{}")
    before = source.read_config()
    assert not reuse.is_noted_for_redo(source, OPTIONS)
    reuse.note_redo(source, OPTIONS)
    assert reuse.is_noted_for_redo(source, OPTIONS)
    assert not reuse.is_noted_for_redo(source, DecomposeOptions(speedup=4, selector="lasso"))
    noted = source.read_config()
    assert noted["stages"]["decompose"].pop("redo") and noted == before
    reuse.clear(source, OPTIONS)
    assert not reuse.is_noted_for_redo(source, OPTIONS)
