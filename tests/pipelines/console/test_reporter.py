"""What a reporter shows on a terminal and elsewhere, and what log.jsonl keeps."""

import io
import json
import time

import pytest

from decomp.errors import NumericalError, UsageError
from decomp.pipelines.console import reporter as module
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.record import read_log
from decomp.time_spent import part


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_each_step_is_one_line_and_one_event(tmp_path):
    stream = io.StringIO()
    reporter = Reporter(tmp_path / "log.jsonl", stream=stream)
    with reporter.stage("decompose"):
        reporter.step("conv1: rank 3", layer="conv1", rank=3)
    assert stream.getvalue() == "conv1: rank 3\n"
    begin, step, end = read_log(tmp_path / "log.jsonl")
    assert (step["message"], step["rank"], step["stage"]) == ("conv1: rank 3", 3, "decompose")
    assert begin["event"] == "begin" and end["event"] == "end" and end["took"] >= 0
    assert begin["seconds"] <= step["seconds"] <= end["seconds"]


def test_a_stage_that_stops_says_why_in_the_log(tmp_path):
    reporter = Reporter(tmp_path / "log.jsonl", quiet=True)
    with pytest.raises(KeyboardInterrupt), reporter.stage("finetune"):
        raise KeyboardInterrupt
    last = read_log(tmp_path / "log.jsonl")[-1]
    assert last["message"] == "finetune stopped: KeyboardInterrupt" and last["times"][0]["seconds"] >= 0


def test_the_log_tells_a_refused_command_from_one_that_failed(tmp_path):
    reporter = Reporter(tmp_path / "log.jsonl", quiet=True)
    for error in (UsageError("--lr", "is too high"), NumericalError("epoch 1", "diverges")):
        with pytest.raises(type(error)), reporter.stage("finetune"):
            raise error
    stops = [event for event in read_log(tmp_path / "log.jsonl") if event.get("event") == "stop"]
    assert [event.get("refused") for event in stops] == [True, None]


def test_quiet_shows_nothing_and_logs_all(tmp_path):
    stream = Terminal()
    reporter = Reporter(tmp_path / "log.jsonl", quiet=True, stream=stream)
    reporter.step("one")
    reporter.warn("two")
    with reporter.progress(2, "three") as progress:
        progress.update(2)
    assert stream.getvalue() == ""
    assert [event["message"][:5] for event in read_log(tmp_path / "log.jsonl")] == ["one", "two", "three"]


def test_nothing_is_written_into_a_folder_that_is_no_run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    reporter = Reporter.for_run(run, quiet=True)
    reporter.step("before")
    assert not run.path.exists()
    run.path.mkdir()
    reporter.step("still no run")
    assert list(run.path.iterdir()) == []
    RunDirectory.create(run)
    reporter.step("after")
    assert [event["message"] for event in read_log(run.log)] == ["before", "still no run", "after"]


def test_progress_elsewhere_than_on_a_terminal_is_one_line_at_the_end():
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    with reporter.progress(1000, "reading", unit="images") as progress:
        for _ in range(10):
            progress.update(100)
            assert stream.getvalue() == ""
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().startswith("reading: 1,000 images in ")


def test_progress_on_a_terminal_moves_and_lets_lines_through():
    stream = Terminal()
    reporter = Reporter(stream=stream)
    with reporter.progress(10, "reading", unit="images") as progress:
        progress.update(5)
        reporter.step("a line in between")
        progress.update(5)
    shown = stream.getvalue()
    assert "0/10" in shown and "a line in between\n" in shown
    assert "\r" in shown and shown.endswith("\n")


def test_progress_that_fails_claims_nothing(tmp_path):
    stream = io.StringIO()
    reporter = Reporter(tmp_path / "log.jsonl", stream=stream)
    with pytest.raises(ZeroDivisionError), reporter.progress(10, "reading") as progress:
        progress.update(5)
        raise ZeroDivisionError
    assert stream.getvalue() == "" and read_log(tmp_path / "log.jsonl") == []


def test_a_line_torn_by_a_kill_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"message": "one"}\n{"mess')
    Reporter(path, quiet=True).step("two")
    assert [event["message"] for event in read_log(path)] == ["one", "two"]


def test_a_log_that_cannot_be_written_is_said_once_and_the_work_goes_on(tmp_path):
    stream = io.StringIO()
    (tmp_path / "log.jsonl").mkdir()
    reporter = Reporter(tmp_path / "log.jsonl", stream=stream)
    reporter.step("one")
    reporter.step("two")
    assert stream.getvalue().count("no further steps are logged") == 1
    assert stream.getvalue().endswith("two\n")


def test_events_are_plain_json_whatever_the_fields(tmp_path):
    torch = pytest.importorskip("torch")
    Reporter(tmp_path / "log.jsonl", quiet=True).step("x", error=torch.tensor(0.5), where=tmp_path)
    event = json.loads((tmp_path / "log.jsonl").read_text())
    assert event["error"] == 0.5 and event["where"] == str(tmp_path)


def test_details_are_printed_only_where_asked_for_and_always_logged(tmp_path):
    for verbose, shown in ((False, ""), (True, "conv1\n")):
        stream = io.StringIO()
        reporter = Reporter(tmp_path / f"{verbose}.jsonl", stream=stream, verbose=verbose)
        reporter.detail("conv1", rank=3)
        assert stream.getvalue() == shown
        assert [event["rank"] for event in read_log(reporter.log_path)] == [3]


def test_a_stage_numbers_its_phases():
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    with reporter.stage("decompose", ["survey", "plan"]):
        reporter.phase("survey")
        reporter.phase("plan")
        reporter.phase("unannounced")
    assert stream.getvalue() == "decompose 1 of 2: survey\ndecompose 2 of 2: plan\ndecompose: unannounced\n"


def test_a_phase_says_the_time_left_of_all_expected_steps(monkeypatch):
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    with reporter.stage("decompose", ["survey", "fit"]):
        reporter.expect({"curves": 1, "layers": 1})
        with reporter.progress(10, "curves", "layers", summary=False) as progress:
            progress.start -= 240
            reporter._work.start -= 240
            progress.update(10)
        reporter.phase("fit")
    assert stream.getvalue() == "decompose 2 of 2: fit, about 4 min left\n"


def test_a_long_step_is_never_silent_for_long(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.1)
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    with reporter.stage("decompose", ["fit"]):
        time.sleep(0.25)
        with reporter.progress(24, "layers", "layers", summary=False) as progress:
            progress.update(3)
            time.sleep(0.25)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("decompose: 0.") and "so far" in lines[0]
    assert any(line.startswith("layers: 3 of 24 layers, 0.") for line in lines)
    assert 2 <= len(lines) <= 5


def test_a_line_within_a_unit_names_it_and_the_part_of_the_work(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.1)
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    with reporter.stage("decompose", ["fit"]), reporter.progress(24, "fit", "layers", summary=False) as progress:
        progress.begin("features.24")
        with part("refinement"), part("forward"):
            time.sleep(0.25)
    (line, *_) = stream.getvalue().splitlines()
    assert line.startswith("fit: 0 of 24 layers, 0.") and line.endswith("s (refinement)") and "features.24 for" in line


def test_a_bar_is_drawn_again_in_a_long_unit_of_work(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.1)
    stream = Terminal()
    reporter = Reporter(stream=stream)
    with reporter.stage("decompose", ["fit"]), reporter.progress(24, "layers", "layers", summary=False):
        drawn = stream.getvalue()
        time.sleep(0.35)
        assert stream.getvalue()[len(drawn) :].count("layers:   0 %") >= 2


def test_lines_of_its_own_postpone_the_repetition_and_quiet_prevents_it(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.3)
    spoken, quiet = io.StringIO(), io.StringIO()
    with Reporter(stream=spoken).stage("a") as reporter, Reporter(stream=quiet, quiet=True).stage("a"):
        for _ in range(4):
            time.sleep(0.1)
            reporter.step("line")
    assert spoken.getvalue() == "line\n" * 4 and quiet.getvalue() == ""


def test_nothing_is_said_after_the_end(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.05)
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), Reporter(stream=stream).stage("a"):
        raise ZeroDivisionError
    time.sleep(0.15)
    assert stream.getvalue() == ""


def test_in_a_notebook_progress_is_a_bar_and_lines_are_not_repeated(monkeypatch):
    made = []

    class Widget:
        n = 0

        def update(self, n):
            self.n += n

        def refresh(self):
            pass

        def close(self):
            self.closed = True

    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    monkeypatch.setattr(module, "make_bar", lambda *arguments: made.append(Widget()) or made[-1])
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    with reporter.stage("a"), reporter.progress(3, "b", summary=False) as progress:
        progress.update(2)
        time.sleep(0.15)
    assert stream.getvalue() == "" and (made[0].n, made[0].closed) == (2, True)


def test_a_reporter_for_another_run_shows_the_same_and_logs_there(tmp_path):
    stream, run = io.StringIO(), RunDirectory.create(tmp_path / "run")
    other = Reporter(stream=stream, verbose=True, command="decompose --run r").into(run)
    with other.stage("a"):
        other.detail("b")
    assert stream.getvalue() == "b\n" and read_log(run.log)[0]["command"] == "decompose --run r"
    assert Reporter(quiet=True).into(run).quiet


def test_the_end_of_a_stage_is_logged_with_the_time_spent_in_its_phases(tmp_path):
    reporter = Reporter(tmp_path / "log.jsonl", quiet=True)
    with reporter.stage("decompose", ["survey", "fit"]):
        reporter.phase("survey")
        with part("rows"):
            time.sleep(0.01)
        reporter.phase("fit")
        times = {(row["phase"], row["part"]): row["seconds"] for row in reporter.times()}
    assert times["survey", "rows"] >= 0.01 > times["survey", ""]
    event = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    logged = {(row["phase"], row["part"]): row["seconds"] for row in event["times"]}
    assert logged["survey", "rows"] == times["survey", "rows"] and ("fit", "") in logged
    with reporter.stage("finetune"):
        assert all(row["phase"] == "" for row in reporter.times())
