"""Conditions of a plan by latency: its runtime, its sizes, and the doubts that its measurement leaves."""

import pytest
import torch
from torch import nn

from decomp.allocation.plan import LayerPlan, Plan
from decomp.errors import DecompError, TargetError
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.decomposition.latency_conditions import (
    digest_of_sizes,
    doubts,
    require_runs,
    require_same_runtime,
    with_sizes_compared,
)

CPU = torch.device("cpu")


def test_a_plan_for_another_runtime_or_without_latency_is_refused():
    plan = Plan(2.0, (), "joint", [], 1, 1, cost="latency", latency={"runtime": "onnxruntime"})
    require_same_runtime(plan, "onnxruntime", "the plan")
    with pytest.raises(
        TargetError, match="^the plan: was made for onnxruntime, got the runtime eager; leave --runtime out"
    ):
        require_same_runtime(plan, "eager", "the plan")
    with pytest.raises(TargetError, match="^the plan: was made for no runtime, but to reduce macs, got the runtime ea"):
        require_same_runtime(Plan(2.0, (), "joint", [], 1, 1), "eager", "the plan")


class Eigenvalues(nn.Module):
    def forward(self, images):
        return torch.linalg.eigvals(images).real


def test_a_network_that_the_runtime_of_the_plan_does_not_take_is_refused_and_only_there():
    for runtime, cost in (("eager", "latency"), (None, "macs")):
        require_runs(DecomposeOptions(speedup=2, cost=cost, runtime=runtime), Eigenvalues(), (1, 4, 4), CPU)
    options = DecomposeOptions(speedup=2, cost="latency", runtime="onnxruntime")
    require_runs(options, nn.Conv2d(1, 1, 1), (1, 4, 4), CPU)
    with pytest.raises(DecompError, match=r"^onnxruntime: the network cannot be exported .*node linalg_eig"):
        require_runs(options, Eigenvalues(), (1, 4, 4), CPU)
    with pytest.raises(DecompError, match="^onnxruntime: this runtime is measured on cpu only"):
        require_runs(options, nn.Conv2d(1, 1, 1), (1, 4, 4), torch.device("cuda"))


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


def edited(**changes):
    """Whether a plan by latency has other sizes than those measured after a change of its fields."""
    layers = [LayerPlan("a", keep=4), LayerPlan("b", spatial_rank=3), LayerPlan("gone", channel_rank=2)]
    plan = Plan(2.0, (), "joint", layers, spaces={"a": 4}, left_out=["x", "y"], latency={"runtime": "eager"})
    plan.latency["sizes"] = digest_of_sizes(plan, {"gone"})
    for name, value in changes.items():
        setattr(plan, name, value)
    found = with_sizes_compared(plan, {"gone"})
    assert found.latency["runtime"] == "eager" and "other_sizes" not in plan.latency
    return found.latency.get("other_sizes", False)


def test_sizes_that_were_edited_are_told_from_those_that_were_measured():
    same = [LayerPlan("a", keep=4), LayerPlan("b", spatial_rank=3)]
    assert not edited() and not edited(speedup=3.0) and not edited(left_out=["y", "x"])
    # Of layers in blocks that are left out the sizes have no effect, and the plan need not list them.
    assert not edited(layers=[*same, LayerPlan("gone")]) and not edited(layers=same)
    assert edited(layers=[LayerPlan("a", keep=5), same[1]]) and edited(layers=[same[0], LayerPlan("b", channel_rank=3)])
    assert edited(spaces={"a": 5}) and edited(left_out=["x"])


def test_sizes_that_were_put_back_are_those_that_were_measured_and_an_unknown_record_says_nothing():
    assert not edited(latency={"runtime": "eager"})
    plan = Plan(2.0, (), "joint", [LayerPlan("a", keep=4)])
    plan.latency = {"sizes": digest_of_sizes(plan, ()), "other_sizes": True}
    assert with_sizes_compared(plan, ()).latency == {"sizes": plan.latency["sizes"]}
