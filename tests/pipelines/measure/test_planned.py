"""Conditions of evaluate that were not given: those of a plan by measured time, or the usual ones."""

import pytest
import torch

from decomp.pipelines.console.options import EvaluateOptions
from decomp.pipelines.measure import planned
from decomp.pipelines.measure.devices import full_name

CPU = torch.device("cpu")
PLAN = {"speedup": 1.3, "runtime": "compile", "batch_size": 1, "layout": "channels-last", "device": full_name(CPU)}


def taken(plan=PLAN, **given):
    options, line = planned.settled(EvaluateOptions(**given), plan, CPU)
    return (options.runtime, options.batch_size, options.layout), line


def test_without_a_plan_the_usual_conditions_hold():
    assert taken({}) == ((("eager",), 64, "contiguous"), "")
    assert taken({}, batch_size=3, layout="channels-last") == ((("eager",), 3, "channels-last"), "")


def test_what_is_not_given_is_taken_from_the_plan_and_said():
    begin = "the network was planned for its time: measured with the conditions of the plan, "
    found = (("compile",), 1, "channels-last")
    assert taken() == (found, begin + "runtime compile, batch size 1, layout channels-last")
    assert taken({**PLAN, "device": None})[0] == found  # not recorded
    assert taken(runtime="eager", layout="contiguous") == ((("eager",), 1, "contiguous"), begin + "batch size 1")
    assert taken(runtime="eager", layout="contiguous", batch_size=2) == ((("eager",), 2, "contiguous"), "")


def test_a_plan_for_another_device_or_a_runtime_that_is_not_installed_decides_nothing(monkeypatch):
    usual = (("eager",), 64, "contiguous")
    here = "here runtime eager, batch size 64, layout contiguous"
    assert taken({**PLAN, "device": "H100"}) == (usual, f"the network was planned for its time on H100; {here}")
    monkeypatch.setattr(planned, "lacking", lambda name: ("torch",))
    assert taken() == (usual, f"the network was planned for its time in compile, which is not installed; {here}")


@pytest.mark.parametrize("device, line", [(None, "on cpu; here"), ("CPU of the plan", "on CPU of the plan; here")])
def test_a_plan_for_a_runtime_that_does_not_run_on_the_device_decides_nothing(monkeypatch, device, line):
    monkeypatch.setattr(planned, "full_name", lambda device: "GPU")
    plan = {**PLAN, "runtime": "onnxruntime", "layout": "contiguous", "device": device}
    options, said = planned.settled(EvaluateOptions(), plan, torch.device("cuda"))
    assert options.runtime == ("eager",) and line in said
