"""Survey and plan of a run: a record that goes with its plan, and edits that are told."""

import json

import pytest

from decomp.data.formats.digests import digest_file
from decomp.errors import TargetError
from decomp.pipelines.decomposition import run_plan
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import Collected, planned

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def test_an_attempt_without_a_plan_leaves_no_record_and_one_behind_a_plan_keeps_it(run, monkeypatch):
    with pytest.raises(TargetError):
        decompose(run, speedup=500, reporter=Collected())
    assert run.config("decompose") is None
    planned(run)
    before = run.config("decompose")

    def refuses(*arguments, **named):
        raise TargetError("--speedup", "is out of reach")

    monkeypatch.setattr(run_plan, "make_plan", refuses)
    with pytest.raises(TargetError):
        decompose(run, speedup=2, reporter=Collected())
    assert run.config("decompose")["asked"] == before["asked"] and run.plan_json.is_file()


def test_the_record_has_the_digest_of_the_plan_as_written_also_after_an_edit(run):
    plan = planned(run)
    written = digest_file(run.plan_json)
    assert run.config("decompose")["plan_digest"] == written
    (layer,) = [layer for layer in plan["layers"] if layer["layer"] == "5"]
    layer["keep"] -= 1
    run.plan_json.write_text(json.dumps(plan))
    reporter = Collected()
    decompose(run, speedup=2, plan_only=True, reporter=reporter)
    assert f"{run.plan_json} was edited; the edited plan is used" in reporter.messages
    assert run.config("decompose")["plan_digest"] == written != digest_file(run.plan_json)


def test_the_plan_alone_is_continued_from_python_with_the_options_that_were_asked(run):
    planned = decompose(run, speedup=1.5, plan_only=True, cost="params", keep_first=True, reporter=Collected())
    assert planned.lines()[-1].endswith(f" decompose --run {run.path} --speedup 1.5x --cost params --keep-first")


def test_a_network_that_the_runtime_does_not_take_is_refused_before_the_survey(run, monkeypatch):
    reporter = Collected()

    def refuses(options, *rest):
        raise TargetError(options.runtime, "does not take it")

    monkeypatch.setattr(run_plan, "require_runs", refuses)
    with pytest.raises(TargetError, match="^onnxruntime: does not take it"):
        decompose(run, speedup=1.2, cost="latency", runtime="onnxruntime", reporter=reporter)
    assert not any("survey" in line for line in reporter.messages)
