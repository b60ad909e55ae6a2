"""Checks at the end of a decomposition: whatever they find, the network that stands alone is kept and recorded."""

import dataclasses
import re

import pytest

import decomp
from decomp.cost.count import cost
from decomp.errors import DecompError
from decomp.pipelines.decomposition import emission, run_network
from decomp.pipelines.reporting.summary import summarise
from decomp.pipelines.run import calibration, loading
from decomp.pipelines.stages import decompose as stage
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import SHAPE, Collected, make_run

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def test_a_network_that_does_not_cost_what_was_planned_is_written_with_its_own_costs(run, monkeypatch):
    def one_more(module, shape):
        counted = cost(module, shape)
        return dataclasses.replace(counted, params=counted.params + 1)

    monkeypatch.setattr(emission, "cost", one_more)
    reporter = Collected()
    result = decompose(run, speedup=2, reporter=reporter)
    (warning,) = [line for line in reporter.messages if "please report this" in line]
    assert re.match(r"the plan counted [\d,]+ parameters, the network has [\d,]+; please report this", warning)
    assert result.facts["params_after"] == cost(decomp.load(run), SHAPE).params + 1
    assert decompose(run, speedup=2, reporter=Collected()).done_before


def class_with(hook):
    def original_class(options, **_):
        module = loading.models.load_model(options.model, weights="random").module
        module.register_forward_hook(hook)
        return module

    return original_class


def breaks(module, inputs, output):
    raise KeyError("no such output")


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (lambda module, inputs, output: 2 * output, "with the exchanged modules its outputs are off by 1 "),
        (breaks, "KeyError: 'no such output'"),
    ],
)
def test_what_the_class_does_not_take_stands_alone_and_the_reason_is_kept(run, monkeypatch, hook, reason):
    monkeypatch.setattr(loading, "original_class", class_with(hook))
    reporter = Collected()
    result = decompose(run, speedup=2, reporter=reporter)
    assert result.facts["into"]["verified"] is False and result.facts["into"]["reason"].startswith(reason)
    assert any(f"stands alone; the original class does not take it ({reason}" in line for line in reporter.messages)
    assert any("into= not" in line and reason in line for line in result.lines())
    assert cost(decomp.load(run), SHAPE).macs == result.facts["macs_after"]
    again = decompose(run, speedup=2, reporter=Collected())
    assert again.done_before and any(reason in line for line in again.lines())


def test_what_the_class_takes_is_recorded_too(run):
    assert decompose(run, speedup=2, reporter=Collected()).facts["into"] == {
        "verified": True, "reason": "", "unused": "",
    }  # fmt: skip


def test_a_comparison_that_fails_does_not_lose_the_network(run, monkeypatch):
    def fails(*arguments):
        raise DecompError("model", "must return tensors", got="text")

    monkeypatch.setattr(run_network.fidelity, "compare", fails)
    reporter = Collected()
    result = decompose(run, speedup=2, reporter=reporter)
    said = "cannot be compared with the original's: model: must return tensors, got text."
    assert any(said in line for line in reporter.messages)
    assert cost(decomp.load(run), SHAPE).macs == result.facts["macs_after"] and not result.facts["fidelity"]
    assert not any("held-out" in line for line in result.lines()) and summarise(run).fidelity == {}


def test_the_time_spent_is_told_and_kept_by_phase_and_part(run):
    reporter = Collected()
    facts = decompose(run, speedup=2, reporter=reporter).facts
    phases = {row["phase"] for row in facts["times"]}
    parts = {row["part"] for row in facts["times"]}
    assert {*stage.PHASES} <= phases
    assert {"gradients", "rows and moments", "rows and moments: forward", "curves: spatial", "refinement"} <= parts
    first = [line.startswith("time spent") for line in reporter.messages].index(True)
    shown = reporter.messages[first:]
    assert all(any(line.startswith(phase) for line in shown) for phase in stage.PHASES) and shown[-1].endswith("100 %")
    assert decompose(run, speedup=2, reporter=Collected()).facts["times"] == facts["times"]


def test_few_images_are_fitted_with_their_mixtures_and_judged_on_held_out_images_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 60)
    run = make_run(tmp_path / "few", n_images=30)
    result = decompose(run, speedup=2, reporter=Collected())
    reports = {report["layer"]: report for report in result.facts["layers"]}
    # 27 fitted images and 30 mixtures of ten points; three images are held out.
    assert reports["3"]["rows"] == 57 * 10 and result.facts["fidelity"]["images"] == 3
    assert all(0 <= report["halves"]["fitted"] <= report["halves"]["other"] + 1e-6 for report in reports.values())
    (line,) = result.facts["more_images"]
    assert "either half of the 27 fitted ones" in line and line in result.lines()
