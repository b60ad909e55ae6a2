"""Conditions of a plan by latency: the runtime that it was made for, and the doubts that its measurement leaves."""

import pytest

from decomp.allocation.plan import Plan
from decomp.errors import TargetError
from decomp.pipelines.decomposition.latency_conditions import doubts, require_same_runtime


def test_a_plan_for_another_runtime_or_without_latency_is_refused():
    plan = Plan(2.0, (), "joint", [], 1, 1, cost="latency", latency={"runtime": "onnxruntime"})
    require_same_runtime(plan, "onnxruntime", "the plan")
    with pytest.raises(TargetError, match="^the plan: was made for onnxruntime, got the runtime eager; leave the run"):
        require_same_runtime(plan, "eager", "the plan")
    with pytest.raises(TargetError, match="^the plan: was made for no runtime, but to reduce macs, got the runtime ea"):
        require_same_runtime(Plan(2.0, (), "joint", [], 1, 1), "eager", "the plan")


def test_a_target_that_was_not_met_and_a_busy_machine_are_said():
    assert doubts(2.0, {"signs": []}) == []
    (coarse,) = doubts(2.0, {"signs": [], "slower": 1.8, "faster": 2.4})
    assert coarse.startswith(
        "2x was not met: the closest measured are 1.80x and 2.40x; the faster plan is taken (sizes"
    )
    missed, busy = doubts(2.0, {"signs": ["it is slow", "it waits"], "slower": 1.8, "faster": 2.4})
    assert missed.endswith("the faster plan is taken")
    assert busy == (
        "the machine is busy (it is slow; it waits), so that the measured speed-up is not certain; make the plan again "
        "when nothing else runs"
    )
